#!/usr/bin/python3
"""Both ends of plain TCP connections, inside workloads. A connection begins with a line of JSON from the client that says
what is to happen on it; how many bytes each end sent is known to the byte.

tcp_peer.py serve PORT                          until it is ended
tcp_peer.py talk HOST PORT SEND RECEIVE END     prints {"client": address:port, "sent": n, "received": n, "error": errno's name or null}
    END: who ends it, and how: client, server, client-reset, server-reset; or hold: nobody does, until it is ended, or
    standard input is, or a minute is over. "open" is printed first, when the data has gone both ways.
"""

import errno
import json
import select
import socket
import struct
import sys
import threading


def read_exactly(stream, size):
    while size > 0:
        data = stream.read(min(size, 65536))
        if not data:
            raise EOFError
        size -= len(data)


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def serve_one(connection):
    with connection, connection.makefile("rb") as stream:
        try:
            wanted = json.loads(stream.readline())
            read_exactly(stream, wanted["send"])
            connection.sendall(b"r" * wanted["receive"])
            if not wanted["end"].startswith("server"):
                stream.read()
            elif wanted["end"] == "server-reset":
                stream.read(1)  # the client has all, and says so
                reset(connection)
        except (OSError, EOFError, ValueError):
            pass


def serve(port):
    with socket.create_server(("", int(port))) as listener:
        while True:
            threading.Thread(target=serve_one, args=(listener.accept()[0],), daemon=True).start()


def talk(host, port, send, receive, end):
    first = json.dumps({"send": int(send), "receive": int(receive), "end": end}).encode() + b"\n"
    done = {"sent": 0, "received": 0, "error": None}
    try:
        with socket.create_connection((host, int(port)), timeout=60) as connection, connection.makefile("rb") as stream:
            done["client"] = "%s:%d" % connection.getsockname()
            data = first + b"s" * int(send)
            connection.sendall(data)
            done["sent"] = len(data)
            read_exactly(stream, int(receive))
            done["received"] = int(receive)
            print("open", flush=True)
            if end == "hold":
                select.select([connection, sys.stdin], [], [], 60)
                connection.settimeout(0)
                connection.recv(1)  # an error where it was reset
            elif end == "server":
                stream.read()
            elif end == "server-reset":
                connection.sendall(b"+")
                done["sent"] += 1
                stream.read()
            elif end == "client-reset":
                reset(connection)
    except BlockingIOError:
        pass  # still open
    except OSError as error:
        done["error"] = errno.errorcode.get(error.errno, str(error))
    print(json.dumps(done), flush=True)


if __name__ == "__main__":
    {"serve": serve, "talk": talk}[sys.argv[1]](*sys.argv[2:])
