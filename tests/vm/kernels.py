"""Boots Debian's kernels under QEMU and runs the tests with the label bpf in each: kernels.py BUILD [6.1|6.12...]

The kernels are Debian's packages, downloaded and unpacked below BUILD/vm, never installed. The guest has no image: it
sees the host's root read-only over 9p, with a tmpfs over it, so it runs the very files that the build made. A second,
writable 9p share (BUILD/vm/results-KERNEL) brings back what run_here.py found. Whatever keeps a guest from
writing its result (no boot, a crash, the time limit, QEMU killed) is a failure. See init for the guest's side.
"""
import argparse
import concurrent.futures
import json
import lzma
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time

import run_here

HERE = pathlib.Path(__file__).resolve().parent
META_PACKAGES = {"6.1": "linux-image-amd64", "6.12": "linux-image-6.12-amd64"}  # the plain flavour: "cloud" has no 9p
MODULES = ["virtio_pci", "9pnet_virtio", "9p", "overlay"]  # what the root needs; all others load from there
PROBE_SECONDS = 15  # where KVM works, a kernel is up in two
BOOT_SECONDS = 300
TEST_SECONDS = 3000


class Failed(Exception):
    """guest: whose last lines tell more."""

    def __init__(self, text, guest=None):
        super().__init__(text)
        self.lines = guest.lines[-40:] if guest else []


def output_of(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def package_of(kernel):
    """Name and version of the newest package that apt knows."""
    meta = META_PACKAGES[kernel]
    found = re.search(r"Depends: (linux-image-\S+)", output_of("apt-cache", "depends", meta))
    if not found:
        raise Failed(f"apt knows no {meta}: its sources lack bookworm or bookworm-security")
    shown = output_of("apt-cache", "show", "--no-all-versions", found.group(1))
    return found.group(1), re.search(r"^Version: (\S+)", shown, re.M).group(1)


def fetch(package, directory):
    """Downloads and unpacks `package` to directory/root."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    subprocess.run(["apt-get", "download", "-qq", package], cwd=directory, check=True, stderr=subprocess.DEVNULL)
    deb, = directory.glob("*.deb")
    subprocess.run(["dpkg", "-x", deb, directory / "root"], check=True)
    release, = (path.name for path in (directory / "root/lib/modules").iterdir())
    subprocess.run(["depmod", "-b", directory / "root", release], check=True)


def unpacked(kernel, directory):
    """The files of the newest package below `directory`: fetched when those there are not of that version."""
    try:
        package, version = package_of(kernel)
        root = directory / f"{package}_{version}"
        if root.exists():
            return root
        fetch(package, directory / "coming")
    except (Failed, subprocess.CalledProcessError):  # apt's lists are missing, or older than the mirror
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        package, version = package_of(kernel)
        root = directory / f"{package}_{version}"
        fetch(package, directory / "coming")
    for old in directory.glob(f"linux-image-{kernel}.*"):
        shutil.rmtree(old)
    (directory / "coming/root").rename(root)
    shutil.rmtree(directory / "coming")
    return root


def modules_in_order(modules):
    """Paths of MODULES and all they depend on, dependencies first."""
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    by_name = {pathlib.Path(path).name.split(".")[0].replace("-", "_"): path for path in needs}
    order = []
    for name in MODULES:
        if name in by_name:  # else it is built in
            order += [path for path in [*reversed(needs[by_name[name]]), by_name[name]] if path not in order]
    return order


def cpio(entries):
    """An archive in the "newc" format of (name, mode, content)."""
    archive = bytearray()
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        fields = [number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        archive += b"\0" * (-len(archive) % 4) + content
        archive += b"\0" * (-len(archive) % 4)
    return bytes(archive)


def initramfs(modules, build):
    entries = [(name, 0o40755, b"") for name in ("bin", "modules")]
    entries += [("bin/busybox", 0o100755, pathlib.Path("/bin/busybox").read_bytes()),
                ("init", 0o100755, (HERE / "init").read_bytes())]
    names = []
    for path in modules_in_order(modules):
        content = (modules / path).read_bytes()
        names.append(pathlib.Path(path).name.removesuffix(".xz"))
        entries.append((f"modules/{names[-1]}", 0o100644, lzma.decompress(content) if path.endswith(".xz") else content))
    entries.append(("modules/order", 0o100644, "\n".join(names).encode()))
    parameters = {"modules": modules, "tests": HERE, "build": build}
    text = "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in parameters.items())
    return cpio([*entries, ("parameters", 0o100644, text.encode())])


class Guest:
    """A machine that runs one kernel; its console goes to a file and is watched.

    mitigations=off: emulated, a guest is half as fast with its page tables switched at each system call. What the
    verifier accepts from root does not depend on it.
    """

    def __init__(self, root, work, accelerator, arguments, devices=()):
        vmlinuz, = root.glob("boot/vmlinuz-*")
        self.console = work / "console.log"
        self.lines = []
        self.changed = threading.Condition()
        self.ended = False
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-M", "q35", "-accel", accelerator, "-cpu", "max", "-m", "2048", "-smp", "2",
             "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", vmlinuz, "-initrd",
             work / "initramfs", "-append", f"console=ttyS0 panic=-1 quiet mitigations=off {arguments}", *devices],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        with open(self.console, "wb") as file:
            for raw in self.process.stdout:
                file.write(raw)
                file.flush()
                with self.changed:
                    self.lines.append(raw.decode(errors="replace").strip())
                    self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def saw(self, text):
        return any(text in line for line in self.lines)

    def wait_for(self, text, seconds):
        """Whether `text` came before the time was up and the machine off."""
        with self.changed:
            self.changed.wait_for(lambda: self.ended or self.saw(text) or self.saw("KVM internal error"), seconds)
            return self.saw(text)

    def wait_for_end(self, seconds):
        with self.changed:
            return self.changed.wait_for(lambda: self.ended, seconds)

    def stop(self):
        self.process.kill()
        self.process.wait()


def boots_under_kvm(root, work):
    """Tried, since /dev/kvm may be there and not run this kernel."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    guest = Guest(root, work, "kvm", "um.probe")
    try:
        return guest.wait_for("undermesh: probed", PROBE_SECONDS)
    finally:
        guest.stop()


def share(name, path, options):
    quoted = str(path).replace(",", ",,")
    return ["-fsdev", f"local,id={name},path={quoted},security_model=none,{options}",
            "-device", f"virtio-9p-pci,fsdev={name},mount_tag={name}"]


class Prepared:
    """What a guest of one kernel boots from, and where its results go."""

    def __init__(self, kernel, build):
        self.root = unpacked(kernel, build / "vm")
        self.modules, = (self.root / "lib/modules").iterdir()
        self.work = build / "vm" / f"results-{kernel}"
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        (self.work / "initramfs").write_bytes(initramfs(self.modules, build))


def run(prepared, accelerator):
    """Boots the kernel, runs the tests, returns run_here.py's result."""
    linux, work, start = f"Linux {prepared.modules.name}", prepared.work, time.monotonic()
    guest = Guest(prepared.root, work, accelerator, "",
                  [*share("root", "/", "readonly=on,multidevs=remap"), *share("results", work, "multidevs=remap")])
    try:
        if not guest.wait_for("undermesh: booted", BOOT_SECONDS):
            raise Failed(f"{linux} did not boot", guest)
        if not guest.wait_for_end(TEST_SECONDS):
            raise Failed(f"{linux}: the tests did not end within {TEST_SECONDS // 60} minutes", guest)
    finally:
        guest.stop()
    if not (work / "result.json").exists():
        raise Failed(f"{linux} brought no result back (exit status of QEMU: {guest.process.returncode})", guest)
    result = json.loads((work / "result.json").read_text())
    if result["kernel"] != prepared.modules.name:
        raise Failed(f"the guest ran Linux {result['kernel']}, not {prepared.modules.name}")
    result["total_minutes"] = (time.monotonic() - start) / 60
    return result


def counted_here(build):
    """As a result: what the kernel of this machine counts, which may have the fast path. Nothing without root."""
    report = build / "vm" / "here.json"
    ran = subprocess.run([build / "tests/bpf_verifier_test"], env=os.environ | {"GTEST_OUTPUT": f"json:{report}"},
                         capture_output=True, text=True)
    if ran.returncode != 0:
        raise Failed(f"bpf_verifier_test failed on this machine:\n{ran.stdout}{ran.stderr}")
    return {"kernel": platform.release(), "recorded": run_here.outcomes_of_googletest(report, ran.stdout)[1]}


def instruction_table(results):
    """Verified instructions of every program, a column for each kernel: what verifier_test recorded."""
    columns = [(result["kernel"], result["recorded"].get("Verifier.EveryProgramStaysWithinItsBound", {}))
               for result in results]
    programs = sorted({program for _, column in columns for program in column})
    yield "verified instructions".ljust(32) + "".join(kernel.rjust(26) for kernel, _ in columns)
    for program in programs:
        yield program.ljust(32) + "".join(column.get(program, "-").rjust(26) for _, column in columns)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("kernels", nargs="*", default=list(META_PACKAGES))
    options = parser.parse_args()
    results, faults = [], []
    try:
        prepared = [Prepared(kernel, options.build.resolve()) for kernel in options.kernels]
        here = counted_here(options.build.resolve())
    except (Failed, subprocess.CalledProcessError) as error:
        sys.exit(f"kernels: {error}")
    accelerator = "kvm" if boots_under_kvm(prepared[0].root, prepared[0].work) else "tcg,thread=multi"
    print(*(p.modules.name for p in prepared), f"under QEMU ({accelerator}), side by side", flush=True)
    # Side by side: emulated, a guest keeps one processor busy, as its tests come one after another.
    with concurrent.futures.ThreadPoolExecutor(len(prepared)) as pool:
        for running in [pool.submit(run, one, accelerator) for one in prepared]:
            try:
                result = running.result()
            except Failed as error:
                print(*error.lines, sep="\n")
                faults.append(str(error))
                continue
            print(result["failures"], end="")
            faults += [f"Linux {result['kernel']}: {fault}" for fault in result["faults"]]
            results.append(result)
    print(*instruction_table([here, *results]), sep="\n")
    for result in results:
        counts = result["counts"]
        print(f"Linux {result['kernel']}: {result['total_minutes']:.1f} min ({result['minutes']} in the guest), "
              f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    for fault in faults:
        print(f"kernels: {fault}", file=sys.stderr)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
