"""BookInfo's instances: what to run, under which name, with which labels and environment.

Used by the lab (in sandboxes) and by services_test.py (on loopback). Standard library only.
"""

import dataclasses
import os
import pathlib
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = ROOT / "examples" / "bookinfo"
CONFIG = SOURCES / "config"
BUILD = ROOT / "build" / "bookinfo"

# Debian packages without which the services do not start.
PACKAGES = ("default-jdk-headless", "nodejs", "python3", "ruby", "ruby-webrick")


@dataclasses.dataclass(frozen=True)
class Instance:
    name: str  # the workload's name, also its HOSTNAME
    app: str
    version: str
    environment: tuple = ()

    @property
    def service_account(self):
        return f"bookinfo-{self.app}"

    def command(self, port=9080):
        program = {
            "productpage": ["/usr/bin/python3", SOURCES / "productpage" / "productpage.py"],
            "details": ["/usr/bin/ruby", SOURCES / "details" / "details.rb"],
            "ratings": [shutil.which("node") or "/usr/bin/node", SOURCES / "ratings" / "ratings.js"],
            "reviews": [shutil.which("java") or "/usr/bin/java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx96m",
                        "-XX:-UsePerfData",  # leaves no /tmp/hsperfdata_*
                        "-cp", BUILD, "Reviews"],
        }[self.app]
        return [*map(str, program), str(port)]

    def env(self, access_log):
        return {"HOSTNAME": self.name, "SERVICE_VERSION": self.version,
                "ACCESS_LOG": str(access_log), **dict(self.environment)}


def reviews(version, *environment):
    return Instance(f"reviews-{version}", "reviews", version, environment)


INSTANCES = (
    Instance("details-v1", "details", "v1"),
    Instance("ratings-v1", "ratings", "v1"),
    reviews("v1"),
    reviews("v2", ("ENABLE_RATINGS", "true")),
    reviews("v3", ("ENABLE_RATINGS", "true"), ("STAR_COLOR", "red")),
    Instance("productpage-v1", "productpage", "v1"),
)


def build():
    """Compiles reviews into build/bookinfo, unless it is there and newer than its source."""
    source, compiled = SOURCES / "reviews" / "Reviews.java", BUILD / "Reviews.class"
    if compiled.exists() and compiled.stat().st_mtime >= source.stat().st_mtime:
        return
    BUILD.mkdir(parents=True, exist_ok=True)
    subprocess.run([shutil.which("javac") or "/usr/bin/javac", "-J-XX:-UsePerfData", "-d", str(BUILD), str(source)], check=True,
                   env={**os.environ, "LC_ALL": "C.UTF-8"})
    compiled.touch()
