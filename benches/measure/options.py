"""How it is measured."""

from __future__ import annotations

from dataclasses import dataclass

MIXES = ("8x32", "1x1", "1x100", "64x8", "500x2", "1000x1")
"""Connections and calls under way on each."""

MIXES_TLS = ("8x32",)
"""Those that are measured over TLS too."""

KEYS_MANY = 10_000_000


@dataclass
class Options:
    """What the command line says."""

    rounds: int
    seconds: float
    mixes: list[str]
    keys: int
