"""Services in four languages and three proxies, each of which calls a server at a fixed rate."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import DEADLINE_SECONDS, environment
from pki import Pki

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

RATE = 1_000
"""Calls a second."""

CALLS = RATE * int(os.environ.get("STRANGERS_SECONDS", "20"))
"""Calls of each client. A slow machine takes longer for them, and is not asked for fewer."""

WORKERS = 4
"""Calls that are under way at once, at most. Most of the time it is one."""

LOOK_SECONDS = 0.02
"""How often the sockets of the server are looked at."""


def tools() -> Path:
    """Where `install` puts what it builds."""
    return Path(os.environ["EXTERNAL_TOOLS"])


def client_command(client: str) -> list[str]:
    match client:
        case "grpc-go":
            return [str(tools() / "go-client")]
        case "grpc-java":
            java = tools() / "java"
            return ["java", "-cp", f"{java / 'classes'}:{java / 'lib'}/*", "keyward.external.Client"]
        case "grpc-js":
            return ["node", str(HERE / "clients/js/client.js")]
        case "grpcio":
            return [sys.executable, str(HERE / "clients/python_client.py")]
    raise ValueError(client)


@dataclass(frozen=True)
class Report:
    """What a client says of its calls."""

    calls: int
    failed: dict[str, int]
    cancelled: int
    first_error: str
    stream_ok: bool
    seconds: float


def drive(
    client: str,
    target: str,
    key: str,
    secret: str,
    workers: int = WORKERS,
    cancel_percent: int = 0,
    calls: int = CALLS,
    pki: Pki | None = None,
) -> Report:
    """Runs a client to its end. With certificates it shows the caller's, and demands the server's."""
    asked = {
        "TARGET": target,
        "KEY": key,
        "SECRET": secret,
        "CALLS": calls,
        "RATE": RATE,
        "WORKERS": workers,
        "CANCEL_PERCENT": cancel_percent,
        "TLS_DIR": pki.path if pki else "",
        "PROTO_DIR": ROOT / "proto",
        "NODE_PATH": tools() / "js/node_modules",
    }
    done = subprocess.run(
        client_command(client),
        env=environment() | {name: str(value) for name, value in asked.items()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS + 5 * calls / RATE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Report(**json.loads(done.stdout))


class Accepted:
    """Counts the connections that a process accepts, by the sockets that it holds.

    The kernel gives each socket a number of its own, so one that takes the place of another is seen, also if the
    process gives it the same file descriptor.
    """

    def __init__(self, process: int) -> None:
        self._descriptors = Path(f"/proc/{process}/fd")
        self._before = self._sockets()
        self._seen: set[str] = set()
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Accepted:
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watch.join()

    @property
    def count(self) -> int:
        return len(self._seen)

    def _look(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self._seen |= self._sockets() - self._before

    def _sockets(self) -> set[str]:
        sockets = set()
        for descriptor in os.listdir(self._descriptors):
            try:
                target = os.readlink(self._descriptors / descriptor)
            except FileNotFoundError:  # closed meanwhile
                continue
            if target.startswith("socket:"):
                sockets.add(target)
        return sockets


@contextmanager
def proxy(name: str, template: str, directory: Path, pki: Pki | None = None, **upstreams: str) -> Iterator[str]:
    """A proxy in front of some addresses, by a template that names them. It gives its own.

    With certificates it encrypts what it sends on, and shows the caller's.
    """
    port = free_port()
    template_file = next((HERE / "proxies").glob(f"{template}.*"))
    # Under its own name: Envoy knows the format by the ending.
    config = directory / template_file.name
    text = template_file.read_text().replace("{port}", str(port))
    for place, address in upstreams.items():
        host, upstream_port = address.rsplit(":", 1)
        for part, value in {"": address, "_host": host, "_port": upstream_port}.items():
            text = text.replace(f"{{{place}{part}}}", value)
    text = text.replace("{scheme}", "grpcs" if pki else "grpc").replace("{tls}", encrypts(name, pki) if pki else "")
    config.write_text(text)
    log = directory / "proxy.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            proxy_command(name, config), cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        wait_for_listener(port, process, log)
        yield f"127.0.0.1:{port}"
        assert process.poll() is None, log.read_text(errors="replace")
    finally:
        process.kill()
        process.wait(DEADLINE_SECONDS)


def encrypts(name: str, pki: Pki) -> str:
    """What a proxy's template takes for TLS."""
    authority, certificate, key = (pki.file(file) for file in ("ca.pem", "caller.pem", "caller.key"))
    match name:
        case "haproxy":
            both = pki.path / "caller-and-key.pem"
            both.write_bytes(pki.read("caller.pem") + pki.read("caller.key"))
            return f" ssl alpn h2 verify required ca-file {authority} verifyhost localhost crt {both}"
        case "nginx":
            lines = {
                "certificate": certificate,
                "certificate_key": key,
                "trusted_certificate": authority,
                "verify": "on",
                "name": "localhost",
                "protocols": "TLSv1.2 TLSv1.3",
            }
            return "".join(f"            grpc_ssl_{line} {value};\n" for line, value in lines.items())
        case "envoy":
            return textwrap.indent(ENVOY_TLS.format(authority=authority, certificate=certificate, key=key), " " * 6)
    raise ValueError(name)


ENVOY_TLS = """\
transport_socket:
  name: envoy.transport_sockets.tls
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
    sni: localhost
    common_tls_context:
      tls_params: {{ tls_maximum_protocol_version: TLSv1_3 }}
      tls_certificates:
        - certificate_chain: {{ filename: {certificate} }}
          private_key: {{ filename: {key} }}
      validation_context:
        trusted_ca: {{ filename: {authority} }}
        match_typed_subject_alt_names:
          - {{ san_type: DNS, matcher: {{ exact: localhost }} }}
"""


def proxy_command(name: str, config: Path) -> list[str]:
    match name:
        case "haproxy":
            return [program("haproxy"), "-db", "-f", str(config)]
        case "nginx":
            return [program("nginx"), "-p", str(config.parent), "-c", str(config), "-e", "stderr"]
        case "envoy":
            envoy = Path(sys.executable).with_name("envoy")
            options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
            return [str(envoy), "--config-path", str(config), *options]
    raise ValueError(name)


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    assert found, f"{name} is not installed"
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_listener(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(int(DEADLINE_SECONDS / LOOK_SECONDS)):
        assert process.poll() is None, log.read_text(errors="replace")
        try:
            socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS).close()
            return
        except ConnectionRefusedError:
            threading.Event().wait(LOOK_SECONDS)
    raise AssertionError(f"it does not listen:\n{log.read_text(errors='replace')}")
