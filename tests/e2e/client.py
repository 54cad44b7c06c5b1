#!/usr/bin/python3
"""The lab's client inside a workload (`meshctl sandbox exec NAME -- client.py ...`). Prints one JSON object.

client.py load URL [-n N] [-c CLIENTS] [-H 'name: value']...   keep-alive requests; the clients of a round start together
client.py connect HOST:PORT...                                 one TCP connect each: errno and milliseconds
client.py ask URL                                              one request for each line on stdin, all on one connection
"""

import argparse
import collections
import errno
import http.client
import json
import socket
import sys
import threading
import time
import urllib.parse

TIMEOUT_SECONDS = 20


class Tally:
    def __init__(self):
        self.lock = threading.Lock()
        self.statuses = collections.Counter()
        self.overloaded = collections.Counter()  # answers with x-envoy-overloaded: true, by status
        self.errors = collections.Counter()

    def answer(self, response):
        with self.lock:
            self.statuses[response.status] += 1
            if response.headers.get("x-envoy-overloaded") == "true":
                self.overloaded[response.status] += 1

    def error(self, error):
        with self.lock:
            self.errors[repr(error)] += 1


def one_client(url, requests, headers, round_start, tally):
    connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=TIMEOUT_SECONDS)
    path = urllib.parse.urlunsplit(("", "", url.path or "/", url.query, ""))
    for _ in range(requests):
        try:
            round_start.wait()
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            response.read()
            tally.answer(response)
        except threading.BrokenBarrierError:
            break
        except (OSError, http.client.HTTPException) as error:
            tally.error(error)
            connection.close()
    connection.close()


def load(arguments):
    headers = dict(header.split(": ", 1) for header in arguments.header)
    url = urllib.parse.urlsplit(arguments.url)
    tally, barrier = Tally(), threading.Barrier(arguments.clients, timeout=2 * TIMEOUT_SECONDS)
    started = time.monotonic()
    threads = [threading.Thread(target=one_client, args=(url, arguments.requests // arguments.clients, headers,
                                                         barrier, tally)) for _ in range(arguments.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"statuses": {str(k): v for k, v in tally.statuses.items()},
            "overloaded": {str(k): v for k, v in tally.overloaded.items()},
            "errors": dict(tally.errors), "seconds": round(time.monotonic() - started, 3)}


def connect(arguments):
    results = []
    for target in arguments.targets:
        host, _, port = target.rpartition(":")
        address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(address[0], socket.SOCK_STREAM) as sock:
            sock.settimeout(5)
            started = time.monotonic()
            try:
                sock.connect(address[4])
                name = "OK"
            except OSError as error:
                name = errno.errorcode.get(error.errno, repr(error))
            results.append({"target": target, "result": name, "ms": round((time.monotonic() - started) * 1e3, 2)})
    return results


def ask(arguments):
    """Prints a line of JSON for each answer; the local port tells whether it is still the same connection."""
    url = urllib.parse.urlsplit(arguments.url)
    connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=TIMEOUT_SECONDS)
    answers = 0
    for _ in sys.stdin:
        try:
            connection.request("GET", url.path or "/")
            port = connection.sock.getsockname()[1]
            response = connection.getresponse()
            response.read()
            print(json.dumps({"status": response.status, "port": port}), flush=True)
            answers += 1
        except (OSError, http.client.HTTPException) as error:
            print(json.dumps({"status": repr(error), "port": 0}), flush=True)
            connection.close()
    return {"answers": answers}


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("load")
    command.add_argument("url")
    command.add_argument("-n", "--requests", type=int, default=1)
    command.add_argument("-c", "--clients", type=int, default=1)
    command.add_argument("-H", "--header", action="append", default=[])
    command.set_defaults(run=load)
    command = commands.add_parser("connect")
    command.add_argument("targets", nargs="+")
    command.set_defaults(run=connect)
    command = commands.add_parser("ask")
    command.add_argument("url")
    command.set_defaults(run=ask)
    arguments = parser.parse_args()
    print(json.dumps(arguments.run(arguments)))


if __name__ == "__main__":
    main()
