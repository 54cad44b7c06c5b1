#!/usr/bin/python3
"""A client inside a workload that goes on until its stdin ends, and then prints what happened as JSON.

steady.py load URL CLIENTS
                                keep-alive GETs, one after the other, in each of CLIENTS threads
steady.py connect HOST:PORT     one TCP connect after the other, each closed at once
steady.py long CONNECTIONS RATE HOST:PORT...
                                CONNECTIONS to each, opened once: on all of them together RATE GETs a second, those that were
                                held up as soon as they can be asked; a connection that ends, or does not answer, is an error

A line with a number on stdin: waits until so many more answers came, and prints how many did. The result: {"ok", "errors": {what: count}, "first_errors": [..]};
of long connections "seconds" that they were asked in, and "each" (how many answers each had), too.
"""

import collections
import errno
import http.client
import json
import selectors
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
        self.of_long = {}

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


def long_connections(count, rate, targets, tally, stop):
    selector = selectors.DefaultSelector()
    request = b"GET /10 HTTP/1.1\r\nHost: %s\r\n\r\n"
    connections = []
    for target in targets:
        host, _, port = target.rpartition(":")
        for _ in range(count):
            sock = socket.create_connection((host, int(port)), TIMEOUT_SECONDS)
            connections.append((sock, request % target.encode()))
            selector.register(sock, selectors.EVENT_READ, len(connections) - 1)
    began = time.monotonic()
    due = [began + n / rate for n in range(len(connections))]
    asked_at, received, answers = {}, [b""] * len(connections), [0] * len(connections)

    def end(n, why):
        tally.add(why)
        if connections[n]:
            selector.unregister(connections[n][0])
            connections[n][0].close()
            connections[n] = None
        asked_at.pop(n, None)

    def take(n):
        try:
            data = connections[n][0].recv(65536)
        except OSError as error:
            return end(n, repr(error))
        if not data:
            return end(n, "closed")
        received[n] += data
        head, found, body = received[n].partition(b"\r\n\r\n")
        if not found or len(body) < 10:
            return None
        received[n] = b""
        asked_at.pop(n, None)
        answers[n] += 1
        return tally.add("ok" if head.startswith(b"HTTP/1.1 200") else head.split(b"\r\n")[0].decode())

    while not stop.is_set() or asked_at:
        now = time.monotonic()
        if not stop.is_set():
            tally.of_long = {"seconds": now - began, "each": answers}
        for n, connection in enumerate(connections):
            if connection and n in asked_at and now - asked_at[n] > TIMEOUT_SECONDS:
                end(n, "no answer")
            elif connection and n not in asked_at and now >= due[n] and not stop.is_set():
                asked_at[n], due[n] = now, due[n] + len(connections) / rate
                try:
                    connection[0].sendall(connection[1])
                except OSError as error:
                    end(n, repr(error))
        for key, _ in selector.select(0.01):
            if connections[key.data]:
                take(key.data)


def main():
    tally, stop = Tally(), threading.Event()
    if sys.argv[1] == "load":
        url = urllib.parse.urlsplit(sys.argv[2])
        threads = [threading.Thread(target=one_client, args=(url, tally, stop)) for _ in range(int(sys.argv[3]))]
    elif sys.argv[1] == "long":
        threads = [threading.Thread(target=long_connections, args=(int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:], tally, stop))]
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
    print(json.dumps({"ok": ok, "errors": dict(tally.results), "first_errors": tally.first_errors, **tally.of_long}), flush=True)


main()
