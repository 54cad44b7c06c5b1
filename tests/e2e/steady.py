#!/usr/bin/python3
"""A client inside a workload that goes on until its stdin ends, and then prints what happened as JSON.

steady.py load URL CLIENTS [PAUSE_MS]
                                keep-alive GETs, one after the other, in each of CLIENTS threads
steady.py connect HOST:PORT     one TCP connect after the other, each closed at once

Prints "started" after the first answer. The result: {"ok", "errors": {what: count}, "first_errors": [..]}.
"""

import collections
import errno
import http.client
import json
import socket
import sys
import threading
import time
import urllib.parse

TIMEOUT_SECONDS = 60


class Tally:
    def __init__(self):
        self.lock = threading.Lock()
        self.results = collections.Counter()
        self.first_errors = []
        self.started = threading.Event()

    def add(self, result):
        with self.lock:
            self.results[result] += 1
            if result != "ok" and len(self.first_errors) < 10:
                self.first_errors.append(f"{time.time():.3f} {result}")
        self.started.set()


def one_client(url, pause, tally, stop):
    connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=TIMEOUT_SECONDS)
    while not stop.is_set():
        try:
            connection.request("GET", url.path or "/")
            response = connection.getresponse()
            response.read()
            tally.add("ok" if response.status == 200 else f"status {response.status}")
            time.sleep(pause)
        except (OSError, http.client.HTTPException) as error:
            tally.add(repr(error))
            connection.close()
            time.sleep(0.05)
    connection.close()


def one_dialler(target, tally, stop):
    host, _, port = target.rpartition(":")
    while not stop.is_set():
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(TIMEOUT_SECONDS)
            try:
                sock.connect((host, int(port)))
                tally.add("connected")
            except OSError as error:
                tally.add(errno.errorcode.get(error.errno, repr(error)))
        time.sleep(0.002)


def main():
    tally, stop = Tally(), threading.Event()
    if sys.argv[1] == "load":
        url = urllib.parse.urlsplit(sys.argv[2])
        pause = float(sys.argv[4]) / 1000 if len(sys.argv) > 4 else 0
        threads = [threading.Thread(target=one_client, args=(url, pause, tally, stop)) for _ in range(int(sys.argv[3]))]
    else:
        threads = [threading.Thread(target=one_dialler, args=(sys.argv[2], tally, stop))]
    for thread in threads:
        thread.start()
    tally.started.wait(TIMEOUT_SECONDS)
    print("started", flush=True)
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    ok = tally.results.pop("ok", 0)
    print(json.dumps({"ok": ok, "errors": dict(tally.results), "first_errors": tally.first_errors}), flush=True)


main()
