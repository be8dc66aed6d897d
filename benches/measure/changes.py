"""CreateKey beside a plain loop that writes and syncs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from .load import Load, headers, load, median
from .options import Options
from .paths import WORK, kept, program
from .processes import Keyward, Process
from .wire import create_request, framed

CREATE = "/keyward.v1.KeyAdmin/CreateKey"

RECORD_BYTES = 512
"""What the plain loop writes for a key: a frame of the journal with one typical key has about as much."""

GROUP = 256
CREATES_ALONE = 5_000
CREATES_TOGETHER = 200_000
FILLED = 40_000

EXPIRY = 4_102_444_800


def create_body() -> Path:
    """A request for a typical key without an id."""
    scopes = ["area01.action01", "area01.action02", "area01.action03"]
    return kept("create", framed(create_request("Integration 1234567", "customer-234567", scopes, EXPIRY)))


def h2load_creates(server: Process, caller: str, body: Path, mix: str, calls: int) -> list[str]:
    """The command of a load of creates that nobody waits for."""
    connections, streams = mix.split("x")
    url = f"http://127.0.0.1:{server.port}{CREATE}"
    return ["h2load", "-t", "1", "-c", connections, "-m", streams, "-n", str(calls), "-d", str(body), *headers(caller), url]


def create(options: Options) -> dict:
    """CreateKey one after the other and 256 at a time, durable, by h2load; the server chooses ids, as it does by default."""
    home = WORK / "create"
    subprocess.run(["rm", "-rf", home], check=True)
    home.mkdir(parents=True)
    body, first = create_body(), 1
    alone, together, filled, plain, plain_together = [], [], [], [], []
    with Keyward(home / "data") as server:
        caller = (home / "data" / "admin.key").read_text().strip()

        def created(mix: str, calls: int, *more: str) -> Load:
            before = server.keys()
            run = load(server, CREATE, caller, body, mix, calls, *more)
            # HTTP's status is 200 even where gRPC's says no.
            if server.keys() - before != calls:
                raise SystemExit(f"{calls} keys were to be created, and {server.keys() - before} were")
            return run

        created("4x64", FILLED)
        for _ in range(options.rounds):
            plain.append(syncs(home, RECORD_BYTES, 2_000)["median_us"])
            log = home / "calls.log"
            log.unlink(missing_ok=True)
            run = created("1x1", CREATES_ALONE, "--log-file", str(log))
            micros = sorted(int(line.rpartition("\t")[2]) for line in log.open())
            alone.append((micros[len(micros) // 2], micros[int(len(micros) * 0.99)], run))
            plain_together.append(syncs(home, RECORD_BYTES * GROUP, CREATES_TOGETHER // GROUP)["groups_per_s"] * GROUP)
            together.append(created("4x64", CREATES_TOGETHER))
            filled.append(fill(server, home, first))
            first += FILLED
    subprocess.run(["rm", "-rf", home], check=True)
    medians = [middle for middle, _, _ in alone]
    return {
        "median_us": round(median(medians)),
        "p99_us": round(median([p99 for _, p99, _ in alone])),
        "sync_us": round(median(plain)),
        "ratio": round(median([a / b for a, b in zip(medians, plain, strict=True)]), 2),
        "cpu_us": round(median([run.cpu_us for _, _, run in alone]), 1),
        "calls_256": CREATES_TOGETHER,
        "rate_256": round(median([run.rate for run in together])),
        "rates_256": sorted(round(run.rate) for run in together),
        "cpu_us_256": round(median([run.cpu_us for run in together]), 1),
        "server_cores_256": round(median([run.server_cores for run in together]), 2),
        "generator_cores_256": round(median([run.generator_cores for run in together]), 2),
        "plain_rate_256": round(median(plain_together)),
        "rate_256_tonic": round(median(filled)),
    }


def syncs(home: Path, size: int, groups: int) -> dict:
    """A plain loop that writes so many bytes and syncs, so often."""
    command = [program("in_process"), "syncs", "--dir", home, "--bytes", size, "--groups", groups]
    return json.loads(subprocess.run([*map(str, command)], check=True, capture_output=True).stdout)


def fill(server: Keyward, home: Path, first: int) -> float:
    """Creates a second, 256 at a time, by a client of tonic, which takes more of the machine than h2load."""
    command = [program("fill"), f"127.0.0.1:{server.port}", home / "data" / "admin.key", first, FILLED, os.devnull, FILLED, GROUP]
    return float(subprocess.run([*map(str, command)], check=True, capture_output=True).stdout.split()[0])
