"""The processes that are measured, and their baselines."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import subprocess
import time
from datetime import datetime
from pathlib import Path

from .certificate import Certificate
from .paths import WORK, program

TICKS = os.sysconf("SC_CLK_TCK")
START_SECONDS = 600

SETTINGS = {"KEYWARD_OWNERS_PER_TENANT_MAX": "1000000"}
"""Typical keys have a million owners, more than a tenant may have by default."""


class Process:
    """A process of ours, ended when its block ends."""

    port: int
    scheme = "http"

    def __init__(self, *command: object, log: Path, settings: dict[str, str] | None = None) -> None:
        self._log = log
        env = os.environ | (settings or {})
        with log.open("wb") as sink:
            self.popen = subprocess.Popen([str(part) for part in command], stdout=sink, stderr=subprocess.STDOUT, env=env)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Ends it in good order, unless it has ended."""
        if self.popen.poll() is None:
            self.popen.terminate()
            self.popen.wait(START_SECONDS)

    def kill(self) -> None:
        """Ends it at once, as `kill -9` does."""
        self.popen.kill()
        self.popen.wait(START_SECONDS)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Waits for a line of its log."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.popen.poll() is None:
            if found := re.search(pattern, self._log.read_text(errors="replace")):
                return found
            time.sleep(0.02)
        raise SystemExit(f"{self.popen.args[0]} did not say {pattern!r}:\n{self._log.read_text(errors='replace')}")

    @property
    def cpu(self) -> float:
        """Seconds of CPU that it has used."""
        stat = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / TICKS

    @property
    def rss(self) -> int:
        """Bytes of memory that it holds."""
        return self._status("VmRSS")

    @property
    def rss_peak(self) -> int:
        """Bytes of memory that it has held at most."""
        return self._status("VmHWM")

    def _status(self, name: str) -> int:
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port: int) -> None:
    for _ in range(500):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise SystemExit(f"nothing listens on port {port}")


class Keyward(Process):
    """The real program, as an operator would start it."""

    def __init__(self, data_dir: Path, *more: object, build: Path | None = None, tls: Certificate | None = None) -> None:
        listen = ("--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0")
        if tls:
            self.scheme = "https"
            listen += ("--tls-certificate", str(tls.chain), "--tls-key", str(tls.key))
        log = WORK / f"{data_dir.parent.name}-{data_dir.name}.log"
        began = time.monotonic()
        command = (build or program("keyward"), "serve", "--data-dir", data_dir, *listen, *more)
        super().__init__(*command, log=log, settings=SETTINGS)
        try:
            serving = self.wait_for(rf"{TIME} .* serving\b")
            self.seconds = time.monotonic() - began
            """From its start until it was SERVING."""
            early = self.wait_for(rf"{TIME} .* answering verdicts\b")
            self.verdict_seconds = self.seconds - (seconds_of(serving) - seconds_of(early))
            """The same until it answered verdicts."""
            self.port = int(self.wait_for(r" listening .*?127\.0\.0\.1:(\d+)")[1])
            self.ops_port = int(self.wait_for(r" ops listening .*?127\.0\.0\.1:(\d+)")[1])
        except BaseException:
            # No block has begun that would end it.
            self.kill()
            raise

    def verdicts(self) -> dict[str, int]:
        """How many verdicts there were, by reason."""
        return {name: int(count) for name, count in re.findall(r'verdicts_total\{reason="(\w+)"} (\d+)', self._metrics())}

    def keys(self) -> int:
        """How many keys there are, by its own count."""
        return int(re.search(r"^keyward_keys (\d+)", self._metrics(), re.MULTILINE)[1])

    def _metrics(self) -> str:
        ops = http.client.HTTPConnection("127.0.0.1", self.ops_port)
        ops.request("GET", "/metrics")
        return ops.getresponse().read().decode()


TIME = r"(\d+-\d+-\d+T[\d:.]+)Z"


def seconds_of(line: re.Match[str]) -> float:
    """The time of a line of the log."""
    return datetime.fromisoformat(line[1]).timestamp()


class Echo(Process):
    """The baseline, with replies of the same size: compiled as cargo does by default, or with the profile of the server."""

    def __init__(self, reply_bytes: int, profile: str = "stock", tls: Certificate | None = None) -> None:
        self.port = free_port()
        files = (tls.chain, tls.key) if tls else ()
        if tls:
            self.scheme = "https"
        super().__init__(program("echo", profile), self.port, reply_bytes, *files, log=WORK / f"echo-{profile}.log")
        wait_for_port(self.port)


class Redis(Process):
    """What a team would build by hand: a value for each key, in memory."""

    def __init__(self) -> None:
        self.port = free_port()
        options = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
        super().__init__("redis-server", "--port", self.port, *options, log=WORK / "redis.log")
        wait_for_port(self.port)

    def gets_per_second(self, pipeline: int) -> float:
        """GETs of 140 bytes, 100,000 keys, 32 connections."""
        load = ["-p", str(self.port), "-c", "32", "-P", str(pipeline), "-r", "100000", "-d", "140", "-q", "--csv"]
        subprocess.run(["redis-benchmark", *load, "-n", "200000", "-t", "set"], check=True, capture_output=True)
        run = subprocess.run(["redis-benchmark", *load, "-n", "1000000", "-t", "get"], check=True, capture_output=True)
        return float(re.search(rb'"GET","([\d.]+)"', run.stdout)[1])
