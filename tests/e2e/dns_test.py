#!/usr/bin/python3
"""Names in real sandboxes: glibc's resolver and clients of our own ask, meshproxy and a name server in a sandbox answer."""

import json
import os
import pathlib
import signal
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import mesh  # noqa: E402
from resilience_test import programs, wait_ready  # noqa: E402

WORK = mesh.ROOT / "build" / "dns"
CLIENT = str(pathlib.Path(__file__).with_name("dns_client.py"))
MESH = "192.0.0.8"  # the resolver of a sandbox

CONFIG = """
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {clusterIP: 10.78.9.1, selector: {app: none}, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {clusterIP: 10.78.9.2, selector: {app: none}, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: names}, ports: [{name: sql, port: 5306}]}
"""


def apply(text):
    path = WORK / "apply.yaml"
    path.write_text(text)
    mesh.meshctl("apply", "-f", path)
    mesh.wait_published()


def ask(resolver, way, *names):
    return json.loads(mesh.inside("client", "/usr/bin/python3", CLIENT, "ask", resolver, way, *names))


def getent(name):
    """The addresses that glibc finds, in order; it prints a line for each kind of socket."""
    lines = mesh.inside("client", "sh", "-c", f"getent ahosts {name} || true").splitlines()
    return sorted({line.split()[0] for line in lines})


class Names(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        mesh.start_own(WORK)
        cls.addClassCleanup(mesh.end_own, WORK)
        cls.asked = WORK / "asked"
        cls.asked.touch()
        apply(CONFIG)
        mesh.meshctl("sandbox", "run", "client", "--detach", "--", "sleep", "100000")
        mesh.meshctl("sandbox", "run", "names", "-l", "app=names", "--detach", "--", "/usr/bin/python3", CLIENT, "serve",
                     cls.asked)
        cls.server = mesh.workload_addresses("names")[0]
        cls.client = mesh.workload_addresses("client")[0]
        mesh.eventually("the name server answers", lambda: ask(cls.server, "tcp", "ready.example") != {})

    def queries(self, name):
        """Of the name server: (address, protocol) of who asked for it."""
        wire = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
        lines = [line.split() for line in self.asked.read_text(encoding="ascii").splitlines()]
        return [(words[0], words[2]) for words in lines if words[3] == wire.hex()]

    def test_a_service_entrys_host_is_found_and_reached(self):
        apply(f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: partner}}
spec:
  hosts: [api.partner.example]
  resolution: STATIC
  ports: [{{number: 1053, name: names, protocol: TCP, targetPort: 53}}]
  endpoints: [{{address: {self.server}}}]
""")
        mesh.eventually("the host has an address", lambda: getent("api.partner.example"))
        address, = getent("api.partner.example")
        self.assertTrue(address.startswith("10.78."), address)
        said = mesh.inside("client", "/usr/bin/python3", CLIENT, "one", "api.partner.example", "1053", "www.partner.test")
        self.assertEqual(json.loads(said)["www.partner.test 1"], ["192.0.2.77"])
        self.assertEqual(getent("partner.example"), [])
        mesh.meshctl("delete", "serviceentry", "partner")
        mesh.eventually("the host is gone", lambda: not getent("api.partner.example"))

    def test_glibc_finds_names_of_the_mesh(self):
        for name in ("reviews", "reviews.default", "reviews.default.svc", "reviews.default.svc.cluster.local.", "REVIEWS"):
            self.assertEqual(getent(name), ["10.78.9.1"], name)
        self.assertEqual(getent("reviews.shop"), ["10.78.9.2"])
        self.assertEqual(getent("db"), [self.server])
        self.assertEqual(getent("names.db.default.svc.cluster.local"), [self.server])

    def test_other_names_do_not_exist_and_the_hosts_file_is_the_hosts(self):
        before = mesh.counter("undermesh_dns_queries_total", result="denied")
        self.assertEqual(getent("no-such-name.example"), [])
        self.assertGreater(mesh.counter("undermesh_dns_queries_total", result="denied"), before)  # it was told, and did not give up
        self.assertEqual(mesh.inside("client", "cat", "/etc/hosts"), pathlib.Path("/etc/hosts").read_text(encoding="utf-8"))
        self.assertIn(getent("localhost")[0], ("127.0.0.1", "::1"))

    def test_every_way_to_ask_is_answered_by_who_was_asked(self):
        for resolver in (MESH, self.server):
            for way in ("connected", "unconnected", "tcp"):
                self.assertEqual(ask(resolver, way, "reviews", "reviews.shop"),
                                 {"reviews 1": ["10.78.9.1"], "reviews 28": ["nothing"], "reviews.shop 1": ["10.78.9.2"],
                                  "reviews.shop 28": ["nothing"]}, (resolver, way))

    def test_other_names_go_to_the_resolver_that_was_asked_from_the_workloads_own_address(self):
        for way, protocol in (("connected", "udp"), ("unconnected", "udp"), ("tcp", "tcp")):
            name = f"www.{way}.example"
            self.assertEqual(ask(self.server, way, name), {f"{name} 1": ["192.0.2.77"], f"{name} 28": ["nothing"]})
            self.assertEqual(set(self.queries(name)), {(self.client, protocol)})
        before = len(self.queries("www.tcp.example"))
        self.assertEqual(ask(self.server, "connected", "www.tcp.example")["www.tcp.example 1"], ["192.0.2.77"])
        # The A is kept; what was negative without a SOA record is asked for again.
        self.assertEqual(len(self.queries("www.tcp.example")), before + 1)
        self.assertEqual(ask(MESH, "connected", "www.tcp.example")["www.tcp.example 1"], ["no such name"])

    def test_a_thousand_queries_at_once(self):
        answers = ask(self.server, "many", "1000")
        self.assertEqual(answers["reviews.default 1"], ["10.78.9.1"])
        self.assertEqual([name for name, found in answers.items() if name.startswith("n") and found != ["192.0.2.77"]], [])
        self.assertEqual(len(answers), 501)

    def test_names_outlive_meshd(self):
        meshd = programs()["meshd"]
        os.kill(meshd, signal.SIGSTOP)  # killed it would be back at once
        try:
            self.assertEqual(getent("reviews"), ["10.78.9.1"])
            self.assertEqual(ask(self.server, "connected", "outlive.example")["outlive.example 1"], ["192.0.2.77"])
        finally:
            os.kill(meshd, signal.SIGCONT)
        os.kill(meshd, signal.SIGKILL)
        mesh.eventually("another meshd", lambda: programs().get("meshd") not in (None, meshd), 60)
        self.assertEqual(getent("reviews"), ["10.78.9.1"])
        wait_ready()
        self.assertEqual(getent("reviews"), ["10.78.9.1"])

    def test_without_meshproxy_nobody_waits_longer_than_its_resolver_does(self):
        os.kill(programs()["meshproxy"], signal.SIGKILL)
        getent("reviews")  # an answer or none, but an end
        mesh.eventually("names are answered again", lambda: getent("reviews") == ["10.78.9.1"], 60)
        # One that hangs: the kernel ends the redirect, and nobody else is at the sandbox's resolver.
        proxy = programs()["meshproxy"]
        os.kill(proxy, signal.SIGSTOP)
        try:
            self.assertEqual(getent("reviews"), [])
        finally:
            os.kill(proxy, signal.SIGCONT)
        mesh.eventually("names are answered again", lambda: getent("reviews") == ["10.78.9.1"], 60)
        mesh.eventually("other names, too", lambda: getent("no-such-name.example") == [], 60)

    def test_lookup_says_what_a_workload_is_told(self):
        def lookup(name, *options):
            rows = mesh.meshctl_json("dns", "lookup", name, *options)["rows"]
            return [(row["type"], row["answer"], row["object"]) for row in rows]
        mesh.meshctl("sandbox", "run", "cart", "-n", "shop", "--detach", "--", "sleep", "100000")
        self.addCleanup(mesh.meshctl, "sandbox", "stop", "cart", "-n", "shop")
        self.assertEqual(lookup("Reviews", "--from", "shop/cart")[0], ("A", "10.78.9.2", "Service shop/reviews"))
        self.assertEqual(lookup("reviews")[1], ("AAAA", "nothing of this type", "Service default/reviews"))
        self.assertEqual(lookup("www.example.com")[0], ("A", "forwarded to the resolver that is asked", "-"))
        self.assertEqual(lookup("x.db.default.svc.cluster.local")[0][1], "no such name (NXDOMAIN)")
        # As the test above of the same two resolvers: what the answer is depends on which of them is asked.
        said = f"no such name (NXDOMAIN) from a sandbox's resolver, {MESH}; forwarded to any other that is asked"
        self.assertEqual(lookup("www.example.com", "--from", "client")[0], ("A", said, "-"))
        self.assertEqual(ask(MESH, "connected", "www.example.com")["www.example.com 1"], ["no such name"])
        self.assertEqual(ask(self.server, "connected", "www.example.com")["www.example.com 1"], ["192.0.2.77"])
        nobody = mesh.meshctl("dns", "lookup", "reviews", "--from", "nosuch/x", check=False)
        self.assertEqual((nobody.returncode, nobody.stdout), (4, ""))
        self.assertIn("no workload nosuch/x", nobody.stderr)

    def test_what_became_of_queries_is_counted(self):
        before = mesh.counter("undermesh_dns_queries_total", result="answered")
        getent("reviews")
        self.assertGreater(mesh.counter("undermesh_dns_queries_total", result="answered"), before)


if __name__ == "__main__":
    unittest.main(verbosity=2)
