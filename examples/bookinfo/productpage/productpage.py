#!/usr/bin/python3
"""BookInfo's product page: the front end that calls details and reviews.

Only the standard library. Paths, JSON, texts and time-outs follow the contract in ../README.md.
"""

import base64
import hashlib
import hmac
import html
import http.client
import http.cookies
import http.server
import json
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
import urllib.parse

CALL_TIMEOUT_SECONDS = 3.0
REVIEW_TRIES = 2  # part of the contract: the lab's "6 seconds" are these two tries
SHUTDOWN_GRACE_SECONDS = 5.0
IDLE_SECONDS = 60

# What a service must hand on, so that a mesh can join the legs of one request.
PROPAGATED_HEADERS = (
    "x-request-id", "x-ot-span-context", "x-datadog-trace-id", "x-datadog-parent-id",
    "x-datadog-sampling-priority", "traceparent", "tracestate", "x-cloud-trace-context",
    "grpc-trace-bin", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled",
    "x-b3-flags", "sw8", "user-agent", "cookie", "authorization", "jwt",
)

PRODUCTS = [{
    "id": 0,
    "title": "The Comedy of Errors",
    "descriptionHtml": "Two pairs of twins, parted by a shipwreck, meet again in <em>Ephesus</em> "
                       "without knowing it, and everyone takes each of them for the other. "
                       "One of William Shakespeare's earliest plays, and his shortest.",
}]

SESSION_KEY = secrets.token_bytes(32)


def service_url(name):
    """(host, port) of a service, from NAME_HOSTNAME, NAME_SERVICE_PORT and SERVICES_DOMAIN."""
    domain = os.environ.get("SERVICES_DOMAIN", "")
    host = os.environ.get(f"{name.upper()}_HOSTNAME", name)
    port = int(os.environ.get(f"{name.upper()}_SERVICE_PORT", "9080"))
    return (f"{host}.{domain}" if domain else host), port


class AccessLog:
    """One JSON object a request, appended to the file that ACCESS_LOG names (if it is set)."""

    def __init__(self, path):
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644) if path else None

    def write(self, method, path, status, headers, remote):
        if self._fd is None:
            return
        line = {"time": time.time(), "method": method, "path": path, "status": status,
                "end_user": headers.get("end-user", ""),
                "x_request_id": headers.get("x-request-id", ""),
                "traceparent": headers.get("traceparent", ""),
                "b3_traceid": headers.get("x-b3-traceid", ""),
                "b3_spanid": headers.get("x-b3-spanid", ""),
                "b3_sampled": headers.get("x-b3-sampled", ""),
                "remote": remote}
        os.write(self._fd, (json.dumps(line) + "\n").encode())


class Counter:
    """A counter by labels, for /metrics, and a count of what is under way."""

    def __init__(self):
        self._lock = threading.Lock()
        self._values = {}
        self.active = 0

    def add(self, *labels):
        with self._lock:
            self._values[labels] = self._values.get(labels, 0) + 1

    def enter(self, step):
        with self._lock:
            self.active += step

    def text(self):
        with self._lock:
            rows = sorted(self._values.items())
        lines = ["# HELP request_result Results of requests", "# TYPE request_result counter"]
        lines += [f'request_result{{destination_app="{app}",response_code="{code}"}} {n}'
                  for (app, code), n in rows]
        return "\n".join(lines) + "\n"


ACCESS = AccessLog(os.environ.get("ACCESS_LOG"))
RESULTS = Counter()


def call(service, path, headers):
    """GET from a service on a connection of its own: (status, bytes), or (None, b'') if it failed."""
    host, port = service_url(service)
    connection = http.client.HTTPConnection(host, port, timeout=CALL_TIMEOUT_SECONDS)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        print(f"call to {service} failed: {error!r}", file=sys.stderr, flush=True)
        return None, b""
    finally:
        connection.close()


def fetch(service, path, headers, what, tries=1):
    """(status, object): the service's answer if it was 200, else an object with the apology."""
    status = None
    for _ in range(tries):
        status, body = call(service, path, headers)
        RESULTS.add(service, status if status is not None else 500)
        if status == 200:
            try:
                return 200, json.loads(body)
            except ValueError:
                status = None
    return status or 500, {"error": f"Sorry, product {what} are currently unavailable for this book."}


def get_details(product_id, headers):
    return fetch("details", f"/details/{product_id}", headers, "details")


def get_reviews(product_id, headers):
    return fetch("reviews", f"/reviews/{product_id}", headers, "reviews", REVIEW_TRIES)


def get_ratings(product_id, headers):
    return fetch("ratings", f"/ratings/{product_id}", headers, "ratings")


def flood_reviews(product_id, headers):
    """FLOOD_FACTOR extra calls of reviews in the background, to create load."""
    for _ in range(int(os.environ.get("FLOOD_FACTOR", "0") or 0)):
        threading.Thread(target=call, args=("reviews", f"/reviews/{product_id}", headers),
                         daemon=True).start()


def sign(user):
    name = base64.urlsafe_b64encode(user.encode()).decode()
    return name + "." + hmac.new(SESSION_KEY, name.encode(), hashlib.sha256).hexdigest()


def session_user(cookie_header):
    """The user of a session cookie that this process signed, else None."""
    try:
        cookies = http.cookies.SimpleCookie(cookie_header or "")
        name, _, _ = cookies["session"].value.partition(".")
        user = base64.urlsafe_b64decode(name).decode()
    except (http.cookies.CookieError, KeyError, ValueError):
        return None
    return user if hmac.compare_digest(sign(user), cookies["session"].value) else None


STYLE = """
:root { --ink: #1d2433; --soft: #667085; --line: #e4e7ec; --accent: #3659d9; --paper: #fff; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f5f8; color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
header { background: #151b2b; color: #fff; }
header > div, main { max-width: 62rem; margin: 0 auto; padding: 1rem 1.5rem; }
header > div { display: flex; justify-content: space-between; align-items: center; gap: 1rem; }
header a { color: #fff; text-decoration: none; font-weight: 650; letter-spacing: .01em; }
header details { position: relative; }
header summary, button, .button { display: inline-block; cursor: pointer; border: 0; border-radius: 8px;
  padding: .45rem .95rem; font: inherit; background: var(--accent); color: #fff; list-style: none; }
header form { position: absolute; right: 0; top: 2.9rem; width: 17rem; padding: 1.1rem; z-index: 1;
  background: var(--paper); color: var(--ink); border-radius: 12px; box-shadow: 0 14px 40px #0f172a40; }
label { display: block; margin-bottom: .8rem; font-size: .88rem; color: var(--soft); }
input { display: block; width: 100%; margin-top: .2rem; padding: .5rem .6rem; font: inherit;
  border: 1px solid var(--line); border-radius: 8px; }
h1 { margin: 1.4rem 0 .3rem; font-size: 2.1rem; line-height: 1.2; }
.summary { max-width: 46rem; color: var(--soft); margin: 0 0 1.6rem; }
.columns { display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 7fr); gap: 1.2rem; }
@media (max-width: 48rem) { .columns { grid-template-columns: 1fr; } }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 14px; padding: 1.3rem 1.5rem; }
h2 { margin: 0 0 .9rem; font-size: 1.15rem; }
dl { display: grid; grid-template-columns: 7rem 1fr; gap: .4rem 1rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; font-weight: 550; }
blockquote { margin: 0 0 1.1rem; padding-left: 1rem; border-left: 3px solid var(--line); }
blockquote p { margin: 0 0 .2rem; }
cite { color: var(--soft); font-size: .9rem; font-style: normal; }
.stars { letter-spacing: .12em; font-size: 1.15rem; }
.stars.black { color: #151b2b; } .stars.red { color: #d92d20; }
.error { color: #b42318; background: #fef3f2; border: 1px solid #fecdca; border-radius: 10px; padding: .7rem .9rem; }
.served { margin: 1.2rem 0 0; padding-top: .8rem; border-top: 1px solid var(--line); color: var(--soft); font-size: .9rem; }
code { background: #eef0f4; border-radius: 6px; padding: .1rem .4rem; }
"""

SIGN_IN = """<details id="sign-in"><summary id="sign-in-button">Sign in</summary>
<form method="post" action="/login">
<label>User name <input name="username" autocomplete="username" required></label>
<label>Password <input name="passwd" type="password" autocomplete="current-password"></label>
<button id="sign-in-submit">Sign in</button></form></details>"""


def layout(title, user, main):
    account = SIGN_IN if user is None else (
        f'<span>Signed in as <strong id="user">{html.escape(user)}</strong> &nbsp;'
        '<a class="button" id="sign-out" href="/logout">Sign out</a></span>')
    return ("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">"
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"
            "<link rel=\"icon\" href=\"data:,\">"
            f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>"
            f"<header><div><a href=\"/productpage\">BookInfo Sample</a>{account}</div></header>"
            f"<main>{main}</main></body></html>")


def details_html(status, details):
    if status != 200:
        return ('<h2>Error fetching product details!</h2>'
                f'<p class="error" id="details-error">{html.escape(details["error"])}</p>')
    names = (("author", "Author"), ("year", "Year"), ("type", "Type"), ("pages", "Pages"),
             ("publisher", "Publisher"), ("language", "Language"), ("ISBN-10", "ISBN-10"),
             ("ISBN-13", "ISBN-13"))
    rows = "".join(f"<dt>{label}</dt><dd>{html.escape(str(details[key]))}</dd>"
                   for key, label in names if key in details)
    return f'<h2>Book Details</h2><dl id="details">{rows}</dl>'


def stars_html(rating):
    if "error" in rating:
        return f'<p class="error">{html.escape(rating["error"])}</p>'
    stars = max(0, min(5, int(rating.get("stars", 0))))
    colour = "red" if rating.get("color") == "red" else "black"
    return (f'<p class="stars {colour}" style="color: {"#d92d20" if colour == "red" else "#151b2b"}" '
            f'title="{stars} of 5 stars" aria-label="{stars} of 5 stars">'
            f'{"&#9733;" * stars}{"&#9734;" * (5 - stars)}</p>')


def reviews_html(status, reviews):
    if status != 200:
        return ('<h2>Error fetching product reviews!</h2>'
                f'<p class="error" id="reviews-error">{html.escape(reviews["error"])}</p>')
    parts = ["<h2>Book Reviews</h2>"]
    for review in reviews.get("reviews", []):
        parts.append(f'<blockquote class="review"><p>{html.escape(review["text"])}</p>'
                     f'{stars_html(review["rating"]) if "rating" in review else ""}'
                     f'<cite>{html.escape(review["reviewer"])}</cite></blockquote>')
    parts.append('<p class="served">Reviews served by: '
                 f'<code id="reviews-podname">{html.escape(str(reviews.get("podname")))}</code></p>')
    return "".join(parts)


def product_page(user, headers):
    product = PRODUCTS[0]
    details = details_html(*get_details(product["id"], headers))
    flood_reviews(product["id"], headers)
    reviews = reviews_html(*get_reviews(product["id"], headers))
    return layout(product["title"], user, (
        f'<h1>{html.escape(product["title"])}</h1>'
        f'<p class="summary">{product["descriptionHtml"]}</p>'
        f'<div class="columns"><section>{details}</section><section>{reviews}</section></div>'))


def index_page(user):
    return layout("BookInfo", user, (
        "<h1>Hello! This is a simple bookstore application</h1>"
        '<p class="summary">Four services in four languages. Start at the '
        '<a href="/productpage">product page</a>; the data behind it is at '
        '<a href="/api/v1/products">/api/v1/products</a>.</p>'))


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    wbufsize = -1  # head and body leave in one packet
    disable_nagle_algorithm = True

    def version_string(self):
        return "productpage"

    def log_message(self, *args):
        pass

    def user(self):
        return session_user(self.headers.get("cookie"))

    def forwarded(self):
        """Headers for the calls behind. end-user comes from the session alone, never from outside."""
        headers = {name: self.headers[name] for name in PROPAGATED_HEADERS if name in self.headers}
        headers.setdefault("user-agent", "productpage")
        user = self.user()
        if user is not None:
            headers["end-user"] = urllib.parse.quote(user, safe=" @+,;=")
        return headers

    def send(self, status, body, content_type="text/html; charset=utf-8", headers=()):
        body = body.encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        address, port = self.client_address[:2]
        # Before the answer leaves, so that whoever has the answer finds the line.
        ACCESS.write(self.command, self.path, status, self.headers,
                     f"{address.removeprefix('::ffff:')}:{port}")
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def send_json(self, status, value):
        self.send(status, json.dumps(value), "application/json")

    def back(self, cookie):
        """302 to where the visitor came from; the path alone, so no Referer leads elsewhere."""
        referer = urllib.parse.urlsplit(self.headers.get("referer", ""))
        path = re.sub(r"^/{2,}", "/", referer.path) or "/productpage"
        query = f"?{referer.query}" if referer.query else ""
        self.send(302, "", headers=[("Location", path + query), ("Set-Cookie", cookie)])

    def body(self):
        length = self.headers.get("content-length", "0")
        if "transfer-encoding" in self.headers or not length.isdigit() or int(length) > 65536:
            self.close_connection = True
            return None
        return self.rfile.read(int(length)).decode(errors="replace")

    def guarded(self, action):
        RESULTS.enter(1)
        try:
            action()
        finally:
            RESULTS.enter(-1)

    def do_GET(self):
        self.guarded(self.get)

    do_HEAD = do_GET

    def do_POST(self):
        self.guarded(self.post)

    def get(self):
        if self.body() is None:
            return self.send_json(400, {"error": "a GET with such a body is not understood"})
        path = urllib.parse.urlsplit(self.path).path
        if path in ("/", "/index.html"):
            return self.send(200, index_page(self.user()))
        if path == "/health":
            return self.send(200, "Product page is healthy", "text/plain; charset=utf-8")
        if path == "/productpage":
            return self.send(200, product_page(self.user(), self.forwarded()))
        if path == "/logout":
            return self.back("session=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax")
        if path == "/metrics":
            return self.send(200, RESULTS.text(), "text/plain; version=0.0.4; charset=utf-8")
        if path == "/api/v1/products":
            return self.send_json(200, PRODUCTS)
        match = re.fullmatch(r"/api/v1/products/(\d{1,9})(?:/(reviews|ratings))?", path)
        if match:
            getter = {"reviews": get_reviews, "ratings": get_ratings, None: get_details}[match[2]]
            return self.send_json(*getter(int(match[1]), self.forwarded()))
        self.send_json(404, {"error": "no such page"})

    def post(self):
        body = self.body()
        if body is None:
            return self.send_json(413, {"error": "a form of at most 65536 bytes is expected"})
        if urllib.parse.urlsplit(self.path).path != "/login":
            return self.send_json(404, {"error": "no such page"})
        user = urllib.parse.parse_qs(body).get("username", [""])[0].strip()[:64]
        if not user:
            return self.send_json(400, {"error": "username is missing"})
        self.back(f"session={sign(user)}; Path=/; HttpOnly; SameSite=Lax")


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True

    def __init__(self, port):
        self.address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        super().__init__(("::" if self.address_family == socket.AF_INET6 else "0.0.0.0", port), Handler)

    def server_bind(self):
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)  # http.server's own looks up this host's name
        self.server_name, self.server_port = "productpage", self.socket.getsockname()[1]

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):  # a client that went away is no news
            super().handle_error(request, client_address)


def main():
    server = Server(int(sys.argv[1]) if len(sys.argv) > 1 else 9080)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"productpage listens on port {server.server_port}", flush=True)
    server.serve_forever(poll_interval=0.2)
    server.server_close()
    deadline = time.monotonic() + SHUTDOWN_GRACE_SECONDS
    while RESULTS.active and time.monotonic() < deadline:
        time.sleep(0.02)


if __name__ == "__main__":
    main()
