"""Runs every test with the label bpf on the kernel that runs now: run_here.py BUILD RESULTS [--expected FILE]

For a machine made for it (QEMU guest, Vagrant box): the tests own its cgroups and bpffs. What came of it is
RESULTS/result.json (written last, at once) and RESULTS/tests.log. Fails when a test fails, hangs or is missing, when one
skips that is not in expected-skips.txt, and when one that is listed there does not skip.

Time limits are those of ctest times ten: emulated processors are slow. MESH_TEST_SMALL=1 tells the tests that move much
data to move little.
"""
import argparse
import fnmatch
import json
import os
import pathlib
import platform
import re
import signal
import subprocess
import sys
import time

SLOWER = 10
GOOGLETEST_KEYS = {"name", "file", "line", "status", "result", "timestamp", "time", "classname", "failures", "value_param",
                   "type_param"}  # all others are properties that a test recorded
HERE = pathlib.Path(__file__).resolve().parent


def listed_tests(build):
    """What ctest would run: name, command, working directory, environment, time limit, exit status of a skip."""
    listed = subprocess.run(["ctest", "--test-dir", build, "-L", "^bpf$", "--show-only=json-v1"],
                            check=True, capture_output=True, text=True)
    for test in json.loads(listed.stdout)["tests"]:
        properties = {p["name"]: p["value"] for p in test.get("properties", [])}
        yield {
            "name": test["name"],
            "command": test.get("command"),  # none: it was not built
            "cwd": properties.get("WORKING_DIRECTORY", build),
            "environment": dict(pair.split("=", 1) for pair in properties.get("ENVIRONMENT", [])),
            "limit": float(properties.get("TIMEOUT", 120)) * SLOWER,
            "skip_status": properties.get("SKIP_RETURN_CODE"),
        }


def run(test, log, report):
    """Exit status (None: over the limit) and where its output starts in the log."""
    start = log.tell()
    environment = os.environ | test["environment"] | {"MESH_TEST_SMALL": "1", "GTEST_OUTPUT": f"json:{report}"}
    process = subprocess.Popen(test["command"], cwd=test["cwd"], env=environment, stdout=log, stderr=log,
                               stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        status = process.wait(test["limit"])
    except subprocess.TimeoutExpired:
        status = None
    try:
        os.killpg(process.pid, signal.SIGKILL)  # also what a test left running
    except ProcessLookupError:
        pass
    process.wait()
    log.seek(0, os.SEEK_END)
    return status, start


def outcomes_of_googletest(report, output):
    """name -> (passed | failed | skipped, detail), and the properties that the tests recorded."""
    outcomes, recorded = {}, {}
    for suite in json.loads(report.read_text())["testsuites"]:
        for test in suite["testsuite"]:
            name = f"{test['classname']}.{test['name']}"
            if test.get("failures"):
                outcomes[name] = ("failed", "")
            elif test["result"] == "SKIPPED":
                reason = re.search(r": Skipped\n(.*)\n\[  SKIPPED \] " + re.escape(name) + " ", output)
                outcomes[name] = ("skipped", reason.group(1) if reason else "no reason given")
            else:
                outcomes[name] = ("passed", "")
            values = {key: value for key, value in test.items() if key not in GOOGLETEST_KEYS}
            if values:
                recorded[name] = values
    return outcomes, recorded


def outcomes_of(test, status, output, report):
    name = test["name"]
    if status is None:
        return {name: ("failed", f"still running after {test['limit']:.0f} s")}, {}
    outcomes, recorded = outcomes_of_googletest(report, output) if report.exists() else ({}, {})
    if outcomes or "[==========]" in output:  # GoogleTest
        if status != 0 and not any(verdict == "failed" for verdict, _ in outcomes.values()):
            outcomes[name] = ("failed", f"ended with {status}")
        return outcomes or {name: ("failed", "ran no test")}, recorded
    if test["skip_status"] is not None and status == int(test["skip_status"]):
        return {name: ("skipped", output.strip()[-200:])}, {}
    if status != 0:
        return {name: ("failed", f"ended with {status}")}, {}
    skipped = re.search(r"skipped=\d+", output)  # unittest
    return {name: ("skipped", skipped.group()) if skipped else ("passed", "")}, {}


def expected_skips(file, kernel):
    """The patterns for this kernel."""
    patterns = []
    for line in file.read_text().splitlines():
        words = line.split("#")[0].split()
        if words and any(re.match(re.escape(k) + r"(?!\d)", kernel) for k in words[0].split(",")):
            patterns.append(words[1])
    return patterns


def faults_of(outcomes, patterns):
    faults = [f"{name} failed: {detail}".rstrip(": ") for name, (verdict, detail) in outcomes.items() if verdict == "failed"]
    skipped = {name: detail for name, (verdict, detail) in outcomes.items() if verdict == "skipped"}
    for name, detail in skipped.items():
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            faults.append(f"{name} skipped, and is not in expected-skips.txt: {detail}")
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in skipped):
            faults.append(f"{pattern} did not skip, and is in expected-skips.txt: remove it there")
    return faults or ([] if outcomes else ["no test has the label bpf"])


def without_passes(output):
    """GoogleTest's output without that of tests that passed."""
    return re.sub(r"\[ RUN      \] (.*)\n(?:(?!\[ RUN ).*\n)*?\[       OK \] \1 .*\n", "", output)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("--expected", type=pathlib.Path, default=HERE / "expected-skips.txt")
    options = parser.parse_args()
    build, results = options.build, options.results
    kernel, start = platform.release(), time.monotonic()
    outcomes, recorded, seconds, failures = {}, {}, {}, []
    with open(results / "tests.log", "w+", encoding="utf-8", errors="replace") as log:
        for test in listed_tests(build):
            began = time.monotonic()
            print(f"{test['name']} ...", flush=True)
            if test["command"] is None or not os.path.exists(test["command"][0]):
                outcomes[test["name"]] = ("failed", "not built")
                continue
            report = results / f"{test['name']}.json"
            status, where = run(test, log, report)
            log.seek(where)
            output = log.read()
            verdicts, properties = outcomes_of(test, status, output, report)
            outcomes |= verdicts
            recorded |= properties
            seconds[test["name"]] = round(time.monotonic() - began, 1)
            print(f"{test['name']}: {seconds[test['name']]} s", flush=True)
            if any(verdict == "failed" for verdict, _ in verdicts.values()):
                failures.append(without_passes(output))
    verdicts = [verdict for verdict, _ in outcomes.values()]
    result = {
        "kernel": kernel,
        "minutes": round((time.monotonic() - start) / 60, 1),
        "counts": {verdict: verdicts.count(verdict) for verdict in ("passed", "failed", "skipped")},
        "skips": {name: detail for name, (verdict, detail) in outcomes.items() if verdict == "skipped"},
        "faults": faults_of(outcomes, expected_skips(options.expected, kernel)),
        "seconds": seconds,
        "recorded": recorded,
        "failures": "".join(failures),
    }
    (results / "result.tmp").write_text(json.dumps(result, indent=1))
    (results / "result.tmp").rename(results / "result.json")
    print(result["failures"], f"Linux {kernel}: {result['minutes']} min, {json.dumps(result['counts'])}", *result["faults"], sep="\n")
    sys.exit(bool(result["faults"]))


if __name__ == "__main__":
    main()
