#!/usr/bin/python3
"""Servers and clients that compare every byte.

exact.py serve                 port 9090 sends back whatever comes; port 8080 is HTTP: POST / answers with the body turned round
exact.py load HOST CLIENTS     CLIENTS long connections to each of the two ports of HOST, messages of 1 byte to 200,000 on them all,
                               until stdin ends; then prints {"exchanges", "errors": [..]}. A line with a number on stdin: waits
                               until so many more exchanges were right, or one was wrong, and prints how many were right.
"""

import http.client
import http.server
import json
import random
import socket
import socketserver
import sys
import threading

TIMEOUT_SECONDS = 60
PATTERN = random.Random(1).randbytes(1_048_573)  # no power of two
DOUBLE = PATTERN + PATTERN


# A time-out makes Python's sockets non-blocking: the fast path leaves others alone.
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.settimeout(TIMEOUT_SECONDS)
        while data := self.request.recv(65536):
            self.request.sendall(data)


class Turned(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_SECONDS

    def do_POST(self):  # the name that http.server asks for
        body = self.rfile.read(int(self.headers["Content-Length"]))[::-1]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def serve():
    threading.Thread(target=Server(("", 9090), Echo).serve_forever, daemon=True).start()
    http.server.ThreadingHTTPServer(("", 8080), Turned).serve_forever()


class Tally:
    def __init__(self):
        self.changed = threading.Condition()
        self.right = 0
        self.errors = []

    def add(self, error=None):
        with self.changed:
            if error is None:
                self.right += 1
            else:
                self.errors.append(error)
            self.changed.notify_all()

    def wait_for(self, number):
        with self.changed:
            before = self.right
            self.changed.wait_for(lambda: self.right >= before + number or self.errors, 2 * TIMEOUT_SECONDS)
            return self.right - before


def messages(dice):
    while True:
        start = dice.randrange(len(PATTERN))
        yield DOUBLE[start:start + dice.choice((1, 100, 1000, 16_384, 200_000))]


def talk(host, seed, tally, stop):
    try:
        with socket.create_connection((host, 9090), TIMEOUT_SECONDS) as connection:
            for message in messages(random.Random(seed)):
                if stop.is_set():
                    return
                sender = threading.Thread(target=connection.sendall, args=(message,))  # the answer may begin before its end
                sender.start()
                got = b""
                while len(got) < len(message) and (data := connection.recv(65536)):
                    got += data
                sender.join()
                if got != message:
                    raise ValueError(f"{len(got)} of {len(message)} bytes came, and not the same")
                tally.add()
    except (OSError, ValueError) as error:
        tally.add(f"TCP: {error!r}")


def ask(host, seed, tally, stop):
    try:
        connection = http.client.HTTPConnection(host, 8080, timeout=TIMEOUT_SECONDS)
        for message in messages(random.Random(seed)):
            if stop.is_set():
                return
            connection.request("POST", "/", message)
            response = connection.getresponse()
            if response.read() != message[::-1] or response.status != 200:
                raise ValueError(f"status {response.status}, and not the bytes that were sent")
            tally.add()
    except (OSError, ValueError, http.client.HTTPException) as error:
        tally.add(f"HTTP: {error!r}")


def load(host, clients):
    tally, stop = Tally(), threading.Event()
    threads = [threading.Thread(target=target, args=(host, seed, tally, stop))
               for seed in range(clients) for target in (talk, ask)]
    for thread in threads:
        thread.start()
    for line in sys.stdin:
        print(tally.wait_for(int(line)), flush=True)
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"exchanges": tally.right, "errors": tally.errors}), flush=True)


if sys.argv[1] == "serve":
    serve()
else:
    load(sys.argv[2], int(sys.argv[3]))
