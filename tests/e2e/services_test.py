#!/usr/bin/python3
"""BookInfo without a mesh: the four services on loopback, against the contract that the lab relies on."""

import concurrent.futures
import http.client
import http.server
import json
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.parse

import bookinfo

SORRY = "Sorry, product {} are currently unavailable for this book."
NO_RATINGS = "Ratings service is currently unavailable"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class FakeRatings(http.server.ThreadingHTTPServer):
    """Answers 200 after the seconds (None: never), or the status, that it was told."""

    daemon_threads = True

    def __init__(self, seconds=0.0, status=200):
        self.seconds, self.status, self.seen = seconds, status, []
        super().__init__(("127.0.0.1", 0), self.Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            self.server.seen.append(dict(self.headers))
            threading.Event().wait(self.server.seconds)
            body = json.dumps({"id": 0, "ratings": {"Reviewer1": 3, "Reviewer2": 1}}).encode()
            try:
                self.send_response(self.server.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                pass  # the caller gave up, as it should


def fetch(port, path, headers=None, method="GET", body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        return response, response.read().decode()
    finally:
        connection.close()


class ServicesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        bookinfo.build()
        cls.instances = {instance.name: instance for instance in bookinfo.INSTANCES}

    def setUp(self):
        self.directory = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

    def start(self, name, **environment):
        """Starts an instance on a free port; returns the port. It must end with 0 on SIGTERM."""
        instance, port = self.instances[name], free_port()
        log = self.directory / f"{name}-{port}.log"
        process = subprocess.Popen(
            instance.command(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin", **instance.env(log), **environment})

        def stop():
            process.send_signal(signal.SIGTERM)
            try:
                self.assertEqual(process.wait(20), 0, f"{name} did not end cleanly")
            finally:
                process.kill()
                process.wait()
        self.addCleanup(stop)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.assertEqual(fetch(port, "/health")[0].status, 200)
                return port
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def service(self, name, port):
        return {f"{name}_HOSTNAME": "127.0.0.1", f"{name}_SERVICE_PORT": str(port)}

    def log_of(self, name, port):
        lines = (self.directory / f"{name}-{port}.log").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["path"] != "/health"]

    def chain(self, reviews="reviews-v2", ratings_port=None):
        """Everything together; returns the ports by name."""
        ports = {"details-v1": self.start("details-v1")}
        ports["ratings"] = ratings_port or self.start("ratings-v1")
        ports["reviews"] = self.start(reviews, **self.service("RATINGS", ports["ratings"]))
        ports["page"] = self.start("productpage-v1", **self.service("DETAILS", ports["details-v1"]),
                                   **self.service("REVIEWS", ports["reviews"]),
                                   **self.service("RATINGS", ports["ratings"]))
        return ports

    def login(self, port, user):
        response, _ = fetch(port, "/login", method="POST", body=urllib.parse.urlencode(
            {"username": user, "passwd": "any"}), headers={
                "Content-Type": "application/x-www-form-urlencoded",
                "Referer": "http://books.example:8080/productpage?u=normal"})
        self.assertEqual(response.status, 302)
        self.assertEqual(response.headers["Location"], "/productpage?u=normal")
        return {"Cookie": response.headers["Set-Cookie"].partition(";")[0]}

    def test_the_page_shows_what_each_version_of_reviews_gives(self):
        for version, expected in (("v1", None), ("v2", "stars black"), ("v3", "stars red")):
            with self.subTest(version=version):
                response, page = fetch(self.chain(f"reviews-{version}")["page"], "/productpage")
                self.assertEqual(response.status, 200)
                self.assertIn("The Comedy of Errors", page)
                self.assertIn("William Shakespeare", page)
                self.assertIn(f"reviews-{version}", page)
                self.assertEqual(set(re.findall(r'class="(stars \w+)"', page)), {expected} - {None})
                self.assertIsNone(re.search(r'(src|href)="(https?:)?//', page), "an external resource")

    def test_end_user_comes_from_the_session_alone_and_travels_with_the_trace_headers(self):
        ports = self.chain()
        sent = {"end-user": "mallory", "x-request-id": "r-1", "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
                "x-b3-traceid": "c" * 32, "x-b3-sampled": "1"}
        fetch(ports["page"], "/productpage", sent)
        response, page = fetch(ports["page"], "/productpage", {**sent, **self.login(ports["page"], "jason")})
        self.assertIn('id="user">jason<', page)
        for name, key in (("reviews-v2", "reviews"), ("details-v1", "details-v1"), ("ratings-v1", "ratings")):
            lines = self.log_of(name, ports[key])
            self.assertEqual([line["end_user"] for line in lines], ["", "jason"], name)
            for line in lines:
                self.assertEqual((line["x_request_id"], line["traceparent"], line["b3_traceid"], line["b3_sampled"]),
                                 ("r-1", sent["traceparent"], "c" * 32, "1"), name)

    def test_a_forged_or_ended_session_is_nobody(self):
        port = self.start("productpage-v1")
        cookie = self.login(port, "jason")["Cookie"]
        response, _ = fetch(port, "/logout", {"Cookie": cookie, "Referer": "http://x//evil.example/a"})
        self.assertEqual((response.status, response.headers["Location"]), (302, "/evil.example/a"))
        self.assertIn("Max-Age=0", response.headers["Set-Cookie"])
        _, page = fetch(port, "/", {"Cookie": cookie[:-1] + ("0" if cookie[-1] != "0" else "1")})
        self.assertNotIn("jason", page)
        self.assertIn("jason", fetch(port, "/", {"Cookie": cookie})[1])

    def test_the_api_answers_json(self):
        ports = self.chain("reviews-v3")
        expected = {"": ["author", "year", "ISBN-13"], "/reviews": ["podname", "clustername", "reviews"],
                    "/ratings": ["ratings"]}
        for path, keys in expected.items():
            response, body = fetch(ports["page"], f"/api/v1/products/0{path}")
            self.assertEqual((response.status, response.headers["Content-Type"]), (200, "application/json"))
            for key in keys:
                self.assertIn(key, json.loads(body))
        self.assertEqual(json.loads(fetch(ports["page"], "/api/v1/products")[1])[0]["id"], 0)
        self.assertEqual(fetch(ports["details-v1"], "/details/x")[0].status, 400)
        self.assertEqual(fetch(ports["ratings"], "/ratings/x")[0].status, 400)

    def test_ratings_are_posted_and_read_back(self):
        port = self.start("ratings-v1")
        given = json.dumps({"Reviewer1": 1, "Reviewer2": 2})
        self.assertEqual(fetch(port, "/ratings/7", method="POST", body=given)[0].status, 200)
        self.assertEqual(json.loads(fetch(port, "/ratings/7")[1])["ratings"], json.loads(given))
        self.assertEqual(fetch(port, "/ratings/7", method="POST", body="{")[0].status, 400)

    def test_the_variants_of_ratings_misbehave_as_named(self):
        port = self.start("ratings-v1", SERVICE_VERSION="v-faulty")
        statuses = {fetch(port, "/ratings/0")[0].status for _ in range(60)}
        self.assertEqual(statuses, {200, 503})
        port = self.start("ratings-v1", SERVICE_VERSION="v-delayed")
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            def seconds(_):
                started = time.monotonic()
                fetch(port, "/ratings/0")
                return round(time.monotonic() - started)
            self.assertEqual({7 if s >= 7 else 0 for s in pool.map(seconds, range(16))}, {0, 7})
        port = self.start("ratings-v1")
        fetch(port, "/debug/status?code=503")
        self.assertEqual(fetch(port, "/ratings/0")[0].status, 503)
        fetch(port, "/debug/status?code=0")
        self.assertEqual(fetch(port, "/ratings/0")[0].status, 200)

    def test_ratings_reports_each_clients_peak_of_connections_without_its_readers(self):
        port = self.start("ratings-v1")

        def peak(reset=""):
            return json.loads(fetch(port, "/debug/peak" + reset)[1])
        peak("?reset=1")
        self.assertEqual(peak(), {})
        held = [http.client.HTTPConnection("127.0.0.1", port) for _ in range(3)]
        for connection in held:
            connection.request("GET", "/ratings/0")
            connection.getresponse().read()
        self.assertEqual(peak(), {"127.0.0.1": {"connections": 3, "peak": 3}})
        for connection in held:
            connection.close()
        deadline = time.monotonic() + 10
        while peak()["127.0.0.1"]["connections"] and time.monotonic() < deadline:
            time.sleep(0.01)
        fetch(port, "/ratings/0")
        self.assertEqual(peak()["127.0.0.1"]["peak"], 3)
        self.assertEqual(peak("?reset=1"), {})

    def test_connections_are_kept_open(self):
        ports = self.chain()
        for key, path in (("page", "/productpage"), ("reviews", "/reviews/0"), ("ratings", "/ratings/0"),
                          ("details-v1", "/details/0")):
            connection = http.client.HTTPConnection("127.0.0.1", ports[key], timeout=10)
            connection.connect()
            connection.auto_open = 0
            for _ in range(3):
                connection.request("GET", path)
                response = connection.getresponse()
                response.read()
                self.assertEqual(response.status, 200, key)
            connection.close()

    def test_services_are_reached_over_ipv6_too(self):
        for name, path in (("productpage-v1", "/health"), ("details-v1", "/details/0"),
                           ("reviews-v1", "/reviews/0"), ("ratings-v1", "/ratings/0")):
            connection = http.client.HTTPConnection("::1", self.start(name), timeout=10)
            connection.request("GET", path)
            self.assertEqual(connection.getresponse().status, 200, name)
            connection.close()

    def timed_page(self, reviews, ratings, user=None):
        port = self.chain(reviews, ratings.server_port)["page"]
        headers = self.login(port, user) if user else {}
        started = time.monotonic()
        response, page = fetch(port, "/productpage", headers)
        self.assertEqual(response.status, 200)
        return page, time.monotonic() - started

    # How long a wait is at least, is asserted; that it is no longer, by what never answers.
    def test_ratings_that_never_answer_break_the_page_after_two_tries_of_three_seconds(self):
        ratings = FakeRatings(seconds=None)
        page, seconds = self.timed_page("reviews-v2", ratings)
        self.assertIn(SORRY.format("reviews"), page)
        self.assertIn("William Shakespeare", page)
        self.assertEqual(len(ratings.seen), 2)
        self.assertGreaterEqual(seconds, 6)

    def test_two_seconds_of_delay_are_waited_for(self):
        page, seconds = self.timed_page("reviews-v2", FakeRatings(seconds=2))
        self.assertIn("stars black", page)
        self.assertGreaterEqual(seconds, 2)

    def test_red_stars_are_not_waited_for_longer_than_two_and_a_half_seconds(self):
        page, seconds = self.timed_page("reviews-v3", FakeRatings(seconds=None))
        self.assertIn(NO_RATINGS, page)
        self.assertIn("reviews-v3", page)
        self.assertGreaterEqual(seconds, 2.5)

    def test_black_stars_are_waited_for_ten_seconds(self):
        port = self.start("reviews-v2", **self.service("RATINGS", FakeRatings(seconds=None).server_port))
        started = time.monotonic()
        response, body = fetch(port, "/reviews/0")
        self.assertEqual(json.loads(body)["reviews"][0]["rating"], {"error": NO_RATINGS})
        self.assertGreaterEqual(time.monotonic() - started, 10)

    def test_an_error_of_ratings_is_said_and_the_reviews_stay(self):
        page, _ = self.timed_page("reviews-v2", FakeRatings(status=500), "jason")
        self.assertIn(NO_RATINGS, page)
        self.assertIn("Reviewer1", page)

    def test_missing_services_are_said_and_the_page_stays(self):
        gone = str(free_port())
        port = self.start("productpage-v1", DETAILS_HOSTNAME="127.0.0.1", DETAILS_SERVICE_PORT=gone,
                          REVIEWS_HOSTNAME="127.0.0.1", REVIEWS_SERVICE_PORT=gone,
                          RATINGS_HOSTNAME="127.0.0.1", RATINGS_SERVICE_PORT=gone)
        response, page = fetch(port, "/productpage")
        self.assertEqual(response.status, 200)
        self.assertIn(SORRY.format("details"), page)
        self.assertIn(SORRY.format("reviews"), page)
        response, body = fetch(port, "/api/v1/products/0/ratings")
        self.assertEqual((response.status, json.loads(body)["error"]), (500, SORRY.format("ratings")))


if __name__ == "__main__":
    unittest.main(verbosity=2)
