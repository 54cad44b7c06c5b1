#!/usr/bin/python3
"""1,000 workloads come and go, 100 of them by kill -9, at most 50 at once: nothing is left of them."""

import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import leftovers  # noqa: E402
import mesh  # noqa: E402
from resilience_test import programs, wait_ready  # noqa: E402

WORK = mesh.ROOT / "build" / "churn"
TOTAL = int(os.environ.get("CHURN_WORKLOADS", "1000"))
AT_ONCE = 50
KILLED_EACH = 10  # of every 100, each way: the command, and `sandbox run` itself


def bpf_map_entries():
    """{map name: number of entries} of the hash maps: what workloads write."""
    maps = json.loads(subprocess.run(["bpftool", "-j", "map", "show"], capture_output=True, text=True, check=True).stdout)
    counts = {}
    for entry in maps:
        if not entry.get("name", "").startswith("um_") or "hash" not in entry["type"]:
            continue
        dump = subprocess.run(["bpftool", "-j", "map", "dump", "id", str(entry["id"])], capture_output=True, text=True, check=True)
        counts[entry["name"]] = len(json.loads(dump.stdout or "[]"))
    return counts


def held():
    """Everything that could leak, by number."""
    fds = {name: len(os.listdir(f"/proc/{pid}/fd")) for name, pid in programs().items() if name != "meshproxy"}
    return {"fds": fds, "maps": bpf_map_entries(), "links": len(leftovers.bpf()),
            "cgroups": len(leftovers.cgroups()), "namespaces": len(leftovers.namespaces()),
            "interfaces": len(leftovers.interfaces()), "mounts": len(leftovers.mounts())}


def proxy_fds():
    return len(os.listdir(f"/proc/{programs()['meshproxy']}/fd"))


def one_life(number):
    """A workload from its start to its end; the way it ends depends on its number."""
    name = f"churn-{number}"
    run = subprocess.Popen([str(mesh.MESHCTL), "sandbox", "run", name, "-l", "app=churn", "--", "/bin/sh", "-c",
                            "echo up; exec sleep 1000"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True)
    if run.stdout.readline() != "up\n":
        raise RuntimeError(f"{name}: {run.stderr.read()}")
    way = number % 100
    if way < KILLED_EACH:
        run.send_signal(signal.SIGKILL)
    elif way < 2 * KILLED_EACH:
        children = pathlib.Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
    else:
        run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)


class Churn(unittest.TestCase):
    def test_nothing_is_left_of_a_thousand_workloads(self):
        mesh.start_own(WORK)
        self.addCleanup(mesh.end_own, WORK)
        wait_ready()
        one_life(99)  # bridge, directories and the like exist from the first sandbox on
        mesh.eventually("the first workload is gone", lambda: len(mesh.status()["workloads"]) <= 1, 30)
        before, before_proxy = held(), proxy_fds()
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            for _ in pool.map(one_life, range(100, 100 + TOTAL)):
                pass
        mesh.eventually("status names no workload any more", lambda: len(mesh.status()["workloads"]) <= 1, 60)
        mesh.eventually(f"all is as before: {before}", lambda: held() == before and proxy_fds() <= before_proxy, 60)


if __name__ == "__main__":
    unittest.main(verbosity=2)
