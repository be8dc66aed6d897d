"""Fixtures: real processes, each on a port that the system chose and on data of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness import Server

Start = Callable[..., Server]


def pytest_configure() -> None:
    if not os.environ.get("KEYWARD_BIN"):
        pytest.exit("KEYWARD_BIN is not set: start the suite by tests/external/run", returncode=2)


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
