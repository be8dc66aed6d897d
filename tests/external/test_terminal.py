"""The command line on a terminal: what is typed unseen, what fits, and what it looks like."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import DEADLINE_SECONDS, Grpcurl, Server

PROMPT = b"Secret (it is not shown): "


class Terminal:
    """A terminal with a program on it, in the folder where ./data is."""

    def __init__(self, server: Server, args: list[str], columns: int = 80) -> None:
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            [os.environ["KEYWARD_BIN"], *args, "--server", server.address],
            cwd=server.data_dir.parent,
            env={},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None,
        )
        self.theirs = theirs
        self.seen = b""

    def read_until(self, text: bytes) -> None:
        while text not in self.seen:
            readable, _, _ = select.select([self.ours], [], [], DEADLINE_SECONDS)
            assert readable, self.seen
            self.seen += os.read(self.ours, 4096)

    def type(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self.theirs)[3] & termios.ECHO)

    def end(self) -> int:
        code = self.process.wait(DEADLINE_SECONDS)
        os.set_blocking(self.ours, False)
        try:
            while more := os.read(self.ours, 4096):
                self.seen += more
        except BlockingIOError:
            pass
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal(server: Server) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_terminal(*args: str, columns: int = 80) -> Terminal:
        opened.append(Terminal(server, list(args), columns))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


@pytest.fixture
def secret(server: Server) -> str:
    admin = Grpcurl(server.address, server.admin_key)
    request = {"key_id": "zapier", "display_name": "顧客管理システム " * 3, "owner": "customer-7"}
    request["display_name"] = request["display_name"].strip()
    return admin.call("keyward.v1.KeyAdmin/CreateKey", **request)["secret"]


def width(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


def test_a_secret_is_typed_unseen(terminal: Callable[..., Terminal], secret: str) -> None:
    find = terminal("key", "find")
    find.read_until(PROMPT)
    assert not find.echoes()
    find.type(secret.encode() + b"\n")
    assert find.end() == 0, find.seen
    assert find.echoes()
    assert secret.encode() not in find.seen
    assert b"decision" in find.seen and b"zapier" in find.seen, "a table"


@pytest.mark.parametrize("how", ["ctrl-c", "SIGTERM"])
def test_a_prompt_that_is_given_up_leaves_a_terminal_that_echoes(terminal: Callable[..., Terminal], secret: str, how: str) -> None:
    find = terminal("key", "find")
    find.read_until(PROMPT)
    assert not find.echoes()
    if how == "ctrl-c":
        find.type(b"\x03")
    else:
        find.process.send_signal(signal.SIGTERM)
    assert find.end() == 1, find.seen
    assert find.echoes()


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_a_list_fits_the_terminal_and_ids_are_whole(terminal: Callable[..., Terminal], secret: str, columns: int) -> None:
    listed = terminal("key", "list", columns=columns)
    assert listed.end() == 0, listed.seen
    lines = listed.seen.decode().splitlines()
    assert len(lines) == 2 and lines[1].startswith("zapier "), lines
    assert max(map(width, lines)) <= columns, lines


def test_a_new_secret_is_on_the_terminal_once(terminal: Callable[..., Terminal], server: Server, tmp_path: Path) -> None:
    created = terminal("key", "create", "dashboard", "--display-name", "Dashboard")
    assert created.end() == 0, created.seen
    [line] = [line for line in created.seen.decode().splitlines() if line.startswith("secret ")]
    assert created.seen.count(line.split()[1].encode()) == 1
    assert b"the secret is shown this once" in created.seen
