#!/usr/bin/python3
"""A meshd without a mesh: its API over <run dir>/meshd.sock, objects in memory. For tests of meshctl.

usage: fake_meshd.py RUN_DIR
Workloads are enrolled at once, except those named "pending-..." (never) and "failing-..." (failed).
An object with spec.unsupported is refused. GET /test/log lists the requests so far.
"""

import json
import os
import socketserver
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler

LOCK = threading.Lock()
OBJECTS = {}  # (kind, namespace, name) -> tree
LOG = []


def key_of(tree):
    metadata = tree["metadata"]
    return tree["kind"], metadata.get("namespace", "default"), metadata["name"]


def workload(key, tree):
    name = key[2]
    state = "failed" if name.startswith("failing-") else "pending" if name.startswith("pending-") else "enrolled"
    annotations = tree["metadata"].get("annotations", {})
    return {"namespace": key[1], "name": name, "id": 7, "state": state,
            "reason": "" if state == "enrolled" else f"the test wants it {state}",
            "addresses": annotations.get("undermesh.io/addresses", tree["spec"].get("address", "")).split(","),
            "cgroup": annotations.get("undermesh.io/cgroup", ""), "netns": annotations.get("undermesh.io/netns", "")}


def workloads(wanted=None):
    return [workload(key, tree) for key, tree in sorted(OBJECTS.items())
            if key[0] == "WorkloadEntry" and wanted in (None, f"{key[1]}/{key[2]}")]


def apply(body):
    results = []
    for item in body["objects"]:
        tree = item["tree"]
        key = key_of(tree)
        result = {"kind": key[0], "namespace": key[1], "name": key[2], "apiVersion": tree["apiVersion"], "problems": []}
        if "unsupported" in tree.get("spec", {}):
            line = item["lines"].get("spec.unsupported", 0)
            result |= {"outcome": "refused", "problems": [f"{item['file']}:{line}: spec.unsupported: not supported"]}
        else:
            old = OBJECTS.get(key)
            result["outcome"] = "created" if old is None else "unchanged" if old == tree else "configured"
            if not body.get("dry_run"):
                OBJECTS[key] = tree
        results.append(result)
    return {"results": results, "version": 2}


def delete(body):
    results = []
    for ref in body["objects"]:
        tree = OBJECTS.pop((ref["kind"], ref["namespace"], ref["name"]), None)
        results.append({**ref, "apiVersion": (tree or {}).get("apiVersion", ""),
                        "outcome": "deleted" if tree else "not_found", "problems": []})
    return {"results": results, "version": 3}


def status():
    return {"state": "degraded" if any(k[2] == "bad" for k in OBJECTS) else "ready",
            "reasons": ["a bad object"] if any(k[2] == "bad" for k in OBJECTS) else [],
            "programs": {name: {"connected": True, "pid": os.getpid(), "version": "0", "up_seconds": 1}
                         for name in ("meshd", "meshhold", "meshproxy")},
            "snapshot": {"version": 1, "objects": len(OBJECTS), "problems": []}, "workloads": workloads(),
            "notes": ["a fake has no mesh"], "kernel": {}, "policies": []}


def objects(query):
    found = [tree for (kind, ns, name), tree in sorted(OBJECTS.items())
             if query.get("kind", kind) == kind and query.get("namespace", ns) == ns and query.get("name", name) == name]
    return {"objects": [{"tree": tree, "file": "", "state": "accepted", "problems": []} for tree in found]}


FLOWS = [
    {"workload": "default/client", "protocol": "TCP", "direction": "out", "destination": "db.default.svc.cluster.local:5432",
     "peer": "10.77.0.3:9000", "state": "established", "seconds": 200, "sent": 12, "received": 3400, "retransmits": 2,
     "verdict": "allowed", "local": "10.77.0.2:40000", "cookie": 77, "policy": "AuthorizationPolicy default/db", "rule": 1},
    {"workload": "default/db", "protocol": "UDP", "direction": "in", "destination": "*:53", "peer": "10.77.0.2:4000",
     "state": "open", "quiet_seconds": 3, "verdict": "allowed", "local": "*:53"},
]


def dump(what):
    if what == "flows":
        return {"what": what, "version": 1, "columns": ["workload"], "rows": FLOWS}
    return {"what": what, "version": 1, "columns": ["host", "port"], "rows": [{"host": "reviews", "port": 9080}]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def address_string(self):
        return "meshctl"

    def log_message(self, *_):
        pass

    def reply(self, code, body):
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        with LOCK:
            LOG.append(f"GET {self.path}")
        if url.path == "/v1/tap":
            return self.tap(query)
        if url.path == "/v1/workloads" and "wait" in query:
            self.wait(query)
        with LOCK:
            answers = {"/v1/version": lambda: {"version": "fake", "api": 1, "pid": os.getpid()},
                       "/v1/status": status, "/v1/objects": lambda: objects(query),
                       "/v1/workloads": lambda: {"workloads": workloads(query.get("wait"))},
                       "/test/log": lambda: LOG}
            if url.path.startswith("/v1/dump/"):
                return self.reply(200, dump(url.path.rpartition("/")[2]))
            if url.path not in answers:
                return self.reply(404, {"error": {"code": "not_found", "message": f"no {url.path}"}})
            return self.reply(200, answers[url.path]())

    def wait(self, query):
        deadline = time.monotonic() + float(query.get("seconds", 10))
        while time.monotonic() < deadline:
            with LOCK:
                if any(w["state"] != "pending" for w in workloads(query["wait"])):
                    return
            time.sleep(0.02)

    def tap(self, query):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(5):
            event = {"time": "2026-01-01T12:00:00.123Z", "source": "default/a", "destination": "reviews", "method": "GET",
                     "path": f"/{number}", "status": 200, "flags": "-", "duration_ms": 1.25, "endpoint": "10.77.0.2:80",
                     "route": query.get("destination", "")}
            line = json.dumps(event).encode() + b"\n"
            for part in (line[:7], line[7:]):  # a line is not a chunk
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with LOCK:
            LOG.append(f"POST {self.path}")
            answers = {"/v1/apply": apply, "/v1/delete": delete}
            self.reply(200, answers[self.path](body))


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128


def main():
    path = os.path.join(sys.argv[1], "meshd.sock")
    os.makedirs(sys.argv[1], exist_ok=True)
    if os.path.exists(path):
        os.unlink(path)
    with Server(path, Handler) as server:
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
