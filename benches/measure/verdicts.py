"""One verdict in a call, beside an echo; many in a call, beside Redis; and what refusals cost."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .certificate import Certificate
from .keys import Keys, keys
from .load import alternating, loadgen, compared, load, median, reply_of
from .options import MIXES_TLS, Options
from .paths import RESULTS, ROOT, WORK, kept
from .processes import Echo, Keyward, Process, Redis
from .wire import field, framed, verify_request

VERIFY = "/keyward.v1.KeyVerify/Verify"
BATCH_VERIFY = "/keyward.v1.KeyVerify/BatchVerify"
ECHO = "/bench.v1.Echo/Echo"

WARM_UP_CALLS = 50_000
PROBE_CALLS = {"1x1": 4_000}
PROBE_CALLS_OTHERWISE = 30_000
"""Calls by which the length of a run is found: it has a number of calls, not a time, so that each one is accounted for."""


@contextlib.contextmanager
def side_by_side(keyring: Keys, tls: Certificate | None = None) -> Iterator[tuple[Keyward, Echo, Echo, Path]]:
    """The server, the stock echo and the one of the server's profile, warm, with requests and replies of the same size."""
    secret, scope = keyring.secrets[len(keyring.secrets) // 2]
    body = kept("verify", framed(verify_request(secret, scope)))
    with Keyward(keyring.data_dir, tls=tls) as server:
        reply = reply_of(server, VERIFY, keyring.caller, body)
        if reply[5:7] != b"\x08\x01":
            raise SystemExit("the key is refused")
        # The echo parses what it is sent: one field of as many bytes.
        echoed = field(1, b"x" * (body.stat().st_size - 5 - 2))
        echo_body = kept("echo", framed(echoed))
        assert echo_body.stat().st_size == body.stat().st_size
        with Echo(len(reply) - 5, tls=tls) as echo, Echo(len(reply) - 5, "release", tls) as like:
            assert len(reply_of(echo, ECHO, keyring.caller, echo_body)) == len(reply)
            for target, path, sent in ((server, VERIFY, body), (echo, ECHO, echo_body), (like, ECHO, echo_body)):
                load(target, path, keyring.caller, sent, "8x32", WARM_UP_CALLS)
            yield server, echo, like, body


def verify(options: Options) -> dict:
    """Throughput and CPU of Verify against the echo, mix by mix."""
    measured = beside_echo(options, options.mixes)
    return measured | {"rows": earlier("verify", "rows") | measured["rows"]}


def over_tls(options: Options) -> dict:
    """The same with all three servers over TLS, with the same certificate."""
    return beside_echo(options, MIXES_TLS, Certificate.make())


def beside_echo(options: Options, mixes: Sequence[str], tls: Certificate | None = None) -> dict:
    keyring = keys(options.keys)
    rows = {}
    with side_by_side(keyring, tls) as (server, echo, like, body):
        echo_body = WORK / "echo.body"
        before, answered = server.verdicts()["OK"], 0
        for mix in mixes:
            probe = load(echo, ECHO, keyring.caller, echo_body, mix, PROBE_CALLS.get(mix, PROBE_CALLS_OTHERWISE))
            calls = int(probe.rate * options.seconds)
            ours, theirs, likes = alternating(
                options.rounds,
                lambda: load(server, VERIFY, keyring.caller, body, mix, 2 * calls),
                lambda: load(echo, ECHO, keyring.caller, echo_body, mix, calls),
                lambda: load(like, ECHO, keyring.caller, echo_body, mix, calls),
            )
            answered += 2 * calls * options.rounds
            same = compared(ours, likes)
            rows[mix] = compared(ours, theirs) | {"like_rate": same["echo_rate"], "like_ratio": same["ratio"], "like_cpu_ratio": same["cpu_ratio"]}
            print(mix, json.dumps(rows[mix]), file=sys.stderr)
        # Every answer was an ALLOW.
        allowed = server.verdicts()["OK"] - before
        if allowed != answered:
            raise SystemExit(f"{answered} calls were answered, and {allowed} allowed")
    return {"rows": rows, "keys": options.keys, "request_bytes": body.stat().st_size}


def earlier(section: str, part: str) -> dict:
    """What an earlier run of some of a section's rows came to."""
    path = RESULTS / f"{section}.json"
    return json.loads(path.read_text())[part] if path.exists() else {}


def latency(options: Options) -> dict:
    """The 99th percentile of a call, both servers at half of the echo's peak rate."""
    keyring = keys(options.keys)
    with side_by_side(keyring) as (server, echo, _, body):
        echo_body = WORK / "echo.body"
        peak = load(echo, ECHO, keyring.caller, echo_body, "8x32", WARM_UP_CALLS).rate
        each = int(peak / 2 / 8)
        calls = int(each * 8 * options.seconds)

        def p99(target: Process, path: str, sent: Path) -> float:
            log = WORK / "calls.log"
            log.unlink(missing_ok=True)
            load(target, path, keyring.caller, sent, "8x32", calls, "--rps", str(each), "--log-file", str(log))
            micros = sorted(int(line.rpartition("\t")[2]) for line in log.open())
            return micros[int(len(micros) * 0.99)]

        ours, theirs = alternating(
            options.rounds,
            lambda: p99(server, VERIFY, body),
            lambda: p99(echo, ECHO, echo_body),
        )
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"p99_us": median(ours), "echo_p99_us": median(theirs), "ratio": round(median(ratios), 2), "rate": each * 8}


def refusals(options: Options) -> dict:
    """What secrets that are unknown, or no secrets at all, cost beside one that is allowed."""
    keyring = keys(options.keys)
    secret, scope = keyring.secrets[len(keyring.secrets) // 2]
    bodies = {
        "OK": kept("verify", framed(verify_request(secret, scope))),
        # A secret of the right form that nobody has: the first test vector of the grammar.
        "UNKNOWN": kept("unknown", framed(verify_request(a_test_vector(), scope))),
        "MALFORMED": kept("malformed", framed(verify_request("kw_live_" + "x" * (len(secret) - 8), scope))),
    }
    rows = {}
    with Keyward(keyring.data_dir) as server:
        calls = int(load(server, VERIFY, keyring.caller, bodies["OK"], "8x32", WARM_UP_CALLS).rate * options.seconds)
        loads = {reason: [] for reason in bodies}
        before = server.verdicts()
        for _ in range(options.rounds):
            for reason, body in bodies.items():
                loads[reason].append(load(server, VERIFY, keyring.caller, body, "8x32", calls))
        after = server.verdicts()
        for reason in bodies:
            if after[reason] - before[reason] != calls * options.rounds:
                raise SystemExit(f"not every verdict was {reason}")
            ratios = [b.cpu_us / a.cpu_us for a, b in zip(loads["OK"], loads[reason], strict=True)]
            cpu = median([run.cpu_us for run in loads[reason]])
            rows[reason] = {"cpu_us": round(cpu, 2), "ratio": round(median(ratios), 2)}
    return rows


def a_test_vector() -> str:
    """A secret that docs/FORMAT.md shows: nobody was ever issued it."""
    lines = (ROOT / "testdata" / "secrets.txt").read_text().splitlines()
    return next(found[0] for line in lines if (found := re.search(r"\bkw_live_[0-9A-Za-z]{49}\b", line)))


def batch(options: Options) -> dict:
    """Verdicts of BatchVerify, 100 different keys in a call, against Redis GETs of as many values in a pipeline."""
    keyring = keys(options.keys)
    per_call = 100
    chosen = keyring.secrets[:: len(keyring.secrets) // per_call][:per_call]
    body = kept("batch", framed(b"".join(field(1, verify_request(*pair)) for pair in chosen)))
    with Keyward(keyring.data_dir) as server, Redis() as redis:
        before = server.verdicts()["OK"]
        calls = int(load(server, BATCH_VERIFY, keyring.caller, body, "8x4", 500).rate * options.seconds)
        ours, theirs = alternating(
            options.rounds,
            lambda: load(server, BATCH_VERIFY, keyring.caller, body, "8x4", calls),
            lambda: redis.gets_per_second(per_call),
        )
        if server.verdicts()["OK"] - before != (500 + calls * options.rounds) * per_call:
            raise SystemExit("not every verdict was OK")
    rates = [run.rate * per_call for run in ours]
    ratios = sorted(a / b for a, b in zip(rates, theirs, strict=True))
    return {
        "rate": round(median(rates)),
        "redis_rate": round(median(theirs)),
        "ratio": round(median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "cpu_us": round(median([run.cpu_us / per_call for run in ours]), 2),
    }


def compare(options: Options, other: Path) -> None:
    """The built program against another build of it, on the same keys: rates and CPU, mix by mix."""
    keyring = keys(options.keys)
    copy = keyring.data_dir.with_name("copy")
    subprocess.run(["cp", "-r", keyring.data_dir, copy], check=True)
    try:
        secret, scope = keyring.secrets[len(keyring.secrets) // 2]
        body = kept("verify", framed(verify_request(secret, scope)))
        with Keyward(keyring.data_dir) as here, Keyward(copy, build=other) as there:
            for mix in options.mixes:
                calls = int(load(there, VERIFY, keyring.caller, body, mix, PROBE_CALLS_OTHERWISE).rate * options.seconds)
                ours, theirs = alternating(
                    options.rounds,
                    lambda: load(here, VERIFY, keyring.caller, body, mix, calls),
                    lambda: load(there, VERIFY, keyring.caller, body, mix, calls),
                )
                print(mix, json.dumps(compared(ours, theirs)).replace("echo", "other"))
            spread = ("--connections", 8, "--streams", 32, "--secrets", keyring.secrets_file)
            calls = int(loadgen(there, "verify", PROBE_CALLS_OTHERWISE, *spread).rate * options.seconds)
            ours, theirs = alternating(
                options.rounds,
                lambda: loadgen(here, "verify", calls, *spread),
                lambda: loadgen(there, "verify", calls, *spread),
            )
            print("keys by chance", json.dumps(compared(ours, theirs)).replace("echo", "other"))
    finally:
        subprocess.run(["rm", "-rf", copy], check=True)
