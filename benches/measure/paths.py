"""Where things are."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
WORK = TARGET / "bench"
RESULTS = WORK / "results"
DOCUMENT = ROOT / "docs" / "performance.md"


def program(name: str, profile: str = "release") -> Path:
    """A program that was built."""
    return TARGET / profile / name


def kept(name: str, body: bytes) -> Path:
    path = WORK / f"{name}.body"
    path.write_bytes(body)
    return path
