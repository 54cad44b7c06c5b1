#!/usr/bin/python3
"""The lab's commands after a kill -9 in the middle, and twice in a row: they work, and leave nothing behind."""

import os
import pathlib
import subprocess
import tempfile
import unittest

import leftovers
import mesh

LAB = ["/usr/bin/python3", str(pathlib.Path(__file__).with_name("lab.py"))]


def lab(*arguments, **environment):
    return subprocess.run([*LAB, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                          env={**os.environ, **environment})


class RecoveryTest(unittest.TestCase):
    def expect_ok(self, *arguments):
        done = lab(*arguments)
        self.assertEqual(done.returncode, 0, f"lab.py {' '.join(arguments)}:\n{done.stdout}")
        return done.stdout

    def test_down_in_a_clone_that_was_never_built_says_that_nothing_runs(self):
        with tempfile.TemporaryDirectory() as empty:
            done = lab("down", MESH_BIN_DIR=f"{empty}/bin", UNDERMESH_LAB_DIR=f"{empty}/lab", UNDERMESH_RUN_DIR=f"{empty}/run")
            self.assertEqual((done.returncode, os.listdir(empty)), (0, []), done.stdout)
            self.assertIn("Nothing runs", done.stdout)
            os.mkdir(f"{empty}/run")  # something may run after all
            self.assertEqual(lab("down", MESH_BIN_DIR=f"{empty}/bin", UNDERMESH_RUN_DIR=f"{empty}/run").returncode, 2)

    def kill_during(self, *arguments, when):
        process = subprocess.Popen([*LAB, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            mesh.eventually("the lab has come so far", when, 60)
        finally:
            process.kill()
            process.wait()

    def test_up_and_down_work_again_after_a_kill_and_leave_nothing(self):
        lab("down")
        before, namespaces = leftovers.snapshot(), set()
        self.addCleanup(lab, "down")
        self.kill_during("up", when=mesh.running)
        self.expect_ok("down")
        log = mesh.access_log("productpage-v1")
        self.kill_during("run", "--step", "5", when=lambda: log.exists() and "/login" in log.read_text())
        self.expect_ok("run", "--step", "2")
        for _ in range(2):
            self.assertIn("http://127.0.0.1:8080/productpage", self.expect_ok("up"))
            namespaces |= leftovers.own_namespaces()
            visitor = mesh.Visitor()
            self.assertEqual(visitor.page().status, 200)
            visitor.close()
        for _ in range(2):
            self.expect_ok("down")
        left = leftovers.left_behind(before, namespaces)
        self.assertEqual({what: things for what, things in left.items() if things}, {})


if __name__ == "__main__":
    unittest.main(verbosity=2)
