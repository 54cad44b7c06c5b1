"""What a run may leave on a machine, looked up before it and after it: the difference must be empty."""

import json
import os
import pathlib
import re
import subprocess
import time

import bookinfo

PROGRAMS = pathlib.Path(os.environ.get("MESH_BIN_DIR", bookinfo.ROOT / "build" / "bin")).resolve()
CGROUP = os.environ.get("UNDERMESH_CGROUP", "undermesh")  # the name that meshctl reads from there too
OUR_FILES = (os.environ.get("UNDERMESH_RUN_DIR", "/run/undermesh"), "/var/lib/undermesh", "/etc/undermesh", "/var/log/undermesh", "/sys/fs/bpf/undermesh")
WATCHED_DIRECTORIES = ("/run", "/tmp", "/etc", "/var/lib", "/var/log", "/dev/shm")
# What the rest of a Debian system makes in those at any time: sessions and services that start, rotated logs,
# accounts' backups, apt and its lock, a shell's here documents, directories that a program names by a random UUID.
OTHERS_FILES = re.compile(
    r"/tmp/(systemd-private-.*|snap-private-tmp|\.X\d+-lock|\.(X11|ICE|font|XIM)-unix|ssh-\w+|tmux-\d+|sh-thd[.\w-]*"
    r"|\w*[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})"
    r"|/run/(user|sudo|screen|motd.*|utmp|netns|lock|log|.*\.pid|.*\.lock|apt\..*|reboot-required.*)"
    r"|/var/log/.*\.(\d+|gz|xz|old)|/var/lib/(apt|dpkg|systemd|logrotate|private)"
    r"|/etc/(\.pwd\.lock|(passwd|group|shadow|gshadow|subuid|subgid)-|ld\.so\.cache|mtab|resolv\.conf|\..*\.sw\w)")
# Settings that the kernel itself keeps changing.
LIVELY_SYSCTLS = ("/proc/sys/fs/", "/proc/sys/kernel/random/", "/proc/sys/kernel/ns_last_pid",
                  "/proc/sys/kernel/pty/nr", "/proc/sys/kernel/keys/", "/proc/sys/net/netfilter/nf_conntrack_count",
                  "/proc/sys/kernel/perf_event_max_sample_rate", "/proc/sys/kernel/tainted")


def _lines(path):
    try:
        return pathlib.Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []


def _names(directory):
    try:
        return {f"{directory}/{name}" for name in os.listdir(directory)}
    except OSError:
        return set()


def processes():
    """The mesh's programs and everything inside one of its cgroups."""
    found = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            program = pathlib.Path(os.readlink(f"/proc/{entry}/exe").removesuffix(" (deleted)"))
            words = pathlib.Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        services = any(os.fsencode(bookinfo.SOURCES) in word or word == os.fsencode(bookinfo.BUILD) for word in words)
        if program.parent == PROGRAMS or _in_our_cgroup(entry) or services:
            found.add(f"process {entry} ({b' '.join(words).decode(errors='replace').strip()[:80]})")
    return found


def cgroups():
    roots = [line.split()[1] for line in _lines("/proc/mounts") if line.split()[2] == "cgroup2"]
    return {f"cgroup {directory}" for root in roots for directory, _, _ in os.walk(f"{root}/{CGROUP}")}


def _namespaces(of=lambda pid: True):
    found = set()
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and of(entry):
                found.add("network namespace " + os.readlink(f"/proc/{entry}/ns/net"))
        except OSError:
            pass  # it ended meanwhile
    return found


def _in_our_cgroup(pid):
    return any(f"/{CGROUP}/" in line for line in _lines(f"/proc/{pid}/cgroup"))


def own_namespaces():
    """The network namespaces in which the mesh and its workloads run now, this machine's own left out."""
    return _namespaces(_in_our_cgroup) - {"network namespace " + os.readlink("/proc/self/ns/net")}


def namespaces():
    return _namespaces() | {f"namespace file {name}" for name in _names("/run/netns")}


def bpf():
    found = set()
    for kind in ("prog", "map", "link"):
        done = subprocess.run(["bpftool", "-j", kind, "show"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              check=False)
        for item in json.loads(done.stdout or b"[]"):
            # Not bpftool's own, which it loads to name the owners of links, nor systemd's, which come and go.
            if not item.get("name", "").startswith(("iter", "pid_iter", "libbpf_", "sd_")):
                found.add(f"BPF {kind} {item['id']} {item.get('name', item.get('type', ''))}")
    return found


def mounts():
    return {f"mount {line.split()[4]} ({line.split(' - ')[1].split()[0]})" for line in _lines("/proc/self/mountinfo")
            if not line.split()[4].startswith("/run/user/")}


def interfaces():
    return {f"interface {name}" for name in os.listdir("/sys/class/net")}


def accounts():
    return {f"account {line}" for path in ("/etc/passwd", "/etc/group") for line in _lines(path)}


def sysctls():
    found = set()
    present = os.listdir("/sys/class/net")
    for directory, _, names in os.walk("/proc/sys"):
        for name in names:
            path = os.path.join(directory, name)
            parts = path.split("/")
            # An interface has settings while it is there; it is looked for by itself.
            of_interface = len(parts) > 6 and parts[5] in ("conf", "neigh") and parts[6] not in ("all", "default")
            if path.startswith(LIVELY_SYSCTLS) or (of_interface and parts[6] not in present):
                continue
            try:
                with open(path, "rb") as file:
                    found.add(f"sysctl {path.removeprefix('/proc/sys/')} = {file.read(400).decode(errors='replace').strip()}")
            except OSError:
                pass
    return found


def files():
    ours = {f"file {path}" for path in OUR_FILES if os.path.exists(path)}
    return ours | {f"file {name}" for directory in WATCHED_DIRECTORIES for name in _names(directory)
                   if not OTHERS_FILES.fullmatch(name)}


CHECKS = {"processes": processes, "cgroups": cgroups, "namespaces": namespaces, "BPF programs, maps and links": bpf,
          "mounts": mounts, "interfaces": interfaces, "sysctls": sysctls, "accounts": accounts, "files": files}


def snapshot():
    return {what: look() for what, look in CHECKS.items()}


def left_behind(before, ours, seconds=15.0):
    """{what: [things that were not there before]}; what is ending gets some seconds.

    ours: the namespaces that own_namespaces() gave meanwhile; strangers' new ones are none of our business.
    """
    deadline = time.monotonic() + seconds
    while True:
        left = {what: sorted(look() - before[what]) for what, look in CHECKS.items()}
        left["namespaces"] = [name for name in left["namespaces"] if name in ours or "namespace file" in name]
        if not any(left.values()) or time.monotonic() > deadline:
            return left
        time.sleep(0.5)
