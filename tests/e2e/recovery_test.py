#!/usr/bin/python3
"""The lab's commands after a kill -9 in the middle, and twice in a row: they work, and leave nothing behind."""

import pathlib
import subprocess
import unittest

import leftovers
import mesh

LAB = ["/usr/bin/python3", str(pathlib.Path(__file__).with_name("lab.py"))]


def lab(*arguments):
    return subprocess.run([*LAB, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


class RecoveryTest(unittest.TestCase):
    def expect_ok(self, *arguments):
        done = lab(*arguments)
        self.assertEqual(done.returncode, 0, f"lab.py {' '.join(arguments)}:\n{done.stdout}")
        return done.stdout

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
