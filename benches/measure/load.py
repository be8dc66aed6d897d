"""Load on a server: by h2load, and by `loadgen`, which asks about another key each time."""

from __future__ import annotations

import json
import os
import re
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .paths import program
from .processes import Process

LOAD_SECONDS_MAX = 300


@dataclass
class Load:
    """What one run of the generator came to."""

    rate: float
    cpu_us: float
    generator_cores: float
    server_cores: float
    generator_cpu_us: float = 0
    tls: tuple[str, ...] | None = None
    """Its version, cipher suite and key exchange."""


def headers(caller: str) -> list[str]:
    lines = ("content-type: application/grpc", "te: trailers", f"authorization: Bearer {caller}")
    return [part for line in lines for part in ("-H", line)]


def reply_of(server: Process, path: str, caller: str, body: Path) -> bytes:
    """One reply, with its prefix. It fails unless the gRPC status is OK."""
    url = f"{server.scheme}://127.0.0.1:{server.port}{path}"
    command = ["nghttp", "-v", "--no-dep", "--no-verify-peer", "-d", str(body), *headers(caller), url]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, errors="replace").stdout
    if "grpc-status: 0" not in shown:
        raise SystemExit(f"{path} is refused:\n{shown}")
    return subprocess.run(["nghttp", *command[2:]], check=True, capture_output=True).stdout


def load(server: Process, path: str, caller: str, body: Path, mix: str, calls: int, *more: str) -> Load:
    """Loads a server with a number of calls, and fails unless every one is answered."""
    connections, streams = mix.split("x")
    threads = min(int(connections), os.cpu_count() or 1)
    url = f"{server.scheme}://127.0.0.1:{server.port}{path}"
    command = ["h2load", "-t", str(threads), "-c", connections, "-m", streams, "-n", str(calls), "-d", str(body)]
    before, used, began = server.cpu, children_cpu(), time.monotonic()
    loaded = subprocess.run([*command, *headers(caller), *more, url], capture_output=True, text=True, timeout=LOAD_SECONDS_MAX)
    shown = loaded.stdout + loaded.stderr
    wall, generator, cpu = time.monotonic() - began, children_cpu() - used, server.cpu - before
    answered = re.search(r"finished in .*?, ([\d.]+) req/s.*\nrequests: .* (\d+) succeeded, ", shown)
    if not answered or int(answered[2]) != calls:
        raise SystemExit(f"the load failed:\n{shown}")
    tls = re.search(r"TLS Protocol: (\S+)\nCipher: (\S+)\nServer Temp Key: (.+)\n", shown)
    if (tls is not None) != (server.scheme == "https"):
        raise SystemExit(f"it is not known how this was encrypted:\n{shown}")
    return Load(float(answered[1]), cpu / calls * 1e6, generator / wall, cpu / wall, tls=tls.groups() if tls else None)


def loadgen(server: Process, what: str, calls: int, *more: object) -> Load:
    """Loads a server by `loadgen`, which compares every reply. Its options are those of the program."""
    command = [program("loadgen"), "--what", what, "--port", server.port, "--pid", server.popen.pid, "--calls", calls, *more]
    ran = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=LOAD_SECONDS_MAX)
    if ran.returncode != 0:
        raise SystemExit(f"loadgen {what} failed: {ran.stderr}")
    found = json.loads(ran.stdout)
    return Load(found["rate"], found["cpu_us"], found["generator_cores"], found["server_cores"], found["generator_cpu_us"])


def children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def median(values: Iterator[float] | list[float]) -> float:
    return statistics.median(values)


def alternating(rounds: int, *runs: Callable[[], Load]) -> tuple[list[Load], ...]:
    """Runs of all in turns, A B, B A, and so on."""
    loads = tuple([] for _ in runs)
    for nth in range(rounds):
        for which in range(len(runs)) if nth % 2 == 0 else reversed(range(len(runs))):
            loads[which].append(runs[which]())
    return loads


def compared(ours: list[Load], theirs: list[Load]) -> dict:
    """Medians, and the medians of the ratios of each round."""
    ratios = [a.rate / b.rate for a, b in zip(ours, theirs, strict=True)]
    cpu = [a.cpu_us / b.cpu_us for a, b in zip(ours, theirs, strict=True)]
    if len({run.tls for run in ours + theirs}) > 1:
        raise SystemExit(f"they do not encrypt in the same way: {ours[0].tls}, {theirs[0].tls}")
    return {
        "rate": round(median([run.rate for run in ours])),
        "echo_rate": round(median([run.rate for run in theirs])),
        "ratio": round(median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in sorted(ratios)],
        "cpu_us": round(median([run.cpu_us for run in ours]), 2),
        "echo_cpu_us": round(median([run.cpu_us for run in theirs]), 2),
        "cpu_ratio": round(median(cpu), 2),
        "generator_cores": round(median([run.generator_cores for run in ours]), 2),
        "server_cores": round(median([run.server_cores for run in ours]), 2),
        "echo_generator_cores": round(median([run.generator_cores for run in theirs]), 2),
        "tls": ours[0].tls,
    }


def figures(runs: list[Load]) -> dict:
    """Medians of some runs."""
    return {
        "rate": round(median([run.rate for run in runs])),
        "cpu_us": round(median([run.cpu_us for run in runs]), 2),
        "generator_cpu_us": round(median([run.generator_cpu_us for run in runs]), 2),
        "generator_cores": round(median([run.generator_cores for run in runs]), 2),
        "server_cores": round(median([run.server_cores for run in runs]), 2),
    }


def ratio(ours: list[Load], theirs: list[Load], of: Callable[[Load], float] = lambda run: run.rate) -> float:
    """The median of the rounds' ratios."""
    return round(median([of(a) / of(b) for a, b in zip(ours, theirs, strict=True)]), 2)
