"""From the start of the program to SERVING, after an orderly stop and after a kill under load."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .changes import create_body, h2load_creates
from .keys import keys
from .load import median
from .options import KEYS_MANY, Options
from .processes import Keyward

SETTLES_SECONDS = 60
"""After this long it is looked again what the program holds."""

LOADED_SECONDS = 5
"""How long keys are created before the program is stopped, or killed."""

ROUNDS_MANY = 2


def start(options: Options) -> dict:
    """Starts with the keys that there are, and with a copy of them to which others are added."""
    return starts_with(options.keys, options.rounds)


def start_many(options: Options) -> dict:
    """The same with ten million keys."""
    return starts_with(KEYS_MANY, min(options.rounds, ROUNDS_MANY))


def starts_with(count: int, rounds: int) -> dict:
    keyring = keys(count)
    cold = drop_caches()
    seconds, verdict_seconds, held, peaks, cpu, settled = [], [], [], [], [], None
    for nth in range(rounds):
        drop_caches()
        with Keyward(keyring.data_dir) as server:
            seconds.append(server.seconds)
            verdict_seconds.append(server.verdict_seconds)
            cpu.append(server.cpu)
            held.append(server.rss)
            peaks.append(server.rss_peak)
            if nth + 1 == rounds:
                time.sleep(SETTLES_SECONDS)
                settled, peak = server.rss, server.rss_peak
                peaks.append(peak)
    found = {
        "keys": count,
        "cold": cold,
        "verdict_seconds": round(median(verdict_seconds), 2),
        "seconds": round(median(seconds), 2),
        "cpu_seconds": round(median(cpu), 1),
        "rss_mib": round(median(held) / 2**20),
        "rss_peak_mib": round(max(peaks) / 2**20),
        "rss_settled_mib": round(settled / 2**20),
    }
    print(found, file=sys.stderr)
    return found | after_load(keyring.data_dir, 1 if count >= KEYS_MANY else min(rounds, 3))


def after_load(data_dir: Path, rounds: int) -> dict:
    """Starts after keys were created for some seconds, and the program was then stopped, or killed amid them."""
    stopped, killed = [], []
    with copy_of(data_dir) as copy, ExitStack() as running:
        server = running.enter_context(Keyward(copy))
        for _ in range(rounds):
            for kill, starts in ((False, stopped), (True, killed)):
                created = create_and_end(server, copy, kill)
                drop_caches()
                server = running.enter_context(Keyward(copy))
                starts.append((server.verdict_seconds, server.seconds))
                if server.keys() < created:
                    raise SystemExit(f"{created} keys were created, and {server.keys()} are there")
    found = {}
    for nth, what in enumerate(("verdict_seconds", "seconds")):
        after_stop, after_kill = ([start[nth] for start in starts] for starts in (stopped, killed))
        found |= {
            f"{what}_after_stop": round(median(after_stop), 2),
            f"{what}_after_kill": round(median(after_kill), 2),
            f"kill_adds_{what}": round(median([b - a for a, b in zip(after_stop, after_kill, strict=True)]), 2),
        }
    return found


def create_and_end(server: Keyward, data_dir: Path, kill: bool) -> int:
    """Creates keys, and ends the program: in good order when they are made, or at once amid others. How many there were."""
    before = server.keys()
    caller = (data_dir / "admin.key").read_text().strip()
    # More than it can make in the time.
    command = h2load_creates(server, caller, create_body(), "4x64", LOADED_SECONDS * 100_000)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as load:
        time.sleep(LOADED_SECONDS)
        while (created := server.keys()) <= before and load.poll() is None:
            time.sleep(1)  # a busy machine
        if kill:
            server.kill()
        load.terminate()
    if created <= before:
        raise SystemExit("no key was created")
    server.end()
    return created


@contextmanager
def copy_of(data_dir: Path) -> Iterator[Path]:
    """A copy of a data directory, which goes afterwards: what is kept stays as it is."""
    copy = data_dir.with_name("copy")
    subprocess.run(["rm", "-rf", copy], check=True)
    try:
        subprocess.run(["cp", "-r", "--reflink=auto", data_dir, copy], check=True)
        yield copy
    finally:
        subprocess.run(["rm", "-rf", copy], check=True)


def drop_caches() -> bool:
    """Has the kernel forget what it has read. Only root may; otherwise starts are warm, and the table says so."""
    if os.geteuid() != 0:
        return False
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True
