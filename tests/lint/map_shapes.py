#!/usr/bin/python3
"""No map's shape or meaning changes without a new UM_LAYOUT (bpf/shared.h): machines that upgrade have the old maps pinned.

usage: map_shapes.py [--record] SOURCE_DIR CLANG BPFTOOL OBJECT...

What the maps of OBJECT... are, and the structs and enums of bpf/shared.h and bpf/fastpath.h, is written down in
tests/lint/map_shapes.txt, with the layout's number and the newest version of CHANGELOG.md as that layout came. While no
newer version is out, a change needs no more than to be written down again (--record); once it is, a new number. What is
listed in UM_LASTING_MAPS never changes again after the first version.
"""
import difflib
import json
import pathlib
import re
import subprocess
import sys
import tempfile

RECORD = pathlib.Path("tests/lint/map_shapes.txt")
HEADERS = ("bpf/shared.h", "bpf/fastpath.h")
TYPES = {1: "hash", 2: "array", 5: "percpu hash", 6: "percpu array", 9: "lru hash", 11: "lpm trie", 13: "hash of maps",
         18: "sockhash", 24: "socket storage", 27: "ring"}


class Btf:
    def __init__(self, bpftool, file):
        out = subprocess.run([bpftool, "-j", "btf", "dump", "file", str(file)], check=True, stdout=subprocess.PIPE).stdout
        self.types = {entry["id"]: entry for entry in json.loads(out)["types"]}

    def of_kind(self, kind):
        return [entry for entry in self.types.values() if entry["kind"] == kind]

    def pointed(self, type_id):
        return self.types[self.types[type_id]["type_id"]]

    def name(self, type_id):
        """As in C: "__u32", "um_address", "__u8[2]", "enum um_action"; nothing of what a typedef hides."""
        if type_id == 0:
            return "void"
        entry = self.types[type_id]
        if entry["kind"] == "ARRAY":
            return f"{self.name(entry['type_id'])}[{entry['nr_elems']}]"
        if entry["kind"] in ("CONST", "VOLATILE"):
            return self.name(entry["type_id"])
        return entry["name"]

    def struct(self, entry):
        fields = (f"{m['name']} {self.name(m['type_id'])} @{m['bits_offset'] // 8}" for m in entry["members"])
        return f"struct {entry['name']} ({entry['size']}): {', '.join(fields)}"

    def map(self, variable):
        members = {m["name"]: m["type_id"] for m in self.types[variable["type_id"]]["members"]}
        numbers = {name: self.pointed(at)["nr_elems"] for name, at in members.items()
                   if name not in ("key", "value", "values")}
        words = [TYPES[numbers["type"]]]
        if numbers.get("map_flags"):
            words.append(f"flags {numbers['map_flags']:#x}")
        if "key" in members:
            value = "maps" if "values" in members else self.name(self.types[members["value"]]["type_id"])
            words.append(f"{self.name(self.types[members['key']]['type_id'])} -> {value}")
        return f"map {variable['name']}: {', '.join(words)}"


def shapes(root, clang, bpftool, objects):
    lines = set()
    for file in objects:
        btf = Btf(bpftool, file)
        maps = {v["type_id"] for section in btf.of_kind("DATASEC") if section["name"] == ".maps" for v in section["vars"]}
        lines |= {btf.map(btf.types[variable]) for variable in maps}
    text = "".join((root / header).read_text() for header in HEADERS)
    named = re.findall(r"^(struct|enum) (um_\w+) \{", text, re.M)
    with tempfile.TemporaryDirectory() as directory:
        source, built = pathlib.Path(directory, "all.c"), pathlib.Path(directory, "all.o")
        source.write_text("".join(f'#include "{header}"\n' for header in HEADERS) +
                          "".join(f"{kind} {name} all_{name};\n" for kind, name in named))
        machine = subprocess.run(["uname", "-m"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        subprocess.run([clang, "-target", "bpf", "-g", "-O2", "-I", str(root), "-idirafter", f"/usr/include/{machine}-linux-gnu",
                        "-c", str(source), "-o", str(built)], check=True)
        btf = Btf(bpftool, built)
    lines |= {btf.struct(entry) for entry in btf.of_kind("STRUCT")}
    for entry in btf.of_kind("ENUM"):
        lines.add(f"enum {entry['name']}: " + ", ".join(f"{v['name']} {v['val']}" for v in entry["values"]))
    missing = {name for _, name in named} - {line.split()[1].rstrip(":") for line in lines}
    if missing:
        sys.exit(f"map_shapes: nothing is known of {', '.join(sorted(missing))}")
    return sorted(lines)


def lasting(root, lines):
    """The lines of UM_LASTING_MAPS, and of what these are made of."""
    names = re.search(r"#define UM_LASTING_MAPS\(X\)((?:.*\\\n)*.*)", (root / "bpf/shared.h").read_text())[1]
    wanted, found = set(re.findall(r"X\((\w+)\)", names)), {}
    by_name = {line.split()[1].rstrip(":"): line for line in lines}
    while wanted:
        name = wanted.pop()
        if name in by_name and name not in found:
            found[name] = by_name[name]
            wanted |= set(re.findall(r"\bum_\w+", by_name[name].partition(":")[2]))
    return found


def main():
    arguments = sys.argv[1:]
    is_recording = arguments[:1] == ["--record"]
    root, clang, bpftool, *objects = arguments[is_recording:]
    root = pathlib.Path(root)
    layout = int(re.search(r"^#define UM_LAYOUT (\d+)", (root / "bpf/shared.h").read_text(), re.M)[1])
    versions = re.findall(r"^## \[(\d\S*)\]", (root / "CHANGELOG.md").read_text(), re.M)
    newest = versions[0] if versions else "none"
    now = shapes(root, clang, bpftool, objects)
    head, *was = (root / RECORD).read_text().splitlines() if (root / RECORD).exists() else [f"layout 0 after version {newest}"]
    was_layout, was_after = re.fullmatch(r"layout (\d+) after version (\S+)", head).groups()
    is_released = newest != was_after

    if layout < int(was_layout):
        sys.exit(f"map_shapes: UM_LAYOUT {layout}, but {RECORD} is of layout {was_layout}: numbers are not used again")
    if layout == int(was_layout) and now == was:
        print(f"map_shapes: {len(now)} shapes of layout {layout}")
        return
    differences = "\n".join(line for line in difflib.unified_diff(was, now, str(RECORD), "the tree", n=0, lineterm=""))
    if is_released and layout == int(was_layout):
        sys.exit(f"{differences}\nmap_shapes: version {newest} has maps of layout {layout} pinned: UM_LAYOUT must be {layout + 1}")
    before = lasting(root, was)
    changed = [name for name, line in lasting(root, now).items() if name in before and before[name] != line]
    if changed and (is_released or was_after != "none"):
        sys.exit(f"{differences}\nmap_shapes: {', '.join(sorted(changed))}: of UM_LASTING_MAPS, which never change")
    if not is_recording:
        sys.exit(f"{differences}\nmap_shapes: shapes that changed are to be written down: cmake --build build --target record_map_shapes")
    after = newest if layout != int(was_layout) else was_after
    (root / RECORD).write_text("\n".join([f"layout {layout} after version {after}", *now]) + "\n")


main()
