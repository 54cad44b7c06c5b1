"""The product, driven only as a user drives it: meshctl, the gateway, /metrics and the services' own logs."""

import collections
import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
import urllib.parse

import bookinfo

ROOT = bookinfo.ROOT
MESHCTL = pathlib.Path(os.environ.get("MESH_BIN_DIR", ROOT / "build" / "bin")) / "meshctl"
LAB = pathlib.Path(os.environ.get("UNDERMESH_LAB_DIR", ROOT / "build" / "lab"))
GATEWAY = ("127.0.0.1", 8080)
METRICS = ("127.0.0.1", 15020)
CLIENT = ["/usr/bin/python3", str(pathlib.Path(__file__).with_name("client.py"))]


class CommandFailed(Exception):
    """A command of meshctl that should have succeeded: what was run, its status and what it said."""


def meshctl(*arguments, check=True, timeout=90):
    command = [str(MESHCTL), *map(str, arguments)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"meshctl {' '.join(command[1:])}: no end within {timeout} s") from error
    if check and done.returncode != 0:
        raise CommandFailed(f"meshctl {' '.join(command[1:])}: exit {done.returncode}: "
                            f"{(done.stderr or done.stdout).strip()}")
    return done


def meshctl_json(*arguments, check=True):
    return json.loads(meshctl(*arguments, "-o", "json", check=check).stdout)


def status():
    return meshctl_json("status", check=False)  # exit 5 when it is degraded


def eventually(what, condition, seconds=15.0):
    """Waits until condition() gives something true and returns it; says what was awaited if it never does."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.05)


def wait_published():
    """Until the proxy serves the newest accepted configuration."""
    def published():
        now = status()
        return str(now["snapshot"]["version"]) == str(now["programs"]["meshproxy"]["acked_version"])
    eventually("the proxy takes over the configuration", published)


def start_own(directory, *options):
    """A mesh with its state in `directory`, fresh. What an earlier run left of its own is ended first; a mesh that
    somebody else started is left alone: CommandFailed. `options` are of `meshctl up`."""
    if (directory / "started").exists():
        end_own(directory)
    if running():
        raise CommandFailed("a mesh that this test did not start is running on this machine; end it: meshctl down")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / "started").touch()
    meshctl("up", "--state-dir", directory / "state", *options)


def end_own(directory):
    meshctl("down", "--purge", "--state-dir", directory / "state")
    (directory / "started").unlink()


# --- workloads -----------------------------------------------------------------------------------

def run_sandbox(instance, log_directory):
    """Starts an instance of BookInfo as a workload of its own."""
    environment = instance.env(access_log(instance.name))
    options = [word for pair in environment.items() for word in ("--env", "=".join(pair))]
    meshctl("sandbox", "run", instance.name, "-l", f"app={instance.app},version={instance.version}",
            "--service-account", instance.service_account, *options, "--detach",
            "--log", log_directory / f"{instance.name}.out", "--", *instance.command())


def workload_addresses(name):
    for workload in status()["workloads"]:
        if workload["name"] == name:
            return workload["addresses"]
    raise LookupError(f"meshctl status names no workload {name}")


def direct(name, path, timeout=5.0):
    """GET from a workload's own address, past the mesh: the host is not enrolled."""
    connection = http.client.HTTPConnection(workload_addresses(name)[0], 9080, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def wait_healthy(name):
    def healthy():
        try:
            return direct(name, "/health")[0] == 200
        except (OSError, http.client.HTTPException):
            return False
    eventually(f"{name} answers /health", healthy, 40)


def inside(name, *command):
    """Runs a command inside a workload and returns what it printed."""
    return meshctl("sandbox", "exec", name, "--", *command, timeout=180).stdout


def load_from(name, url, requests, clients=1, headers=None):
    options = [word for pair in (headers or {}).items() for word in ("-H", ": ".join(pair))]
    return json.loads(inside(name, *CLIENT, "load", url, "-n", str(requests), "-c", str(clients), *options))


def connect_from(name, *targets):
    return json.loads(inside(name, *CLIENT, "connect", *targets))


def service_of_ipv6(name, protocol, port, endpoint):
    """YAML of a Service at an IPv6 address. Its endpoint, "[ADDRESS]:PORT", only an EndpointSlice can name: the address of a
    WorkloadEntry is one of IPv4."""
    address, _, target = endpoint.rpartition(":")
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  clusterIP: "fd78::6"
  ports: [{{name: {protocol}, port: {port}, targetPort: {target}}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv6
ports: [{{name: {protocol}, port: {target}}}]
endpoints: [{{addresses: ["{address.strip('[]')}"]}}]
"""


# --- the services' logs --------------------------------------------------------------------------

def access_log(name):
    return LAB / "access" / f"{name}.jsonl"


def _lines(name):
    try:
        return access_log(name).read_text().splitlines()
    except FileNotFoundError:
        return []


class Servers:
    """What the services themselves counted since this object was made, health checks left out."""

    def __init__(self):
        self._start = {path.stem: len(path.read_text().splitlines()) for path in (LAB / "access").glob("*.jsonl")}

    def seen(self, name, **fields):
        lines = map(json.loads, _lines(name)[self._start.get(name, 0):])
        return [line for line in lines if line["path"] != "/health"
                and all(line[key] == value for key, value in fields.items())]

    def count(self, name, **fields):
        return len(self.seen(name, **fields))

    def reviews(self, **fields):
        return {version: self.count(f"reviews-{version}", **fields) for version in ("v1", "v2", "v3")}


# --- the page, through the gateway ---------------------------------------------------------------

Page = collections.namedtuple("Page", "status seconds version stars text")


class Visitor:
    """A browser without a screen: one connection to the gateway, and a session once logged in."""

    def __init__(self, user=None):
        self._connection = http.client.HTTPConnection(*GATEWAY, timeout=30)
        self._headers = {"User-Agent": "lab"}
        if user:
            self.login(user)

    def _request(self, method, path, body=None, headers=None):
        try:
            self._connection.request(method, path, body, {**self._headers, **(headers or {})})
            response = self._connection.getresponse()
            return response, response.read().decode()
        except BaseException:
            self._connection.close()
            raise

    def close(self):
        self._connection.close()

    def login(self, user):
        response, _ = self._request("POST", "/login", urllib.parse.urlencode({"username": user, "passwd": "x"}),
                                    {"Content-Type": "application/x-www-form-urlencoded"})
        if response.status != 302:
            raise ValueError(f"POST /login: {response.status} instead of 302")
        self._headers["Cookie"] = response.headers["Set-Cookie"].partition(";")[0]

    def page(self, headers=None):
        started = time.monotonic()
        response, text = self._request("GET", "/productpage", headers=headers)
        seconds = time.monotonic() - started
        version = re.search(r'id="reviews-podname">reviews-(\w+)<', text)
        stars = re.search(r'class="stars (\w+)"', text)
        return Page(response.status, seconds, version and version[1], stars and stars[1], text)


# --- counters ------------------------------------------------------------------------------------

def metrics():
    """Samples of /metrics: a list of (name, labels, value)."""
    connection = http.client.HTTPConnection(*METRICS, timeout=10)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        text = response.read().decode()
        if response.status != 200:
            raise ValueError(f"/metrics: {response.status}")
    finally:
        connection.close()
    samples = []
    for line in text.splitlines():
        match = re.fullmatch(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)(?: \d+)?", line)
        if match:
            labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""))
            samples.append((match[1], labels, float(match[3])))
    return samples


def counter(name, **labels):
    """The sum of a metric's samples with these labels."""
    return int(sum(value for sample, have, value in metrics()
                   if sample == name and all(have.get(key) == want for key, want in labels.items())))


def cluster_counter(name, host):
    """A counter of the clusters of a service, whichever prefix the metric's name has, over all clients."""
    return int(sum(value for sample, labels, value in metrics()
                   if re.fullmatch(rf"\w*_{name}(_total)?", sample)
                   and any(re.search(rf"\b{host}\b", label) for label in labels.values())))


def denials(policy):
    """{(policy, rule): connects that the kernel denied} of the policies of that name."""
    return {(item["policy"], item["rule"]): item["denied"] for item in status()["policies"]
            if item["policy"].rpartition("/")[2] == policy and item["denied"]}


# --- packets -------------------------------------------------------------------------------------

class Capture:
    """Counts the IP packets between a workload and some addresses, on the host's end of its veth."""

    def __init__(self, name, addresses):
        links = json.loads(inside(name, "ip", "-j", "link", "show"))
        peer = next(link["link_index"] for link in links if "link_index" in link)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.bind((socket.if_indextoname(peer), 3))
        self._socket.settimeout(0.1)
        self._wanted = {socket.inet_pton(socket.AF_INET6 if ":" in a else socket.AF_INET, a) for a in addresses}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self.packets = 0

    def _read(self):
        while True:
            try:
                packet = self._socket.recv(65536)
            except TimeoutError:
                if self._stop.is_set():
                    return  # quiet for 0.1 s after the end: nothing is still queued
                continue
            kind = struct.unpack("!H", packet[12:14])[0]
            ends = {0x0800: (packet[26:30], packet[30:34]), 0x86DD: (packet[22:38], packet[38:54])}.get(kind, ())
            self.packets += any(end in self._wanted for end in ends)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._socket.close()


@contextlib.contextmanager
def tap(count, *options):
    """meshctl tap while the block runs; the list that it yields holds the events afterwards."""
    events = []
    process = subprocess.Popen([str(MESHCTL), "tap", "--count", str(count), "-o", "json", *options],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        if not line.startswith("The tap is on"):
            raise CommandFailed(f"meshctl tap: {line.strip() or 'it ended'}")
        yield events
        output, _ = process.communicate(timeout=15)
    except subprocess.TimeoutExpired:
        process.terminate()
        output, _ = process.communicate()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    events.extend(json.loads(line) for line in output.splitlines() if line.startswith("{"))


def running():
    """Is a mesh up on this machine? (exit 3 says that meshd cannot be reached)"""
    return meshctl("status", check=False).returncode != 3
