#!/usr/bin/python3
"""Makes the BPF programs of another layout out of those of bpf/: other_layout.py BPF_DIR OUT_DIR CLANG BPFTOOL

OUT_DIR/bpf has the sources, in which every struct that may change from one layout to the next has one more field and the
counters other numbers; OUT_DIR/skel the skeletons. What each layout has in common stays (bpf/shared.h says what).
"""
import pathlib
import platform
import re
import shutil
import subprocess
import sys

OBJECTS = ("mesh", "udp", "ingress", "packet", "fastpath")
GROWS = {  # by a field of this type: there must be no padding
    "__u64": ("um_workload_key", "um_affinity", "um_policy_count", "um_event", "um_denials"),
    "__u32": ("um_workload", "um_backend_key", "um_backend", "um_member", "um_client_service", "um_affinity_key", "um_peer_key",
              "um_peer", "um_block_key", "um_set_key", "um_verdict_key", "um_verdict", "um_refusal_key", "um_config",
              "um_service_range", "um_datagram_key", "um_fast_config"),
}


def replace_one(pattern, replacement, text):
    text, count = re.subn(pattern, replacement, text, flags=re.M | re.S)
    if count != 1:
        sys.exit(f"other_layout: {pattern} is there {count} times")
    return text


def main(source, out, clang, bpftool):
    source, out = pathlib.Path(source), pathlib.Path(out)
    shutil.rmtree(out / "bpf", ignore_errors=True)
    shutil.copytree(source, out / "bpf")
    (out / "skel").mkdir(exist_ok=True)
    for header in ("shared.h", "fastpath.h"):
        path = out / "bpf" / header
        text = path.read_text()
        for kind, names in GROWS.items():
            for name in names:
                if f"struct {name} {{" not in text:
                    continue
                text = replace_one(rf"(^struct {name} {{.*?)^}}", rf"\1  {kind} of_another_layout;\n}}", text)
                text = replace_one(rf"^UM_ASSERT\(sizeof\(struct {name}\) == \d+\);$", "", text)
        if header == "shared.h":
            layout = int(re.search(r"^#define UM_LAYOUT (\d+)", text, re.M)[1])
            text = replace_one(r"^#define UM_LAYOUT \d+", f"#define UM_LAYOUT {layout - 1}", text)
            text = replace_one(r"^#define UM_COUNTERS\(X\) +\\$", r'#define UM_COUNTERS(X) X(OF_ANOTHER_LAYOUT, "of_another_layout") \\', text)
        path.write_text(text)
    for name in OBJECTS:
        built = out / f"{name}.bpf.o"
        subprocess.run([clang, "-target", "bpf", "-mcpu=v3", "-g", "-O2", "-Wall", "-Wextra", "-Werror",
                        "-idirafter", f"/usr/include/{platform.machine()}-linux-gnu",
                        "-c", str(out / "bpf" / f"{name}.bpf.c"), "-o", str(built)], check=True)
        with (out / "skel" / f"{name}.skel.h").open("wb") as skeleton:
            subprocess.run([bpftool, "gen", "skeleton", str(built), "name", f"{name}_bpf"], check=True, stdout=skeleton)


main(*sys.argv[1:])
