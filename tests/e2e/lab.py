#!/usr/bin/python3
"""The BookInfo lab: ten exercises through the real mesh, each asserted at the page and at the services.

lab.py run [--step N]...   walk through (all of) it, take everything down, look for what was left behind
lab.py up                  the same services and mesh, left running
lab.py down                end what `up` (or a run that was killed) left
"""

import argparse
import collections
import contextlib
import errno
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback

import bookinfo
import leftovers
import mesh

STATE = mesh.LAB / "state"
STARTED = mesh.LAB / "started"  # there while the mesh is ours
PROXY_LOG = mesh.LAB / "access.log"
URL = f"http://{mesh.GATEWAY[0]}:{mesh.GATEWAY[1]}/productpage"
SORRY = "Sorry, product {} are currently unavailable for this book."
NO_RATINGS = "Ratings service is currently unavailable"
BASE = ("services.yaml", "gateway.yaml")
CLIENT = bookinfo.Instance("load-client", "load-client", "v1")
SECOND_RATINGS = bookinfo.Instance("ratings-v1-b", "ratings", "v1")


class Report:
    """What is printed: for each step what was applied, expected and measured, and PASS or FAIL."""

    def __init__(self):
        self.steps = []  # (title, seconds, failures)
        self._failures = []
        self._bold, self._red, self._green, self._plain = (
            ("\033[1m", "\033[31m", "\033[32m", "\033[0m") if sys.stdout.isatty() else ("",) * 4)

    def line(self, label, text):
        print(f"   {label:<9} {text}", flush=True)

    def applied(self, text):
        self.line("applied", text)

    def check(self, expected, measured, ok):
        self.line("expected", expected)
        self.line("measured", f"{measured}   {self._verdict(ok)}")
        if not ok:
            self._failures.append(f"expected {expected}; measured {measured}")

    def _verdict(self, ok):
        return f"{self._green}PASS{self._plain}" if ok else f"{self._red}FAIL{self._plain}"

    @contextlib.contextmanager
    def step(self, title):
        print(f"{self._bold}== {title}{self._plain}", flush=True)
        self._failures, started = [], time.monotonic()
        try:
            yield
        except Exception as error:  # a step that breaks fails; the next ones are still worth knowing
            if not isinstance(error, (mesh.CommandFailed, TimeoutError)):
                traceback.print_exc()
            self.line("FAIL", f"{type(error).__name__}: {error}")
            self._failures.append(f"{type(error).__name__}: {error}")
        seconds = time.monotonic() - started
        print(f"   {self._verdict(not self._failures)} in {seconds:.1f} s", flush=True)
        self.steps.append((title, seconds, self._failures))

    def summary(self):
        failed = [step for step in self.steps if step[2]]
        print(f"{self._bold}== Summary{self._plain}")
        for title, seconds, failures in self.steps:
            print(f"   {self._verdict(not failures)}  {title} ({seconds:.1f} s)")
            for failure in failures:
                print(f"         {failure}")
        print(f"   {len(self.steps) - len(failed)} of {len(self.steps)} passed")
        if failed:
            print(f"   Logs: {mesh.LAB}/ (the proxy's access log, what each service printed and saw)")
        return not failed


def objects_of(file):
    """(kind, name) of the objects in one of our own files."""
    text = (bookinfo.CONFIG / file).read_text()
    return [(re.search(r"^kind: (\S+)", part, re.M)[1], re.search(r"^metadata:\n  name: (\S+)", part, re.M)[1])
            for part in re.split(r"^---\n", text, flags=re.M)]


class Lab:
    """The mesh and the services of the lab, and the configuration that is applied now."""

    def __init__(self, report):
        self.report = report
        self._applied = []
        self.namespaces = set()
        self.taken = set()

    def start(self):
        for directory in ("access", "out"):
            (mesh.LAB / directory).mkdir(parents=True)
        bookinfo.build()
        mesh.meshctl("check")
        self.taken = {target for family, target in host_addresses() if dial(family, target) == "OK"}  # by others
        STARTED.touch()
        mesh.meshctl("up", "--state-dir", STATE, "--access-log", PROXY_LOG)
        for file in BASE:
            mesh.meshctl("apply", "-f", bookinfo.CONFIG / file)
        for instance in bookinfo.INSTANCES:
            mesh.run_sandbox(instance, mesh.LAB / "out")
        for instance in bookinfo.INSTANCES:
            mesh.wait_healthy(instance.name)
        mesh.wait_published()
        self.namespaces |= leftovers.own_namespaces()

    def config(self, *files):
        """Makes these files the whole configuration beside the base: what is new first, then what goes."""
        wanted = [item for file in files for item in objects_of(file)]
        for file in files:
            mesh.meshctl("apply", "-f", bookinfo.CONFIG / file)
        gone = [item for item in dict.fromkeys(reversed(self._applied)) if item not in wanted]
        for kind, name in gone:
            mesh.meshctl("delete", kind, name)
        self._applied = wanted
        mesh.wait_published()
        removed = f"; deleted {', '.join(f'{kind} {name}' for kind, name in gone)}" if gone else ""
        self.report.applied((", ".join(files) or "nothing but services.yaml and gateway.yaml") + removed)

    @contextlib.contextmanager
    def client(self):
        """A workload to call services from, without a service of its own."""
        with self.workload(CLIENT, "/bin/sleep", "infinity"):
            yield CLIENT.name

    @contextlib.contextmanager
    def workload(self, instance, *command):
        if command:
            mesh.meshctl("sandbox", "run", instance.name, "-l", f"app={instance.app},version={instance.version}",
                         "--service-account", instance.service_account, "--detach", "--", *command)
        else:
            mesh.run_sandbox(instance, mesh.LAB / "out")
            mesh.wait_healthy(instance.name)
        mesh.wait_published()
        self.namespaces |= leftovers.own_namespaces()
        try:
            yield
        finally:
            mesh.meshctl("sandbox", "stop", instance.name)


def take_down():
    """Ends the mesh of this machine, with all its workloads."""
    mesh.meshctl("down", "--purge", "--state-dir", STATE)
    STARTED.unlink(missing_ok=True)


def clear():
    """Ends what an earlier run may have left, also one that was killed. Fails where a stranger's mesh runs."""
    if STARTED.exists():
        take_down()
    shutil.rmtree(mesh.LAB, ignore_errors=True)
    if mesh.running():
        raise mesh.CommandFailed("a mesh that this lab did not start is running on this machine; "
                                 "`meshctl down` ends it, then run this again")
    for address, port in (mesh.GATEWAY, mesh.METRICS):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                raise mesh.CommandFailed(f"the lab needs {address}:{port}: {error.strerror}; "
                                         f"`ss -ltnp sport = {port}` names who has it") from error


def loads(visitor, count):
    return [visitor.page() for _ in range(count)]


def versions(pages):
    return {version: sum(page.version == version for page in pages) for version in ("v1", "v2", "v3")}


def all_ok(pages):
    return all(page.status == 200 for page in pages)


def words(counts):
    return ", ".join(f"{key} {value}" for key, value in counts.items())


def host_addresses():
    """This machine's own, and one more of its loopback block; each as (family, the sockaddr of the gateway's port)."""
    links = json.loads(subprocess.run(["ip", "-j", "address"], capture_output=True, text=True, check=True).stdout)
    found = [(item["local"], link["ifindex"]) for link in links if "UP" in link["flags"] for item in link["addr_info"]] + [("127.0.0.2", 0)]
    for address, link in found:
        if ":" in address:
            yield socket.AF_INET6, (address, mesh.GATEWAY[1], 0, link if address.startswith("fe80:") else 0)
        else:
            yield socket.AF_INET, (address, mesh.GATEWAY[1])


def dial(family, target):
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(10)
        try:
            probe.connect(target)
            return "OK"
        except OSError as error:
            return errno.errorcode.get(error.errno, repr(error))


def requests_to(reporter):
    """{workload: requests that were sent to it}, as this reporter counts them."""
    counts = collections.Counter()
    for name, labels, value in mesh.metrics():
        if name == "istio_requests_total" and labels["reporter"] == reporter:
            counts[labels["destination_workload"]] += int(value)
    return counts


# --- the steps -----------------------------------------------------------------------------------

def step_1(lab, report):
    "No rule: all three versions of reviews are seen"
    lab.config()
    dialled = {target[0]: dial(family, target) for family, target in host_addresses() if target not in lab.taken}
    report.check(f"the gateway's port is open at {mesh.GATEWAY[0]}, which its `bind` names, and refused at every other "
                 "address of this machine", words(dialled),
                 len(dialled) > 1 and all(result == ("OK" if address == mesh.GATEWAY[0] else "ECONNREFUSED")
                                          for address, result in dialled.items()))
    servers, before = mesh.Servers(), {reporter: requests_to(reporter) for reporter in ("source", "destination")}
    pages = loads(mesh.Visitor(), 60)
    seen = versions(pages)
    report.check("60 loads of the page through the gateway: each 200, each version of reviews at least once",
                 f"{sum(p.status == 200 for p in pages)} x 200; {words(seen)}", all_ok(pages) and all(seen.values()))
    at_servers = servers.reviews()
    report.check("the services counted the same: reviews as the pages say, details 60",
                 f"{words(at_servers)}; details {servers.count('details-v1')}",
                 at_servers == seen and servers.count("details-v1") == 60)
    wanted = {i.name: servers.count(i.name) for i in bookinfo.INSTANCES if servers.count(i.name)}

    def reported():
        return {reporter: dict(requests_to(reporter) - old) for reporter, old in before.items()}
    with contextlib.suppress(TimeoutError):  # a request is counted after its last byte
        mesh.eventually("all are counted", lambda: reported() == {"source": wanted, "destination": wanted})
    counted = reported()
    report.check("istio_requests_total agrees with the services, reported by the source as by the destination",
                 "; ".join(f"{reporter}: {words(counts)}" for reporter, counts in counted.items()),
                 all(counts == wanted for counts in counted.values()))
    report.check("black stars from v2, red ones from v3, none from v1",
                 words({f"{p.version}/{p.stars or 'none'}": None for p in pages}).replace(" None", ""),
                 {(p.version, p.stars) for p in pages} == {("v1", None), ("v2", "black"), ("v3", "red")})


def step_2(lab, report):
    "Everything to v1"
    lab.config("destination-rules.yaml", "virtual-service-all-v1.yaml")
    servers = mesh.Servers()
    pages = loads(mesh.Visitor(), 40)
    report.check("40 loads: all by v1, no stars", f"{words(versions(pages))}; stars {sum(bool(p.stars) for p in pages)}",
                 all_ok(pages) and versions(pages)["v1"] == 40 and not any(p.stars for p in pages))
    report.check("the services counted v1 40, v2 0, v3 0, ratings 0",
                 f"{words(servers.reviews())}, ratings {servers.count('ratings-v1')}",
                 servers.reviews() == {"v1": 40, "v2": 0, "v3": 0} and not servers.count("ratings-v1"))


def step_3(lab, report):
    "jason, logged in, to v2; others to v1"
    lab.config("destination-rules.yaml", "virtual-service-reviews-jason-v2.yaml")
    servers = mesh.Servers()
    jason, other = loads(mesh.Visitor("jason"), 30), loads(mesh.Visitor("mary"), 15) + loads(mesh.Visitor(), 15)
    report.check("30 loads by jason: v2 with black stars", f"{words(versions(jason))}",
                 all_ok(jason) and all((p.version, p.stars) == ("v2", "black") for p in jason))
    report.check("15 loads by mary and 15 by nobody: v1", f"{words(versions(other))}",
                 all_ok(other) and versions(other)["v1"] == 30)
    at_jason = servers.reviews(end_user="jason")
    report.check("the services counted jason's requests at v2 alone, the others' at v1 alone",
                 f"jason: {words(at_jason)}; all: {words(servers.reviews())}",
                 at_jason == {"v1": 0, "v2": 30, "v3": 0} and servers.reviews() == {"v1": 30, "v2": 30, "v3": 0})
    servers = mesh.Servers()
    forged = mesh.Visitor().page(headers={"end-user": "jason"})
    report.check("a visitor who only claims to be jason (header end-user) gets v1",
                 f"{forged.version}; the services counted {words(servers.reviews())}",
                 forged.version == "v1" and servers.reviews() == {"v1": 1, "v2": 0, "v3": 0})


def step_4(lab, report):
    "Splits by weight: 80/20, 90/10, 50/50"
    requests = 2000
    for first, second, other in ((80, 20, "v2"), (90, 10, "v2"), (50, 50, "v3")):
        lab.config("destination-rules.yaml", f"virtual-service-reviews-{first}-{second}.yaml")
        servers = mesh.Servers()
        result = mesh.load_from("productpage-v1", "http://reviews:9080/reviews/0", requests, clients=2)
        seen = servers.reviews()
        wanted, allowed = requests * second / 100, 4 * math.sqrt(requests * first * second / 1e4)
        third = ({"v2", "v3"} - {other}).pop()
        report.check(f"{requests} requests: all 200; {other} counts {wanted:.0f} +- {allowed:.0f} (4 standard deviations), v1 the rest",
                     f"{words(result['statuses'])}; {words(seen)}; {result['errors'] or 'no error'}",
                     result["statuses"] == {"200": requests} and abs(seen[other] - wanted) <= allowed
                     and seen["v1"] + seen[other] == requests and seen[third] == 0)


def pages_at_once(*visitors):
    """One load by each visitor, all at the same time."""
    pages = [None] * len(visitors)

    def load(index):
        pages[index] = visitors[index].page()
    threads = [threading.Thread(target=load, args=(index,)) for index in range(len(visitors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if None in pages:
        raise TimeoutError("a page was not loaded")
    return pages


def step_5(lab, report):
    "A delay of ratings for jason: 7 s break his page, 2 s do not"
    rules = ("destination-rules.yaml", "virtual-service-reviews-jason-v2-v3.yaml")
    lab.config(*rules, "ratings-delay-7s.yaml")
    servers = mesh.Servers()
    jason, *others = pages_at_once(mesh.Visitor("jason"), mesh.Visitor("mary"), mesh.Visitor(), mesh.Visitor())
    report.check(f"jason's page is there after about 6 s (two tries of 3 s) and says \"{SORRY.format('reviews')}\"",
                 f"{jason.status} after {jason.seconds:.2f} s; "
                 f"{'says so' if SORRY.format('reviews') in jason.text else 'does not say so'}",
                 jason.status == 200 and 6 <= jason.seconds < 7 and SORRY.format("reviews") in jason.text)
    report.check("three others at the same time do not wait, and see red stars",
                 "; ".join(f"{p.status} after {p.seconds:.2f} s, {p.version}, {p.stars}" for p in others),
                 all(p.status == 200 and p.seconds < jason.seconds and p.stars == "red" for p in others))

    def both_tries():
        return servers.count("reviews-v2", end_user="jason") == 2
    mesh.eventually("both of productpage's tries arrive at reviews", both_tries, 15)
    report.check("reviews v2 counted both tries; ratings counted each after its 7 s",
                 f"reviews v2 {servers.count('reviews-v2', end_user='jason')}, ratings {servers.count('ratings-v1', end_user='jason')}",
                 servers.count("reviews-v2") == 2 and servers.count("ratings-v1", end_user="jason") == 2)

    lab.config(*rules, "ratings-delay-2s.yaml")
    jason, other = pages_at_once(mesh.Visitor("jason"), mesh.Visitor())
    report.check("with 2 s jason waits 2 s and sees black stars; nobody else waits",
                 f"jason {jason.seconds:.2f} s, {jason.stars}; another {other.seconds:.2f} s, {other.stars}",
                 2 <= jason.seconds < 3 and jason.stars == "black" and other.seconds < 1.9 and other.stars == "red")


def step_6(lab, report):
    "Aborts: 500 of ratings for jason, 555 of details for everyone"
    rules = ("destination-rules.yaml", "virtual-service-reviews-jason-v2-v3.yaml")
    lab.config(*rules, "ratings-abort-500.yaml")
    servers = mesh.Servers()
    jason, other = loads(mesh.Visitor("jason"), 10), loads(mesh.Visitor(), 10)
    report.check(f"10 loads by jason: reviews by v2 with \"{NO_RATINGS}\" instead of stars",
                 f"{words(versions(jason))}; {sum(NO_RATINGS in p.text for p in jason)} say so",
                 all_ok(jason) and all(p.version == "v2" and NO_RATINGS in p.text and not p.stars for p in jason))
    report.check("10 loads by others: red stars", f"{sum(p.stars == 'red' for p in other)} with red stars",
                 all_ok(other) and all(p.stars == "red" and NO_RATINGS not in p.text for p in other))
    report.check("ratings counted 10 requests, none of them jason's",
                 f"{servers.count('ratings-v1')}, jason's {servers.count('ratings-v1', end_user='jason')}",
                 servers.count("ratings-v1") == 10 and not servers.count("ratings-v1", end_user="jason"))

    lab.config("destination-rules.yaml", "virtual-service-all-v1.yaml", "details-abort-555.yaml")
    servers = mesh.Servers()
    pages = loads(mesh.Visitor("jason"), 5) + loads(mesh.Visitor(), 5)
    report.check(f"10 loads by anyone: 200, \"{SORRY.format('details')}\", reviews as ever",
                 f"{sum(SORRY.format('details') in p.text for p in pages)} say so; reviews {words(versions(pages))}",
                 all_ok(pages) and all(SORRY.format("details") in p.text and p.version == "v1" for p in pages))
    with lab.client() as client:
        statuses = mesh.load_from(client, "http://details:9080/details/0", 5)["statuses"]
    report.check("a client of details gets 555; details counted no request",
                 f"{words(statuses)}; details {servers.count('details-v1')}",
                 statuses == {"555": 5} and not servers.count("details-v1"))


def step_7(lab, report):
    "Circuit breaking: one connection, one waiting request"
    lab.config("circuit-breaker.yaml")
    url = "http://ratings:9080/ratings/0"
    with lab.client() as client:
        address = mesh.workload_addresses(client)[0]
        mesh.direct("ratings-v1", "/debug/peak?reset=1")
        overflow = lambda: mesh.cluster_counter("upstream_rq_pending_overflow", "ratings")
        flagged = lambda: mesh.counter("istio_requests_total", reporter="source", source_workload=client,
                                       response_flags="UO", response_code="503")
        before = overflow(), flagged()
        one = mesh.load_from(client, url, 100)
        report.check("one client, 100 requests one after the other: never a 503, no overflow",
                     f"{words(one['statuses'])}; overflow {overflow() - before[0]}",
                     one["statuses"] == {"200": 100} and overflow() == before[0])
        servers = mesh.Servers()
        three = mesh.load_from(client, url, 300, clients=3)
        refused = three["statuses"].get("503", 0)
        report.check("three clients at once, 300 requests: some 503, the rest 200, each 503 with x-envoy-overloaded: true",
                     f"{words(three['statuses'])}; x-envoy-overloaded on {words(three['overloaded']) or 'none'}; "
                     f"{three['errors'] or 'no error'}",
                     0 < refused < 300 and set(three["statuses"]) == {"200", "503"} and not three["errors"]
                     and three["overloaded"] == {"503": refused} and sum(three["statuses"].values()) == 300)
        report.check("as many as the overflow counter and flag UO say, and ratings counted the others",
                     f"503 {refused}, overflow {overflow() - before[0]}, flag UO {flagged() - before[1]}, "
                     f"at ratings {servers.count('ratings-v1')}",
                     refused == overflow() - before[0] == flagged() - before[1]
                     and servers.count("ratings-v1") == 300 - refused)
        peak = json.loads(mesh.direct("ratings-v1", "/debug/peak")[1]).get(address)
        report.check("ratings never saw two connections of that client at once", f"at most {peak and peak['peak']}",
                     peak is not None and peak["peak"] == 1)


def step_8(lab, report):
    "Outlier detection: three 503 in a row, then a rest of 5 s"
    url, errors_in_a_row, rest = "http://ratings:9080/ratings/0", 3, 5.0
    with lab.workload(SECOND_RATINGS), lab.client() as client:
        lab.config("outlier-detection.yaml")
        servers = mesh.Servers()
        both = lambda: {name: servers.count(name) for name in ("ratings-v1", SECOND_RATINGS.name)}
        mesh.load_from(client, url, 20)
        report.check("20 requests to two healthy endpoints: both get some", words(both()), all(both().values()))

        mesh.direct(SECOND_RATINGS.name, "/debug/status?code=503")
        servers = mesh.Servers()
        result = mesh.load_from(client, url, 60)
        failed = servers.seen(SECOND_RATINGS.name)
        report.check("one begins to answer 503; of 60 requests exactly 3 are, then it gets none",
                     f"{words(result['statuses'])}; {words(both())}",
                     result["statuses"] == {"200": 60 - errors_in_a_row, "503": errors_in_a_row}
                     and both() == {"ratings-v1": 60 - errors_in_a_row, SECOND_RATINGS.name: errors_in_a_row})

        mesh.direct(SECOND_RATINGS.name, "/debug/status?code=0")
        ejected = failed[-1]["time"] if failed else time.time()
        statuses, requests = {}, 0
        while servers.count(SECOND_RATINGS.name) <= len(failed) and time.time() < ejected + rest + 10:
            for status, count in mesh.load_from(client, url, 10)["statuses"].items():
                statuses[status], requests = statuses.get(status, 0) + count, requests + count
        back = servers.seen(SECOND_RATINGS.name)[len(failed):]
        away = back[0]["time"] - ejected if back else math.inf
        report.check("it gets nothing for baseEjectionTime (5 s), then comes back at the next interval (1 s)",
                     f"back after {away:.2f} s; meanwhile {words(statuses)}",
                     rest <= away < rest + 2.5 and statuses == {"200": requests})


def step_9(lab, report):
    "L4 policy: only productpage may connect to reviews"
    names = [f"reviews-{version}" for version in ("v1", "v2", "v3")]
    addresses = [address for name in names for address in mesh.workload_addresses(name)]
    targets = ["reviews:9080", *(f"[{a}]:9080" if ":" in a else f"{a}:9080" for a in addresses)]
    file = "authorization-reviews-productpage-only.yaml"
    lab.config()
    with mesh.Capture("ratings-v1", addresses) as capture:
        result = mesh.load_from("ratings-v1", "http://reviews:9080/reviews/0", 5)
    report.check("without a policy ratings reaches reviews, and a capture on its veth shows the packets",
                 f"{words(result['statuses'])}; {capture.packets} packets",
                 result["statuses"] == {"200": 5} and capture.packets > 0)

    lab.config(file)
    policy = "reviews-productpage-only"
    before = sum(mesh.denials(policy).values())
    with mesh.Capture("ratings-v1", addresses) as capture:
        results = mesh.connect_from("ratings-v1", *targets)
    report.check("a connect from ratings, to the service and to each endpoint, fails at once with ECONNREFUSED",
                 "; ".join(f"{r['target']} {r['result']} in {r['ms']} ms" for r in results),
                 all(r["result"] == "ECONNREFUSED" and r["ms"] < 100 for r in results))
    report.check("no IP packet to reviews on the veth of ratings", f"{capture.packets} packets", capture.packets == 0)

    def counted():
        return sum(mesh.denials(policy).values()) - before >= len(targets)
    mesh.eventually(f"the kernel's counter counts {len(targets)} refused connects", counted, 10)
    named = mesh.denials(policy)
    report.check(f"a counter names the policy and the rule, {len(targets)} more than before",
                 "; ".join(f"policy {name} rule {rule}: {value}" for (name, rule), value in named.items()),
                 sum(named.values()) - before == len(targets))
    page = mesh.Visitor().page()
    report.check("the page, whose productpage is allowed, shows reviews", f"{page.status}, reviews by {page.version}",
                 page.status == 200 and page.version is not None)

    lab.config()
    started = time.monotonic()
    results = mesh.connect_from("ratings-v1", *targets)
    report.check("the policy deleted, the same connects succeed at once",
                 f"{sum(r['result'] == 'OK' for r in results)} of {len(targets)} after {time.monotonic() - started:.2f} s",
                 all(r["result"] == "OK" for r in results))
    some_refuse(lab, report)
    refused_policy(lab, report)


def some_refuse(lab, report):
    url, requests = "http://reviews:9080/reviews/0", 60
    lab.config()
    mesh.load_from("productpage-v1", url, requests)  # so that the proxy has connections to v2 in stock
    lab.config("authorization-reviews-v2-nobody.yaml")
    with lab.client() as fresh:
        for client, which in ((fresh, "a new client"), ("productpage-v1", "productpage, which has used v2 before")):
            flagged = lambda: mesh.counter("istio_requests_total", reporter="source", source_workload=client,
                                           response_flags="UF", response_code="503")
            before, servers, at_v2 = flagged(), mesh.Servers(), requests_to("destination")["reviews-v2"]
            result = mesh.load_from(client, url, requests)
            failed, seen = result["statuses"].get("503", 0), servers.reviews()
            report.check(f"where v2 alone refuses, the connect of {which} succeeds; what goes to v2 is answered 503 with flag UF",
                         f"{words(result['statuses'])}; flag UF {flagged() - before}; {words(seen)}",
                         0 < failed == flagged() - before and seen["v2"] == 0
                         and seen["v1"] + seen["v3"] == result["statuses"].get("200") == requests - failed
                         and requests_to("destination")["reviews-v2"] == at_v2)


def refused_policy(lab, report):
    file = "authorization-unsupported.yaml"
    lab.config()
    done = mesh.meshctl("apply", "-f", bookinfo.CONFIG / file, check=False)
    try:
        said = " ".join((done.stdout + done.stderr).split())
        report.applied(file)
        report.check("a policy with a field that is not supported: apply fails and names file and field",
                     f"exit {done.returncode}: {said[:200]}", done.returncode == 1 and file in said and "methods" in said)
        mesh.wait_published()
        page, results = mesh.Visitor().page(), mesh.connect_from("productpage-v1", "details:9080")
        report.check("and what it selects (details) is denied to everyone",
                     f"productpage to details: {results[0]['result']}; the page says "
                     f"{'so' if SORRY.format('details') in page.text else 'nothing'}",
                     results[0]["result"] == "ECONNREFUSED" and SORRY.format("details") in page.text)
        state = mesh.meshctl("status", check=False)
        report.check("meshctl status is degraded (exit 5) and names the policy",
                     f"exit {state.returncode}, {'named' if 'details-read-only' in state.stdout else 'not named'}",
                     state.returncode == 5 and "details-read-only" in state.stdout)
    finally:
        mesh.meshctl("delete", "AuthorizationPolicy", "details-read-only")
        mesh.wait_published()
    page = mesh.Visitor().page()
    report.check("deleted, details is back", f"{page.status}", SORRY.format("details") not in page.text)


def step_10(lab, report):
    "Tracing headers reach the services; meshctl tap shows requests live"
    lab.config("destination-rules.yaml", "virtual-service-reviews-jason-v2-v3.yaml")
    chain = ("productpage-v1", "details-v1", "reviews-v3", "ratings-v1")
    servers = mesh.Servers()
    mesh.Visitor().page()
    lines = [line for name in chain for line in servers.seen(name)]
    ids = {line["x_request_id"] for line in lines}
    traces = {line["traceparent"][3:35] for line in lines} | {line["b3_traceid"] for line in lines}
    report.check("a page without any such header: four services see one made x-request-id and one trace, in W3C and in B3",
                 f"{len(lines)} requests; x-request-id {' '.join(sorted(ids))}; trace {' '.join(sorted(traces))}",
                 len(lines) == 4 and len(ids) == 1 and len(traces) == 1
                 and all(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", i) for i in ids)
                 and all(re.fullmatch(r"[0-9a-f]{32}", t) for t in traces))

    given = {"x-request-id": "5f0c1f5e-1111-4222-8333-abcdefabcdef",
             "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    b3 = {"x-b3-traceid": "463ac35c9f6413ad48485a3953bb6124", "x-b3-spanid": "a2fb4a1d1a96d312", "x-b3-sampled": "1"}
    with lab.client() as client:
        servers = mesh.Servers()
        mesh.load_from(client, "http://reviews:9080/reviews/0", 1, headers=given)
        lines = servers.seen("reviews-v3") + servers.seen("ratings-v1")
        report.check("an x-request-id and a traceparent that a client sends are continued at reviews and ratings",
                     "; ".join(f"{line['x_request_id']} {line['traceparent']}" for line in lines),
                     len(lines) == 2 and all(line["x_request_id"] == given["x-request-id"]
                                             and line["traceparent"][:36] == given["traceparent"][:36]
                                             and line["traceparent"].endswith("-01") for line in lines))
        servers = mesh.Servers()
        mesh.load_from(client, "http://reviews:9080/reviews/0", 1, headers=b3)
        lines = servers.seen("reviews-v3") + servers.seen("ratings-v1")
        report.check("so is a B3 trace, with its sampling decision",
                     "; ".join(f"{line['b3_traceid']} sampled {line['b3_sampled']}" for line in lines),
                     len(lines) == 2 and all(line["b3_traceid"] == b3["x-b3-traceid"] and line["b3_sampled"] == "1"
                                             for line in lines))
    with mesh.tap(4) as events:
        mesh.Visitor().page()
    for event in events:
        report.line("tap", f"{event['source']} -> {event['destination']} route {event['route'] or '-'} endpoint "
                           f"{event['endpoint']} ({event['workload']}) {event['status']} {event['flags']} {event['duration_ms']} ms")
    seen = {(event["source"].rpartition("/")[2], event["destination"].partition(".")[0]) for event in events}
    report.check("one load shows four requests in meshctl tap, each with source, destination, route, endpoint, status, "
                 "flags and latency", f"{len(events)} requests: {', '.join(f'{a} to {b}' for a, b in sorted(seen))}",
                 len(events) == 4 and seen == {("undermesh-gateway", "productpage"), ("productpage-v1", "details"),
                                               ("productpage-v1", "reviews"), ("reviews-v3", "ratings")}
                 and all(event["status"] == 200 and event["flags"] == "-" and event["endpoint"].endswith(":9080")
                         and event["duration_ms"] > 0 and "route" in event for event in events))


STEPS = (step_1, step_2, step_3, step_4, step_5, step_6, step_7, step_8, step_9, step_10)


# --- commands ------------------------------------------------------------------------------------

def run(arguments):
    report = Report()
    clear()
    before = leftovers.snapshot()
    lab = Lab(report)
    try:
        with report.step("The services start as workloads of their own, the mesh comes up"):
            lab.start()
            workloads = mesh.status()["workloads"]
            enrolled = [w["name"] for w in workloads if w["state"] == "enrolled"]
            report.check("every instance is a workload, enrolled", ", ".join(sorted(enrolled)),
                         {i.name for i in bookinfo.INSTANCES} <= set(enrolled))
        if not report.steps[-1][2]:
            for number, step in enumerate(STEPS, 1):
                if not arguments.step or number in arguments.step:
                    with report.step(f"{number}. {step.__doc__}"):
                        step(lab, report)
    finally:
        with report.step("Everything is taken down, nothing is left behind"):
            lab.namespaces |= leftovers.own_namespaces()
            take_down()
            left = leftovers.left_behind(before, lab.namespaces)
            for what, things in left.items():
                report.check(f"no new {what}" if things else f"no {what} left", "; ".join(things[:8]) or "none", not things)
    return 0 if report.summary() else 1


def up(_arguments):
    clear()
    lab = Lab(Report())
    try:
        lab.start()
        lab.config("destination-rules.yaml")
    except BaseException:
        take_down()
        raise
    config = bookinfo.CONFIG.relative_to(mesh.ROOT)
    print(f"""The page: {URL}
Worth trying (from {mesh.ROOT}):
  build/bin/meshctl apply -f {config}/virtual-service-reviews-jason-v2.yaml   # sign in as jason: black stars
  build/bin/meshctl tap                                                       # requests as they happen
  build/bin/meshctl config dump routes                                        # what decides
./dev demo-down ends it.""")
    return 0


def down(_arguments):
    clear()
    return 0


def main():
    parser = argparse.ArgumentParser(description="The BookInfo lab")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("run", help="walk through the lab and take everything down")
    command.add_argument("--step", type=int, action="append", choices=range(1, len(STEPS) + 1), default=[])
    command.set_defaults(run=run)
    commands.add_parser("up", help="services and mesh, left running").set_defaults(run=up)
    commands.add_parser("down", help="end what is running").set_defaults(run=down)
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root (BPF programs and network namespaces)")
    if not mesh.MESHCTL.exists():
        if arguments.run is down and not STARTED.exists() and not os.path.exists(leftovers.OUR_FILES[0]):
            print("Nothing runs: this clone was never built.")
            return 0
        parser.error(f"{mesh.MESHCTL} is missing: run ./dev build")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return arguments.run(arguments)
    except (mesh.CommandFailed, TimeoutError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
