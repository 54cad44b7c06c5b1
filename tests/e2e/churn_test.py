#!/usr/bin/python3
"""1,000 workloads come and go, 100 of them by kill -9, at most 50 at once: nothing is left of them."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import leftovers  # noqa: E402
import mesh  # noqa: E402
from resilience_test import programs, wait_ready  # noqa: E402

WORK = mesh.ROOT / "build" / "churn"
TOTAL = int(os.environ.get("CHURN_WORKLOADS", "1000"))
AT_ONCE = 50
KILLED_EACH = 10  # of every 100, each way: the command, and `sandbox run` itself


def bpf_ids(kind, pid):
    """The ids of the maps or links that a process has open."""
    found = set()
    for entry in pathlib.Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            found |= {int(line.split()[1]) for line in entry.read_text().splitlines() if line.startswith(f"{kind}_id:")}
    return found


def bpf_map_entries(meshd):
    """{map name: number of entries} of this mesh's hash maps: what workloads write."""
    maps = json.loads(subprocess.run(["bpftool", "-j", "map", "show"], capture_output=True, text=True, check=True).stdout)
    ours, counts = bpf_ids("map", meshd), {}
    for entry in maps:
        if entry["id"] not in ours or "hash" not in entry["type"]:
            continue
        dump = subprocess.run(["bpftool", "-j", "map", "dump", "id", str(entry["id"])], capture_output=True, text=True, check=True)
        counts[entry["name"]] = len(json.loads(dump.stdout or "[]"))
    return counts


def held():
    """Everything of this mesh that could leak, by number; another mesh of this machine does not count."""
    running = programs()
    fds = {name: len(os.listdir(f"/proc/{pid}/fd")) for name, pid in running.items() if name != "meshproxy"}
    pins = sum(len(files) for _, _, files in os.walk("/sys/fs/bpf/undermesh"))
    return {"fds": fds, "maps": bpf_map_entries(running["meshd"]), "links": len(bpf_ids("link", running["meshd"])), "pins": pins,
            "cgroups": len(leftovers.cgroups()), "namespaces": len(leftovers.own_namespaces()),
            "interfaces": len(leftovers.interfaces()), "mounts": len(leftovers.mounts())}


def proxy_fds():
    return len(os.listdir(f"/proc/{programs()['meshproxy']}/fd"))


def one_life(number):
    """A workload from its start to its end; the way it ends depends on its number."""
    name = f"churn-{number}"
    run = subprocess.Popen([str(mesh.MESHCTL), "sandbox", "run", name, "-l", "app=churn", "--", "/bin/sh", "-c",
                            "echo up; exec sleep 1000"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True)
    if run.stdout.readline() != "up\n":
        raise RuntimeError(f"{name}: {run.stderr.read()}")
    way = number % 100
    if way < KILLED_EACH:
        run.send_signal(signal.SIGKILL)
    elif way < 2 * KILLED_EACH:
        children = pathlib.Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
    else:
        run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)


class Churn(unittest.TestCase):
    def test_nothing_is_left_of_a_thousand_workloads(self):
        mesh.start_own(WORK)
        self.addCleanup(mesh.end_own, WORK)
        wait_ready()
        one_life(99)  # bridge, directories and the like exist from the first sandbox on
        mesh.eventually("the first workload is gone", lambda: len(mesh.status()["workloads"]) <= 1, 30)
        before, before_proxy = held(), proxy_fds()
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            for _ in pool.map(one_life, range(100, 100 + TOTAL)):
                pass
        mesh.eventually("status names no workload any more", lambda: len(mesh.status()["workloads"]) <= 1, 60)
        try:
            mesh.eventually("all is as before", lambda: held() == before and proxy_fds() <= before_proxy, 60)
        except TimeoutError:
            self.assertEqual((held(), proxy_fds()), (before, before_proxy))
            raise


if __name__ == "__main__":
    unittest.main(verbosity=2)
