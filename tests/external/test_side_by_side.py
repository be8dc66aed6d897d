"""The same requests to Keyward and to a server of grpc-go: what is no sound call is answered by both in the same words."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest

from harness import DEADLINE_SECONDS, Server
from strangers import tools

CHECK = "/grpc.health.v1.Health/Check"

CALL = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", CHECK),
    (":authority", "localhost"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)

MESSAGE = b"\0\0\0\0\0"
"""A HealthCheckRequest with nothing in it."""

OK = ("200", "0")
NOT_POST = ("405", "13")
NOT_GRPC = ("415", "3")
BAD_TIMEOUT = ("400", "13")
PROTOCOL_ERROR = ("RST_STREAM", "1")
FRAME_SIZE_ERROR = ("RST_STREAM", "6")
CLOSED = ("closed", "")

Answer = tuple[str, str]
"""The statuses of HTTP and of gRPC (empty if there is none), the code of a reset, or that the connection was closed."""


@dataclass(frozen=True)
class Request:
    """What is sent: the headers of a call, some of them replaced (or left out, for `None`), others behind them."""

    replaced: dict[str, str | None]
    further: tuple[tuple[str, str], ...] = ()
    body: bytes = MESSAGE

    def headers(self) -> list[tuple[str, str]]:
        replaced = [(name, self.replaced.get(name, value)) for name, value in CALL]
        return [(name, value) for name, value in replaced if value is not None] + list(self.further)


def with_field(name: str, *values: str, body: bytes = MESSAGE) -> Request:
    return Request({}, tuple((name, value) for value in values), body)


def content_type(value: str | None) -> Request:
    return Request({"content-type": value})


BAD_TIMEOUTS = ("", "S", "1", "1s", "100000000S", "-1S", "+1S", "1 S", "1.5S", "x")

SAME: dict[str, tuple[Request, Answer]] = {
    "a call": (Request({}), OK),
    "a codec": (content_type("application/grpc+proto"), OK),
    "a parameter": (content_type("application/grpc;charset=utf-8"), OK),
    "GET": (Request({":method": "GET"}), NOT_POST),
    "PUT": (Request({":method": "PUT"}), NOT_POST),
    "JSON": (content_type("application/json"), NOT_GRPC),
    "Connect": (content_type("application/proto"), NOT_GRPC),
    "gRPC-Web": (content_type("application/grpc-web"), NOT_GRPC),
    "no content-type": (content_type(None), NOT_GRPC),
    "JSON by GET": (Request({":method": "GET", "content-type": "application/json"}), NOT_GRPC),
    "JSON in no time": (Request({"content-type": "application/json"}, (("grpc-timeout", "x"),)), NOT_GRPC),
    "GET in no time": (Request({":method": "GET"}, (("grpc-timeout", "x"),)), BAD_TIMEOUT),
    "a timeout": (with_field("grpc-timeout", "10S"), OK),
    "two timeouts": (with_field("grpc-timeout", "10S", "20S"), OK),
    **{f"timeout {value!r}": (with_field("grpc-timeout", value), BAD_TIMEOUT) for value in BAD_TIMEOUTS},
    "a sound timeout and another": (with_field("grpc-timeout", "10S", "x"), BAD_TIMEOUT),
    "another timeout and a sound one": (with_field("grpc-timeout", "x", "10S"), BAD_TIMEOUT),
    "connection": (with_field("connection", "close"), PROTOCOL_ERROR),
    "a content-length": (with_field("content-length", "5"), OK),
}

DIFFERENT: dict[str, tuple[Request, Answer, Answer, str]] = {
    "too short a content-length": (with_field("content-length", "4"), PROTOCOL_ERROR, OK, "RFC 9113, section 8.1.1"),
    "too long a content-length": (with_field("content-length", "6"), PROTOCOL_ERROR, OK, "RFC 9113, section 8.1.1"),
    "no content-length": (with_field("content-length", "x"), PROTOCOL_ERROR, OK, "RFC 9113, section 8.1.1"),
    "20 KiB of headers": (
        with_field("x", *["y" * 1_000] * 20),
        ("431", ""),
        FRAME_SIZE_ERROR,
        "RFC 6585, section 5; clients of gRPC take 431 for an end of the call",
    ),
    "200 KiB of headers": (with_field("x", *["y" * 1_000] * 200), ("431", ""), FRAME_SIZE_ERROR, "as above"),
    "a header of 200 KiB": (with_field("x", "y" * 200_000), ("431", ""), CLOSED, "no other call has to end for it"),
    "no authority": (
        Request({":authority": None}),
        OK,
        ("400", "13"),
        "it is optional (RFC 9113, section 8.3.1), and nothing is decided by it",
    ),
}


@pytest.fixture(scope="module")
def keyward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = Server(tmp_path_factory.mktemp("side") / "data").wait_until_serving()
    try:
        yield server.address
    finally:
        server.clean_up()


@pytest.fixture(scope="module")
def grpc_go() -> Iterator[str]:
    command: list[str | Path] = [tools() / "go-server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin and server.stdout
        yield server.stdout.readline().strip()
        server.stdin.close()
        server.wait(DEADLINE_SECONDS)


@pytest.mark.parametrize("case", SAME)
def test_both_answer_in_the_same_way(keyward: str, grpc_go: str, case: str) -> None:
    request, expected = SAME[case]
    assert {"keyward": answer_of(keyward, request), "grpc-go": answer_of(grpc_go, request)} == {
        "keyward": expected,
        "grpc-go": expected,
    }


@pytest.mark.parametrize("case", DIFFERENT)
def test_both_answer_in_their_ways(keyward: str, grpc_go: str, case: str) -> None:
    request, ours, theirs, _why = DIFFERENT[case]
    assert {"keyward": answer_of(keyward, request), "grpc-go": answer_of(grpc_go, request)} == {
        "keyward": ours,
        "grpc-go": theirs,
    }


def answer_of(address: str, request: Request) -> Answer:
    """The answer to a request. If that does not close the connection, it must still answer a sound call."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), DEADLINE_SECONDS) as stream:
        # What breaks rules must get out.
        config = h2.config.H2Configuration(
            client_side=True, header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
        )
        connection = h2.connection.H2Connection(config)
        connection.initiate_connection()
        try:
            answer = exchange(stream, connection, request)
        except ConnectionError:
            return CLOSED
        assert exchange(stream, connection, Request({})) == OK, "the connection goes on"
        return answer


def exchange(stream: socket.socket, connection: h2.connection.H2Connection, request: Request) -> Answer:
    number = connection.get_next_available_stream_id()
    connection.send_headers(number, request.headers())
    # In one piece: what comes behind a refusal would be ignored.
    connection.send_data(number, request.body, end_stream=True)
    stream.sendall(connection.data_to_send())
    told: dict[str, str] = {}
    while True:
        data = stream.recv(65_536)
        if not data:
            raise ConnectionError("it is closed")
        for event in connection.receive_data(data):
            match event:
                case h2.events.ResponseReceived(stream_id=at) | h2.events.TrailersReceived(stream_id=at) if at == number:
                    told |= dict(event.headers)
                case h2.events.StreamEnded(stream_id=at) if at == number:
                    return told[":status"], told.get("grpc-status", "")
                case h2.events.StreamReset(stream_id=at) if at == number:
                    return "RST_STREAM", str(int(event.error_code))
                case h2.events.ConnectionTerminated():
                    raise ConnectionError(event)
        stream.sendall(connection.data_to_send())
