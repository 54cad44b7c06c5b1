#!/usr/bin/python3
"""What the real meshd makes the kernel do for sandboxes, past the proxy: weights, IPv6, strict workloads, and the audit."""

import http.client
import json
import pathlib
import socket
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import mesh  # noqa: E402

WORK = mesh.ROOT / "build" / "l4"

# Says its name, and by which of its addresses it was reached.
SERVE = """
import socket, sys
with socket.create_server(("::", 9000), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128) as listener:
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(f"{sys.argv[1]} {connection.getsockname()[0]}".encode())
"""

# Connects so many times: [{"said": what the server said, or the error, "peer": getpeername()}, ...]
ASK = """
import json, socket, sys
def ask(host, port):
    try:
        with socket.create_connection((host, int(port)), timeout=2) as connection:
            return {"said": connection.recv(100).decode(), "peer": connection.getpeername()[0]}
    except OSError as error:
        return {"said": type(error).__name__}
print(json.dumps([ask(*sys.argv[1:3]) for _ in range(int(sys.argv[3]))]))
"""

CONFIG = """
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {selector: {app: db}, ports: [{name: tcp, port: 5432, targetPort: 9000}]}
---
apiVersion: v1
kind: Service
metadata: {name: one}
spec: {selector: {app: db, version: one}, ports: [{name: tcp, port: 9000}]}
---
apiVersion: v1
kind: Service
metadata: {name: two}
spec: {selector: {app: db, version: two}, ports: [{name: tcp, port: 9000}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: db}
spec:
  parentRefs: [{group: "", kind: Service, name: db}]
  rules: [{backendRefs: [{name: one, port: 9000, weight: 1}, {name: two, port: 9000, weight: 3}]}]
"""

# Of both, so that nothing but the mode makes the difference.
NOWHERE = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nowhere}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [client, vault]}]}
  policyTypes: [Egress]
"""

CLIENT_TO_VAULT = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: vault}
spec:
  selector: {matchLabels: {app: vault}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/client]}}]}]
"""

WEB = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""

EDGE = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 18080, name: http, protocol: HTTP}, bind: 127.0.0.1, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec: {hosts: ["*"], gateways: [edge], http: [{route: [{destination: {host: web}}]}]}
"""

NO_EDGE_TO_WEB = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  action: DENY
  rules: [{from: [{source: {namespaces: [istio-system]}}]}]
"""


def apply(text):
    path = WORK / "apply.yaml"
    path.write_text(text)
    mesh.meshctl("apply", "-f", path)
    mesh.wait_published()


def ask(client, host, port, times=1):
    return json.loads(mesh.inside(client, "/usr/bin/python3", "-c", ASK, host, str(port), str(times)))


def workload(name):
    return next(workload for workload in mesh.status()["workloads"] if workload["name"] == name)


def workload_state(name):
    return {workload["name"]: workload["state"] for workload in mesh.status()["workloads"]}.get(name)


def ask_from_another_cgroup(client, host, port):
    """By a process of ours that enters the workload's network namespace."""
    entry = mesh.meshctl_json("get", "WorkloadEntry", client)
    netns = entry["metadata"]["annotations"]["undermesh.io/netns"]
    done = subprocess.run(["nsenter", f"--net={netns}", "/usr/bin/python3", "-c", ASK, host, str(port), "1"],
                          stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)[0]["said"]


class L4(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        mesh.start_own(WORK)
        cls.addClassCleanup(mesh.end_own, WORK)
        for name, label, *options in (("one", "app=db,version=one"), ("two", "app=db,version=two"),
                                      ("vault", "app=vault", "--annotation", "undermesh.io/mode=strict")):
            mesh.meshctl("sandbox", "run", name, "-l", label, *options, "--detach", "--", "/usr/bin/python3", "-c", SERVE, name)
        mesh.meshctl("sandbox", "run", "client", "-l", "app=client", "--service-account", "client", "--detach", "--",
                     "sleep", "100000")
        apply(CONFIG)
        cls.addresses = {name: mesh.workload_addresses(name) for name in ("one", "two", "vault", "client")}
        for name in ("one", "two"):
            mesh.eventually(f"{name} listens", lambda at=name: ask("client", at, 9000)[0]["said"].startswith(at), 30)

    def test_a_tcp_route_shares_connections_by_its_weights(self):
        answers = ask("client", "db", 5432, 400)
        said = [answer["said"] for answer in answers]
        self.assertEqual(set(said), {f"{name} ::ffff:{self.addresses[name][0]}" for name in ("one", "two")})
        ones = sum(answer.startswith("one") for answer in said)
        self.assertTrue(55 <= ones <= 145, f"{ones} of 400 where 100 are expected")  # 5 standard deviations
        self.assertEqual(len({answer["peer"] for answer in answers}), 1, "the service's address")

    def test_an_ipv6_service_is_balanced_to_an_ipv6_endpoint(self):
        address = next(a for a in self.addresses["two"] if ":" in a)
        apply(mesh.service_of_ipv6("six", "tcp", 5432, f"[{address}]:9000"))
        self.assertEqual(ask("client", "fd78::6", 5432), [{"said": f"two {address}", "peer": "fd78::6"}])
        self.assertEqual(ask("client", "six", 5432)[0]["said"], f"two {address}", "by name")

    def test_a_strict_workload_is_closed_until_a_policy_lets_somebody_in(self):
        vault = self.addresses["vault"][0]

        def stranger():
            with socket.socket() as host:
                host.settimeout(30)
                return host.connect_ex((vault, 9000))

        self.assertEqual(ask("client", vault, 9000)[0]["said"], "ConnectionRefusedError")
        self.assertNotEqual(stranger(), 0)
        apply(CLIENT_TO_VAULT)
        self.addCleanup(mesh.meshctl, "delete", "AuthorizationPolicy", "vault")
        mesh.eventually("the client may", lambda: ask("client", vault, 9000)[0]["said"].startswith("vault"), 30)
        self.assertNotEqual(stranger(), 0)

    def test_who_enters_a_strict_workload_from_another_cgroup_is_policed_by_its_packets(self):
        """Where it is not strict, he is not: docs/security.md."""
        one = self.addresses["one"][0]
        for client in ("client", "vault"):
            self.assertTrue(ask_from_another_cgroup(client, one, 9000).startswith("one"), client)
        apply(NOWHERE)
        self.addCleanup(mesh.meshctl, "delete", "NetworkPolicy", "nowhere")
        self.assertEqual([ask(client, one, 9000)[0]["said"] for client in ("client", "vault")], ["ConnectionRefusedError"] * 2)
        denied = mesh.counter("undermesh_kernel_connects_denied_policy_total")
        self.assertTrue(ask_from_another_cgroup("client", one, 9000).startswith("one"))
        self.assertEqual(ask_from_another_cgroup("vault", one, 9000), "TimeoutError")
        mesh.eventually("it is counted", lambda: mesh.counter("undermesh_kernel_connects_denied_policy_total") > denied)

    def test_what_the_gateway_has_open_to_a_server_that_is_not_enrolled_is_ended_by_a_policy(self):
        mesh.meshctl("sandbox", "run", "web", "-l", "app=web", "--detach", "--", "/usr/bin/python3", "-c", WEB)
        apply(EDGE)
        mesh.meshctl("disable", "web")
        mesh.eventually("it is not enrolled", lambda: workload_state("web") != "enrolled", 30)

        def status():
            try:
                connection = http.client.HTTPConnection("127.0.0.1", 18080, timeout=30)
                connection.request("GET", "/")
                return connection.getresponse().status
            except OSError as error:
                return error
            finally:
                connection.close()

        def ended():
            return mesh.counter("undermesh_kernel_connections_ended_by_policy_total")

        mesh.eventually("the gateway answers", lambda: status() == 200, 30)
        before = ended()
        apply(NO_EDGE_TO_WEB)
        mesh.eventually("its connections are ended", lambda: ended() > before, 30)
        self.assertEqual(status(), 503)

    def test_a_hook_that_is_detached_is_back_after_the_next_audit_which_says_so(self):
        def audited():
            return {what: mesh.counter(f"undermesh_audit_{what}_total") for what in ("differences", "repairs")}

        hook = f"/sys/fs/bpf/undermesh/links/{workload('client')['id']}/connect4"
        address = mesh.meshctl_json("get", "Service", "db")["spec"]["clusterIP"]

        def captured():
            return ask("client", address, 5432)[0]["said"].partition(" ")[0] in ("one", "two")

        self.assertTrue(captured())
        before = audited()
        subprocess.run(["bpftool", "link", "detach", "pinned", hook], check=True)
        mesh.eventually("it is captured again", captured, 60)
        mesh.eventually("it is counted", lambda: all(audited()[what] > before[what] for what in before), 30)
        status = mesh.status()
        self.assertIn("client: its hook connect4", status["audit"]["last"])
        self.assertTrue(status["audit"]["last_repaired"])
        self.assertIn("its hook connect4 (repaired)", mesh.meshctl("status", check=False).stdout)
        mesh.eventually("it is said to be captured", lambda: workload("client")["captured"] == "yes", 30)


if __name__ == "__main__":
    unittest.main(verbosity=2)
