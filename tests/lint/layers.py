#!/usr/bin/python3
"""The arrows between libraries point down, and what is banned stays out (docs/architecture.md).

usage: layers.py SOURCE_DIR LAYERS_FILE
LAYERS_FILE has one line a library, program or folder, "name: dep dep ...": the DEPS of mesh_library(),
mesh_program() and mesh_layer(), written by CMake.
"""
import pathlib
import re
import sys

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
PURE = {"config", "routing", "dns", "cluster", "http"}

# (what is banned, folders that may include it; a folder is one below agent/, or "cli")
ONLY_IN = [
    (re.compile(r"^bpf/(libbpf|bpf|btf)\.h|\.skel\.h$"), {"datapath"}),
    (re.compile(r"^openssl/"), {"tls"}),
    (re.compile(r"^yaml-cpp/"), {"config"}),
    (re.compile(r"^nghttp2/"), {"http"}),
    (re.compile(r"^re2/"), {"config", "routing"}),
    (re.compile(r"^boost/beast/(core/detail|http/(basic_parser|impl|detail|error|field|verb|status|type_traits))"),
     {"http", "control", "cli"}),
    (re.compile(r"^boost/beast"), {"http", "control", "cli"}),
    (re.compile(r"^boost/asio/buffer\.hpp"), {"http", "control", "cli"}),
    (re.compile(r"^boost/asio/(?!buffer\.hpp)"), {"control", "cli"}),
]
BANNED_IN_PURE = re.compile(
    r"^(sys/(socket|epoll|mman|stat|un)\.h|netinet/.*|thread|mutex|condition_variable|future|fstream|filesystem|random|fcntl\.h|unistd\.h)$")
MUTEX_WITH_A_REASON = {"cluster"}  # outlier ejection is shared by the workers; its header says why
BANNED_EVERYWHERE = re.compile(r"^(boost/asio\.hpp|boost/beast\.hpp|boost/json/src\.hpp)$")
BANNED_TEXT = re.compile(r"friend class \w*Test|ForTest\(|if \(testing\)")


def closure(deps):
    full = {}
    for name in deps:  # declared bottom up, so one pass is enough
        full[name] = {name}.union(*(full[d] for d in deps[name])) if deps[name] else {name}
    return full


def sources(root):
    for top in ("agent", "cli", "bpf"):
        yield from sorted(p for p in (root / top).rglob("*") if p.suffix in (".h", ".cc", ".c"))


def check_include(folder, allowed, libraries, kind, target):
    first = target.split("/")[0]
    if BANNED_EVERYWHERE.match(target):
        return f"{target} is banned everywhere"
    if kind == '"' and first in libraries and allowed is not None and first not in allowed:
        return f'"{target}": {folder} may not use {first} (its DEPS in CMakeLists.txt)'
    if kind == '"' and target.startswith("tests/"):
        return f'"{target}": nothing of tests/ in production code'
    for pattern, homes in ONLY_IN:
        if pattern.search(target):
            return None if folder in homes else f"{target} is for {', '.join(sorted(homes))} only"
    if folder in PURE and BANNED_IN_PURE.match(target):
        if target == "mutex" and folder in MUTEX_WITH_A_REASON:
            return None
        return f"{target}: {folder} is pure (no sockets, threads, clocks, randomness or files)"
    return None


def main():
    root, layers = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    deps = {}
    for line in layers.read_text().splitlines():
        name, _, rest = line.partition(":")
        deps[name] = rest.split()
    if not deps:
        sys.exit("layers: no library is declared: the check would pass for nothing")
    allowed = closure(deps)
    faults, files = [], 0
    for path in sources(root):
        files += 1
        parts = path.relative_to(root).parts
        folder = parts[0]
        if folder == "agent":
            folder = parts[1] if len(parts) > 2 else path.stem  # agent/meshd.cc
        if folder not in allowed and folder != "bpf":
            faults.append(f"{path.relative_to(root)}: nothing declares what {folder} may use")
        for number, line in enumerate(path.read_text().splitlines(), 1):
            where = f"{path.relative_to(root)}:{number}"
            if BANNED_TEXT.search(line):
                faults.append(f"{where}: {line.strip()}: test hooks have no place in the product")
            match = INCLUDE.match(line)
            if not match:
                continue
            if parts[0] == "bpf" and match[1] == '"' and match[2].split("/")[0] in deps:
                faults.append(f"{where}: nothing of agent/ in bpf/")
            fault = check_include(folder, allowed.get(folder), set(deps), match[1], match[2])
            if fault:
                faults.append(f"{where}: {fault}")
    print("\n".join(faults) or f"layers: {files} files, {len(deps)} libraries and programs: every arrow points down")
    return 1 if faults else 0


sys.exit(main())
