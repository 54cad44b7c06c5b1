"""What run_here.py makes of test programs that do this and that: on this machine's kernel, with programs of our own."""
import json
import os
import pathlib
import platform
import select
import subprocess
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
KERNEL = ".".join(platform.release().split(".")[:2])
# Writes the report that GTEST_OUTPUT asks for, and what GoogleTest prints.
GOOGLETEST = """#!/usr/bin/python3
import json, os, sys
tests = {tests}
suite = [{{"name": n, "classname": "Suite", "result": "SKIPPED" if v == "skipped" else "COMPLETED", "time": "0s",
          **({{"failures": [1]}} if v == "failed" else {{}}), **({{"um_x": "5"}} if v == "recorded" else {{}})}}
         for n, v in tests.items()]
print("[==========] Running")
for n, v in tests.items():
    print(f"[ RUN      ] Suite.{{n}}")
    print(f"x.cc:1: Skipped\\nno such hook\\n[  SKIPPED ] Suite.{{n}} (0 ms)" if v == "skipped" else
          f"it broke\\n[  FAILED  ] Suite.{{n}} (0 ms)" if v == "failed" else f"noise\\n[       OK ] Suite.{{n}} (0 ms)")
if {crash}: os.abort()
json.dump({{"testsuites": [{{"testsuite": suite}}]}}, open(os.environ["GTEST_OUTPUT"].removeprefix("json:"), "w"))
sys.exit("failed" in tests.values())
"""


class RunHere(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.build = pathlib.Path(directory.name)
        (self.build / "results").mkdir()
        (self.build / "expected").touch()
        self.listing = ""

    def program(self, name, text, properties=""):
        path = self.build / name
        path.write_text(text)
        path.chmod(0o755)
        self.listing += f'add_test({name} "{path}")\nset_tests_properties({name} PROPERTIES LABELS "bpf" {properties})\n'

    def googletest(self, crash=False, **tests):
        self.program("suite", GOOGLETEST.format(tests=tests, crash=crash))

    def run_here(self, expected=""):
        """The result, once it agrees with the exit status."""
        (self.build / "CTestTestfile.cmake").write_text(self.listing)
        (self.build / "expected").write_text(expected)
        ran = subprocess.run(["/usr/bin/python3", HERE / "run_here.py", self.build, self.build / "results",
                              "--expected", self.build / "expected"], capture_output=True, text=True)
        result = json.loads((self.build / "results/result.json").read_text())
        self.assertEqual(ran.returncode, 1 if result["faults"] else 0, ran.stderr)
        return result

    def test_counts_each_test_of_a_program_and_keeps_what_it_recorded(self):
        self.googletest(One="passed", Two="recorded")
        result = self.run_here()
        self.assertEqual(result["faults"], [])
        self.assertEqual(result["counts"], {"passed": 2, "failed": 0, "skipped": 0})
        self.assertEqual(result["recorded"], {"Suite.Two": {"um_x": "5"}})
        self.assertEqual(result["kernel"], platform.release())

    def test_a_failing_test_is_a_fault_and_its_output_is_kept(self):
        self.googletest(One="passed", Two="failed")
        result = self.run_here()
        self.assertEqual(result["faults"], ["Suite.Two failed"])
        self.assertIn("it broke", result["failures"])
        self.assertNotIn("noise", result["failures"])

    def test_a_skip_that_is_not_listed_is_a_fault_with_its_reason(self):
        self.googletest(One="skipped")
        for expected in ("", "9.9 Suite.One", f"{KERNEL}9 Suite.One", f"{KERNEL} Suite.Other*\n{KERNEL} Suite.Two"):
            faults = self.run_here(expected)["faults"]
            self.assertIn("Suite.One skipped, and is not in expected-skips.txt: no such hook", faults)

    def test_a_skip_that_is_listed_for_this_kernel_is_none(self):
        self.googletest(One="skipped")
        for expected in (f"{KERNEL} Suite.One  # why", f"9.9,{KERNEL} Suite.*"):
            self.assertEqual(self.run_here(expected)["faults"], [])

    def test_a_listed_skip_that_did_not_happen_is_a_fault(self):
        self.googletest(One="passed")
        self.assertEqual(self.run_here(f"{KERNEL} Suite.One")["faults"],
                         ["Suite.One did not skip, and is in expected-skips.txt: remove it there"])

    def test_a_crash_is_a_fault(self):
        self.googletest(crash=True, One="passed")
        self.assertEqual(self.run_here()["faults"], ["suite failed: ended with -6"])

    def test_a_program_without_tests_is_a_fault(self):
        self.googletest()
        self.assertEqual(self.run_here()["faults"], ["suite failed: ran no test"])

    def test_a_program_that_hangs_is_ended_and_a_fault(self):
        self.program("slow", "#!/bin/sh\nsleep 1000 & echo $!\nsleep 1000\n", "TIMEOUT 0.1")
        self.assertEqual(self.run_here()["faults"], ["slow failed: still running after 1 s"])
        child = int((self.build / "results/tests.log").read_text())
        try:
            watched = os.pidfd_open(child)
        except ProcessLookupError:
            return
        self.addCleanup(os.close, watched)
        self.assertTrue(select.select([watched], [], [], 30)[0], "what it started lives on")

    def test_a_program_that_was_not_built_is_a_fault(self):
        self.program("gone", "")
        os.unlink(self.build / "gone")
        self.assertEqual(self.run_here()["faults"], ["gone failed: not built"])

    def test_other_programs_pass_fail_and_skip_by_their_exit_status(self):
        self.program("good", "#!/bin/sh\ntest \"$A\" = b\n", 'ENVIRONMENT "A=b"')
        self.program("bad", "#!/bin/sh\nexit 3\n")
        self.program("idle", "#!/bin/sh\necho needs a moon\nexit 77\n", "SKIP_RETURN_CODE 77")
        self.assertEqual(self.run_here(f"{KERNEL} idle")["faults"], ["bad failed: ended with 3"])

    def test_no_test_at_all_is_a_fault(self):
        self.assertEqual(self.run_here()["faults"], ["no test has the label bpf"])


if __name__ == "__main__":
    unittest.main()
