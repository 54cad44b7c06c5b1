#!/usr/bin/python3
"""Side by side, interleaved: no mesh, Undermesh, HAProxy in the middle. One table, build/bench.json.

usage: run.py [WORK|scale|smoke]

http1-* and l4-*-tcp have the same-node fast path off, as it is by default; http1-*-fast and l4-* have
it on (without a kernel that can have it they are left out, and named), with ends that do not block. l4-*
use no proxy; their CPU is both ends'.

The main figure is CPU time per request: what the scheduler accounted to the processes of each variant
(/proc/PID/task/*/schedstat), everything pinned to one CPU at a real-time priority, medians over rounds A B C A B C. "cpu" against
haproxy is the proxy's own (ours: every process of the mesh); "cpu" against none is the whole system's:
client, proxy and origin. A ratio below 1 is always better for us. Traffic stays between this run's own
network namespaces; everything it makes it takes down. "scale" is another kind of work: see scale.py.
"""
import contextlib
import glob
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import time

import scale

ROOT = pathlib.Path(__file__).resolve().parent.parent
BIN = pathlib.Path(os.environ.get("MESH_BIN_DIR", ROOT / "build" / "bin"))
CGROUP = os.environ.get("UNDERMESH_CGROUP", "undermesh")  # the name that meshctl reads from there too
WORK_DIR = ROOT / "build" / "bench"
STARTED = WORK_DIR / "started"  # there while the mesh is ours
CPU = "0"
WORKS = {  # name: (body bytes, connections, requests a round)
    "http1-small": (64, 16, 20000),
    "http1-16k": (16384, 16, 10000),
}
FAST = {f"{name}-fast": work for name, work in WORKS.items()}  # both legs of the proxy on the fast path
L4 = {  # name: (what bench_l4 does, operations a round); enrolled, policed and on the fast path
    "l4-roundtrip": ("roundtrip", 30000),
    "l4-connect": ("connect", 3000),
    "l4-stream": ("stream", 20000),
}
L4 |= {f"{name}-tcp": work for name, work in L4.items()}
ROUNDS = 5
DEADLINE = 120
# First come, first served: what else runs on the machine does not come between (its share stays at 5 %, or more).
REALTIME = subprocess.run(["chrt", "-f", "1", "true"], capture_output=True, check=False).returncode == 0
ON_ONE_CPU = [*(["chrt", "-f", "1"] if REALTIME else []), "taskset", "-c", CPU]


def is_fast(work):
    return work not in WORKS and not work.endswith("-tcp")


def sh(*command, **kwargs):
    done = subprocess.run([str(c) for c in command], text=True, capture_output=True, timeout=DEADLINE, **kwargs)
    if done.returncode:
        raise SystemExit(f"bench: {' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def pin(pid):
    sh("taskset", "-a", "-p", "-c", CPU, pid)
    if REALTIME:
        sh("chrt", "-a", "-f", "-p", "1", pid)


def meshctl(*arguments):
    return sh(BIN / "meshctl", *arguments)


def cpu_us(pids):
    total = 0
    for pid in pids:
        for stat in glob.glob(f"/proc/{pid}/task/*/schedstat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                total += int(pathlib.Path(stat).read_text().split()[0])
    return total / 1000


def rss_kb(pids):
    total = 0
    for pid in pids:
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1])
    return total


def cgroup2():
    for line in pathlib.Path("/proc/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return pathlib.Path(fields[1])
    raise SystemExit("bench: no cgroup2 is mounted")


def pids_of(cgroup):
    return [int(p) for p in (cgroup2() / CGROUP / cgroup / "cgroup.procs").read_text().split()]


def wait_for(what, condition):
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"bench: {what}: not within {DEADLINE} s")
        time.sleep(0.02)


def listening(netns_pid, port):
    for family in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/{netns_pid}/net/{family}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
                return True
    return False


class Plain:
    """Two plain namespaces on the same bridge: the client's (with haproxy in it) and the origin's."""

    names = {"um-bench-client": "10.77.255.2", "um-bench-origin": "10.77.255.3"}

    def __enter__(self):
        self.children = []
        self.remove()  # what an earlier run left that was killed
        try:
            self.make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def make(self):
        for index, (name, address) in enumerate(self.names.items()):
            sh("ip", "netns", "add", name)
            sh("ip", "link", "add", f"umb{index}", "type", "veth", "peer", "name", "eth0", "netns", name)
            sh("ip", "link", "set", f"umb{index}", "master", "undermesh0", "up")
            sh("ip", "-n", name, "addr", "add", f"{address}/16", "dev", "eth0")
            sh("ip", "-n", name, "link", "set", "lo", "up")
            sh("ip", "-n", name, "link", "set", "eth0", "up")
        self.origin = self.start("um-bench-origin", BIN / "bench_origin", "8080")
        self.l4 = self.start("um-bench-origin", BIN / "bench_l4", "serve", "7000")
        os.environ["BENCH_SOCKET"] = str(WORK_DIR / "haproxy.sock")
        os.environ["BENCH_ORIGIN"] = "10.77.255.3:8080"
        self.haproxy = self.start("um-bench-client", "haproxy", "-db", "-f", ROOT / "bench/haproxy.cfg")
        wait_for("the origin listens", lambda: listening(self.origin.pid, 8080))
        wait_for("the L4 server listens", lambda: listening(self.l4.pid, 7002))
        wait_for("haproxy listens", lambda: listening(self.haproxy.pid, 15080))

    def start(self, netns, *command):
        log = open(WORK_DIR / f"{pathlib.Path(command[0]).name}.log", "w")
        child = subprocess.Popen(["ip", "netns", "exec", netns, *ON_ONE_CPU, *map(str, command)],
                                 stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.children.append(child)
        return child  # ip and taskset exec, so the pid is the program's

    def remove(self):
        """The namespaces with whatever runs in them, which would keep them and their links alive."""
        known = sh("ip", "netns", "list").split()
        for index, name in enumerate(self.names):
            if name not in known:
                continue
            for pid in sh("ip", "netns", "pids", name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            if f"umb{index}" in (link for _, link in socket.if_nameindex()):
                sh("ip", "link", "del", f"umb{index}")  # by itself it goes only some time after the namespace
            sh("ip", "netns", "del", name)

    def __exit__(self, *_):
        for child in self.children:
            child.send_signal(signal.SIGTERM)
            child.wait(timeout=DEADLINE)
        self.remove()


class Mesh:
    """The mesh with its sandboxes: the client, the origin and the L4 server."""

    def __init__(self, fast):
        self.fast = fast

    def __enter__(self):
        if STARTED.exists():  # an earlier run of ours was killed
            self.down()
        if subprocess.run([BIN / "meshctl", "status"], capture_output=True, check=False).returncode != 3:
            raise SystemExit("bench: a mesh runs on this machine that the benchmark did not start; end it first: meshctl down")
        STARTED.touch()
        try:
            meshctl("up", "--state-dir", WORK_DIR / "state")
            meshctl("sandbox", "run", "bench-origin", "-l", "app=origin", "--detach", "--", *ON_ONE_CPU,
                    BIN / "bench_origin", "8080")
            meshctl("sandbox", "run", "bench-l4", "-l", "app=l4", "--detach", "--", *ON_ONE_CPU,
                    BIN / "bench_l4", "serve", "7000")
            meshctl("sandbox", "run", "bench-client", "-l", "app=client", "--detach", "--", "sleep", "infinity")
            meshctl("apply", "-f", ROOT / "bench/mesh.yaml")
            self.address = json.loads(meshctl("get", "Service", "origin", "-o", "json"))["spec"]["clusterIP"]
            self.l4_address = json.loads(meshctl("get", "Service", "l4", "-o", "json"))["spec"]["clusterIP"]
            self.switch()
            origin = self.origin_pids()[0]
            l4 = self.l4_pids()[0]
            wait_for("the L4 server listens", lambda: listening(l4, 7002))
            wait_for("the origin listens", lambda: listening(origin, 8080))
            for pid in self.pids():
                pin(pid)
        except BaseException:
            self.down()
            raise
        return self

    def switch(self):
        subprocess.run([BIN / "meshctl", "datapath", "fastpath", "on" if self.fast else "off"], capture_output=True,
                       timeout=DEADLINE, check=False)
        self.state = json.loads(meshctl("datapath", "fastpath", "status", "-o", "json"))
        if not self.fast and self.state["on"]:
            raise SystemExit("bench: the fast path could not be switched off")

    def why_slow(self):
        """Why works of the fast path cannot be measured; "" when they can, or when none is."""
        return "" if self.state["on"] == self.fast else self.state["reason"]

    def let_join(self):
        """Connections that have lived for some round trips join within half a second."""
        if self.fast:
            time.sleep(1.5)

    def redirected(self):
        """How many ends send past TCP, or have sent."""
        told = subprocess.run([BIN / "meshctl", "status", "-o", "json"], capture_output=True, timeout=DEADLINE, check=False)
        return json.loads(told.stdout)["kernel"]["fastpath_redirected"]

    def origin_pids(self):
        return pids_of("workloads/default.bench-origin")

    def l4_pids(self):
        return pids_of("workloads/default.bench-l4")

    def pids(self):
        return pids_of("mesh")

    def down(self):
        meshctl("down", "--purge", "--state-dir", WORK_DIR / "state")
        STARTED.unlink()

    def __exit__(self, *_):
        self.down()


def load(prefix, address, port, work, requests):
    body, connections, _ = {**WORKS, **FAST}[work]
    command = [*prefix, *ON_ONE_CPU, BIN / "bench_load", address, port, "origin", body, connections, requests,
               max(requests // 10, connections * 20)]
    return subprocess.Popen([str(c) for c in command], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def load_l4(prefix, address, work, operations):
    command = [*prefix, *ON_ONE_CPU, BIN / "bench_l4", "load", address, 7000, L4[work][0], operations,
               max(operations // 10, 10)]
    return subprocess.Popen([str(c) for c in command], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def measure(client, proxy_pids, origin_pids, settled=None):
    try:
        if client.stdout.readline().strip() != "ready":
            raise SystemExit("bench: the client failed while warming up")
        if settled:
            settled()
        before = cpu_us(proxy_pids), cpu_us(origin_pids)
        client.stdin.write("go\n")
        client.stdin.flush()
        answer = json.loads(client.stdout.readline())
        proxy, origin = cpu_us(proxy_pids) - before[0], cpu_us(origin_pids) - before[1]
        client.wait(timeout=DEADLINE)
    finally:
        client.kill()  # nothing, once it has ended
    if answer["errors"]:
        raise SystemExit(f"bench: {answer['errors']} of the answers were not 200")
    n = answer["requests"]
    ends = (origin + answer["cpu_us"]) / n
    return {"cpu": proxy / n, "system": proxy / n + ends, "ends": ends, "p99": answer["p99_us"], "rate": n / answer["seconds"],
            "memory": rss_kb(proxy_pids)}


def run_round(work, mesh, plain, requests):
    in_plain = ["ip", "netns", "exec", "um-bench-client"]
    in_mesh = [BIN / "meshctl", "sandbox", "exec", "bench-client", "--"]
    if work in L4:
        return {
            "none": measure(load_l4(in_plain, "10.77.255.3", work, requests), [], [plain.l4.pid]),
            "undermesh": measure(load_l4(in_mesh, mesh.l4_address, work, requests), mesh.pids(), mesh.l4_pids(), mesh.let_join),
        }
    return {
        "none": measure(load(in_plain, "10.77.255.3", 8080, work, requests), [], [plain.origin.pid]),
        "undermesh": measure(load(in_mesh, mesh.address, 8080, work, requests), mesh.pids(), mesh.origin_pids(), mesh.let_join),
        "haproxy": measure(load(in_plain, "127.0.0.1", 15080, work, requests), [plain.haproxy.pid], [plain.origin.pid]),
    }


def rows_of(work, rounds):
    def median(variant, metric):
        return statistics.median(r[variant][metric] for r in rounds)

    def row(metric, against):
        figure = "system" if metric == "cpu" and against == "none" else metric
        ours, theirs = median("undermesh", figure), median(against, figure)
        ratio = theirs / ours if metric == "rate" else ours / theirs
        return {"work": work, "metric": metric, "ours": round(ours, 3), "against": against, "theirs": round(theirs, 3),
                "ratio": round(ratio, 3)}

    if work in L4:
        return [row("ends", "none"), row("p99", "none"), row("rate", "none")]
    return [row("cpu", "haproxy"), row("cpu", "none"), row("p99", "haproxy"), row("p99", "none"),
            row("rate", "haproxy"), row("rate", "none"), row("memory", "haproxy")]


UNITS = {"cpu": "us/request", "ends": "us/operation", "p99": "us", "rate": "requests/s", "memory": "kB"}


def table(rows):
    print(f"\n{'WORK':<18}{'METRIC':<8}{'OURS':>12}  {'AGAINST':<9}{'THEIRS':>12}{'RATIO':>8}  UNIT")
    for r in rows:
        print(f"{r['work']:<18}{r['metric']:<8}{r['ours']:>12.2f}  {r['against']:<9}{r['theirs']:>12.2f}"
              f"{r['ratio']:>8.2f}  {UNITS[r['metric']]}")
    print("\nRatio below 1: better than the peer. cpu against haproxy: the proxies alone; against none: client, proxy and origin. "
          "ends: both ends' alone.")
    if not REALTIME:
        print("This machine gives no real-time priority: its other work is in these figures.")


def run_scale(smoke):
    rows, figures = scale.run(BIN / "bench_scale", smoke)
    (ROOT / "build/bench-scale.json").write_text(json.dumps({"rows": rows, "figures": figures}, indent=1) + "\n")
    scale.table(rows)


def run_works(works, fast, smoke):
    rows = []
    with Mesh(fast) as mesh, Plain() as plain:
        if mesh.why_slow():
            print(f"bench: left out, as the fast path is off ({mesh.why_slow()}): {', '.join(works)}")
            return []
        for work in works:
            before = mesh.redirected() if fast else 0
            requests = 500 if smoke else L4[work][1] if work in L4 else {**WORKS, **FAST}[work][2]
            rounds = [run_round(work, mesh, plain, requests) for _ in range(1 if smoke else ROUNDS)]
            rows += rows_of(work, rounds)
            if fast:
                print(f"{work}: {mesh.redirected() - before} ends sent past TCP")
            for index, r in enumerate(rounds):
                print(f"{work} round {index + 1}: cpu us/operation: " +
                      ", ".join(f"{variant} {r[variant]['cpu']:.2f} (system {r[variant]['system']:.2f})" for variant in r))
    return rows


def main():
    what = sys.argv[1] if len(sys.argv) > 1 else "all"
    smoke = what == "smoke"
    known = [*WORKS, *FAST, *L4]
    if what not in ("all", "smoke", "scale", *known):
        raise SystemExit(f"bench: no work '{what}'; there are: {', '.join(known)}, scale, smoke")
    works = [what] if what in known else known
    WORK_DIR.mkdir(parents=True, exist_ok=True)
    if what == "scale":
        run_scale(smoke=False)
        return
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # an exception, so that everything is taken down
        signal.signal(number, lambda got, _: sys.exit(128 + got))
    rows = []
    for fast in (False, True):
        mine = [work for work in works if is_fast(work) == fast]
        if mine:
            rows += run_works(mine, fast, smoke)
    (ROOT / "build/bench.json").write_text(json.dumps(rows, indent=1) + "\n")
    table(rows)
    if smoke:
        run_scale(smoke=True)


main()
