"""What is measured in process, without a wire."""

from __future__ import annotations

import json
import subprocess

from .options import KEYS_MANY, Options
from .paths import WORK, program


def inside(options: Options) -> dict:
    """The decision, the index at three sizes, the committer."""

    def run(*args: object) -> dict:
        return json.loads(subprocess.run([program("in_process"), *map(str, args)], check=True, capture_output=True).stdout)

    sizes = (1_000, 1_000_000, KEYS_MANY)
    return {
        "decision": run("decision"),
        "index": {str(size): run("index", "--keys", size, "--rounds", options.rounds) for size in sizes},
        "committer": run("committer", "--dir", WORK, "--rounds", options.rounds),
    }
