"""One of two servers is stopped under load, behind a proxy. No caller may notice."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness import DEADLINE_SECONDS, TCP, Server
from strangers import LOOK_SECONDS, RATE, drive, proxy
from test_grpcio import client_of

DRAIN_SECONDS = 5
"""As in the unit, the image and the manifest."""

CALLS = 15 * RATE
"""Far longer than it takes until one of the servers is gone."""

SERVED_BEFORE = 1_000
"""Calls that each server has answered when one of them is stopped."""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Server, Server, str, str]]:
    """Two servers that know the same keys, the secret of a service, and one that it asks about."""
    original = tmp_path / "first"
    with ExitStack() as running:

        def start(data_dir: Path) -> Server:
            server = Server(data_dir, ops=TCP, settings={"drain_delay": f"{DRAIN_SECONDS}s"})
            running.callback(server.clean_up)
            return server

        server = start(original).wait_until_serving()
        operator = client_of(server)
        secret = operator.create("Zapier").secret
        service = operator.create("Orders service", tenant="system", scopes=["keyward.verifier"]).secret
        server.kill()  # what was acknowledged is there, and nobody waits for the drain delay
        shutil.copytree(original, tmp_path / "second")
        first, second = (start(tmp_path / name).wait_until_serving() for name in ("first", "second"))
        yield first, second, service, secret


def served(server: Server) -> float:
    """How many verdicts it has given."""
    return server.metrics().get('keyward_verdicts_total{reason="OK"}', 0)


def wait_until_both_serve(servers: tuple[Server, Server]) -> None:
    for _ in range(int(DEADLINE_SECONDS / LOOK_SECONDS)):
        if min(map(served, servers)) >= SERVED_BEFORE:
            return
        threading.Event().wait(LOOK_SECONDS)
    raise AssertionError(f"calls do not reach both servers: {[served(server) for server in servers]}")


@pytest.mark.parametrize("name", ["haproxy", "envoy", "nginx"])
def test_a_server_that_is_stopped_behind_a_proxy_costs_no_call(
    pair: tuple[Server, Server, str, str], name: str, tmp_path: Path
) -> None:
    first, second, service, secret = pair
    addresses = {"first": first.address, "second": second.address}
    probes = {"first_ops": first.ops_address, "second_ops": second.ops_address}
    with (
        proxy(name, f"pair-{name}", tmp_path, **addresses, **probes) as address,
        ThreadPoolExecutor(1) as running,
    ):
        # Its stream is not looked at: it ends with the server that it goes to.
        driven = running.submit(drive, "grpc-go", address, service, secret, calls=CALLS)
        wait_until_both_serve((first, second))
        first.terminate()
        first.wait_for_log("stopping", signal="SIGTERM")
        at_stop = served(second)
        assert first.wait() == 0, first.log_text
        assert not driven.done(), "nobody called any more when it ended"
        report = driven.result()
        told = f"{name}: {report}, {served(second) - at_stop} by the second server since the stop"
    print(told)
    assert report.calls == CALLS and not report.failed, told
