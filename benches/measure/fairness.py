"""What one caller notices of others who ask for all that they can get: the times of calls that are made one at a time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from collections.abc import Iterator

from .keys import keys
from .load import headers, median, reply_of
from .options import Options
from .paths import WORK, kept
from .processes import Keyward
from .verdicts import BATCH_VERIFY, VERIFY
from .wire import field, framed, verify_request

CREATE = "/keyward.v1.KeyAdmin/CreateKey"

FLOODERS = 4
"""Callers, each with a key of its own and a generator of its own."""

RATE = 200
"""Calls a second of the caller who is measured."""

FLOODS = {"Verify": (VERIFY, 1), "BatchVerify of 100": (BATCH_VERIFY, 100)}

CONNECTIONS = (1, 64)
"""Of each flooder. On each of them as many calls are under way as may be."""

UNDER_WAY = 256


def fairness(options: Options) -> dict:
    """The times of one caller's calls, alone and beside floods."""
    keyring = keys(options.keys)
    with Keyward(keyring.data_dir) as server:
        admin = (keyring.data_dir / "admin.key").read_text().strip()
        caller, *flooders = [verifier(server, admin, f"verifier {n}") for n in range(FLOODERS + 1)]
        found = {"alone": measured(server, caller, keyring.secrets[0], options)}
        for what, (path, each) in FLOODS.items():
            chosen = keyring.secrets[:: len(keyring.secrets) // each][:each]
            requests = [verify_request(*pair) for pair in chosen]
            message = requests[0] if path == VERIFY else b"".join(field(1, request) for request in requests)
            for connections in CONNECTIONS:
                with floods(server, path, framed(message), flooders, connections):
                    found[f"{what}, {connections}"] = measured(server, caller, keyring.secrets[0], options)
    return found


def verifier(server: Keyward, admin: str, name: str) -> str:
    """The secret of a new key that may verify."""
    request = field(1, b"system") + field(3, name.encode()) + field(5, b"bench") + field(7, b"keyward.verifier")
    reply = reply_of(server.port, CREATE, admin, kept("create-verifier", framed(request)))
    return re.search(rb"kw_\w+_[0-9A-Za-z]{40,}", reply)[0].decode()


@contextmanager
def floods(server: Keyward, path: str, body: bytes, callers: list[str], connections: int) -> Iterator[None]:
    """Each of the callers asks for as much as it is given, on so many connections, until the block ends."""
    sent = kept("flood", body)
    with ExitStack() as running:
        for caller in callers:
            mix = ("-t", "1", "-c", connections, "-m", UNDER_WAY, "-D", 600, "-d", sent)
            url = f"http://127.0.0.1:{server.port}{path}"
            # In life they are on machines of their own. Here they have a tenth of the share.
            command = ["nice", "-n", "10", "h2load", *map(str, mix), *headers(caller), url]
            flood = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            running.callback(flood.wait)
            running.callback(flood.kill)
        served = server.cpu
        yield
        if server.cpu - served < 0.5:
            raise SystemExit("there was no flood")


def measured(server: Keyward, caller: str, key: tuple[str, str], options: Options) -> dict:
    """Times of calls, one at a time and evenly apart: medians of the rounds."""
    body, log = kept("fair", framed(verify_request(*key))), WORK / "fair.log"
    calls = int(RATE * options.seconds)
    rounds = []
    for _ in range(options.rounds):
        log.unlink(missing_ok=True)
        mix = ("-t", "1", "-c", "1", "-m", "1", "-n", calls, "--rps", RATE, "-d", body, "--log-file", log)
        command = ["h2load", *map(str, mix), *headers(caller), f"http://127.0.0.1:{server.port}{VERIFY}"]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        lines = [line.split("\t") for line in log.read_text().splitlines()]
        if [line[1] for line in lines] != ["200"] * calls:
            raise SystemExit("not every call was answered")
        rounds.append(sorted(int(line[2]) for line in lines))
    found = {name: round(median([micros[int(len(micros) * at)] for micros in rounds])) for name, at in QUANTILES.items()}
    print(json.dumps(found), file=sys.stderr)
    return found | {"max_us": max(micros[-1] for micros in rounds)}


QUANTILES = {"p50_us": 0.5, "p99_us": 0.99}
