"""What a node that knows many services, endpoints and policies needs: bench/scale.cc at two sizes."""
import json
import subprocess

SIZES = {  # services, endpoints, policies, enrolled workloads, endpoints that change
    "scale-small": (100, 1000, 50, 8, 50),
    "scale": (10000, 100000, 5000, 32, 200),
}
SMOKE = {"scale-small": (50, 500, 25, 2, 3)}
AIMS = {"load": 5, "endpoint-change": 20}
UNITS = {"load": "s", "restart": "s", "endpoint-change": "ms", "endpoint-change-p99": "ms", "policy-change": "ms",
         "map-writes": "entries", "maps": "kB", "connect": "us", "tick": "ms"}


def figures_of(binary, size):
    done = subprocess.run([binary, *map(str, size)], stdout=subprocess.PIPE, text=True, timeout=1800, check=False)
    if done.returncode:
        raise SystemExit(f"bench: bench_scale: exit {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(work, figures):
    """Like those of the other works; what there is no aim for is against no mesh, or against nothing."""
    endpoint = figures["endpoint_change"]
    ours = {
        "load": figures["first_load"]["load_s"],
        "restart": figures["restart"]["load_s"],
        "endpoint-change": endpoint["to_kernel_ms"]["median"],
        "endpoint-change-p99": endpoint["to_kernel_ms"]["p99"],
        "policy-change": figures["policy_change"]["to_kernel_ms"]["median"],
        "map-writes": endpoint["map_entries_written"]["median"],
        "maps": figures["maps"]["total_kb"],
        "tick": figures["tick_ms"],
        "connect": figures["connect"]["to_service_us"],
    }
    others = {metric: ("aim", aim) for metric, aim in AIMS.items()}
    others["connect"] = ("none", figures["connect"]["no_mesh_us"])
    rows = []
    for metric, value in ours.items():
        against, theirs = others.get(metric, ("", 0))
        rows.append({"work": work, "metric": metric, "ours": round(value, 3), "against": against, "theirs": theirs,
                     "ratio": round(value / theirs, 3) if theirs else 0})
    return rows


def run(binary, smoke):
    """The rows, and all figures by work."""
    rows, all_figures = [], {}
    for work, size in (SMOKE if smoke else SIZES).items():
        print(f"{work}: {size[0]} services, {size[1]} endpoints, {size[2]} policies, {size[3]} enrolled workloads",
              flush=True)
        all_figures[work] = figures_of(binary, size)
        rows += rows_of(work, all_figures[work])
    return rows, all_figures


def table(rows):
    print(f"\n{'WORK':<14}{'METRIC':<22}{'OURS':>12}  {'AGAINST':<9}{'THEIRS':>12}{'RATIO':>8}  UNIT")
    for r in rows:
        theirs, ratio = (f"{r['theirs']:.2f}", f"{r['ratio']:.2f}") if r["against"] else ("-", "-")
        print(f"{r['work']:<14}{r['metric']:<22}{r['ours']:>12.2f}  {r['against'] or '-':<9}{theirs:>12}{ratio:>8}"
              f"  {UNITS[r['metric']]}")
    print("\nendpoint-change: from the change of a file until the kernel has it, median. connect: CPU at the client's end.")
