#!/usr/bin/python3
"""A DNS client and a name server for dns_test.py, run inside sandboxes.

dns_client.py ask RESOLVER WAY NAME...   WAY: connected, unconnected (A and AAAA from one socket), tcp, or many (N queries at
                                         once); prints {"name type": [addresses or rcode]} as JSON
dns_client.py one HOST PORT NAME         the A of one name over TCP, printed in the same way
dns_client.py serve LOG                  a name server at port 53: every name is 192.0.2.77, and LOG says who asked for what
"""

import json
import select
import socket
import struct
import sys
import time

A, AAAA = 1, 28


def query(number, name, kind):
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack(">6H", number, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)


def skip_name(message, at):
    while message[at] != 0:
        if message[at] >= 0xc0:
            return at + 2
        at += 1 + message[at]
    return at + 1


def said(message):
    answers, at = struct.unpack(">H", message[6:8])[0], skip_name(message, 12) + 4
    found = []
    for _ in range(answers):
        at = skip_name(message, at)
        kind, _, _, size = struct.unpack(">HHIH", message[at:at + 10])
        data = message[at + 10:at + 10 + size]
        if kind in (A, AAAA):
            found.append(socket.inet_ntop(socket.AF_INET if kind == A else socket.AF_INET6, data))
        at += 10 + size
    return found or [{0: "nothing", 2: "failure", 3: "no such name"}.get(message[3] & 15, message[3] & 15)]


def read_exactly(stream, size):
    data = b""
    while len(data) < size:
        part = stream.recv(size - len(data))
        if not part:
            raise ConnectionError("the server ended the connection")
        data += part
    return data


def by_tcp(resolver, wanted, port=53):
    results = {}
    with socket.create_connection((resolver, port), timeout=20) as stream:
        for number, (name, kind) in enumerate(wanted):
            message = query(number, name, kind)
            stream.sendall(struct.pack(">H", len(message)) + message)
            answer = read_exactly(stream, struct.unpack(">H", read_exactly(stream, 2))[0])
            results[f"{name} {kind}"] = said(answer)
    return results


def by_udp(resolver, wanted, connected):
    """Asks again every second, as resolver libraries do. What comes from elsewhere than was asked is not taken."""
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    if connected:
        sock.connect((resolver, 53))
    left, results = dict(enumerate(wanted)), {}
    deadline = time.monotonic() + 30
    while left and time.monotonic() < deadline:
        for number, (name, kind) in left.items():
            message = query(number, name, kind)
            if connected:
                sock.send(message)
            else:
                sock.sendto(message, (resolver, 53))
        again = time.monotonic() + 1
        while left and select.select([sock], [], [], max(0, again - time.monotonic()))[0]:
            answer, sender = sock.recvfrom(65536)
            number = struct.unpack(">H", answer[:2])[0]
            if sender != (resolver, 53):
                raise SystemExit(f"an answer from {sender} to a query to {resolver}")
            if number in left:
                name, kind = left.pop(number)
                results[f"{name} {kind}"] = said(answer)
    return results


def serve(log):
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind(("", 53))
    listener = socket.create_server(("", 53))
    while True:
        for ready in select.select([sock, listener], [], [])[0]:
            if ready is sock:
                message, sender = sock.recvfrom(65536)
                sock.sendto(answer_to(message), sender)
            else:
                stream, sender = listener.accept()
                with stream:
                    message = read_exactly(stream, struct.unpack(">H", read_exactly(stream, 2))[0])
                    answer = answer_to(message)
                    stream.sendall(struct.pack(">H", len(answer)) + answer)
            with open(log, "a", encoding="ascii") as file:
                file.write(f"{sender[0]} {sender[1]} {'udp' if ready is sock else 'tcp'} "
                           f"{message[12:skip_name(message, 12)].hex()}\n")


def answer_to(message):
    question = message[12:skip_name(message, 12) + 4]
    is_a = question.endswith(struct.pack(">HH", A, 1))
    record = b"\xc0\x0c" + struct.pack(">HHIH", A, 1, 60, 4) + bytes([192, 0, 2, 77]) if is_a else b""
    return message[:2] + struct.pack(">5H", 0x8180, 1, int(is_a), 0, 0) + question + record


def main():
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    if sys.argv[1] == "one":
        _, _, host, port, name = sys.argv
        print(json.dumps(by_tcp(host, [(name, A)], int(port))))
        return
    _, _, resolver, way, *names = sys.argv
    if way == "many":
        wanted = [(f"{'reviews' if i % 2 else f'n{i}'}.default", A) for i in range(int(names[0]))]
        results = by_udp(resolver, wanted, connected=True)
    else:
        wanted = [(name, kind) for name in names for kind in (A, AAAA)]
        results = by_tcp(resolver, wanted) if way == "tcp" else by_udp(resolver, wanted, way == "connected")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
