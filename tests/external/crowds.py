#!/usr/bin/env python3
"""What crowds of callers make a server hold in memory, and how long a verifier on a new connection waits meanwhile.

Takes a built keyward, starts it anew for each crowd, and prints a row of the table in docs/performance.md for each. It speaks
HTTP/2 by hand, and needs nothing but Python. The server and this program take one file for each connection.

    tests/external/crowds.py target/release/keyward [--connections 8192] [CROWD ...]
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import selectors
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DATA, HEADERS, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 4, 6, 7, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
VERIFY = "/keyward.v1.KeyVerify/Verify"
BATCH = "/keyward.v1.KeyVerify/BatchVerify"
STREAM = "/keyward.v1.KeyVerify/StreamVerify"

STREAMS_MAX = 256
PATIENCE_SECONDS = 120
SENDING_SECONDS = 25
"""Less than a request may take."""
SENDING_MAX = 100
"""Connections that send at one time: more would not be accepted in time, and try again a second later."""

PROBES = 300
"""Verdicts on new connections, while the crowd is there."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def field(name: str, value: str) -> bytes:
    parts = [b"\0"]
    for text in (name.encode(), value.encode()):
        parts.append(bytes([len(text)]) if len(text) < 127 else bytes([127, len(text) - 127]))
        parts.append(text)
    return b"".join(parts)


def head(path: str, key: str | None = None) -> bytes:
    block = b"\x83\x86" + field(":path", path) + field("content-type", "application/grpc") + field("te", "trailers")
    return block + (field("authorization", f"Bearer {key}") if key else b"")


def message(payload: bytes) -> bytes:
    return b"\0" + struct.pack(">I", len(payload)) + payload


def text_field(number: int, text: str) -> bytes:
    assert len(text) < 128
    return bytes([number << 3 | 2, len(text)]) + text.encode()


HELLO = PREFACE + frame(SETTINGS, 0, 0)


@dataclass(frozen=True)
class Crowd:
    """Some connections, each of which sends the same."""

    what: str
    connections: int
    sent: Callable[[str], bytes]
    is_whole: bool = True
    """Whether a frame may follow, whose answer shows that all has been read."""


def calls(path: str, body: bytes, ends: bool = False, of: int = STREAMS_MAX, with_key: bool = False) -> Callable[[str], bytes]:
    def sent(key: str) -> bytes:
        block, parts = head(path, key if with_key else None), []
        for stream in range(1, 2 * of, 2):
            parts.append(frame(HEADERS, END_HEADERS, stream, block))
            pieces = [body[at : at + 16_384] for at in range(0, len(body), 16_384)] or [b""]
            for nth, piece in enumerate(pieces):
                parts.append(frame(DATA, END_STREAM if ends and nth == len(pieces) - 1 else 0, stream, piece))
        return b"".join(parts)

    return sent


def long_head(_key: str) -> bytes:
    block = head(CHECK) + b"".join(field("x", "y" * 250) for _ in range(50))
    return frame(HEADERS, END_HEADERS, 1, block)


def half_a_block(_key: str) -> bytes:
    return frame(HEADERS, 0, 1, b"x" * 16_384) + frame(CONTINUATION, 0, 1, b"x" * 16_000)


def half_a_frame(_key: str) -> bytes:
    return frame(HEADERS, END_HEADERS, 1, head(CHECK)) + frame(DATA, 0, 1, b"x" * 16_384)[:-1]


def full_table(_key: str) -> bytes:
    """Fills the header table by fields that are to be remembered."""
    inserts = b"".join(b"\x40" + field(f"x{nth}", "y" * 60)[1:] for nth in range(60))
    return frame(HEADERS, END_HEADERS, 1, head(CHECK) + inserts)


LIST_SERVICES = message(bytes([7 << 3 | 2, 0]))
SYMBOL = message(text_field(4, "keyward.v1.KeyAdmin"))
EVERYONE = 8_192
FEW = 64

CROWDS = {
    "idle": Crowd("say nothing more", EVERYONE, lambda key: b""),
    "half": Crowd("256 Checks, of each a byte", EVERYONE, calls(CHECK, b"\0")),
    "half-8k": Crowd("64 Checks, of each 8,000 bytes", EVERYONE, calls(CHECK, message(b"x" * 8_192)[:8_000], of=64)),
    "half-reflection": Crowd("256 streams of reflection, of each a byte", EVERYONE, calls(REFLECTION, b"\0")),
    "watch": Crowd("256 Watches", EVERYONE, calls(WATCH, message(b""), ends=True)),
    "reflection": Crowd("256 streams of reflection, each answered once", EVERYONE, calls(REFLECTION, LIST_SERVICES)),
    "unread": Crowd("64 long answers of reflection that nobody reads", EVERYONE, calls(REFLECTION, SYMBOL * 8, of=64)),
    "long-head": Crowd("a head of 13 KB", EVERYONE, long_head),
    "half-block": Crowd("half a header block of 32 KB", EVERYONE, half_a_block, is_whole=False),
    "half-frame": Crowd("half a frame of 16 KiB", EVERYONE, half_a_frame, is_whole=False),
    "table": Crowd("a full header table", EVERYONE, full_table),
    "denied": Crowd("256 Verifies without a credential, of each a byte", EVERYONE, calls(VERIFY, b"\0")),
    "verifier": Crowd(
        "256 batches of a verifier, of each 100 kB of 1 MB",
        FEW,
        calls(BATCH, message(b"x" * 1_000_000)[:100_000], with_key=True),
    ),
    "verifier-stream": Crowd(
        "256 streams of a verifier, of each half a message of 60 kB",
        FEW,
        calls(STREAM, message(b"x" * 60_000)[:30_000], with_key=True),
    ),
}


class Server:
    def __init__(self, program: str, data_dir: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KEYWARD_")}
        # All of a crowd come from one address here.
        environment["KEYWARD_STRANGER_CONNECTIONS_PER_ADDRESS_MAX"] = "8192"
        command = [program, "serve", "--listen", "127.0.0.1:0", "--ops-listen", "off", "--data-dir", str(data_dir)]
        self.log = (data_dir.parent / "log").open("w+")
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=self.log)
        self.address = self.find(r"listening listen=127\.0\.0\.1:(\d+)")
        self.find(r"(serving) keys=")
        self.key = (data_dir / "admin.key").read_text().strip()

    def find(self, pattern: str) -> tuple[str, int]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            text = re.sub(r"\x1b\[[0-9;]*m", "", Path(self.log.name).read_text())
            if found := re.search(pattern, text):
                return ("127.0.0.1", int(found[1]) if found[1].isdigit() else 0)
            time.sleep(0.05)
        raise SystemExit(f"no {pattern} in the log")

    def memory(self, name: str) -> float:
        """In MiB: VmRSS is what is there, VmHWM what was there at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) / 1024

    def stop(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Line:
    """One connection of a crowd. What is to be sent and what comes back is kept short."""

    def __init__(self, address: tuple[str, int], sent: bytes, reads: bool) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setblocking(False)
        self.rest = memoryview(sent)
        self.reads = reads
        self.done = False
        self.ended = False
        self.tail = b""

    def go_on(self) -> None:
        try:
            while self.rest:
                self.rest = self.rest[self.socket.send(self.rest[:65_536]) :]
        except BlockingIOError:
            pass
        except OSError:
            self.ended = self.done = True
        try:
            while not self.ended and (read := self.socket.recv(65_536)):
                self.tail += read
                # Refusals may come behind it.
                is_there = b"\x06\x01\0\0\0\0the end!" in self.tail
                self.tail = self.tail[-32:]
                if is_there:
                    self.done = True
                    if not self.reads:
                        return
            else:
                self.ended = self.done = True
        except BlockingIOError:
            pass
        except OSError:
            self.ended = self.done = True


def verdict_micros(server: Server) -> float:
    """How long a verdict takes on a new connection, from the connection on."""
    block, body = head(VERIFY, server.key), message(text_field(1, server.key))
    began = time.perf_counter()
    with socket.create_connection(server.address, timeout=PATIENCE_SECONDS) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.sendall(HELLO + frame(HEADERS, END_HEADERS, 1, block) + frame(DATA, END_STREAM, 1, body))
        came = b""
        while True:
            read = peer.recv(65_536)
            assert read, "a verifier is turned away"
            came += read
            while len(came) >= 9 and len(came) >= 9 + (length := int.from_bytes(came[:3], "big")):
                kind, flags, stream = came[3], came[4], int.from_bytes(came[5:9], "big")
                if stream == 1 and kind == HEADERS and flags & END_STREAM:
                    assert b"\x0bgrpc-status\x010" in came or length < 40, came
                    return (time.perf_counter() - began) * 1e6
                came = came[9 + length :]


def measure(program: str, name: str, connections: int | None) -> None:
    crowd = CROWDS[name]
    count = min(connections or crowd.connections, crowd.connections)
    with tempfile.TemporaryDirectory() as scratch:
        server = Server(program, Path(scratch) / "data")
        try:
            for _ in range(20):
                verdict_micros(server)
            before = server.memory("VmRSS")
            mark = frame(PING, 0, 0, b"the end!")
            sent = HELLO + crowd.sent(server.key) + (mark if crowd.is_whole else b"")
            lines, sending, selector = [], set(), selectors.DefaultSelector()
            is_sent = (lambda line: line.done) if crowd.is_whole else (lambda line: line.ended or not line.rest)

            def go_on_until(left: int) -> None:
                while len(sending) > left and time.monotonic() < began + SENDING_SECONDS:
                    for key, _ in selector.select(0.1):
                        line = key.data
                        line.go_on()
                        if line.ended:
                            selector.unregister(line.socket)
                        elif not line.rest:
                            selector.modify(line.socket, selectors.EVENT_READ, line)
                        if is_sent(line):
                            sending.discard(line)

            began = time.monotonic()
            for _ in range(count):
                line = Line(server.address, sent, reads=name != "unread")
                selector.register(line.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, line)
                lines.append(line)
                sending.add(line)
                go_on_until(SENDING_MAX)
            go_on_until(0)
            held = server.memory("VmRSS")
            probes = sorted(verdict_micros(server) for _ in range(PROBES))
            held = max(held, server.memory("VmRSS"))
            ended = sum(line.ended for line in lines)
            print(
                f"| {crowd.what} | {count:,} | {held - before:.0f} MiB | {(held - before) * 1024 / count:.1f} KiB"
                f" | {ended:,} | {probes[PROBES // 2] / 1e3:.1f} / {probes[PROBES * 99 // 100] / 1e3:.1f} ms |",
                flush=True,
            )
            for line in lines:
                line.socket.close()
        finally:
            server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("crowds", nargs="*", choices=[[], *CROWDS], metavar="CROWD", help=", ".join(CROWDS))
    parser.add_argument("--connections", type=int, help="at most so many")
    arguments = parser.parse_args()
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    print("| each of them sends | connections | memory more | for each | ended | a verdict on a new connection, p50 / p99 |")
    print("|---|---|---|---|---|---|")
    for name in arguments.crowds or CROWDS:
        measure(arguments.program, name, arguments.connections)


if __name__ == "__main__":
    main()
