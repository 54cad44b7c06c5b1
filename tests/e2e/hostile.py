#!/usr/bin/python3
"""Both ends of hostile_test.py, each inside its workload.

hostile.py origin PORT LOG     answers every request with 200 and writes each head it got, as hex, a line each
hostile.py attack HOST PORT    reads requests from stdin (hex, a line each), sends each on a connection of its own,
                               prints the status of the first answer, or "closed", a line each
hostile.py slow HOST PORT N    N connections, each with a head that never ends; "sent", then the status of each answer
"""

import socket
import socketserver
import sys

ANSWER_SECONDS = 5


class Cut(Exception):
    """The stream ended within a body: what every server discards, since the framing said that more would come."""


class Origin(socketserver.StreamRequestHandler):
    """Frames strictly and knows one framing a message; anything else is written as a fault, a body that ends early as cut."""

    def handle(self):
        buffer = b""
        while True:
            while b"\r\n\r\n" not in buffer:
                data = self.request.recv(65536)
                if not data:
                    if buffer:
                        self.note(b"FAULT: the end of the stream within a head: " + buffer)
                    return
                buffer += data
            head, _, buffer = buffer.partition(b"\r\n\r\n")
            self.note(head)
            try:
                buffer = self.skip_body(head, buffer)
            except Cut:
                self.note(b"CUT: " + head)
                return
            except ValueError as error:
                self.note(b"FAULT: " + str(error).encode() + b": " + head)
                return
            self.request.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    def skip_body(self, head, buffer):
        fields = [line.split(b":", 1) for line in head.split(b"\r\n")[1:]]
        named = {}
        for field in fields:
            if len(field) != 2:
                raise ValueError("a line without a colon")
            named.setdefault(field[0].lower(), []).append(field[1].strip())
        lengths, codings = named.get(b"content-length", []), named.get(b"transfer-encoding", [])
        if len(lengths) + len(codings) > 1 or len(named.get(b"host", [])) != 1:
            raise ValueError("two framings, or not one Host")
        if codings:
            if codings != [b"chunked"]:
                raise ValueError("a transfer coding other than chunked")
            return self.skip_chunks(buffer)
        return self.take(int(lengths[0]) if lengths else 0, buffer)

    def take(self, count, buffer):
        while len(buffer) < count:
            data = self.request.recv(65536)
            if not data:
                raise Cut
            buffer += data
        return buffer[count:]

    def skip_chunks(self, buffer):
        while True:
            while b"\r\n" not in buffer:
                buffer += self.more()
            size, _, buffer = buffer.partition(b"\r\n")
            count = int(size, 16)
            if count == 0:
                break
            buffer = self.take(count + 2, buffer)
        while True:
            while b"\r\n" not in buffer:
                buffer += self.more()
            line, _, buffer = buffer.partition(b"\r\n")
            if not line:
                return buffer

    def more(self):
        data = self.request.recv(65536)
        if not data:
            raise Cut
        return data

    def note(self, text):
        with open(sys.argv[3], "ab") as log:
            log.write(text.hex().encode() + b"\n")


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256


def attack(host, port, request):
    with socket.create_connection((host, port), timeout=ANSWER_SECONDS) as sock:
        try:
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
            answer = b""
            while data := sock.recv(65536):
                answer += data
        except TimeoutError:
            return "time-out"
        except OSError:
            pass
        words = answer.split(b" ", 2)
        return words[1].decode(errors="replace") if len(words) > 1 else "closed"


def slow(host, port, count):
    sockets = [socket.create_connection((host, port), timeout=60) for _ in range(count)]
    for number, sock in enumerate(sockets):
        sock.sendall(b"GET / HTTP/1.1\r\nHost: victim\r\nX-Slow: a"[:1 + number])
    print("sent", flush=True)
    for sock in sockets:
        answer = sock.recv(65536).split(b" ", 2)
        print(answer[1].decode() if len(answer) > 1 else "closed", flush=True)
        sock.close()


def main():
    if sys.argv[1] == "origin":
        Server(("", int(sys.argv[2])), Origin).serve_forever()
    if sys.argv[1] == "slow":
        return slow(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    for line in sys.stdin:
        print(attack(sys.argv[2], int(sys.argv[3]), bytes.fromhex(line.strip())), flush=True)


main()
