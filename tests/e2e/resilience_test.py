#!/usr/bin/python3
"""What survives which death: each program of the mesh is killed or stopped under load, as a user's kernel would see it."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import leftovers  # noqa: E402
import mesh  # noqa: E402

WORK = mesh.ROOT / "build" / "resilience"
PINS = "/sys/fs/bpf/undermesh"
ORIGIN = mesh.MESHCTL.with_name("bench_origin")
STEADY = ["/usr/bin/python3", str(pathlib.Path(__file__).with_name("steady.py"))]

# Writes down at once what it is asked, and answers; /held not before somebody opens the FIFO for writing.
SLOW = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        with open(sys.argv[1], "a") as log: log.write(self.path + "\\n")
        if self.path == "/held": open(sys.argv[2]).close()
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""

CONFIG = """
apiVersion: v1
kind: Service
metadata: {name: origin}
spec:
  selector: {app: origin}
  ports:
    - {name: http, port: 8080}
    - {name: tcp, port: 9090, targetPort: 8080}
---
apiVersion: v1
kind: Service
metadata: {name: guarded}
spec:
  selector: {app: guarded}
  ports: [{name: http, port: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: slow}
spec:
  selector: {app: slow}
  ports: [{name: http, port: 8080}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: origin}
spec:
  hosts: [origin]
  http:
    - route: [{destination: {host: origin}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: guarded}
spec:
  selector: {matchLabels: {app: guarded}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/nobody]}}]}]
"""

# A new upstream connection for every request.
ONE_REQUEST_A_CONNECTION = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: origin}
spec:
  host: origin
  trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 1}}}
"""


NOBODY_TO_ORIGIN = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: origin}
spec:
  selector: {matchLabels: {app: origin}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/nobody]}}]}]
"""


def apply(text):
    path = WORK / "apply.yaml"
    path.write_text(text)
    mesh.meshctl("apply", "-f", path)
    mesh.wait_published()


def programs():
    """{name: pid} of the mesh's own cgroup; the supervisor is the meshctl in it."""
    mounts = pathlib.Path("/proc/mounts").read_text().splitlines()
    root = next(line.split()[1] for line in mounts if line.split()[2] == "cgroup2")
    found = {}
    for pid in pathlib.Path(root, leftovers.CGROUP, "mesh/cgroup.procs").read_text().split():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found[os.path.basename(os.readlink(f"/proc/{pid}/exe")).removesuffix(" (deleted)")] = int(pid)
    return found


def client_programs():
    """The ids of the programs at the client's hooks."""
    client = next(w["id"] for w in mesh.status()["workloads"] if w["name"] == "client")
    return {json.loads(subprocess.run(["bpftool", "-j", "link", "show", "pinned", link], capture_output=True, check=True).stdout)["prog_id"]
            for link in pathlib.Path(PINS, "links", str(client)).iterdir()}


def say_they_are_of_another_build():
    """Of the programs that are pinned: the next meshd puts its own in their place. (bpf/: layout, is damaged, which object.)"""
    meta = ["bpftool", "-j", "map", "dump", "pinned", f"{PINS}/meta"]
    layout = json.loads(subprocess.run(meta, capture_output=True, check=True).stdout)[0]["value"][:4]
    subprocess.run(["bpftool", "map", "update", "pinned", f"{PINS}/meta", "key", *["0"] * 4, "value", *layout, *["0"] * 12], check=True)


def wait_for_new(name, old):
    return mesh.eventually(f"a new {name}", lambda: programs().get(name) not in (None, old) and programs()[name], 60)


def wait_ready():
    def ready():
        done = mesh.meshctl("status", "-o", "json", check=False)
        return done.returncode in (0, 5) and all(p["connected"] for p in json.loads(done.stdout)["programs"].values())
    mesh.eventually("all three programs are connected", ready, 60)


def waiting_connections(workload):
    """What the proxy's listener in a workload has to accept: the receive queue of a socket that listens."""
    lines = map(str.split, mesh.inside(workload, "cat", "/proc/net/tcp").splitlines()[1:])
    return sum(int(words[4].partition(":")[2], 16) for words in lines if words[3] == "0A" and words[1].endswith(":3A99"))


class Steady:
    """A client that runs during the block inside a workload: one answer after the other; `result` afterwards."""

    def __init__(self, workload, *arguments):
        self._command = [str(mesh.MESHCTL), "sandbox", "exec", workload, "--", *STEADY, *map(str, arguments)]

    def __enter__(self):
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.go_on()
        return self

    def go_on(self, wanted=20):
        """Until a good number of requests that begin now, or later, have been answered."""
        print(wanted, file=self._process.stdin, flush=True)
        got = self._process.stdout.readline().strip()
        if not got.isdigit() or int(got) < wanted:
            raise TimeoutError(f"{self._command}: {got or 'no'} answers, not {wanted}")

    def __exit__(self, kind, *_):
        output, _ = self._process.communicate(timeout=180)
        self.result = json.loads(output) if kind is None else None


class Resilience(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        mesh.start_own(WORK)
        cls.addClassCleanup(mesh.end_own, WORK)
        os.mkfifo(WORK / "release")
        for name in ("origin", "guarded"):
            mesh.meshctl("sandbox", "run", name, "-l", f"app={name}", "--detach", "--", ORIGIN, "8080")
        mesh.meshctl("sandbox", "run", "slow", "-l", "app=slow", "--detach", "--", "/usr/bin/python3", "-c", SLOW, WORK / "slow.log",
                     WORK / "release")
        mesh.meshctl("sandbox", "run", "client", "-l", "app=client", "--detach", "--", "sleep", "infinity")
        mesh.meshctl("sandbox", "run", "free", "--annotation", "undermesh.io/on-proxy-failure=bypass", "--detach", "--", "sleep",
                     "infinity")
        apply(CONFIG)
        mesh.eventually("the origin answers through the mesh",
                        lambda: mesh.load_from("client", "http://origin:8080/10", 1)["statuses"] == {"200": 1}, 60)
        mesh.eventually("so does the slow one",
                        lambda: mesh.load_from("client", "http://slow:8080/", 1)["statuses"] == {"200": 1}, 60)

    def setUp(self):
        mesh.meshctl("up", "--state-dir", WORK / "state")  # adopts what runs, restarts what does not
        wait_ready()

    def forbidden(self):
        """A client that dials all the time what its policy forbids."""
        return Steady("client", "connect", f"{mesh.workload_addresses('guarded')[0]}:8080")

    def assert_always_refused(self, forbidden):
        self.assertEqual(set(forbidden.result["errors"]), {"ECONNREFUSED"}, forbidden.result)  # "connected" would be one

    def kill_three_times(self, names, *clients):
        """The clients go on before, from the moment of each death on, and when the next ones are ready."""
        for _ in range(3):
            old = programs()
            for name in names:
                os.kill(old[name], signal.SIGKILL)
            for client in clients:
                client.go_on()
            for name in names:
                wait_for_new(name, old[name])
            wait_ready()
            for client in clients:
                client.go_on()

    def test_meshd_killed_and_restarted_loses_no_request_and_no_policy(self):
        with Steady("client", "load", "http://origin:8080/100", 4) as load, self.forbidden() as forbidden:
            self.kill_three_times(["meshd"], load, forbidden)
        self.assertEqual(load.result["errors"], {}, load.result["first_errors"])
        self.assert_always_refused(forbidden)

    def test_meshd_stopped_for_30_s_with_a_new_upstream_connection_for_every_request(self):
        apply(ONE_REQUEST_A_CONNECTION)
        self.addCleanup(lambda: mesh.meshctl("delete", "DestinationRule", "origin"))
        meshd = programs()["meshd"]
        with Steady("client", "load", "http://origin:8080/100", 4) as load, self.forbidden() as forbidden:
            os.kill(meshd, signal.SIGSTOP)
            try:
                time.sleep(30)  # the issue's own figure: what is tested is that half a minute passes
                load.go_on()
                forbidden.go_on()
            finally:
                os.kill(meshd, signal.SIGCONT)
            load.go_on()
            forbidden.go_on()
        self.assertEqual(load.result["errors"], {}, load.result["first_errors"])
        self.assert_always_refused(forbidden)

    def kill_under_load(self, *names):
        apply(ONE_REQUEST_A_CONNECTION)
        self.addCleanup(lambda: mesh.meshctl("delete", "DestinationRule", "origin"))
        with Steady("client", "load", "http://origin:8080/100", 4) as load, self.forbidden() as forbidden:
            self.kill_three_times(names, load, forbidden)
        self.assertEqual(load.result["errors"], {}, load.result["first_errors"])
        self.assert_always_refused(forbidden)

    def test_meshhold_killed_fails_nothing(self):
        self.kill_under_load("meshhold")

    def test_meshd_and_meshhold_killed_together_fail_nothing(self):
        self.kill_under_load("meshd", "meshhold")

    def swap_meshd_and_the_programs(self):
        """The supervisor would wait longer and longer: another one starts the next meshd."""
        at_work, old = client_programs(), programs()
        for name in ("meshctl", "meshd"):
            os.kill(old[name], signal.SIGKILL)
        mesh.eventually("both have ended", lambda: not {old["meshctl"], old["meshd"]} & set(programs().values()))
        say_they_are_of_another_build()
        mesh.meshctl("up", "--state-dir", WORK / "state")
        wait_for_new("meshd", old["meshd"])
        mesh.eventually("all programs of the client are others", lambda: not at_work & client_programs(), 30)

    def swap_meshhold(self):
        old = programs()["meshhold"]
        os.kill(old, signal.SIGKILL)
        wait_for_new("meshhold", old)
        wait_ready()

    def test_200_long_connections_and_1000_requests_a_second_survive_50_swaps_of_each(self):
        """100 connections through the proxy and 100 that the kernel balanced, of the programs in the kernel, meshd and meshhold."""
        swaps, rate = 50, 1000
        with Steady("client", "long", 100, rate, "origin:8080", "origin:9090") as load, self.forbidden() as forbidden:
            for _ in range(swaps):
                self.swap_meshd_and_the_programs()
                load.go_on(50)
                self.swap_meshhold()
                load.go_on(50)
            forbidden.go_on()
        result = load.result
        asked = rate * result["seconds"]
        print(f"{result['ok']} answers in {result['seconds']:.1f} s, {result['ok'] / result['seconds']:.0f} a second; "
              f"{min(result['each'])} to {max(result['each'])} on a connection", flush=True)
        self.assertEqual(result["errors"], {}, result["first_errors"])
        self.assert_always_refused(forbidden)
        # What is held up is asked later: a machine that is too slow for a while catches up.
        self.assertGreater(result["ok"], 0.9 * asked, "the load was not what it is said to be")
        self.assertEqual(len(result["each"]), 200)
        self.assertGreater(min(result["each"]), 0.8 * asked / 200, "each of them carried its share")

    def test_the_source_of_the_configuration_gone_and_meshd_killed_lets_nothing_lapse(self):
        objects, away = WORK / "state/objects", WORK / "state/away"
        origin = mesh.meshctl_json("get", "Service", "origin")["spec"]["clusterIP"]

        def age():
            return mesh.counter("undermesh_snapshot_age_seconds")

        def put_back():
            if away.exists():
                away.rename(objects)

        self.addCleanup(put_back)
        with Steady("client", "load", "http://origin:8080/100", 4) as load, self.forbidden() as forbidden:
            objects.rename(away)
            self.kill_three_times(["meshd"], load, forbidden)
            self.assertFalse(objects.exists(), "it was made again, empty")
            now = mesh.status()
            self.assertEqual(now["state"], "degraded")
            self.assertTrue([r for r in now["reasons"] if str(objects) in r and "mkdir" in r], now["reasons"])
            self.assertEqual({w["state"] for w in now["workloads"]}, {"enrolled"}, now["workloads"])
            changed = WORK / "other.yaml"
            changed.write_text(NOBODY_TO_ORIGIN)
            refused = mesh.meshctl("apply", "-f", changed, check=False)
            self.assertEqual(refused.returncode, 1, refused)
            self.assertIn("is gone", refused.stdout + refused.stderr)
            first = age()
            old = mesh.eventually("the snapshot grows old", lambda: age() > first + 3 and age())
            put_back()
            mesh.eventually("all is well again", lambda: mesh.status()["state"] == "ready", 60)
            mesh.eventually("and read", lambda: age() < old)
            load.go_on()
            forbidden.go_on()
        self.assertEqual(load.result["errors"], {}, load.result["first_errors"])
        self.assert_always_refused(forbidden)
        self.assertEqual(mesh.meshctl_json("get", "Service", "origin")["spec"]["clusterIP"], origin)

    def test_hooks_of_the_mesh_that_are_detached_are_named_by_check_and_attached_again_by_meshd(self):
        def findings():
            done = mesh.meshctl("check", "-o", "json", check=False)
            return done.returncode, {f["subject"]: f for f in json.loads(done.stdout)["findings"]}

        code, before = findings()
        self.assertEqual((code, before["hooks"]["level"], before["meshd"]["level"]), (0, "ok", "ok"), before)
        meshd = programs()["meshd"]
        os.kill(meshd, signal.SIGSTOP)
        try:
            for hook in ("connect4", "sock_ops"):
                subprocess.run(["bpftool", "link", "detach", "pinned", f"/sys/fs/bpf/undermesh/links/mesh/{hook}"], check=True)
            code, found = findings()
        finally:
            os.kill(meshd, signal.SIGCONT)
        self.assertEqual((code, found["hooks"]["level"], found["meshd"]["level"]), (1, "error", "warning"), found)
        self.assertIn("sock_ops, connect4", found["hooks"]["message"])
        self.assertIn("nothing new is enrolled", found["meshd"]["message"])
        self.assertTrue(found["hooks"]["remedy"] and found["meshd"]["remedy"])
        audit = mesh.eventually("meshd attaches them", lambda: mesh.status()["audit"] if findings()[0] == 0 else None, 60)
        self.assertGreaterEqual(audit["repairs"], 2, audit)
        self.assertIn("the mesh: the mesh's hook ", audit["last"])
        self.assertTrue(audit["last_repaired"])
        self.assertIn("(repaired)", mesh.meshctl("status", check=False).stdout)
        self.assertEqual(mesh.load_from("client", "http://origin:8080/10", 4)["statuses"], {"200": 4})

    def test_meshproxy_killed_the_next_one_serves_who_connects_meanwhile(self):
        supervisor = programs()["meshctl"]
        self.addCleanup(os.kill, supervisor, signal.SIGCONT)
        # By address: a name is answered by the next meshproxy too, so nobody would have connected before.
        origin = mesh.inside("client", "getent", "hosts", "origin").split()[0]
        with self.forbidden() as forbidden:
            for _ in range(3):
                os.kill(supervisor, signal.SIGSTOP)  # the next one has to wait
                os.kill(programs()["meshproxy"], signal.SIGKILL)
                killed = time.monotonic()
                asking = subprocess.Popen([str(mesh.MESHCTL), "sandbox", "exec", "client", "--", *mesh.CLIENT, "load",
                                           f"http://{origin}:8080/10", "-H", "Host: origin:8080", "-n", "8", "-c", "8"],
                                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
                mesh.eventually("all eight wait in the listener's backlog", lambda: waiting_connections("client") == 8)
                time.sleep(max(0.0, killed + 1.0 - time.monotonic()))  # of the 2 s that they may: the next one starts in the rest
                os.kill(supervisor, signal.SIGCONT)
                output, _ = asking.communicate(timeout=60)
                answer = json.loads(output)
                self.assertEqual(answer["statuses"], {"200": 8}, answer)
                forbidden.go_on()
                wait_ready()
                forbidden.go_on()
        self.assert_always_refused(forbidden)

    def test_a_request_in_flight_when_meshproxy_is_killed_fails_and_the_next_one_works(self):
        log = WORK / "slow.log"
        log.unlink()
        self.addCleanup(lambda: os.close(os.open(WORK / "release", os.O_RDWR)))
        in_flight = subprocess.Popen([str(mesh.MESHCTL), "sandbox", "exec", "client", "--", *mesh.CLIENT, "load",
                                      "http://slow:8080/held"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        mesh.eventually("the slow service has the request", log.exists)
        os.kill(programs()["meshproxy"], signal.SIGKILL)
        output, _ = in_flight.communicate(timeout=60)
        answer = json.loads(output)
        self.assertEqual((answer["statuses"], sum(answer["errors"].values())), ({}, 1), answer)
        self.assertNotIn("timed out", str(answer["errors"]), "the failure is told, while the service still thinks")
        self.assertEqual(mesh.load_from("client", "http://slow:8080/", 1)["statuses"], {"200": 1})
        self.assertEqual(log.read_text().splitlines(), ["/held", "/"], "nothing is sent twice")

    def test_a_policy_holds_for_the_next_request_of_a_connection_that_is_open(self):
        asking = subprocess.Popen([str(mesh.MESHCTL), "sandbox", "exec", "client", "--", *mesh.CLIENT, "ask", "http://origin:8080/10"],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def end():
            asking.communicate(timeout=60)

        self.addCleanup(end)

        def ask():
            asking.stdin.write("\n")
            asking.stdin.flush()
            return json.loads(asking.stdout.readline())

        def refused():
            return mesh.counter("istio_requests_total", reporter="source", source_workload="client", response_flags="UF",
                                response_code="503")

        answers, before = [ask(), ask()], refused()
        apply(NOBODY_TO_ORIGIN)
        try:
            answers += [ask(), ask()]
            mesh.eventually("both are counted, with the flag UF", lambda: refused() - before == 2)
        finally:
            mesh.meshctl("delete", "AuthorizationPolicy", "origin")
        mesh.wait_published()
        answers += [ask(), ask()]
        self.assertEqual([answer["status"] for answer in answers], [200, 200, 503, 503, 200, 200])
        self.assertEqual(len({answer["port"] for answer in answers}), 1, "one connection all the while")

    def test_meshproxy_killed_and_not_restarted_is_refused_after_2_s(self):
        running = programs()
        os.kill(running["meshctl"], signal.SIGKILL)
        os.kill(running["meshproxy"], signal.SIGKILL)
        address = mesh.meshctl_json("get", "Service", "origin")["spec"]["clusterIP"]
        mesh.eventually("connects are refused",
                        lambda: mesh.connect_from("client", f"{address}:8080")[0]["result"] == "ECONNREFUSED", 8)
        # By address: names of the mesh are the proxy's to answer.
        self.assertEqual(mesh.load_from("free", f"http://{address}:8080/10", 4)["statuses"], {"200": 4}, "it bypasses the proxy")
        guarded = mesh.meshctl_json("get", "Service", "guarded")["spec"]["clusterIP"]
        self.assertEqual(mesh.connect_from("free", f"{guarded}:8080")[0]["result"], "ECONNREFUSED", "policy holds")
        mesh.meshctl("up", "--state-dir", WORK / "state")
        wait_ready()
        self.assertEqual(mesh.load_from("client", "http://origin:8080/10", 4)["statuses"], {"200": 4})


if __name__ == "__main__":
    unittest.main(verbosity=2)
