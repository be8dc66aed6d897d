"""Verdicts about many different keys, by a client of our own: on calls and on streams, of few keys and of many, of all kinds."""

from __future__ import annotations

import sys

from .keys import Keys, keys
from .load import Load, alternating, loadgen, figures, load, ratio, reply_of
from .options import KEYS_MANY, Options
from .paths import kept
from .processes import Echo, Keyward
from .verdicts import BATCH_VERIFY, VERIFY
from .wire import field, framed, verify_request

FEW = 1_000
BATCH = 100
WARM_UP_CALLS = 100_000

CALLS = ("--connections", 8, "--streams", 32)
STREAMS = ("--connections", 8, "--streams", 1, "--window", 32)
"""256 under way, in both."""


def cpu(run: Load) -> float:
    return run.cpu_us


def of(keyring: Keys) -> tuple[str, object]:
    return "--secrets", keyring.secrets_file


def spread(options: Options) -> dict:
    """Verify of thousands of keys by chance against Verify of one and the same key: what it is worth that a key is in caches."""
    keyring = keys(options.keys)
    with Keyward(keyring.data_dir) as server:
        calls = int(loadgen(server, "verify", WARM_UP_CALLS, *CALLS, *of(keyring)).rate * options.seconds)
        before = server.verdicts()["OK"]
        many, one = alternating(
            options.rounds,
            lambda: loadgen(server, "verify", calls, *CALLS, *of(keyring)),
            lambda: loadgen(server, "verify", calls, *CALLS, *of(keyring), "--keys", 1),
        )
        # With one of each key, by which the client learns what to expect.
        expected = (2 * calls + len(keyring.secrets) + 1) * options.rounds
        if server.verdicts()["OK"] - before != expected:
            raise SystemExit("not every verdict was OK")
    return {
        "keys": options.keys,
        "asked": len(keyring.secrets),
        "many": figures(many),
        "one": figures(one),
        "ratio": ratio(many, one),
        "cpu_ratio": ratio(many, one, cpu),
    }


def mixed(options: Options) -> dict:
    """Of a hundred verdicts 90 allow, 5 are about unknown secrets and 5 about garbage; against those that all allow."""
    keyring = keys(options.keys)
    with Keyward(keyring.data_dir) as server:
        calls = int(loadgen(server, "verify", WARM_UP_CALLS, *CALLS, *of(keyring)).rate * options.seconds)
        mix, hits = alternating(
            options.rounds,
            lambda: loadgen(server, "verify", calls, *CALLS, *of(keyring), "--unknown", 5, "--garbage", 5),
            lambda: loadgen(server, "verify", calls, *CALLS, *of(keyring)),
        )
    return {"mix": figures(mix), "hits": figures(hits), "ratio": ratio(mix, hits), "cpu_ratio": ratio(mix, hits, cpu)}


def stream(options: Options) -> dict:
    """StreamVerify against the stream of the stock echo, with Verify and BatchVerify in the same rounds: verdicts each."""
    keyring = keys(options.keys)
    secret = keyring.secrets[len(keyring.secrets) // 2]
    one = kept("verify", framed(verify_request(*secret)))
    chosen = keyring.secrets[:: len(keyring.secrets) // BATCH][:BATCH]
    body = kept("batch", framed(b"".join(field(1, verify_request(*pair)) for pair in chosen)))
    with Keyward(keyring.data_dir) as server:
        reply = len(field(1, reply_of(server, VERIFY, keyring.caller, one)[5:]))
        request = len(field(1, verify_request(*secret)))
        with Echo(reply) as echo:
            sent = ("--bytes", request)
            verdicts = int(loadgen(server, "stream", WARM_UP_CALLS, *STREAMS, *of(keyring)).rate * options.seconds)
            echoed = int(loadgen(echo, "echo-stream", WARM_UP_CALLS, *STREAMS, *sent).rate * options.seconds)
            batches = int(load(server, BATCH_VERIFY, keyring.caller, body, "8x4", 500).rate * options.seconds)
            streamed, echoes, unary, batch = alternating(
                options.rounds,
                lambda: loadgen(server, "stream", verdicts, *STREAMS, *of(keyring)),
                lambda: loadgen(echo, "echo-stream", echoed, *STREAMS, *sent),
                lambda: loadgen(server, "verify", verdicts, *CALLS, *of(keyring)),
                lambda: each(load(server, BATCH_VERIFY, keyring.caller, body, "8x4", batches), BATCH),
            )
    return {
        "keys": options.keys,
        "stream": figures(streamed),
        "echo": figures(echoes),
        "verify": figures(unary),
        "batch": figures(batch),
        "ratio": ratio(streamed, echoes),
        "cpu_ratio": ratio(streamed, echoes, cpu),
        "of_verify": ratio(streamed, unary),
        "cpu_of_verify": ratio(streamed, unary, cpu),
    }


def each(run: Load, verdicts: int) -> Load:
    """What calls with so many verdicts in each came to, verdict by verdict."""
    return Load(run.rate * verdicts, run.cpu_us / verdicts, run.generator_cores, run.server_cores)


def flat(options: Options) -> dict:
    """Verify with all keys against Verify with a thousand."""
    return with_many(options, options.keys)


def flat_many(options: Options) -> dict:
    """The same with ten million keys."""
    return with_many(options, KEYS_MANY)


def with_many(options: Options, count: int) -> dict:
    many, few = keys(count), keys(FEW)
    with Keyward(many.data_dir) as large, Keyward(few.data_dir) as small:
        calls = int(loadgen(small, "verify", WARM_UP_CALLS, *CALLS, *of(few)).rate * options.seconds)
        loadgen(large, "verify", WARM_UP_CALLS, *CALLS, *of(many))
        runs = alternating(
            options.rounds,
            lambda: loadgen(large, "verify", calls, *CALLS, *of(many)),
            lambda: loadgen(small, "verify", calls, *CALLS, *of(few)),
            lambda: loadgen(large, "verify", calls, *CALLS, *of(many), "--keys", FEW),
            lambda: loadgen(large, "verify", calls, *CALLS, *of(many), "--keys", 1),
            lambda: loadgen(small, "verify", calls, *CALLS, *of(few), "--keys", 1),
        )
    all_of_many, all_of_few, few_of_many, one_of_many, one_of_few = runs
    found = {
        "keys": count,
        "asked": len(many.secrets),
        "asked_of_few": len(few.secrets),
        "many": figures(all_of_many),
        "few": figures(all_of_few),
        "ratio": ratio(all_of_many, all_of_few),
        "cpu_ratio": ratio(all_of_many, all_of_few, cpu),
        "same_asked": figures(few_of_many),
        "same_asked_ratio": ratio(few_of_many, all_of_few),
        "one": figures(one_of_many),
        "one_ratio": ratio(one_of_many, one_of_few),
    }
    print(found, file=sys.stderr)
    return found
