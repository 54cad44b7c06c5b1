#!/usr/bin/python3
"""L4 connections between two sandboxes, past the proxy: what the metrics and the access log say of each."""

import collections
import contextlib
import json
import pathlib
import shlex
import socket
import subprocess
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import mesh  # noqa: E402

WORK = mesh.ROOT / "build" / "connections"
PEER = str(pathlib.Path(__file__).with_name("tcp_peer.py"))
HOST = "db.default.svc.cluster.local"

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: db, annotations: {undermesh.io/on-endpoint-removal: reset}}
spec: {selector: {app: db}, ports: [{name: tcp-sql, port: 5432, targetPort: 9000}]}
"""
ALLOW = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: friends}
spec:
  selector: {matchLabels: {app: db}}
  action: ALLOW
  rules:
    - from: [{source: {serviceAccounts: [nobody]}}]
    - from: [{source: {serviceAccounts: [client]}}]
"""
DENY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: strangers}
spec:
  selector: {matchLabels: {app: db}}
  action: DENY
  rules: [{from: [{source: {serviceAccounts: [client]}}]}]
"""
# The host itself comes by no NetworkPolicy: a workload's node always may.
ALLOW_ADDRESSES = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: anybody}
spec:
  selector: {matchLabels: {app: db}}
  action: ALLOW
  rules:
    - from: [{source: {serviceAccounts: [nobody]}}]
    - from: [{source: {ipBlocks: [0.0.0.0/0]}}]
"""
ALLOW_PODS = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: colleagues}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress:
    - from: [{podSelector: {matchLabels: {app: nobody}}}]
    - from: [{podSelector: {matchLabels: {app: client}}}]
"""

# Connects again and again: when each began and was over (CLOCK_MONOTONIC is the whole machine's), and how it went.
CONNECTS = """
import socket, time
while True:
    began = time.monotonic()
    try:
        socket.create_connection(("db", 5432), timeout=60).close()
        how = "open"
    except OSError as error:
        how = type(error).__name__
    print(began, time.monotonic(), how, flush=True)
"""

Line = collections.namedtuple("Line", "code flags verdict details received sent milliseconds host cluster "
                              "upstream_local asked client")


def apply(text):
    path = WORK / "apply.yaml"
    path.write_text(text)
    mesh.meshctl("apply", "-f", path)
    mesh.wait_published()


def parse(text):
    words = shlex.split(text.partition("] ")[2])
    # request, code, flags, code's details, termination's details, failure, received, sent, ms, service ms, 4 headers
    return Line(*words[1:5], *map(int, words[6:9]), *words[14:19])


def sums(reporter, client, **more):
    """Of the connections between a client and db-1: opened, closed, sent (by the server), received (by it)."""
    labels = {"reporter": reporter, "request_protocol": "tcp", "response_flags": "-",
              "source_workload": client, "source_principal": "spiffe://cluster.local/ns/default/sa/client", "source_app": client,
              "destination_workload": "db-1", "destination_app": "db", "destination_service": HOST,
              "destination_principal": "spiffe://cluster.local/ns/default/sa/db",
              "destination_service_name": "db", "destination_service_namespace": "default", **more}
    return [mesh.counter(f"istio_tcp_{name}_total", **labels)
            for name in ("connections_opened", "connections_closed", "sent_bytes", "received_bytes")]


class Connections(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.log, cls.log_read, cls.logged = WORK / "access.log", 0, []
        mesh.start_own(WORK, "--access-log", cls.log)
        cls.addClassCleanup(mesh.end_own, WORK)
        apply(SERVICE)
        mesh.meshctl("sandbox", "run", "db-1", "-l", "app=db", "--service-account", "db", "--detach", "--",
                     "/usr/bin/python3", PEER, "serve", "9000")
        cls.start_client("client")
        cls.server = mesh.workload_addresses("db-1")[0]
        mesh.eventually("the server listens", lambda: cls.talk("client")["error"] is None)

    @staticmethod
    def start_client(name):
        mesh.meshctl("sandbox", "run", name, "-l", f"app={name}", "--service-account", "client", "--detach", "--",
                     "sleep", "100000")

    @staticmethod
    def talk(end, send=0, receive=0, to=("db", 5432), client="client"):
        lines = mesh.inside(client, "/usr/bin/python3", PEER, "talk", *map(str, (*to, send, receive, end))).splitlines()
        return json.loads(lines[-1])

    def hold(self):
        """A connection that stays open, until its input or the connection ends."""
        process = subprocess.Popen([str(mesh.MESHCTL), "sandbox", "exec", "client", "--", "/usr/bin/python3", PEER, "talk",
                                    "db", "5432", "0", "5", "hold"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(process.communicate)
        self.assertEqual(process.stdout.readline(), "open\n")
        return process

    @classmethod
    def read_log(cls):
        """Each line is parsed once: one case writes thousands."""
        with cls.log.open() as log:
            log.seek(cls.log_read)
            new = log.read()
        whole = new[:new.rfind("\n") + 1]
        cls.log_read += len(whole.encode())
        cls.logged += map(parse, whole.splitlines())
        return cls.logged

    def lines(self, is_wanted, count):
        def found():
            lines = list(filter(is_wanted, self.read_log()))
            return len(lines) >= count and lines
        lines = mesh.eventually(f"{count} lines in the access log", found, 30)
        self.assertEqual(len(lines), count, lines)
        return lines

    def await_room_in_log(self):
        """Of thousands of connections in a second the log tells a part."""
        def is_told():
            client = self.talk("client")["client"]
            with contextlib.suppress(TimeoutError):
                return mesh.eventually("it is told", lambda: any(line.client == client for line in self.read_log()), 3)
        mesh.eventually("the log has room for each connection again", is_told, 60)

    def ends(self, done):
        """The lines of a connection, of its client's end and its server's."""
        first, second = self.lines(lambda line: line.client == done["client"], 2)
        return (first, second) if second.cluster.startswith("inbound|") else (second, first)

    def test_bytes_ends_and_workloads_are_told_by_both_ends(self):
        self.start_client("counted")
        done = self.talk("client", send=1_000_000, receive=77_777, client="counted")
        for reporter in ("source", "destination"):
            mesh.eventually(f"the {reporter} counts it",
                            lambda r=reporter: sums(r, "counted") == [1, 1, 77_777, done["sent"]], 30)
        outbound, inbound = self.ends(done)
        address = mesh.meshctl_json("get", "svc", "db")["spec"]["clusterIP"]
        for line in (outbound, inbound):
            self.assertEqual((line.code, line.flags, line.received, line.sent), ("0", "-", done["sent"], 77_777))
            self.assertEqual((line.verdict, line.details, line.host), ("-", "closed_by_client", f"{self.server}:9000"))
        self.assertEqual((outbound.cluster, outbound.asked), (f"outbound|5432||{HOST}", f"{address}:5432"))
        self.assertEqual((inbound.cluster, inbound.asked), ("inbound|9000||", f"{self.server}:9000"))

    def test_how_long_it_lived_is_told(self):
        process = self.hold()
        mesh.eventually("it is listed for a second", lambda: any(
            row.get("seconds", 0) >= 1 for row in mesh.meshctl_json("bpf", "flows")["rows"] if row["workload"] == "default/client"))
        titles, *lines = mesh.meshctl("bpf", "flows").stdout.splitlines()
        self.assertEqual(titles.split()[-2:], ["RETRANSMITS", "VERDICT"])
        line = next(line for line in lines if line.startswith("default/client ")).split()
        self.assertEqual((line[1], line[3], line[-2:]), ("TCP", f"{HOST}:5432", ["0", "allowed"]))
        done = json.loads(process.communicate("")[0])
        for line in self.ends(done):
            self.assertGreaterEqual(line.milliseconds, 1000)

    def test_who_ended_it_is_told(self):
        for end, said in (("client", "closed_by_client"), ("server", "closed_by_server"), ("client-reset", "reset"),
                          ("server-reset", "reset")):
            done = self.talk(end, 10, 20)
            outbound, inbound = self.ends(done)
            self.assertEqual((outbound.details, inbound.details), (said, said), end)
            self.assertEqual((inbound.received, inbound.sent, outbound.sent), (done["sent"], 20, 20), end)
            # The server's reset may overtake its acknowledgement of the last byte, which to the client is not sent then.
            unacknowledged = 1 if end == "server-reset" else 0
            self.assertIn(done["sent"] - outbound.received, range(unacknowledged + 1), end)

    def test_what_allowed_and_what_denied_it_is_told_by_policy_and_rule(self):
        apply(ALLOW)
        self.addCleanup(mesh.meshctl, "delete", "authorizationpolicy", "friends")
        self.start_client("refused")
        done = self.talk("client", 1, 1, client="refused")
        for line in self.ends(done):
            self.assertEqual(line.verdict, "rbac_access_allowed_matched_policy[AuthorizationPolicy_default/friends[1]]")
        mesh.eventually("it is counted", lambda: sums("source", "refused") == [1, 1, 1, done["sent"]], 30)
        apply(DENY)
        self.addCleanup(mesh.meshctl, "delete", "authorizationpolicy", "strangers")
        self.assertEqual(self.talk("client", 1, 1, client="refused")["error"], "ECONNREFUSED")
        details = "rbac_access_denied_matched_policy[AuthorizationPolicy_default/strangers[0]]"
        line, = self.lines(lambda line: line.details == details, 1)
        self.assertEqual((line.flags, line.received, line.sent, line.cluster, line.host),
                         ("UAEX", 0, 0, f"outbound|5432||{HOST}", f"{self.server}:9000"))
        mesh.eventually("it is counted by its policy",
                        lambda: mesh.denials("strangers").get(("AuthorizationPolicy default/strangers", 0)))
        self.assertEqual(sums("source", "refused"), [1, 1, 1, done["sent"]])  # it was none

    def test_a_network_policy_that_allowed_it_is_told_by_both_ends(self):
        apply(ALLOW_PODS)
        self.addCleanup(mesh.meshctl, "delete", "networkpolicy", "colleagues")
        for line in self.ends(self.talk("client", 1, 1)):
            self.assertEqual(line.verdict, "rbac_access_allowed_matched_policy[NetworkPolicy_default/colleagues[1]]")

    def test_a_stranger_that_is_allowed_is_told_by_the_server(self):
        apply(ALLOW_ADDRESSES)
        self.addCleanup(mesh.meshctl, "delete", "authorizationpolicy", "anybody")
        with socket.create_connection((self.server, 9000), timeout=30) as stranger:  # of the host
            stranger.sendall(json.dumps({"send": 0, "receive": 0, "end": "client"}).encode() + b"\n")
            client = "%s:%s" % stranger.getsockname()
            row, = (row for row in mesh.meshctl_json("bpf", "flows")["rows"] if row["peer"] == client)
            self.assertEqual((row["policy"], row["rule"]), ("AuthorizationPolicy default/anybody", 1))
        line, = self.lines(lambda line: line.client == client, 1)
        self.assertEqual((line.verdict, line.cluster),
                         ("rbac_access_allowed_matched_policy[AuthorizationPolicy_default/anybody[1]]", "inbound|9000||"))

    def test_a_change_of_policy_holds_from_its_acknowledgement_on(self):
        self.start_client("flipped")
        told = WORK / "connects"
        with told.open("w") as out:
            process = subprocess.Popen([str(mesh.MESHCTL), "sandbox", "exec", "flipped", "--", "/usr/bin/python3", "-c", CONNECTS],
                                       stdout=out)
        self.addCleanup(process.wait)
        self.addCleanup(process.terminate)

        def await_connect(since):
            mesh.eventually("it connects", lambda: any(float(line.split()[0]) > since
                                                       for line in told.read_text().splitlines()[-20:-1]), 30)

        denied = []
        for _ in range(12):
            apply(DENY.replace("strangers", "now-and-then"))
            since = time.monotonic()
            await_connect(since)
            denied.append((since, time.monotonic()))
            mesh.meshctl("delete", "authorizationpolicy", "now-and-then")
            mesh.wait_published()
            await_connect(time.monotonic())
        process.terminate()
        process.wait()
        self.await_room_in_log()
        connects = [(float(began), float(over), how)
                    for began, over, how in map(str.split, told.read_text().splitlines()[:-1])]
        for since, until in denied:
            judged = {how for began, over, how in connects if since < began and over < until}
            self.assertEqual(judged, {"ConnectionRefusedError"})
        self.assertIn("open", {how for _, _, how in connects})

    def test_a_stranger_that_is_denied_is_told_by_the_server(self):
        apply(ALLOW)
        self.addCleanup(mesh.meshctl, "delete", "authorizationpolicy", "friends")

        def told():  # of many refusals in a second, some are not
            with self.assertRaises(ConnectionRefusedError):
                socket.create_connection((self.server, 9000), timeout=30)  # of the host
            return any((line.flags, line.cluster, line.details) ==
                       ("UAEX", "inbound|9000||", "rbac_access_denied_matched_policy[AuthorizationPolicy_default/friends]")
                       for line in self.read_log())

        mesh.eventually("the server's line", told, 30)

    def test_what_a_policy_ends_says_so_and_the_other_end_sees_a_reset(self):
        process = self.hold()
        apply(DENY)
        self.addCleanup(mesh.meshctl, "delete", "authorizationpolicy", "strangers")
        done = json.loads(process.stdout.readline())
        self.assertIn(done["error"], ("ECONNRESET", "ECONNABORTED"))
        self.assertIn("connections_ended_by_policy", [line.details for line in self.ends(done)])

    def test_connections_of_a_deleted_service_are_reset_where_it_says_so(self):
        process = self.hold()
        mesh.meshctl("delete", "service", "db")
        self.addCleanup(apply, SERVICE)
        done = json.loads(process.stdout.readline())
        self.assertIn(done["error"], ("ECONNRESET", "ECONNABORTED"))
        outbound, inbound = self.ends(done)
        self.assertEqual((outbound.details, inbound.details), ("connections_reset_on_removal", "reset"))

    def test_what_nobody_answers_failed(self):
        self.assertEqual(self.talk("client", to=(self.server, 9))["error"], "ECONNREFUSED")
        unknown = dict.fromkeys(("destination_service", "destination_service_name", "destination_service_namespace"), "unknown")
        mesh.eventually("it is counted", lambda: sums("source", "client", response_flags="UF", **unknown) == [1, 1, 0, 0], 30)
        line, = self.lines(lambda line: line.host == f"{self.server}:9", 1)
        self.assertEqual((line.flags, line.cluster, line.received, line.sent), ("UF", "PassthroughCluster", 0, 0))


if __name__ == "__main__":
    unittest.main(verbosity=2)
