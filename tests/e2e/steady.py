#!/usr/bin/python3
"""A client inside a workload that goes on until its stdin ends, and then prints what happened as JSON.

steady.py load URL CLIENTS
                                keep-alive GETs, one after the other, in each of CLIENTS threads
steady.py connect HOST:PORT     one TCP connect after the other, each closed at once

A line with a number on stdin: waits until so many more answers came, and prints how many did. The result: {"ok", "errors": {what: count}, "first_errors": [..]}.
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
        self.changed = threading.Condition()
        self.results = collections.Counter()
        self.first_errors = []

    def add(self, result):
        with self.changed:
            self.results[result] += 1
            if result != "ok" and len(self.first_errors) < 10:
                self.first_errors.append(f"{time.time():.3f} {result}")
            self.changed.notify_all()

    def wait_for(self, number):
        """Until so many more answers came, at most 2 * TIMEOUT_SECONDS; how many did."""
        with self.changed:
            before = self.results.total()
            self.changed.wait_for(lambda: self.results.total() >= before + number, 2 * TIMEOUT_SECONDS)
            return self.results.total() - before


def one_client(url, tally, stop):
    connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=TIMEOUT_SECONDS)
    while not stop.is_set():
        try:
            connection.request("GET", url.path or "/")
            response = connection.getresponse()
            response.read()
            tally.add("ok" if response.status == 200 else f"status {response.status}")
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
        threads = [threading.Thread(target=one_client, args=(url, tally, stop)) for _ in range(int(sys.argv[3]))]
    else:
        threads = [threading.Thread(target=one_dialler, args=(sys.argv[2], tally, stop))]
    for thread in threads:
        thread.start()
    for line in sys.stdin:
        print(tally.wait_for(int(line)), flush=True)
    stop.set()
    for thread in threads:
        thread.join()
    ok = tally.results.pop("ok", 0)
    print(json.dumps({"ok": ok, "errors": dict(tally.results), "first_errors": tally.first_errors}), flush=True)


main()
