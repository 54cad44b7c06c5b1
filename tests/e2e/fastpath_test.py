#!/usr/bin/python3
"""The same-node fast path with the real programs, by TCP and by HTTP, while it is switched and while meshd dies: every byte is
compared. On a kernel that cannot have it, it stays off with its reason and the same traffic goes by TCP."""

import json
import os
import pathlib
import platform
import select
import signal
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import mesh  # noqa: E402
from resilience_test import programs, wait_for_new, wait_ready  # noqa: E402

WORK = mesh.ROOT / "build" / "fastpath"
EXACT = ["/usr/bin/python3", str(pathlib.Path(__file__).with_name("exact.py"))]
CAN = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2]) >= (6, 13)

CONFIG = """
apiVersion: v1
kind: Service
metadata: {name: exact}
spec: {selector: {app: exact}, ports: [{name: http, port: 8080}, {name: tcp, port: 9090}]}
---
apiVersion: v1
kind: Service
metadata: {name: slow, annotations: {undermesh.io/fastpath: disabled}}
spec: {selector: {app: slow}, ports: [{name: http, port: 8080}, {name: tcp, port: 9090}]}
"""


def fast_path():
    return mesh.meshctl_json("datapath", "fastpath", "status")


def switch(word):
    return mesh.meshctl("datapath", "fastpath", word, check=False).returncode


def counted(name):
    return mesh.status()["kernel"][f"fastpath_{name}"]


def enabled():
    """{reason: value} of the metric."""
    return {labels["reason"]: value for name, labels, value in mesh.metrics() if name == "undermesh_fastpath_enabled"}


class Exact:
    """Clients in the workload `client` during the block; `result` afterwards."""

    def __init__(self, host, clients=4):
        self._command = [str(mesh.MESHCTL), "sandbox", "exec", "client", "--", *EXACT, "load", host, str(clients)]

    def __enter__(self):
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.go_on()
        return self

    def go_on(self, wanted=50):
        print(wanted, file=self._process.stdin, flush=True)
        is_there, _, _ = select.select([self._process.stdout], [], [], 180)
        if not is_there:
            self._process.kill()
        got = self._process.stdout.readline().strip()
        if not got.isdigit() or int(got) < wanted:
            output, _ = self._process.communicate(timeout=180)
            raise AssertionError(f"{got or 'no'} exchanges were right, not {wanted}: {output}")

    def __exit__(self, kind, *_):
        output, _ = self._process.communicate(timeout=180)
        self.result = json.loads(output) if kind is None else None


class FastPath(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        mesh.start_own(WORK)
        cls.addClassCleanup(mesh.end_own, WORK)
        wait_ready()
        mesh.eventually("the mesh is ready, not degraded", lambda: mesh.status()["state"] == "ready", 60)
        cls.fresh, cls.checked = mesh.status(), mesh.meshctl("check", check=False)
        for name in ("exact", "slow"):
            mesh.meshctl("sandbox", "run", name, "-l", f"app={name}", "--detach", "--", *EXACT, "serve")
        mesh.meshctl("sandbox", "run", "client", "--detach", "--", "sleep", "infinity")
        path = WORK / "apply.yaml"
        path.write_text(CONFIG)
        mesh.meshctl("apply", "-f", path)
        mesh.wait_published()
        for name in ("exact", "slow"):
            for port in (8080, 9090):
                mesh.eventually(f"{name} listens on {port}", lambda name=name, port=port: cls.listens(name, port), 60)

    @staticmethod
    def listens(name, port):
        address = f"{mesh.workload_addresses(name)[0]}:{port}"
        return mesh.connect_from("client", address)[0]["result"] == "OK"

    def setUp(self):
        mesh.meshctl("up", "--state-dir", WORK / "state")
        wait_ready()
        self.assertEqual(switch("on"), 0 if CAN else 1, fast_path())

    def test_is_off_by_default_which_is_no_fault(self):
        self.assertEqual(self.fresh["state"], "ready")
        self.assertEqual((self.fresh["fastPath"]["on"], self.fresh["fastPath"]["cause"]), (False, "default"))
        line, = (line for line in self.checked.stdout.splitlines() if "fast path" in line)
        self.assertTrue(line.startswith("ok "), line)
        self.assertIn("meshctl datapath fastpath on", line)

    def test_says_whether_it_is_on_and_why_not(self):
        found = fast_path()
        self.assertEqual((found["on"], found["cause"]), (True, "") if CAN else (False, "kernel"))
        shown = mesh.meshctl("check", check=False).stdout
        self.assertIn("the same-node fast path is on" if CAN else "6.13", shown)
        mesh.eventually("the metric says it too", lambda: enabled() == {found["cause"]: int(CAN)})
        self.assertEqual(switch("off"), 0)
        for command in ("check", "status"):
            self.assertIn("switched off by", mesh.meshctl(command, check=False).stdout)
        mesh.eventually("so does the metric", lambda: enabled() == {"operator": 0})

    def test_its_programs_are_shown_while_it_is_on(self):
        def shown():
            return {p["name"]: p["links"] for p in mesh.meshctl_json("bpf", "progs")["programs"] if p["name"].startswith("um_fast_")}

        if not CAN:
            self.assertEqual(shown(), {})
            return
        self.assertEqual(sorted(shown()), ["um_fast_join", "um_fast_msg", "um_fast_sock_ops"])
        client = next(w["id"] for w in mesh.status()["workloads"] if w["name"] == "client")
        self.assertIn(f"{client}/fastpath", shown()["um_fast_sock_ops"])
        with Exact("exact") as load:
            runs = mesh.meshctl_json("bpf", "stats", "--seconds", "1")["programs"]
            load.go_on()
        self.assertGreater(runs["um_fast_sock_ops"]["runs"] + runs["um_fast_msg"]["runs"], 0)
        self.assertEqual(switch("off"), 0)
        self.assertEqual(shown(), {})

    def test_switched_off_and_on_under_traffic(self):
        with Exact("exact") as old:
            for _ in range(3):
                self.assertEqual(switch("off"), 0)
                old.go_on()
                with Exact("exact") as off:
                    off.go_on()
                self.assertEqual(switch("on"), 0 if CAN else 1, fast_path())
                old.go_on()
                joined, before = counted("joined"), counted("redirected")
                with Exact("exact") as on:
                    on.go_on()
                    if CAN:  # both ends of four TCP connections and of four to the proxy; its own may be older
                        mesh.eventually("all have joined", lambda: counted("joined") >= joined + 16, 60)
                        mesh.eventually("and send past TCP", lambda: counted("redirected") >= before + 8, 60)
                        on.go_on()
                self.assertEqual((off.result["errors"], on.result["errors"]), ([], []))
        self.assertEqual(old.result["errors"], [])
        if not CAN:
            self.assertEqual(counted("joined"), 0)

    def test_meshd_killed_under_traffic(self):
        with Exact("exact") as clients:
            for _ in range(3):
                old = programs()["meshd"]
                os.kill(old, signal.SIGKILL)
                clients.go_on()
                wait_for_new("meshd", old)
                wait_ready()
                clients.go_on()
                mesh.eventually("its self-test is through", lambda: fast_path()["cause"] != "testing", 60)
                self.assertEqual(fast_path()["on"], CAN, fast_path())
                with Exact("exact") as fresh:
                    fresh.go_on()
                self.assertEqual(fresh.result["errors"], [])
        self.assertEqual(clients.result["errors"], [])

    def test_off_stays_off_when_meshd_is_killed(self):
        self.assertEqual(switch("off"), 0)
        old = programs()["meshd"]
        os.kill(old, signal.SIGKILL)
        wait_for_new("meshd", old)
        wait_ready()
        self.assertEqual(fast_path()["cause"], "operator")

    def test_a_disabled_service_stays_by_tcp(self):
        before = counted("joined")
        with Exact("slow", clients=4) as slow, Exact("exact", clients=1) as other:
            if CAN:  # both ends of its TCP connection, of its way to the proxy, and of the proxy's to the server
                mesh.eventually("the other's connections have joined", lambda: counted("joined") >= before + 6)
            slow.go_on()
            other.go_on()
        self.assertEqual((slow.result["errors"], other.result["errors"]), ([], []))
        mesh.eventually("the counters are read", lambda: counted("joined") >= before + (6 if CAN else 0))
        self.assertLessEqual(counted("joined"), before + 6)


if __name__ == "__main__":
    unittest.main(verbosity=2)
