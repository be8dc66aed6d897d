"""A server is stopped and started again under load: what its clients notice, by how they are set up.

docs/operating.md gives the advice. RESTART_KEYS=100000 tests/external/run -s tests/external/test_restart.py prints what it says
there of a larger server; KEYWARD_BIN should name a release then.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from keyward.v1 import verify_pb2, verify_pb2_grpc

from harness import Server
from test_grpcio import client_of

KEYS = int(os.environ.get("RESTART_KEYS", "50"))
CREATORS = 64
PAUSE_SECONDS = 0.01
CALL_SECONDS = 10
"""More than a restart takes here, so that a client that waits can be told from one that fails."""

ADVICE = Path(__file__).resolve().parents[2] / "docs" / "operating.md"


def advised() -> dict[str, Any]:
    """The service config that the document gives."""
    [text] = re.findall(r"```json\n(.*?)```", ADVICE.read_text(), re.DOTALL)
    return json.loads(text)


@dataclass
class Client:
    """Asks for one verdict after the other, until it is told to end."""

    name: str
    channel: grpc.Channel
    answered: int = 0
    slowest: float = 0
    gap: float = 0
    errors: Counter[str] = field(default_factory=Counter)

    def run(self, key: str, secret: str, end: threading.Event) -> Client:
        verify = verify_pb2_grpc.KeyVerifyStub(self.channel)
        last = time.monotonic()
        while not end.wait(PAUSE_SECONDS):
            began = time.monotonic()
            try:
                request = verify_pb2.VerifyRequest(secret=secret)
                reply = verify.Verify(request, metadata=[("authorization", f"Bearer {key}")], timeout=CALL_SECONDS)
                assert reply.decision == verify_pb2.DECISION_ALLOW
            except grpc.RpcError as error:
                # Without addresses and times, which differ.
                what = re.sub(r"[\d.:]+", "#", str(error.details()))
                self.errors[f"{error.code().name}: {what[:70]}"] += 1
                continue
            now = time.monotonic()
            self.answered += 1
            self.slowest, self.gap, last = max(self.slowest, now - began), max(self.gap, now - last), now
        return self

    def __str__(self) -> str:
        failed = "".join(f"\n    {count} x {what}" for what, count in self.errors.most_common())
        return (
            f"{self.name}: {self.answered} answered, {sum(self.errors.values())} failed; {self.gap:.2f} s without an answer, "
            f"the slowest took {self.slowest:.2f} s{failed}"
        )


def channel_to(address: str, config: dict[str, Any] | None, options: dict[str, int]) -> grpc.Channel:
    fixed: list[tuple[str, Any]] = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    service_config = [("grpc.service_config", json.dumps(config))] if config else []
    return grpc.insecure_channel(address, [*fixed, *service_config, *options.items()])


QUICK = {"grpc.initial_reconnect_backoff_ms": 100, "grpc.min_reconnect_backoff_ms": 100, "grpc.max_reconnect_backoff_ms": 500}


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[tuple[Path, str, str]]:
    """A data directory with keys, a secret of a service, and one that it asks about."""
    server = Server(tmp_path, log_filter="info,keyward::authority=warn,keyward::layer=warn").wait_until_serving()
    operator = client_of(server)
    secret = operator.create("Zapier").secret
    service = operator.create("Orders service", tenant="system", scopes=["keyward.verifier"]).secret
    with ThreadPoolExecutor(CREATORS) as creators:
        list(creators.map(lambda number: operator.create(f"Key {number}"), range(KEYS)))
    server.stop()
    yield tmp_path, service, secret


def test_a_client_that_is_set_up_as_advised_loses_no_call_in_a_restart(directory: tuple[Path, str, str]) -> None:
    data, service, secret = directory
    server = Server(data).wait_until_serving()
    address = server.address
    quick_retry = {key: value for key, value in advised().items() if key == "methodConfig"}
    clients = [
        Client("default", channel_to(address, None, {})),
        Client("quick reconnects", channel_to(address, None, QUICK)),
        Client("quick reconnects, waits, retries", channel_to(address, quick_retry, QUICK)),
        Client("as advised", channel_to(address, advised(), QUICK)),
    ]
    end = threading.Event()
    with ThreadPoolExecutor(len(clients)) as running:
        done = [running.submit(client.run, service, secret, end) for client in clients]
        try:
            time.sleep(1)
            began = time.monotonic()
            server.stop()
            stopped = time.monotonic()
            server = Server(data, listen=address).wait_until_serving()
            entry = server.wait_for_log("answering verdicts")
            serving = time.monotonic()
            time.sleep(CALL_SECONDS / 2)
        finally:
            end.set()
            server.clean_up()
    keys = entry["keys"]
    print(f"\n{keys} keys: stopped in {stopped - began:.2f} s, serving {serving - stopped:.2f} s after that")
    default, *_, last = [client.result() for client in done]
    for client in clients:
        print(client)
        client.channel.close()
    assert default.errors, "the restart was noticed by nobody"
    assert not last.errors and last.answered > 0, str(last)
