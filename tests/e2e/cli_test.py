#!/usr/bin/python3
"""meshctl against the real programs: what it leaves to meshd, and what it does without it.

In a network and mount namespace, with a control group and directories of its own: another mesh may run meanwhile.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import mesh  # noqa: E402

CGROUP = f"undermesh-cli-{os.getpid()}"
NO_PERMISSION = 6  # docs/operations.md
SECOND = """apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: second
  annotations: {{undermesh.io/netns: {netns}, undermesh.io/cgroup: "{cgroup}"}}
spec: {{address: {address}}}
"""
SERVICE = """apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
"""
ROUTES_OF_IPV6 = """---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web6}
spec:
  hosts: [web6]
  http:
    - match: [{uri: {prefix: /teapot}}]
      fault: {abort: {percentage: {value: 100}, httpStatus: 418}}
      route: [{destination: {host: web6}}]
    - route: [{destination: {host: web6}}]
"""
SERVICE_OF_TCP = """apiVersion: v1
kind: Service
metadata: {name: db}
spec:
  selector: {app: db}
  ports: [{name: tcp, port: 3306, targetPort: 8080}]
"""
DENY_ALL = """apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec: {}
"""
POLICIES = """apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-client}
spec:
  selector: {matchLabels: {app: db}}
  action: DENY
  rules:
    - from: [{source: {namespaces: [elsewhere]}}]
    - from: [{source: {serviceAccounts: [client]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: watch}
spec: {selector: {matchLabels: {app: db}}, action: AUDIT, rules: [{}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friend}
spec:
  podSelector: {matchLabels: {app: friend}}
  policyTypes: [Egress]
  egress: [{ports: [{port: 8080}]}]
"""
WEB = ("/usr/bin/python3", "-m", "http.server", "8080", "--bind", "::")
GET = ("curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "http://web/")

NOT_CONNECTED = 7  # of curl; a time-out is 28


def cgroup_root():
    mount = next(line.split()[1] for line in pathlib.Path("/proc/mounts").read_text().splitlines()
                 if line.split()[2] == "cgroup2")
    return pathlib.Path(mount, CGROUP)


def sandboxes():
    path = cgroup_root() / "workloads"
    return sorted(p.name for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def entries():
    return sorted(item["metadata"]["name"] for item in mesh.meshctl_json("get", "we")["items"])


def programs():
    found = {}
    for pid in (cgroup_root() / "mesh" / "cgroup.procs").read_text().split():
        try:
            found[os.path.basename(os.readlink(f"/proc/{pid}/exe"))] = int(pid)
        except OSError:
            pass
    return found


def pins():
    return [path for path in pathlib.Path("/sys/fs/bpf").rglob("*") if path.suffix != ".debug" and path.is_file()]


def status_of(client="client"):
    done = mesh.meshctl("sandbox", "exec", client, "--", *GET, check=False)
    return done.stdout or done.stderr


class MeshOfItsOwn(unittest.TestCase):
    def setUp(self):
        self._directory = tempfile.TemporaryDirectory(prefix="undermesh-cli-")
        self.addCleanup(self._directory.cleanup)
        os.environ["UNDERMESH_RUN_DIR"] = self._directory.name + "/run"
        os.environ["UNDERMESH_STATE_DIR"] = self._directory.name + "/state"
        self.addCleanup(mesh.meshctl, "down", "--purge")
        mesh.meshctl("up")

    def popen(self, *arguments, program=mesh.MESHCTL, **options):
        return subprocess.Popen([str(program), *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, **options)


class Cli(MeshOfItsOwn):
    def start_pair(self):
        path = pathlib.Path(self._directory.name, "service.yaml")
        path.write_text(SERVICE)
        mesh.meshctl("apply", "-f", path)
        mesh.meshctl("sandbox", "run", "web", "-l", "app=web", "--detach", "--", *WEB)
        mesh.meshctl("sandbox", "run", "client", "--detach", "--", "sleep", "infinity")
        mesh.eventually("the service answers through the mesh", lambda: status_of() == "200", 30)

    def service_address(self):
        return mesh.meshctl_json("get", "svc", "web")["spec"]["clusterIP"]

    def curl_exit(self, host):
        return mesh.meshctl("sandbox", "exec", "client", "--", *GET[:-1], f"http://{host}/", check=False).returncode

    def test_a_request_goes_through_the_mesh_and_is_seen(self):
        self.start_pair()
        with mesh.tap(1) as events:
            self.assertEqual(status_of(), "200")
        self.assertEqual([(e["source"], e["workload"], e["status"]) for e in events], [("default/client", "default/web", 200)])
        for what in ("clusters", "endpoints"):
            self.assertIn("web", mesh.meshctl("config", "dump", what).stdout)

    def test_a_sandbox_on_a_machine_without_a_resolv_conf_knows_the_names_of_the_mesh(self):
        etc = pathlib.Path(self._directory.name, "etc")
        shutil.copytree("/etc", etc, symlinks=True)
        (etc / "resolv.conf").unlink()
        subprocess.run(["mount", "--bind", etc, "/etc"], check=True)
        self.addCleanup(subprocess.run, ["umount", "/etc"], check=True)
        said = mesh.meshctl("sandbox", "run", "bare", "--", "cat", "/etc/resolv.conf")
        self.assertIn("nameserver 192.0.0.8", said.stdout)
        self.assertIn("this machine has no /etc/resolv.conf", said.stderr)
        (etc / "resolv.conf").symlink_to("../run/nowhere/resolv.conf")
        self.start_pair()  # by name
        refused = mesh.meshctl("sandbox", "exec", "client", "--", "touch", "/etc/new", check=False)
        self.assertIn("Read-only file system", refused.stderr)
        self.assertEqual(mesh.inside("client", "cat", "/etc/hosts"), (etc / "hosts").read_text(encoding="utf-8"))
        self.assertFalse((etc / "resolv.conf").exists())
        self.assertTrue((etc / "resolv.conf").is_symlink())
        hidden = mesh.inside("client", "ls", os.environ["UNDERMESH_RUN_DIR"])
        self.assertEqual(hidden, "")

    def test_an_ipv6_service_goes_through_the_mesh(self):
        self.start_pair()
        address = next(a for a in mesh.workload_addresses("web") if ":" in a)
        path = pathlib.Path(self._directory.name, "web6.yaml")
        path.write_text(mesh.service_of_ipv6("web6", "http", 80, f"[{address}]:8080") + ROUTES_OF_IPV6)
        mesh.meshctl("apply", "-f", path)
        mesh.wait_published()

        def ask(url):
            return mesh.meshctl("sandbox", "exec", "client", "--", *GET[:-1], "-g", "-6", url, check=False).stdout

        mesh.eventually("it is served", lambda: ask("http://[fd78::6]/") == "200", 30)
        with mesh.tap(1, "--destination", "web6") as events:
            self.assertEqual(ask("http://web6/"), "200")
        self.assertEqual([(e["source"], e["endpoint"], e["status"]) for e in events], [("default/client", f"[{address}]:8080", 200)])
        self.assertEqual(ask("http://[fd78::6]/teapot"), "418", "the rule of its name, by its address")

    def check(self, source, destination, *more):
        done = mesh.meshctl("authz", "check", "--from", source, "--to", destination, "-o", "json", *more, check=False)
        return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr

    def test_authz_check_says_what_the_kernel_does_and_why(self):
        path = pathlib.Path(self._directory.name, "db.yaml")
        path.write_text(SERVICE_OF_TCP)
        mesh.meshctl("apply", "-f", path)
        mesh.meshctl("sandbox", "run", "db", "-l", "app=db", "--detach", "--", *WEB)
        for name in ("client", "friend"):
            mesh.meshctl("sandbox", "run", name, "-l", f"app={name}", "--service-account", name, "--detach", "--",
                         "sleep", "infinity")

        url = f"http://{mesh.meshctl_json('get', 'svc', 'db')['spec']['clusterIP']}:3306/"

        def connects(name):
            return mesh.meshctl("sandbox", "exec", name, "--", *GET[:-1], url, check=False).stdout == "200"

        for name in ("client", "friend"):
            mesh.eventually("it answers without policies", lambda name=name: connects(name), 30)
            code, said = self.check(name, "db")
            self.assertEqual((code, said["verdict"]), (0, "ALLOW"), said)
        path.write_text(POLICIES)
        mesh.meshctl("apply", "-f", path)
        self.assertFalse(connects("client"))
        self.assertTrue(connects("friend"))

        code, said = self.check("client", "db")
        self.assertEqual((code, said["verdict"], said["to"]), (7, "DENY", "service db.default.svc.cluster.local"), said)
        for path in said["paths"]:
            ingress = next(end for end in path["ends"] if end["end"] == "ingress")
            self.assertEqual((path["workload"], path["first_port"]), ("default/db", 8080))
            self.assertEqual((ingress["policy"], ingress["audit"]),
                             ("AuthorizationPolicy default/not-client[1]", "AuthorizationPolicy default/watch[0]"))
        code, said = self.check("friend", "db:3306")
        self.assertEqual((code, said["verdict"]), (0, "ALLOW"), said)
        egress = next(end for end in said["paths"][0]["ends"] if end["end"] == "egress")
        self.assertEqual(egress["policy"], "NetworkPolicy default/friend[0]")
        code, said = self.check("friend", "workload/db")
        self.assertEqual((code, said["verdict"]), (7, "PARTLY"), "only one port is open to it")
        address = next(a for a in mesh.workload_addresses("db") if ":" not in a)
        self.assertEqual([self.check("client", f"{address}:8080")[0], self.check("192.0.2.9", f"{address}:8080")[0],
                          self.check("client", f"{address}:8080", "--udp")[0], self.check("nobody", "db")[0],
                          self.check("client", "nothing")[0], self.check("client", "db:1")[0]], [7, 0, 0, 4, 4, 4])
        table = mesh.meshctl("authz", "check", "--from", "client", "--to", "db", check=False).stdout
        self.assertRegex(table, r"^DENY: workload default/client to service db")
        self.assertRegex(table, r"ingress of default/db +DENY +AuthorizationPolicy default/not-client\[1\]")
        self.assertRegex(table, r"AuthorizationPolicy default/watch +AUDIT +rule 0 matches")
        self.see_in_the_list_of_policies()

    def see_in_the_list_of_policies(self):
        """After a connect that was denied and one that was let in, both seen by an AUDIT policy."""
        def listed(*more):
            return {row["policy"]: row for row in mesh.meshctl_json("policy", "list", *more)["policies"]}

        rows = listed()
        self.assertEqual({name: (row["action"], row["selects_here"], row["state"]) for name, row in rows.items()},
                         {"AuthorizationPolicy default/not-client": ("DENY", 1, "accepted"),
                          "AuthorizationPolicy default/watch": ("AUDIT", 1, "accepted"),
                          "NetworkPolicy default/friend": ("Egress", 1, "accepted")})
        denied, watch = rows["AuthorizationPolicy default/not-client"], rows["AuthorizationPolicy default/watch"]
        self.assertEqual((denied["denied"], [rule["rule"] for rule in denied["by_rule"]]), (1, [1]), denied)
        self.assertGreaterEqual(watch["audited"], 2, watch)
        self.assertGreaterEqual(rows["NetworkPolicy default/friend"]["allowed"], 1)
        self.assertEqual(listed("-n", "elsewhere"), {})
        self.assertEqual(listed("-A"), listed())
        self.assertRegex(mesh.meshctl("policy", "list", "-o", "wide").stdout,
                         r"(?m)^AuthorizationPolicy default/watch +AUDIT +1 +accepted .* default/db +-$")
        counted = next(item for item in mesh.status()["policies"] if item["policy"] == watch["policy"])
        self.assertEqual((counted["rule"], counted["audited"]), (0, watch["audited"]))
        series = f'undermesh_kernel_audited_by_policy_total{{policy="{watch["policy"]}",rule="0"}} {watch["audited"]}'
        mesh.eventually("/metrics has it too", lambda: series in subprocess.run(
            ["curl", "-s", "http://127.0.0.1:15020/metrics"], capture_output=True, text=True, check=False).stdout.splitlines(), 30)

    def test_meshd_clears_away_what_a_killed_sandbox_run_left(self):
        for kill in ("monitor", "everything"):
            process = self.popen("sandbox", "run", "gone", "--", "/bin/sh", "-c", "echo up; exec sleep 1000")
            self.assertEqual(process.stdout.readline(), "up\n")
            self.assertEqual(entries(), ["gone"])
            if kill == "everything":
                for pid in (cgroup_root() / "workloads" / "default.gone" / "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
            process.kill()
            process.communicate(timeout=30)
            mesh.eventually("the entry and the control group are gone", lambda: not entries() and not sandboxes())

    def test_one_name_may_come_and_go_quickly(self):
        for number in range(8):
            process = self.popen("sandbox", "run", "again", "--", "/bin/sh", "-c", "echo up; exec sleep 1000")
            self.assertEqual(process.stdout.readline(), "up\n", process.poll() and process.stderr.read())
            process.send_signal(signal.SIGKILL if number % 2 else signal.SIGTERM)
            process.communicate(timeout=30)
        mesh.eventually("nothing is left", lambda: not entries() and not sandboxes())

    def test_killed_programs_come_back_and_sandboxes_stay(self):
        self.start_pair()
        for name in ("meshd", "meshhold", "meshproxy"):
            old = programs()[name]
            os.kill(old, signal.SIGKILL)
            mesh.eventually(f"another {name}", lambda: programs().get(name) not in (None, old), 30)
            mesh.meshctl("up")  # waits until all are ready
        mesh.eventually("the service answers", lambda: status_of() == "200", 30)
        self.assertEqual({s["name"]: s["state"] for s in mesh.meshctl_json("sandbox", "list")["sandboxes"]},
                         {"client": "enrolled", "web": "enrolled"})

    def test_disable_all_detaches_everything_with_every_program_dead(self):
        self.start_pair()
        for pid in programs().values():
            os.kill(pid, signal.SIGKILL)
        mesh.eventually("all are dead", lambda: not programs())
        self.assertTrue(pins())
        self.assertIn("no connection is captured", mesh.meshctl("disable", "--all").stdout)
        self.assertEqual(pins(), [])
        self.assertEqual(mesh.meshctl("disable", "--all").returncode, 0)

    def test_status_without_meshd_says_what_still_runs_and_captures(self):
        self.start_pair()
        running = programs()
        for name in ("meshctl", "meshd"):  # the supervisor first: nothing comes back
            os.kill(running[name], signal.SIGKILL)
        mesh.eventually("meshd is dead", lambda: "meshd" not in programs())
        done = mesh.meshctl("status", check=False)
        self.assertEqual(done.returncode, 3)
        for words in ("Still running: meshhold", f"meshproxy (pid {running['meshproxy']})", "still captured, and policed",
                      "meshctl up", "meshctl disable --all"):
            self.assertIn(words, done.stderr)
        self.assertEqual(status_of(), "200", "and that is so")
        mesh.meshctl("disable", "--all")
        self.assertIn("nothing is captured or policed", mesh.meshctl("status", check=False).stderr)

    def test_a_meshd_that_hangs_is_told(self):
        running = programs()["meshd"]
        os.kill(running, signal.SIGSTOP)
        self.addCleanup(os.kill, running, signal.SIGCONT)
        with subprocess.Popen([str(mesh.MESHCTL), "policy", "list"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as command:
            self.assertIn("meshd has not answered yet", command.stderr.readline())
            os.kill(running, signal.SIGCONT)
            self.assertEqual(command.wait(), 0)

    def test_apply_says_that_what_it_stored_is_not_in_force(self):
        self.start_pair()
        ids = pathlib.Path(os.environ["UNDERMESH_STATE_DIR"], "ids.json")
        kept = ids.read_text()
        ids.unlink()
        (ids / "full").mkdir(parents=True)  # it cannot be written: as on a full disk
        policy = pathlib.Path(self._directory.name, "policy.yaml")
        policy.write_text(DENY_ALL)
        done = mesh.meshctl("apply", "-f", str(policy), check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("stored, but not in force: the kernel's state cannot be written", done.stderr)
        self.assertIn("cannot be written", mesh.meshctl("policy", "list").stderr)
        self.assertEqual(status_of(), "200", "what was in force stays")
        (ids / "full").rmdir()
        ids.rmdir()
        ids.write_text(kept)
        mesh.eventually("it is tried again", lambda: status_of() != "200")
        self.assertEqual(mesh.meshctl("policy", "list").stderr, "")

    def test_what_is_in_the_kernel_is_shown_also_with_meshd_dead(self):
        self.start_pair()
        os.kill(programs()["meshctl"], signal.SIGKILL)  # the supervisor first: nothing comes back
        os.kill(programs()["meshd"], signal.SIGKILL)
        mesh.eventually("meshd is dead", lambda: "meshd" not in programs())
        shown = {name: json.loads(mesh.meshctl("bpf", name, "-o", "json").stdout) for name in ("progs", "maps", "stats")}
        progs = {p["name"]: p["links"] for p in shown["progs"]["programs"]}
        self.assertEqual(progs["um_mesh_connect4"], ["mesh/connect4"])
        self.assertEqual(len(progs["um_connect4"]), 2, "both sandboxes")
        maps = {m["name"]: m for m in shown["maps"]["maps"]}
        self.assertGreater(maps["um_services"]["entries"], 0)
        before = shown["stats"]["counters"]["connects_redirected"]
        self.assertEqual(status_of(), "200")
        after = json.loads(mesh.meshctl("bpf", "stats", "-o", "json").stdout)["counters"]["connects_redirected"]
        self.assertEqual(after, before + 1)
        mesh.meshctl("disable", "--all")
        self.assertIn("nothing of the mesh is pinned", mesh.meshctl("bpf", "maps", check=False).stderr)

    def test_disable_all_lasts_until_up_which_attaches_again(self):
        self.start_pair()
        said = mesh.meshctl("disable", "--all").stdout
        for words in ("it stays like this", "`meshctl down`", "`meshctl up` attaches everything again"):
            self.assertIn(words, said)
        self.assertEqual((set(programs()), pins()), ({"meshhold", "meshproxy"}, []))
        done = mesh.meshctl("status", check=False)
        self.assertEqual(done.returncode, 3)
        self.assertIn("nothing is captured or policed", done.stderr)
        self.assertNotEqual(status_of(), "200")
        mesh.meshctl("up")
        self.assertEqual(mesh.meshctl("status", check=False).returncode, 0)
        mesh.eventually("the service answers through the mesh", lambda: status_of() == "200", 30)

    def test_disable_takes_one_workload_out(self):
        self.start_pair()
        address = self.service_address()
        direct = f"http://{mesh.workload_addresses('web')[0]}:8080/"
        mesh.meshctl("disable", "client")
        mesh.eventually("the client is not captured any more: the service's address leads nowhere, which is said at once",
                        lambda: self.curl_exit(address) == NOT_CONNECTED)
        mesh.eventually("and not policed: a direct connect passes", lambda: mesh.meshctl(
            "sandbox", "exec", "client", "--", *GET[:-1], direct, check=False).stdout == "200")
        states = {w["name"]: w["state"] for w in mesh.status()["workloads"]}
        self.assertEqual(states["web"], "enrolled")
        self.assertNotEqual(states.get("client"), "enrolled")

    def test_a_workload_has_its_place_and_its_addresses_for_itself(self):
        self.start_pair()
        entry = mesh.meshctl_json("get", "WorkloadEntry", "client")
        group = entry["metadata"]["annotations"]["undermesh.io/cgroup"]
        link = pathlib.Path(self._directory.name, "link")
        link.symlink_to(group)

        def apply(place, address):
            path = pathlib.Path(self._directory.name, "second.yaml")
            path.write_text(SECOND.format(netns=entry["metadata"]["annotations"]["undermesh.io/netns"], cgroup=place, address=address))
            return mesh.meshctl("apply", "-f", path, check=False)

        def said_of(name):
            return next((w["state"] + ": " + w.get("reason", "") for w in mesh.status()["workloads"] if w["name"] == name), "absent")

        for place, what in ((group, "already"), (group + "/below", "below"), (os.path.dirname(group), "above")):
            refused = apply(place, "10.77.200.1")
            self.assertEqual(refused.returncode, 1)
            self.assertRegex(refused.stderr, f"WorkloadEntry default/second: .*is {what}.* the control group of default/")
        self.assertIn("10.78.200.1 is of the block that services", apply("/elsewhere", "10.78.200.1").stderr)
        mesh.eventually("the bridge's address is known and refused",
                        lambda: "10.77.0.1 is this machine's own address" in apply("/elsewhere", "10.77.0.1").stderr)
        apply(link, "10.77.200.1")
        mesh.eventually("the same group is seen by another path",
                        lambda: said_of("second").startswith(f"failed: {link}: is {group}, the control group of default/client"))
        self.assertEqual(status_of(), "200", "HTTP of the first goes on")
        address = next(a for a in mesh.workload_addresses("client") if ":" in a)
        mesh.inside("client", "ip", "address", "del", address + "/64", "dev", "eth0")
        mesh.eventually("an address that went is missed", lambda: f"has no address {address}" in said_of("client"), 60)

    def test_the_address_of_a_deleted_service_fails_at_once(self):
        self.start_pair()
        address = self.service_address()
        self.assertEqual(self.curl_exit(address), 0)
        mesh.meshctl("delete", "svc", "web")
        mesh.eventually("no time-out", lambda: self.curl_exit(address) == NOT_CONNECTED)

    def test_what_is_no_file_in_the_store_is_named_by_status(self):
        objects = pathlib.Path(os.environ["UNDERMESH_STATE_DIR"], "objects")
        target = pathlib.Path(self._directory.name, "service.yaml")
        target.write_text(SERVICE)
        (objects / "link.yaml").symlink_to(target)
        os.mkfifo(objects / "fifo.yaml")
        (objects / "folder.json").mkdir()
        (objects / "broken.yaml").write_text("kind: [")

        def reasons():
            return [line for line in mesh.meshctl("status", check=False).stdout.splitlines() if str(objects) in line]
        mesh.eventually("each is named", lambda: len(reasons()) == 4)
        for name, what in (("link.yaml", "a symbolic link"), ("fifo.yaml", "a FIFO"), ("folder.json", "a directory"), ("broken.yaml:1", "")):
            line = next(line for line in reasons() if name in line)
            self.assertIn(what, line)
            self.assertEqual(line.count(str(objects)), 1, "its path once")
        self.assertEqual(mesh.meshctl("status", check=False).returncode, 5)
        self.assertEqual(mesh.meshctl_json("get", "svc")["items"], [])
        for path in objects.glob("*.*"):
            path.rmdir() if path.is_dir() else path.unlink()
        mesh.eventually("all is well", lambda: mesh.meshctl("status", check=False).returncode == 0)

    def test_status_says_how_long_each_program_runs(self):
        programs = mesh.status()["programs"]
        mesh.eventually("a second has passed", lambda: all(p["up_seconds"] > 0 for p in mesh.status()["programs"].values()))
        self.assertEqual(set(programs), {"meshd", "meshhold", "meshproxy"})

    def test_down_leaves_nothing(self):
        self.start_pair()
        mesh.meshctl("down", "--purge")
        self.assertFalse(cgroup_root().exists())
        self.assertEqual(os.listdir(self._directory.name), ["service.yaml"])
        links = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, text=True, check=True).stdout)
        self.assertEqual([link["ifname"] for link in links if link["ifname"].startswith("um") or "mesh" in link["ifname"]], [])
        self.assertEqual(mesh.meshctl("status", check=False).returncode, 3)


class Access(MeshOfItsOwn):
    """Who may do what at the admin socket. The accounts are numbers; the group's name is in an /etc/group that only this
    mount namespace sees."""

    STRANGER, GROUP = 64998, 64999
    READS = (("status",), ("get", "services", "-o", "json"), ("get", "service", "web", "-o", "yaml"), *(("config", "dump", what) for what in
                                                            ("routes", "clusters", "endpoints", "policies")))

    def start(self, groups):
        with tempfile.NamedTemporaryFile("w", prefix="undermesh-group-") as file:
            file.write(groups)
            file.flush()
            os.chmod(file.name, 0o644)
            subprocess.run(["mount", "--bind", file.name, "/etc/group"], check=True)
        self.addCleanup(subprocess.run, ["umount", "/etc/group"], check=True)
        super().setUp()
        os.chmod(self._directory.name, 0o755)
        self.meshctl = shutil.copy(mesh.MESHCTL, self._directory.name)  # the clone may be out of their reach
        self.service = pathlib.Path(self._directory.name, "service.yaml")
        self.service.write_text(SERVICE)
        mesh.meshctl("apply", "-f", self.service)
        mesh.meshctl("sandbox", "run", "box", "--detach", "--", "sleep", "infinity")

    def setUp(self):
        pass  # start()

    def run_as(self, groups, *arguments):
        process = self.popen(*arguments, program=self.meshctl, user=self.STRANGER, group=self.STRANGER, extra_groups=groups)
        output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors

    def assert_refused(self, groups, commands):
        for command in commands:
            status, output, errors = self.run_as(groups, *map(str, command))
            self.assertEqual((status, output), (NO_PERMISSION, ""), (command, errors))
            self.assertIn("root", errors, command)

    def assert_writes_are_refused(self, groups):
        before, captured = mesh.meshctl("get", "service", "web", "-o", "yaml").stdout, pins()
        other = pathlib.Path(self._directory.name, "other.yaml")
        other.write_text(SERVICE.replace("port: 80,", "port: 81,"))
        self.assert_refused(groups, (("apply", "-f", other), ("delete", "service", "web"), ("delete", "-f", self.service),
                                     ("disable", "box"), ("disable", "--all")))
        self.assertEqual((mesh.meshctl("get", "service", "web", "-o", "yaml").stdout, pins()), (before, captured))
        self.assertEqual([w["state"] for w in mesh.status()["workloads"] if w["name"] == "box"], ["enrolled"])

    def test_the_group_reads_and_does_not_write(self):
        self.start(f"root:x:0:\nundermesh:x:{self.GROUP}:\n")
        for command in self.READS:
            status, output, errors = self.run_as([self.GROUP], *command)
            self.assertEqual(status, 0, (command, errors))
            if command != ("status",):  # it counts on
                self.assertEqual(output, mesh.meshctl(*command).stdout)
        tap = self.popen("tap", program=self.meshctl, user=self.STRANGER, group=self.STRANGER, extra_groups=[self.GROUP])
        self.assertIn("The tap is on", tap.stderr.readline())
        tap.terminate()
        tap.communicate(timeout=30)
        self.assert_writes_are_refused([self.GROUP])

    def test_who_is_not_in_the_group_is_refused(self):
        self.start(f"root:x:0:\nundermesh:x:{self.GROUP}:\n")
        self.assert_refused([], (*self.READS, ("tap",)))
        self.assert_writes_are_refused([])

    def test_without_a_group_root_alone_reads(self):
        self.start("root:x:0:\n")
        self.assert_refused([self.GROUP, 0], (*self.READS, ("tap",)))

    def test_root_writes(self):
        self.start(f"root:x:0:\nundermesh:x:{self.GROUP}:\n")
        mesh.meshctl("delete", "service", "web")
        mesh.meshctl("disable", "box")
        self.assertEqual(mesh.meshctl_json("get", "services")["items"], [])


def main():
    if os.geteuid() != 0:
        print("skipped: needs root")
        sys.exit(77)
    if os.environ.get("CLI_TEST_INSIDE") != "1":
        os.environ["CLI_TEST_INSIDE"] = "1"
        os.execvp("unshare", ["unshare", "--net", "--mount", sys.executable, *sys.argv])
    os.environ["UNDERMESH_CGROUP"] = CGROUP
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/sys/fs/bpf"], check=True)  # the pins of others stay theirs
    unittest.main(verbosity=2)


if __name__ == "__main__":
    main()
