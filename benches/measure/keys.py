"""Data directories full of keys. They are made once, and kept."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from .paths import WORK, program
from .processes import Keyward

PLANTED_FROM = 5_000_000
"""So many keys and more do not come through CreateKey: they are put into the store."""

SECRETS = 65_536
"""Secrets that are kept, about: to ask about so many that a processor's caches do not hold them all."""

kept_in: Path | None = None
"""Where the directories are, if not where everything else is."""


@dataclass
class Keys:
    """A data directory full of keys, some of their secrets with a scope of each, and a caller that may verify."""

    data_dir: Path
    secrets: list[tuple[str, str]] = field(repr=False)
    caller: str = field(repr=False)
    secrets_file: Path


def keys(count: int) -> Keys:
    """Makes the keys, once; they are kept for later runs."""
    home = home_of(count)
    data, done, secrets = home / "data", home / "done", home / "secrets"
    if not done.exists():
        subprocess.run(["rm", "-rf", home], check=True)
        home.mkdir(parents=True)
        print(f"making {count} keys, once", file=sys.stderr)
        kept = min(count, SECRETS)
        if count >= PLANTED_FROM:
            command = [program("seed_store"), data, count, secrets, kept]
            made = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE)
        else:
            with Keyward(data) as server:
                fill = [program("fill"), f"127.0.0.1:{server.port}", data / "admin.key", 0, count, secrets, count // kept, 512]
                made = subprocess.run([*map(str, fill)], check=True, stdout=subprocess.PIPE)
        done.write_text(made.stdout.decode())
    caller, *rest = (tuple(line.split(" ")) for line in secrets.read_text().splitlines())
    return Keys(data, rest, caller[0], secrets)


def home_of(count: int) -> Path:
    """Where so many keys are, or will be."""
    return (kept_in or WORK) / f"keys-{count}"
