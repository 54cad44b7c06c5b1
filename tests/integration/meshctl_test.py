#!/usr/bin/python3
"""meshctl against a fake meshd: sandboxes are real (namespaces, veth, cgroups), the mesh is not.

Runs in a network and mount namespace of its own, with a control group and a run directory of its own, so that a
mesh that runs on this machine is not touched.
"""

import contextlib
import ctypes
import http.client
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.parse

HERE = pathlib.Path(__file__).resolve().parent
BIN = pathlib.Path(os.environ.get("MESH_BIN_DIR", HERE.parent.parent / "build" / "bin"))
MESHCTL = str(BIN / "meshctl")
FAKE = str(HERE.parent / "support" / "fake_meshd.py")
FAKE_PROGRAM = str(BIN.parent / "tests" / "fake_program")
CGROUP_NAME = f"undermesh-meshctl-{os.getpid()}"
RESOLV_CONF = ("# The mesh answers for its own names; there are no others.\nnameserver 192.0.0.8\n"
               "options timeout:2 attempts:3\n")


def cgroup_root():
    mounts = pathlib.Path("/proc/mounts").read_text().splitlines()
    mount = next(line.split()[1] for line in mounts if line.split()[2] == "cgroup2")
    return pathlib.Path(mount, CGROUP_NAME)


def eventually(what, condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)
    return value


def links():
    shown = subprocess.run(["ip", "-j", "link"], capture_output=True, text=True, check=True).stdout
    return {link["ifname"] for link in json.loads(shown)}


def workload_links():
    return {name for name in links() if re.fullmatch("um[0-9a-f]{4}", name)}


def cgroups():
    workloads = cgroup_root() / "workloads"
    return {path.name for path in workloads.iterdir() if path.is_dir()} if workloads.is_dir() else set()


def members(name):
    path = cgroup_root() / "workloads" / f"default.{name}" / "cgroup.procs"
    try:
        return [int(pid) for pid in path.read_text().split()]
    except OSError:
        return []


def is_alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def asked_of_fake(run_dir, text):
    """How many of meshctl's requests name this."""
    connection = http.client.HTTPConnection("meshd")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(os.path.join(run_dir, "meshd.sock"))
    connection.request("GET", "/test/log")
    log = json.loads(connection.getresponse().read())
    connection.close()
    return sum(text in urllib.parse.unquote(line) for line in log)


@contextlib.contextmanager
def held_at_its_end(pid):
    """A process that is killed in here ends only when this does: it keeps its files, and so its locks, until then."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long] * 4
    seize, detach, trace_exit = 0x4206, 17, 0x40

    def ptrace(request, data):
        if libc.ptrace(request, pid, 0, data) != 0:
            raise OSError(ctypes.get_errno(), "ptrace")

    ptrace(seize, trace_exit)
    try:
        yield lambda: os.waitpid(pid, 0x40000000)  # __WALL; until it is at its end
    finally:
        ptrace(detach, 0)


class MeshctlCase(unittest.TestCase):
    def setUp(self):
        self._directory = tempfile.TemporaryDirectory(prefix="meshctl-test-")
        self.addCleanup(self._directory.cleanup)
        self.run_dir = os.path.join(self._directory.name, "run")
        self.environment = {**os.environ, "UNDERMESH_RUN_DIR": self.run_dir, "UNDERMESH_CGROUP": CGROUP_NAME}
        os.makedirs(os.path.join(self.run_dir, "logs"))
        self.start_fake()
        self.addCleanup(self.stop_fake)
        self.addCleanup(self.meshctl, "sandbox", "stop", "--all")

    def start_fake(self):
        self.fake = subprocess.Popen(["/usr/bin/python3", FAKE, self.run_dir], stdout=subprocess.PIPE, text=True)
        self.assertEqual(self.fake.stdout.readline(), "ready\n")

    def stop_fake(self):
        self.fake.kill()
        self.fake.wait()
        self.fake.stdout.close()

    def popen(self, *arguments, **options):
        return subprocess.Popen([MESHCTL, *arguments], env=self.environment, text=True, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    def meshctl(self, *arguments, stdin="", user=None):
        program = MESHCTL
        if user is not None:  # the clone may be out of their reach
            os.chmod(self._directory.name, 0o755)
            program = shutil.copy(MESHCTL, self._directory.name)
        return subprocess.run([program, *map(str, arguments)], env=self.environment, text=True, input=stdin, user=user,
                              capture_output=True, timeout=60, check=False)

    def ok(self, *arguments, **options):
        done = self.meshctl(*arguments, **options)
        self.assertEqual(done.returncode, 0, f"{arguments}: {done.stdout}{done.stderr}")
        return done.stdout

    def file(self, name, text):
        path = pathlib.Path(self._directory.name, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    def entries(self):
        return [item["metadata"]["name"] for item in
                json.loads(self.ok("get", "we", "-A", "-o", "json"))["items"]]

    def assert_nothing_left(self):
        eventually("cgroups, links and entries are gone",
                   lambda: not cgroups() and not workload_links() and not self.entries())
        self.assertEqual(os.listdir(os.path.join(self.run_dir, "sandboxes")), [])


class Sandboxes(MeshctlCase):
    def test_the_command_has_its_own_network_mounts_and_processes(self):
        output = self.ok("sandbox", "run", "one", "-l", "app=one,version=v1", "-l", "x=y", "--service-account", "sa",
                         "--env", "GREETING=hello world", "--", "/bin/sh", "-c",
                         "ip -br -4 a show eth0; ip -br -6 a show eth0; ip -br l show lo; cat /etc/resolv.conf; ls -d /proc/[0-9]*;"
                         "ip -4 route; ip -6 route show default; echo $GREETING; cat /proc/self/cgroup")
        self.assertRegex(output, r"eth0@\S+\s+UP\s+10\.77\.0\.\d+/16")
        self.assertRegex(output, r"fd77::\w+/64")
        self.assertRegex(output, r"lo\s+UNKNOWN")
        self.assertIn("nameserver 192.0.0.8\n", output)
        self.assertIn("default via 10.77.0.1", output)
        self.assertIn("default via fd77::1", output)
        self.assertIn("hello world", output)
        self.assertLess(len(re.findall(r"^/proc/\d+$", output, re.M)), 6)
        self.assertIn(f"0::/{CGROUP_NAME}/workloads/default.one", output)
        self.assert_nothing_left()

    def test_no_link_has_an_address_that_no_policy_could_name(self):
        self.ok("sandbox", "run", "box", "--detach", "--", "sleep", "1000")

        def addresses(*command):
            return json.loads(subprocess.run([*command, "ip", "-j", "addr"], capture_output=True, text=True, check=True).stdout)

        def are_up():  # its addresses are made as a link comes up
            here, inside = addresses(), addresses("nsenter", "-n", "-t", str(members("box")[0]))
            ours = [link for link in (*here, *inside) if re.fullmatch("um[0-9a-f]{4}|undermesh0|eth0", link["ifname"])]
            return len(ours) == 3 and all(link["operstate"] == "UP" for link in ours) and ours

        local = [a["local"] for link in eventually("all three links are up", are_up) for a in link["addr_info"]]
        self.assertEqual([a for a in local if a.startswith("fe80")], [])
        self.assertEqual(len(local), 4, local)

    def test_what_is_the_meshs_is_out_of_sight(self):
        pathlib.Path("/sys/fs/bpf/undermesh").mkdir()
        self.addCleanup(os.rmdir, "/sys/fs/bpf/undermesh")
        self.ok("sandbox", "run", "box", "--detach", "--", "sleep", "1000")
        for words in (("run", "other"), ("exec", "box")):
            done = self.ok("sandbox", *words, "--", "sh", "-c", f"ls -A {self.run_dir} /sys/fs/bpf; touch {self.run_dir}/x /sys/fs/bpf/x;"
                           f"mkdir {cgroup_root()}/workloads/mine; echo 0 > {cgroup_root()}/cgroup.procs; cat /etc/resolv.conf; true")
            self.assertEqual(done, f"/sys/fs/bpf:\n\n{self.run_dir}:\n" + RESOLV_CONF)
        self.assertEqual(cgroups(), {"default.box"})

    def test_a_name_that_nobody_has_fails_at_once(self):
        # Here nothing redirects the query; a name server out of reach would be waited for.
        ask = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.connect(('192.0.0.8', 53))"
        answer = self.ok("sandbox", "run", "names", "--", "sh", "-c", "getent hosts no-such-name.example || echo none; "
                         f"getent hosts localhost >/dev/null && echo localhost; python3 -c \"{ask}\" 2>&1 | tail -1")
        self.assertRegex(answer, r"^none\nlocalhost\nOSError: .*No route to host")

    def test_the_workload_entry_says_what_was_asked(self):
        self.ok("sandbox", "run", "entry", "-l", "app=a,version=v1", "--service-account", "sa", "--annotation",
                "example.org/x=y", "--detach", "--", "sleep", "100")
        entry = json.loads(self.ok("get", "WorkloadEntry", "entry", "-o", "json"))
        annotations = entry["metadata"]["annotations"]
        self.assertEqual(entry["spec"]["labels"], {"app": "a", "version": "v1"})
        self.assertEqual(entry["spec"]["serviceAccount"], "sa")
        self.assertEqual(annotations["undermesh.io/sandbox"], "true")
        self.assertEqual(annotations["undermesh.io/cgroup"], str(cgroup_root() / "workloads" / "default.entry"))
        self.assertEqual(annotations["example.org/x"], "y")
        first = int(re.fullmatch(r"/proc/(\d+)/ns/net", annotations["undermesh.io/netns"])[1])
        self.assertIn(first, members("entry"))
        self.assertEqual(annotations["undermesh.io/addresses"].split(",")[0], entry["spec"]["address"])
        self.ok("sandbox", "stop", "entry")
        self.assert_nothing_left()

    def test_exit_status_input_and_output_pass_through(self):
        self.assertEqual(self.meshctl("sandbox", "run", "status", "--", "sh", "-c", "exit 37").returncode, 37)
        self.assertEqual(self.meshctl("sandbox", "run", "status", "--", "sh", "-c", "kill -USR1 $$").returncode, 128 + 10)
        done = self.meshctl("sandbox", "run", "status", "--", "sh", "-c", "cat; echo err >&2", stdin="in\n")
        self.assertEqual((done.stdout, done.stderr, done.returncode), ("in\n", "err\n", 0))
        self.assert_nothing_left()

    def test_a_command_that_cannot_run_is_127_or_126(self):
        done = self.meshctl("sandbox", "run", "none", "--", "/no/such/command")
        self.assertEqual(done.returncode, 127)
        self.assertIn("/no/such/command", done.stderr)
        self.assertEqual(self.meshctl("sandbox", "run", "none", "--", "/etc/passwd").returncode, 126)
        done = self.meshctl("sandbox", "run", "none", "--detach", "--", "/no/such/command")
        self.assertEqual(done.returncode, 1)
        self.assertIn("/no/such/command", done.stderr)
        self.assert_nothing_left()

    def test_signals_reach_the_command(self):
        for number, code in ((signal.SIGTERM, 3), (signal.SIGINT, 4), (signal.SIGUSR1, 5)):
            name = {signal.SIGTERM: "TERM", signal.SIGINT: "INT", signal.SIGUSR1: "USR1"}[number]
            process = self.popen("sandbox", "run", "signals", "--", "/bin/sh", "-c",
                                 f"trap 'exit {code}' {name}; echo up; while :; do sleep 0.05; done")
            self.assertEqual(process.stdout.readline(), "up\n", process.stderr)
            process.send_signal(number)
            process.communicate(timeout=20)
            self.assertEqual(process.returncode, code)
        self.assert_nothing_left()

    def test_a_killed_monitor_takes_everything_with_it(self):
        process = self.popen("sandbox", "run", "orphan", "--", "/bin/sh", "-c",
                             "setsid sleep 1000 & (sleep 1000 &) ; echo up; exec sleep 1000")
        self.assertEqual(process.stdout.readline(), "up\n")
        pids = members("orphan")
        self.assertGreaterEqual(len(pids), 4)
        process.kill()
        process.communicate(timeout=20)
        eventually("every process is gone", lambda: not any(map(is_alive, pids)))
        eventually("the link is gone with its namespace", lambda: not workload_links())
        self.assertEqual(self.ok("sandbox", "run", "orphan", "--", "echo", "again"), "again\n")
        self.assert_nothing_left()

    def test_a_killed_first_process_or_command_ends_the_sandbox(self):
        for pick in (min, max):
            process = self.popen("sandbox", "run", "killed", "--", "/bin/sh", "-c", "echo up; exec sleep 1000")
            self.assertEqual(process.stdout.readline(), "up\n")
            os.kill(pick(members("killed")), signal.SIGKILL)
            process.communicate(timeout=20)
            self.assertEqual(process.returncode, 137)
        self.assert_nothing_left()

    def test_detached_sandboxes_talk_to_each_other_and_can_be_listed_entered_and_stopped(self):
        log = os.path.join(self._directory.name, "server.log")
        told = self.ok("sandbox", "run", "server", "--detach", "--log", log, "--", "/usr/bin/python3", "-c",
                       "import socket\ns = socket.create_server(('::', 80), family=socket.AF_INET6, dualstack_ipv6=True)\n"
                       "print('listening', flush=True)\nwhile True: s.accept()[0].sendall(b'served')")
        address, pid = re.search(r"address (\S+), pid (\d+)", told).groups()
        self.assertEqual(pathlib.Path(f"/proc/{pid}/comm").read_text().strip(), "python3")
        eventually("the server listens", lambda: "listening" in pathlib.Path(log).read_text())
        self.ok("sandbox", "run", "client", "--detach", "--", "sleep", "1000")
        listed = {s["name"]: s for s in json.loads(self.ok("sandbox", "list", "-o", "json"))["sandboxes"]}
        self.assertEqual(set(listed), {"server", "client"})
        self.assertEqual((listed["server"]["pid"], listed["server"]["state"]), (int(pid), "enrolled"))
        self.assertRegex(self.ok("sandbox", "list"), r"default +server +10\.77\.\S+ +enrolled +" + pid)
        for target in listed["server"]["addresses"]:
            got = self.ok("sandbox", "exec", "client", "--", "/usr/bin/python3", "-c",
                          f"import socket; print(socket.create_connection(('{target}', 80), 5).recv(9).decode())")
            self.assertEqual(got, "served\n", target)
        self.assertEqual(self.ok("sandbox", "stop", "server"), "sandbox/server stopped\n")
        self.assertFalse(is_alive(int(pid)))
        self.assertEqual(self.meshctl("sandbox", "stop", "server").returncode, 4)
        self.assertEqual(self.ok("sandbox", "stop", "--all"), "sandbox/client stopped\n")
        self.assert_nothing_left()

    def test_exec_passes_everything_and_ends_with_its_caller_and_its_sandbox(self):
        self.ok("sandbox", "run", "box", "--detach", "--", "sleep", "1000")
        self.assertEqual(self.meshctl("sandbox", "exec", "box", "--", "sh", "-c", "exit 9").returncode, 9)
        self.assertEqual(self.ok("sandbox", "exec", "box", "--env", "A=b c", "--", "sh", "-c", "cat; echo $A", stdin="x\n"),
                         "x\nb c\n")
        self.assertEqual(self.ok("sandbox", "exec", "box", "--", "readlink", "/proc/self/ns/net"),
                         self.ok("sandbox", "exec", "box", "--", "readlink", "/proc/1/ns/net"))
        self.assertEqual(self.meshctl("sandbox", "exec", "box", "--", "/no/such").returncode, 127)
        self.assertEqual(self.meshctl("sandbox", "exec", "other", "--", "true").returncode, 4)
        process = self.popen("sandbox", "exec", "box", "--", "sh", "-c", "echo up; exec sleep 1000")
        process.stdout.readline()
        before = len(members("box"))
        process.kill()
        process.communicate(timeout=20)
        eventually("the command ended with meshctl", lambda: len(members("box")) == before - 1)
        process = self.popen("sandbox", "exec", "box", "--", "sh", "-c", "echo up; exec sleep 1000")
        process.stdout.readline()
        self.ok("sandbox", "stop", "box")
        process.communicate(timeout=20)
        self.assertEqual(process.returncode, 137)
        self.assert_nothing_left()

    def test_only_root_sees_sandboxes(self):
        self.ok("sandbox", "run", "secret", "--detach", "--", "sleep", "1000")
        for arguments in (("list",), ("stop", "secret"), ("exec", "secret", "--", "true"), ("run", "mine", "--", "true")):
            done = self.meshctl("sandbox", *arguments, user=65530)
            self.assertEqual((done.returncode, done.stdout), (6, ""), arguments)
            self.assertIn("needs root", done.stderr)
        directory = pathlib.Path(self.run_dir, "sandboxes")
        self.assertEqual(directory.stat().st_mode & 0o777, 0o700)
        directory.chmod(0o755)  # as an older meshctl left it
        self.ok("sandbox", "run", "next", "--", "true")
        self.assertEqual(directory.stat().st_mode & 0o777, 0o700)

    def test_a_service_address_that_nobody_answers_for_fails_at_once(self):
        connect = ("import errno, socket\ntry: socket.create_connection(('{}', 80), 20)\n"
                   "except OSError as error: print(errno.errorcode.get(error.errno, error))")
        for block, address in (("", "10.78.9.9"), ("10.99.16.0/20", "10.99.31.1")):
            if block:
                pathlib.Path(self.run_dir, "up.json").write_text(json.dumps({"service_cidr": block}))
            self.assertEqual(self.ok("sandbox", "run", "caller", "--", "/usr/bin/python3", "-c", connect.format(address)),
                             "EHOSTUNREACH\n")
        self.assertIn("unreachable 10.99.16.0/20", self.ok("sandbox", "run", "caller", "--", "ip", "route"))

    def test_addresses_are_not_given_again_at_once(self):
        seen = [self.ok("sandbox", "run", "turn", "--", "sh", "-c", "ip -o -4 a show eth0 | awk '{print $4}'")
                for _ in range(3)]
        self.assertEqual(len(set(seen)), 3, seen)

    def test_many_at_once_have_addresses_of_their_own(self):
        processes = [self.popen("sandbox", "run", f"many-{n}", "--", "/bin/sh", "-c",
                                "ip -o -4 a show eth0 | awk '{print $4}'; exec sleep 1000") for n in range(12)]
        addresses = [p.stdout.readline() for p in processes]
        self.assertEqual(len(set(addresses)), 12, addresses)
        for number, process in enumerate(processes):
            process.send_signal(signal.SIGKILL if number % 3 == 0 else signal.SIGTERM)
        for process in processes:
            process.communicate(timeout=30)
        self.ok("sandbox", "stop", "--all")
        eventually("all is gone", lambda: not cgroups() and not workload_links() and not self.entries())

    def test_every_name_is_listed_also_one_that_begins_with_new(self):
        for name in ("newsletter", "new", "x-new"):
            self.ok("sandbox", "run", name, "--detach", "--", "sleep", "1000")
        listed = json.loads(self.ok("sandbox", "list", "-o", "json"))["sandboxes"]
        self.assertEqual({s["name"] for s in listed}, {"newsletter", "new", "x-new"})

    def test_a_name_is_taken_while_its_sandbox_runs(self):
        self.ok("sandbox", "run", "taken", "--detach", "--", "sleep", "1000")
        done = self.meshctl("sandbox", "run", "taken", "--", "true")
        self.assertEqual(done.returncode, 1)
        self.assertIn("runs already", done.stderr)
        self.ok("sandbox", "run", "taken", "-n", "other", "--", "true")
        self.ok("sandbox", "stop", "taken")

    def test_a_workload_entry_of_somebody_else_is_left_alone(self):
        self.ok("apply", "-f", self.file("we.yaml", "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n"
                                         "metadata: {name: mine}\nspec: {address: 192.0.2.7}\n"))
        done = self.meshctl("sandbox", "run", "mine", "--", "true")
        self.assertEqual(done.returncode, 1)
        self.assertIn("is no sandbox", done.stderr)
        self.ok("delete", "we", "mine")

    def test_disable_leaves_a_workload_its_place_and_takes_it_out_of_the_mesh(self):
        self.ok("apply", "-f", self.file("we.yaml", "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n"
                                         "  name: mine\n  annotations: {undermesh.io/netns: /n, undermesh.io/cgroup: /c}\n"
                                         "spec: {address: 192.0.2.7}\n"))
        self.assertIn("without its annotation undermesh.io/enrolment", self.ok("disable", "mine"))
        entry = json.loads(self.ok("get", "WorkloadEntry", "mine", "-o", "json"))
        self.assertEqual(entry["metadata"]["annotations"], {"undermesh.io/netns": "/n", "undermesh.io/cgroup": "/c",
                                                            "undermesh.io/enrolment": "disabled"})
        self.assertIn("is not enrolled", self.ok("disable", "mine"))
        self.ok("delete", "we", "mine")

    def test_a_workload_that_cannot_be_enrolled_never_runs(self):
        witness = os.path.join(self._directory.name, "ran")
        done = self.meshctl("sandbox", "run", "failing-one", "--", "touch", witness)
        self.assertEqual(done.returncode, 1)
        self.assertIn("the test wants it failed", done.stderr)
        process = self.popen("sandbox", "run", "pending-one", "--", "touch", witness)
        eventually("it waits, and has asked again", lambda: asked_of_fake(self.run_dir, "wait=default/pending-one") >= 2)
        self.assertTrue(members("pending-one"))
        process.terminate()
        _, told = process.communicate(timeout=20)
        self.assertNotEqual(process.returncode, 0, told)
        self.assertFalse(os.path.exists(witness))
        self.assert_nothing_left()

    def test_without_meshd_nothing_is_started(self):
        self.stop_fake()
        done = self.meshctl("sandbox", "run", "lonely", "--", "true")
        self.assertEqual(done.returncode, 3)
        self.assertIn("meshctl up", done.stderr)
        self.start_fake()

    def test_sandboxes_outlive_meshd_and_can_be_stopped_without_it(self):
        self.ok("sandbox", "run", "survivor", "--detach", "--", "sleep", "1000")
        self.stop_fake()
        self.assertIn("survivor", self.ok("sandbox", "list"))
        self.assertEqual(self.ok("sandbox", "exec", "survivor", "--", "echo", "here"), "here\n")
        self.ok("sandbox", "stop", "survivor")
        eventually("all is gone", lambda: not cgroups() and not workload_links())
        self.start_fake()

    def test_a_monitor_that_hangs_is_ended_by_stop(self):
        self.ok("sandbox", "run", "hung", "--detach", "--", "sleep", "1000")
        record = json.loads(pathlib.Path(self.run_dir, "sandboxes", "default.hung").read_text())
        os.kill(record["monitor_pid"], signal.SIGSTOP)
        self.ok("sandbox", "stop", "hung")
        self.assert_nothing_left()

    def test_bad_names_and_options_are_wrong_usage(self):
        for arguments in (["Upper"], ["under_score"], ["a" * 64], ["-x"], ["ok", "-l", "novalue"], ["ok", "-l", "a=b,c"],
                          ["ok", "--annotation", "=x"], ["ok", "--env", "NOEQ"], ["ok", "-n", "a.b"], ["ok", "--log", "f"]):
            done = self.meshctl("sandbox", "run", *arguments, "--", "true")
            self.assertEqual(done.returncode, 2, arguments)
            self.assertIn("meshctl --help", done.stderr)
        self.assertEqual(self.meshctl("sandbox", "exec", "Upper", "--", "true").returncode, 2)
        self.assertEqual(self.meshctl("sandbox", "stop", "Upper").returncode, 2)
        self.assertEqual(self.meshctl("sandbox", "run", "ok").returncode, 2)
        self.assertEqual(self.meshctl("status", "--", "true").returncode, 2)


GOOD = """apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: reviews
spec:
  hosts: [reviews]
  http:
  - route:
    - destination: {host: reviews}
"""
METHODS_ON_TCP = """apiVersion: v1
kind: Service
metadata: {name: db}
spec:
  selector: {app: db}
  ports: [{name: tcp, port: 3306}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: db}
spec: {address: 10.1.2.3, labels: {app: db}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: get}
spec:
  selector: {matchLabels: {app: db}}
  action: ALLOW
  rules: [{to: [{operation: {methods: [GET]}}]}]
"""
BAD = GOOD.replace("name: reviews", "name: bad").replace("  hosts", "  unsupported: 1\n  hosts")


class Objects(MeshctlCase):
    def test_apply_says_what_became_of_each_object(self):
        good = self.file("good.yaml", GOOD)
        name = "virtualservice.networking.istio.io/reviews"
        self.assertEqual(self.ok("apply", "-f", good, "--dry-run"), f"{name} created (dry run)\n")
        self.assertEqual(self.ok("apply", "-f", good), f"{name} created\n")
        self.assertEqual(self.ok("apply", "-f", good), f"{name} unchanged\n")
        self.assertEqual(self.ok("apply", "-f", "-", stdin=GOOD.replace("[reviews]", "[other]")), f"{name} configured\n")
        self.assertRegex(self.ok("get", "vs"), r"(?m)^NAME +GATEWAYS +HOSTS +AGE\nreviews +- +other +-$")
        self.assertIn("other", self.ok("describe", "vs", "reviews"))
        self.assertIn("- other", self.ok("get", "vs", "reviews", "-o", "yaml"))
        self.assertEqual(self.ok("delete", "-f", good), f"{name} deleted\n")
        self.assertEqual(self.meshctl("delete", "vs", "reviews").returncode, 4)
        self.assertEqual(self.meshctl("get", "vs", "reviews").returncode, 4)

    def test_a_refusal_names_file_and_line_and_fails(self):
        directory = pathlib.Path(self.file("d/a/good.yaml", GOOD)).parent.parent
        self.file("d/bad.yml", BAD)
        self.file("d/broken.json", "{")
        self.file("d/README.txt", "not an object")
        done = self.meshctl("apply", "-f", directory)
        self.assertEqual(done.returncode, 1)
        self.assertIn("virtualservice.networking.istio.io/reviews created", done.stdout)
        self.assertRegex(done.stderr, r"bad\.yml:6: spec\.unsupported: not supported")
        self.assertIn("broken.json", done.stderr)

    def test_validate_judges_the_objects_together(self):
        good = self.file("good.yaml", GOOD)
        name = "virtualservice.networking.istio.io/reviews"
        self.assertEqual(self.ok("validate", "-f", good), f"{name} valid\n")
        again = self.file("again.yaml", GOOD)
        done = self.meshctl("validate", "-f", good, "-f", again)
        self.assertEqual((done.returncode, done.stdout), (1, f"{name} refused\n" * 2))
        self.assertIn("again.yaml", done.stderr)
        self.assertIn("good.yaml", done.stderr)

    def test_validate_takes_a_policy_as_apply_would_with_the_same_objects(self):
        tcp = self.file("tcp.yaml", METHODS_ON_TCP)
        self.assertIn("authorizationpolicy.security.istio.io/get valid\n", self.ok("validate", "-f", tcp))
        http = self.file("http.yaml", METHODS_ON_TCP.replace("{name: tcp,", "{name: http,"))
        done = self.meshctl("validate", "-f", http)
        self.assertEqual(done.returncode, 1)
        self.assertIn("authorizationpolicy.security.istio.io/get refused\n", done.stdout)
        self.assertIn("methods", done.stderr)

    def test_version_is_a_command_and_an_option(self):
        self.assertIn("meshctl", self.ok("version"))
        self.assertEqual(self.ok("--version"), self.ok("version"))
        self.assertEqual(self.ok("--version", "-o", "json"), self.ok("version", "-o", "json"))

    def test_status_is_degraded_with_5_and_reads_as_json_and_yaml(self):
        self.assertIn("The mesh is ready", self.ok("status"))
        self.ok("apply", "-f", self.file("bad.yaml", GOOD.replace("name: reviews", "name: bad")))
        done = self.meshctl("status", "-o", "json")
        self.assertEqual((done.returncode, json.loads(done.stdout)["state"]), (5, "degraded"))
        self.assertIn("state: degraded", self.meshctl("status", "-o", "yaml").stdout)

    def test_tap_prints_a_table_or_lines_of_json(self):
        done = self.meshctl("tap", "--count", "3")
        self.assertEqual((done.returncode, len(done.stdout.splitlines())), (0, 4))
        self.assertTrue(done.stderr.startswith("The tap is on"), done.stderr)  # tests wait for this line
        events = [json.loads(line) for line in self.ok("tap", "--count", "5", "-o", "json", "--destination", "a/b&c").splitlines()]
        self.assertEqual([e["path"] for e in events], ["/0", "/1", "/2", "/3", "/4"])
        self.assertEqual(events[0]["route"], "a/b&c")

    def test_flows_are_a_table_of_what_fits_and_wide_has_the_rest(self):
        def cells(*options):
            return [re.split(" {3,}", line) for line in self.ok("bpf", "flows", *options).splitlines()]

        titles, tcp, udp = cells()
        self.assertEqual(titles, ["WORKLOAD", "PROTOCOL", "DIRECTION", "DESTINATION", "PEER", "STATE", "AGE", "SENT", "RECEIVED",
                                  "RETRANSMITS", "VERDICT"])
        self.assertEqual(tcp, ["default/client", "TCP", "out", "db.default.svc.cluster.local:5432", "10.77.0.3:9000", "established",
                               "3m20s", "12", "3400", "2", "allowed"])
        self.assertEqual(udp, ["default/db", "UDP", "in", "*:53", "10.77.0.2:4000", "open (quiet for 3s)", "-", "-", "-", "-", "allowed"])
        wide = cells("-o", "wide")
        self.assertEqual([line[11:] for line in wide], [["POLICY", "LOCAL", "COOKIE"],
                                                        ["AuthorizationPolicy default/db[1]", "10.77.0.2:40000", "77"], ["-", "*:53", "-"]])
        self.assertEqual(json.loads(self.ok("bpf", "flows", "-o", "json"))["rows"][1]["quiet_seconds"], 3)

    def test_dump_prints_the_columns_that_the_server_names(self):
        self.assertEqual(self.ok("config", "dump", "routes"), "HOST      PORT\nreviews   9080\n")
        self.assertEqual(self.meshctl("config", "dump", "nonsense").returncode, 2)

    def test_words_that_can_never_be_right_are_wrong_usage(self):
        for arguments in (("get", "bogus"), ("get", "vs,bogus"), ("describe", "bogus", "x"), ("delete", "bogus", "x"),
                          ("get", "vs", "-o", "bogus"), ("get", "vs", "-n", "Bad_NS"), ("config", "dump", "bogus"),
                          ("tap", "--status", "bogus"), ("up", "--service-cidr", "10.78.3.0/16")):
            done = self.meshctl(*arguments)
            self.assertEqual((done.returncode, done.stdout), (2, ""), arguments)
            self.assertRegex(done.stderr, "bogus|Bad_NS|10.78.0.0/16")
        self.assertIn("VirtualService (vs)", self.meshctl("get", "bogus").stderr)

    def test_without_any_object_apply_delete_and_validate_fail_alike(self):
        for text in ("", "---\n# nothing\n", "kind: List\napiVersion: v1\nitems: []\n"):
            for verb in ("apply", "delete", "validate"):
                done = self.meshctl(verb, "-f", "-", stdin=text)
                self.assertEqual((done.returncode, done.stdout, done.stderr), (1, "", f"error: no objects passed to {verb}\n"))

    def test_validate_tells_the_errors_of_every_document_and_apply_takes_none_of_such_a_file(self):
        text = f"- a list\n---\n{GOOD}---\n{BAD}---\n\njust text\n"
        done = self.meshctl("validate", "-f", "-", stdin=text)
        self.assertEqual(done.returncode, 1)
        for words in ("stdin:1: not an object", "spec.unsupported: unknown field", "stdin:25: not an object"):
            self.assertIn(words, done.stderr)
        self.assertEqual(done.stdout, "virtualservice.networking.istio.io/reviews valid\n"
                                      "virtualservice.networking.istio.io/bad refused\n")
        done = self.meshctl("apply", "-f", "-", stdin=text)
        self.assertEqual((done.returncode, done.stdout), (1, ""))

    def test_a_tap_that_is_refused_prints_no_header(self):
        done = self.meshctl("tap", user=65530)
        self.assertEqual((done.returncode, done.stdout), (6, ""), done.stderr)


class Supervision(unittest.TestCase):
    """up and down, with programs that only wait to be killed."""

    PROGRAMS = ("meshhold", "meshproxy", "meshd")

    def setUp(self):
        self._directory = tempfile.TemporaryDirectory(prefix="meshctl-test-")
        self.addCleanup(self._directory.cleanup)
        self.bin = pathlib.Path(self._directory.name, "bin")
        self.bin.mkdir()
        shutil.copy(MESHCTL, self.bin / "meshctl")
        for name in self.PROGRAMS:
            shutil.copy(FAKE_PROGRAM, self.bin / name)
        self.run_dir = pathlib.Path(self._directory.name, "run")
        self.state_dir = pathlib.Path(self._directory.name, "state")
        self.environment = {**os.environ, "UNDERMESH_RUN_DIR": str(self.run_dir), "UNDERMESH_CGROUP": CGROUP_NAME,
                            "FAKE_MESHD": FAKE}
        self.addCleanup(self.meshctl, "down", "--purge")

    def meshctl(self, *arguments, **environment):
        return subprocess.run([self.bin / "meshctl", *map(str, arguments)], env={**self.environment, **environment},
                              text=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=90, check=False)

    def ok(self, *arguments):
        done = self.meshctl(*arguments)
        self.assertEqual(done.returncode, 0, f"{arguments}: {done.stdout}{done.stderr}")
        return done.stdout

    def up(self):
        return self.ok("up", "--state-dir", self.state_dir)

    def pids(self):
        found = {}
        try:
            members = (cgroup_root() / "mesh" / "cgroup.procs").read_text().split()
        except FileNotFoundError:
            return found
        for pid in members:
            try:
                name = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
            except OSError:
                continue
            if name in (*self.PROGRAMS, "meshctl"):
                found.setdefault(name, []).append(int(pid))
        return found

    def wait_for_all(self, different=None):
        def all_run():
            now = self.pids()
            return set(now) == {*self.PROGRAMS, "meshctl"} and all(len(p) == 1 for p in now.values()) and \
                (different is None or now[different[0]] != different[1]) and now
        return eventually("all programs run, once each", all_run)

    def test_up_mounts_bpffs_and_down_unmounts_it(self):
        self.up()
        self.assertEqual(subprocess.run(["stat", "-f", "-c", "%T", "/sys/fs/bpf"], capture_output=True, text=True).stdout, "bpf_fs\n")
        self.ok("down")
        self.assertEqual(subprocess.run(["stat", "-f", "-c", "%T", "/sys/fs/bpf"], capture_output=True, text=True).stdout, "tmpfs\n")

    def test_up_starts_everything_and_a_second_up_changes_nothing(self):
        said = self.up()
        for name in (*self.PROGRAMS, "supervisor"):
            self.assertRegex(said, rf"{name} +\d+ +running")
        before = self.wait_for_all()
        self.assertIn("running already", self.up())
        self.assertEqual(self.pids(), before)
        sessions = {os.getsid(before[name][0]) for name in before}
        self.assertNotIn(os.getsid(0), sessions)

    def test_what_is_killed_comes_back(self):
        self.up()
        for name in self.PROGRAMS:
            old = self.wait_for_all()[name]
            os.kill(old[0], signal.SIGKILL)
            self.wait_for_all((name, old))
        restarts = json.loads((self.run_dir / "supervisor.json").read_text())["programs"]
        self.assertEqual({name: restarts[name]["restarts"] for name in self.PROGRAMS}, dict.fromkeys(self.PROGRAMS, 1))
        self.assertIn("signal 9", restarts["meshd"]["last_end"])

    def test_what_cannot_be_started_is_tried_again_and_runs_once(self):
        self.up()
        before = self.wait_for_all()
        supervisor, meshd = before["meshctl"][0], before["meshd"][0]
        open_files = len(os.listdir(f"/proc/{supervisor}/fd"))
        self.assertTrue(os.path.exists(f"/proc/{supervisor}/fd/{open_files - 1}"), "there are gaps between them")
        soft, hard = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (open_files, hard))  # meshd's own is free when it ends
        os.kill(meshd, signal.SIGKILL)
        state = self.run_dir / "supervisor.json"
        eventually("its start has failed", lambda: "cannot start" in state.read_text())
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (soft, hard))
        after = self.wait_for_all(("meshd", before["meshd"]))
        self.assertEqual({**after, "meshd": []}, {**before, "meshd": []})

    def test_logs_are_bounded_while_their_writers_go_on(self):
        self.up()
        self.wait_for_all()
        most = 16 << 20
        self.ok("sandbox", "run", "chatty", "--detach", "--", "sh", "-c",
                "head -c 40000000 /dev/zero; while :; do echo more; sleep 0.1; done")
        for name in ("sandbox-chatty", "meshhold"):
            log = self.run_dir / "logs" / f"{name}.log"
            if name == "meshhold":
                with open(log, "a") as file:
                    file.write("x" * (most + 1))
            eventually("it begins again", lambda: log.stat().st_size < most and log.with_suffix(".log.1").exists(), 60)
            self.assertEqual(log.with_suffix(".log.1").stat().st_size, most)
        eventually("and is written on", lambda: (self.run_dir / "logs/sandbox-chatty.log").read_text().startswith("more\n"))

    def test_disable_all_lasts_until_up(self):
        self.up()
        before = self.wait_for_all()
        self.assertIn("it stays like this", self.ok("disable", "--all"))
        self.assertEqual(self.pids(), {name: before[name] for name in ("meshhold", "meshproxy")})
        self.assertEqual(self.meshctl("status").returncode, 3)
        self.assertNotIn("it stays like this", self.ok("disable", "--all"))
        said = self.up()
        after = self.wait_for_all(("meshd", before["meshd"]))
        self.assertRegex(said, rf"supervisor +{after['meshctl'][0]} +running")
        self.assertEqual((after["meshhold"], after["meshproxy"]), (before["meshhold"], before["meshproxy"]))

    def test_the_supervisors_death_stops_nothing_and_the_next_one_takes_over(self):
        self.up()
        before = self.wait_for_all()
        os.kill(before["meshctl"][0], signal.SIGKILL)
        eventually("the supervisor is gone", lambda: "meshctl" not in self.pids())
        os.kill(before["meshproxy"][0], signal.SIGKILL)
        eventually("meshproxy is gone", lambda: "meshproxy" not in self.pids())
        self.up()
        after = self.wait_for_all()
        self.assertEqual(after["meshd"], before["meshd"])
        self.assertEqual(after["meshhold"], before["meshhold"])
        os.kill(after["meshhold"][0], signal.SIGKILL)  # no child of this supervisor
        self.wait_for_all(("meshhold", after["meshhold"]))

    def popen_up(self):
        process = subprocess.Popen([self.bin / "meshctl", "up", "--state-dir", self.state_dir], env=self.environment, text=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def assert_up_with_another_supervisor(self, process, old):
        said, complaints = process.communicate(timeout=90)
        self.assertEqual(process.returncode, 0, complaints)
        now = self.wait_for_all(("meshctl", [old]))
        self.assertRegex(said, rf"supervisor +{now['meshctl'][0]} +running")

    def test_a_supervisor_that_was_killed_but_has_not_ended_is_not_taken_for_one_that_runs(self):
        self.up()
        old = self.wait_for_all()["meshctl"][0]
        with held_at_its_end(old) as wait:
            os.kill(old, signal.SIGKILL)
            wait()
            asked = asked_of_fake(self.run_dir, "/v1/status")
            process = self.popen_up()
            eventually("it asks again and again, or ends", lambda: asked_of_fake(self.run_dir, "/v1/status") >= asked + 3 or process.poll() is not None)
            self.assertIsNone(process.poll(), "it takes what was killed for the supervisor")
        self.assert_up_with_another_supervisor(process, old)

    def test_a_supervisor_that_ends_while_up_waits_is_replaced(self):
        self.up()
        before = self.wait_for_all()
        old = before["meshctl"][0]
        os.kill(old, signal.SIGSTOP)  # it starts nothing more
        os.kill(before["meshd"][0], signal.SIGKILL)
        meshd = self.run_dir / "meshd.sock"
        meshd.unlink()
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(meshd))
            silent.listen()
            silent.settimeout(20)
            process = self.popen_up()
            silent.accept()[0].close()
        os.kill(old, signal.SIGKILL)
        self.assert_up_with_another_supervisor(process, old)

    def test_a_mesh_that_runs_refuses_other_options_by_name(self):
        self.up()
        self.ok("up")  # none given: none complained of
        self.ok("up", "--state-dir", self.state_dir, "--log-level", "info")  # as it has them
        elsewhere = self._directory.name + "/elsewhere"
        for option, value, has in (("--access-log", elsewhere, "the default"), ("--workers", "3", "the default"), ("--log-level", "debug", "info"),
                                   ("--proxy-uid", "77", "65530"), ("--service-cidr", "10.99.0.0/16", "10.78.0.0/16"),
                                   ("--state-dir", elsewhere, str(self.state_dir))):
            done = self.meshctl("up", option, value)
            self.assertEqual((done.returncode, done.stdout), (1, ""), option)
            self.assertIn(f"{option} {value} (it has {has})", done.stderr)
            self.assertIn("`meshctl down`", done.stderr)
        done = self.meshctl("--run-dir", elsewhere, "up")
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"but {self.run_dir} (--run-dir)", done.stderr)
        self.assertFalse(os.path.exists(elsewhere))
        pid = self.wait_for_all()["meshd"][0]
        words = pathlib.Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        self.assertEqual(words[words.index("--state-dir") + 1], str(self.state_dir))
        (self.state_dir / "objects").mkdir(exist_ok=True)
        self.ok("down", "--purge")  # of the directory that the mesh had
        self.assertFalse(self.state_dir.exists())

    def test_up_names_a_run_directory_that_was_removed_and_down_still_ends_all(self):
        self.up()
        self.addCleanup(subprocess.run, ["umount", "/sys/fs/bpf"], check=True)  # who mounted it is forgotten, too
        self.ok("sandbox", "run", "web", "--detach", "--", "sleep", "1000")
        sandbox = members("web")
        before = self.wait_for_all()
        shutil.rmtree(self.run_dir)
        for _ in range(2):
            done = self.meshctl("up", "--state-dir", self.state_dir)
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertIn(f"its files are gone from its run directory {self.run_dir} (", done.stderr)
            self.assertIn("`meshctl down` ends it, with its sandboxes", done.stderr)
            self.assertFalse(self.run_dir.exists())
            self.assertEqual(self.pids(), before)
        self.assertIn("3 programs, 1 sandboxes", self.ok("down"))
        eventually("all have ended", lambda: not any(is_alive(pid) for pid in (*sandbox, *(pids[0] for pids in before.values()))))
        self.assertFalse(cgroup_root().exists() or self.run_dir.exists())
        self.up()
        self.wait_for_all()

    def test_up_tells_why_a_program_does_not_stay(self):
        done = self.meshctl("up", "--state-dir", self.state_dir, FAKE_BROKEN="meshd")
        self.assertEqual(done.returncode, 1)
        for words in ("meshd ends again and again", "exit 7", "broken by the test", "meshctl down"):
            self.assertIn(words, done.stderr)

    def test_up_counts_the_restarts_of_the_supervisor_that_it_starts(self):
        self.up()
        before = self.wait_for_all()
        for name in ("meshctl", "meshd"):
            os.kill(before[name][0], signal.SIGKILL)
        eventually("both are gone", lambda: not any(is_alive(before[name][0]) for name in ("meshctl", "meshd")))
        state = self.run_dir / "supervisor.json"
        programs = json.loads(state.read_text())["programs"]
        state.write_text(json.dumps({"programs": {name: {**programs[name], "restarts": 100} for name in programs}}))
        done = self.meshctl("up", "--state-dir", self.state_dir, FAKE_BROKEN="meshd")
        self.assertEqual(done.returncode, 1)
        self.assertIn("meshd ends again and again", done.stderr)

    def test_down_leaves_nothing_and_may_be_repeated(self):
        self.up()
        self.ok("sandbox", "run", "web", "--detach", "--", "sleep", "1000")
        sandbox = members("web")
        programs = [pid for pids in self.wait_for_all().values() for pid in pids]
        said = self.ok("down", "--purge")
        self.assertIn("3 programs, 1 sandboxes", said)
        self.assertFalse([pid for pid in programs + sandbox if is_alive(pid)])
        self.assertFalse(cgroup_root().exists() or self.run_dir.exists() or self.state_dir.exists())
        self.assertEqual({name for name in links() if name.startswith("um") or name == "undermesh0"}, set())
        self.assertIn("nothing to do", self.ok("down", "--purge"))

    def test_down_after_everything_was_killed(self):
        self.up()
        self.ok("sandbox", "run", "web", "--detach", "--", "sleep", "1000")
        record = json.loads((self.run_dir / "sandboxes" / "default.web").read_text())
        pids = self.wait_for_all()
        for pid in (*pids["meshctl"], record["monitor_pid"], *pids["meshd"], *pids["meshproxy"]):
            os.kill(pid, signal.SIGKILL)
        self.ok("down", "--purge")
        self.assertFalse(cgroup_root().exists() or self.run_dir.exists())
        self.up()  # and the mesh can be started again
        self.wait_for_all()

    def test_directories_of_others_keep_their_modes(self):
        for directory in (self.run_dir, self.state_dir):
            directory.mkdir()
            directory.chmod(0o1777)
        self.up()
        self.assertEqual([d.stat().st_mode & 0o7777 for d in (self.run_dir, self.run_dir / "logs", self.state_dir)],
                         [0o1777, 0o750, 0o1777])
        self.ok("down", "--purge")
        self.ok("up", "--run-dir", f"{self.run_dir}/", "--state-dir", f"{self.state_dir}/")
        self.assertEqual([d.stat().st_mode & 0o7777 for d in (self.run_dir, self.run_dir / "logs", self.state_dir)],
                         [0o755, 0o750, 0o700])

    def test_down_removes_no_files_of_others(self):
        self.up()
        mine = socket.socket(socket.AF_UNIX)
        self.addCleanup(mine.close)
        mine.bind(str(self.run_dir / "mine.sock"))
        elsewhere = pathlib.Path(self._directory.name, "elsewhere")  # such as /etc
        (elsewhere / "logs").mkdir(parents=True)
        (elsewhere / "hosts").touch()
        self.ok("--run-dir", elsewhere, "down")
        self.assertEqual({path.name for path in elsewhere.iterdir()}, {"logs", "hosts"})
        self.ok("down")
        self.assertEqual(os.listdir(self.run_dir), ["mine.sock"])
        self.assertIn("and the stored configuration", self.ok("down", "--purge", "--state-dir", self.state_dir))
        self.assertIn("nothing to do", self.ok("down", "--purge", "--state-dir", self.state_dir))

    def test_down_keeps_what_is_not_the_meshs(self):
        self.up()
        (self.run_dir / "mine.txt").write_text("keep")
        done = self.meshctl("down")
        self.assertEqual(done.returncode, 0)
        self.assertIn("mine.txt", done.stderr)
        self.assertEqual(os.listdir(self.run_dir), ["mine.txt"])


def main():
    if os.geteuid() != 0:
        print("skipped: needs root")
        sys.exit(77)
    if os.environ.get("MESHCTL_TEST_INSIDE") != "1":
        os.environ["MESHCTL_TEST_INSIDE"] = "1"
        os.execvp("unshare", ["unshare", "--net", "--mount", sys.executable, *sys.argv])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # A mesh of this machine keeps its pins: what is mounted here is seen by this test alone.
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/sys/fs/bpf"], check=True)
    try:
        unittest.main(verbosity=2)
    finally:
        for path in [cgroup_root() / "mesh", *sorted((cgroup_root() / "workloads").glob("*")), cgroup_root() / "workloads", cgroup_root()]:
            if path.is_dir():
                path.rmdir()


if __name__ == "__main__":
    main()
