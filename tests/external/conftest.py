"""Fixtures: real processes, each on a port that the system chose and on data of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness import HTTP2, Server

Start = Callable[..., Server]


def pytest_configure() -> None:
    if not os.environ.get("KEYWARD_BIN"):
        pytest.exit("KEYWARD_BIN is not set: start the suite by tests/external/run", returncode=2)


NOT_ON_HYPER = {
    "test_a_unix_socket_serves_and_is_gone_afterwards": "h2 refuses the authority that grpcio sends over a Unix socket",
    "test_a_unix_socket_is_met_by_the_same_grpcurl": "h2 refuses the authority that grpcio sends over a Unix socket",
    "test_grpc_go_turns_to_a_server_that_serves_and_from_one_that_stops": "h2 refuses the authority that the client makes up",
    "test_both_answer_in_their_ways[200 KiB of headers]": "h2 ends the connection with another code",
    "test_both_answer_in_their_ways[a header of 200 KiB]": "h2 ends the connection with another code",
    "test_a_client_that_gives_up_calls_loses_no_other[grpc-java]": "what grpc-java sends behind its resets counts as errors",
}
"""Tests that do not hold where every server has http2 = "hyper". This list may only become shorter."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HTTP2 == "hyper" and item.name in NOT_ON_HYPER:
            item.add_marker(pytest.mark.skip(reason=NOT_ON_HYPER[item.name]))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def start(data_dir: Path) -> Iterator[Start]:
    """Starts servers, and stops those that still run when the test is over."""
    with ExitStack() as running:

        def start(**options: str) -> Server:
            server = Server(data_dir, **options)
            running.callback(server.clean_up)
            return server.wait_until_serving()

        yield start


@pytest.fixture
def server(start: Start) -> Server:
    return start()
