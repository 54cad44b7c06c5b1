#!/usr/bin/python3
"""2,000 hostile requests through the real proxy: it never crashes, and none reaches the service as something else."""

import collections
import pathlib
import random
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import mesh  # noqa: E402
from resilience_test import programs, wait_ready  # noqa: E402

WORK = mesh.ROOT / "build" / "hostile"
SCRIPT = ["/usr/bin/python3", str(pathlib.Path(__file__).with_name("hostile.py"))]
CORPUS = mesh.ROOT / "tests" / "fuzz" / "corpus" / "http1_request"
TOTAL = 2000
SEED = 20

GATEWAY_PORT = 18080
CONFIG = f"""
apiVersion: v1
kind: Service
metadata: {{name: victim}}
spec:
  selector: {{app: victim}}
  ports: [{{name: http, port: 8080}}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: door}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
    - port: {{number: {GATEWAY_PORT}, name: http, protocol: HTTP}}
      bind: 127.0.0.1
      hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: door}}
spec:
  hosts: ["*"]
  gateways: [door]
  http: [{{route: [{{destination: {{host: victim}}}}]}}]
"""

# A second request hidden behind the first: a service must never see its path.
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: victim\r\n\r\n"


def smuggling():
    """Every pair of framings that two parsers are known to read differently, with a request behind it."""
    chunked = b"0\r\n\r\n" + SMUGGLED
    length = str(len(chunked)).encode()
    small = b"0"
    te = [b"Transfer-Encoding: chunked", b"Transfer-Encoding : chunked", b"Transfer-Encoding:\x0bchunked", b"Transfer-Encoding: xchunked",
          b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: identity, chunked", b"Transfer-Encoding:\r\n chunked",
          b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", b"transfer-encoding: CHUNKED, chunked", b" Transfer-Encoding: chunked",
          b"X: y\nTransfer-Encoding: chunked", b"Transfer-Encoding: \"chunked\"", b"Transfer\x00-Encoding: chunked", b"Transfer_Encoding: chunked"]
    cl = [b"Content-Length: " + length, b"Content-Length: " + small, b"Content-Length: +" + length, b"Content-Length: 0x0",
          b"Content-Length: " + length + b", " + small, b"Content-Length: " + small + b"\r\nContent-Length: " + length,
          b"Content-Length : " + length, b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Content-Length:\r\n " + length,
          b"Content-Length: " + length + b" " + length, b"Content-Length: 0\x00" + length]
    for method in (b"POST", b"GET"):
        for one in te:
            for other in cl:
                yield method + b" /pair HTTP/1.1\r\nHost: victim\r\n" + one + b"\r\n" + other + b"\r\n\r\n" + chunked
                yield method + b" /pair HTTP/1.1\r\nHost: victim\r\n" + other + b"\r\n" + one + b"\r\n\r\n" + chunked
        for version in (b"HTTP/1.0", b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"HTTP/1.1 ", b"HTTP/11"):
            yield method + b" /version " + version + b"\r\nHost: victim\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked


def chunk_sizes():
    body = b"POST /chunk HTTP/1.1\r\nHost: victim\r\nTransfer-Encoding: chunked\r\n\r\n"
    for size in (b"0x0", b"+0", b"-1", b" 0", b"0 ", b"00000000000000000000000000000000", b"ffffffffffffffff", b"10000000000000000", b"g", b"",
                 b"0;" + b"x" * 20000, b"0;a=\"\r\n\"", b"0\n", b"0\r", b"1\r\nAA\r\n0", b"5\r\nabc"):
        yield body + size + b"\r\n\r\n" + SMUGGLED


def heads():
    yield b"GET / HTTP/1.1\r\nHost: victim\r\nX: " + b"a" * 200000 + b"\r\n\r\n"
    yield b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\nHost: victim\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: victim\r\n" + b"X: y\r\n" * 5000 + b"\r\n"
    yield b"\r\n" * 1000 + b"GET / HTTP/1.1\r\nHost: victim\r\n\r\n"
    for byte in range(256):
        yield b"GET /b" + bytes([byte]) + b" HTTP/1.1\r\nHost: victim\r\n\r\n"
        yield b"GET / HTTP/1.1\r\nHost: victim\r\nX" + bytes([byte]) + b"Y: z\r\n\r\n"
        yield b"GET / HTTP/1.1\r\nHost: victim\r\nX: a" + bytes([byte]) + b"GET /smuggled HTTP/1.1\r\n\r\n"
    for host in (b"", b"Host: a\r\nHost: b\r\n", b"Host: victim victim\r\n", b"Host: victim\r\n victim\r\n", b"Host:\r\n", b"Host: a@b\r\n", b"Host: a/b\r\n"):
        yield b"GET / HTTP/1.1\r\n" + host + b"\r\n"


def mutations(seeds, count):
    """Seeds with bytes changed, dropped, doubled or swapped; the generator is seeded, so a failure repeats."""
    rng = random.Random(SEED)
    for _ in range(count):
        data = bytearray(rng.choice(seeds)[:4096])
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data) + 1)
            kind = rng.randrange(4)
            if kind == 0:
                data[at:at + 1] = bytes([rng.choice(b"\r\n\0\t :;,/%0123456789abcxX\x80\xff")])
            elif kind == 1:
                del data[at:at + rng.randint(1, 4)]
            elif kind == 2:
                data[at:at] = rng.choice([b"\r\n", b"\n", b"\r", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b" ", b"0\r\n\r\n"])
            else:
                data[at:at] = data[at:at + rng.randint(1, 32)]
        yield bytes(data)


def all_requests():
    made = [*smuggling(), *chunk_sizes(), *heads()]
    corpus = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
    made += corpus
    return made + list(mutations([m for m in made if len(m) < 4096], max(0, TOTAL - len(made))))


class Hostile(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        mesh.start_own(WORK)
        cls.addClassCleanup(mesh.end_own, WORK)
        cls.log = WORK / "origin.log"
        mesh.meshctl("sandbox", "run", "victim", "-l", "app=victim", "--detach", "--", *SCRIPT, "origin", "8080", cls.log)
        mesh.meshctl("sandbox", "run", "client", "-l", "app=client", "--detach", "--", "sleep", "infinity")
        (WORK / "config.yaml").write_text(CONFIG)
        mesh.meshctl("apply", "-f", WORK / "config.yaml")
        wait_ready()
        mesh.wait_published()
        mesh.eventually("the victim answers through the mesh",
                        lambda: mesh.load_from("client", "http://victim:8080/", 1)["statuses"] == {"200": 1}, 60)
        cls.requests = all_requests()
        cls.proxy = programs()["meshproxy"]

    def setUp(self):
        self.log.unlink(missing_ok=True)
        self.log.touch()

    def tearDown(self):
        self.assertEqual(programs()["meshproxy"], self.proxy, "the proxy died")
        self.assertEqual(mesh.load_from("client", "http://victim:8080/", 4)["statuses"], {"200": 4})

    def attack(self, *command):
        done = subprocess.run([*map(str, command)], input="".join(r.hex() + "\n" for r in self.requests),
                              capture_output=True, text=True, timeout=900, check=False)
        answers = done.stdout.split()
        self.assertGreaterEqual(len(answers), TOTAL, done.stderr)
        self.assertEqual(len(answers), len(self.requests), done.stderr)
        return answers

    def check(self, answers):
        seen = [bytes.fromhex(line) for line in self.log.read_text().splitlines()]
        print(f"{len(answers)} requests, answers: {dict(collections.Counter(answers))}; the service saw {len(seen)} heads")
        self.assertEqual([head for head in seen if head.startswith(b"FAULT")], [])
        # A client that ends within its body, or errs in a chunk after the head went on, is cut off there and gets no 200.
        cut = sum(head.startswith(b"CUT") for head in seen)
        self.assertLessEqual(answers.count("200"), len(seen) - 2 * cut)
        # A hidden request of ours may arrive only as what it was: plain pipelining behind a request whose end is agreed on.
        smuggled = [head for head in seen if head.split(b" ")[1:2] == [b"/smuggled"]]
        agreed = [r for r, a in zip(self.requests, answers) if SMUGGLED in r and a == "200"]
        self.assertLessEqual(len(smuggled), len(agreed))
        framed_twice = set(smuggling())  # not their mutations, which may be harmless
        pairs = [r for r, a in zip(self.requests, answers) if r in framed_twice and r.split(b" ")[1] == b"/pair" and
                 a == "200" and b"Transfer_Encoding" not in r]
        self.assertEqual(pairs, [], "a request with two framings was accepted")

    def test_nothing_reaches_the_service_as_something_else(self):
        self.check(self.attack(mesh.MESHCTL, "sandbox", "exec", "client", "--", *SCRIPT, "attack", "victim", "8080"))

    def test_nor_through_the_gateway(self):
        self.check(self.attack(*SCRIPT, "attack", "127.0.0.1", GATEWAY_PORT))

    def test_slow_heads_are_ended_and_hold_nobody_up(self):
        slow = subprocess.Popen([str(mesh.MESHCTL), "sandbox", "exec", "client", "--", *SCRIPT, "slow", "victim", "8080", "50"],
                                stdout=subprocess.PIPE, text=True)
        self.assertEqual(slow.stdout.readline(), "sent\n")
        self.assertEqual(mesh.load_from("client", "http://victim:8080/", 20, clients=4)["statuses"], {"200": 20})
        answers, _ = slow.communicate(timeout=120)
        self.assertEqual(collections.Counter(answers.split()), {"408": 50})


if __name__ == "__main__":
    unittest.main(verbosity=2)
