"""HTTP/2 as the Python package h2 sees it: it checks every frame that it is sent against the rules."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import h2.config
import h2.connection
import h2.events
import h2.settings

from harness import DEADLINE_SECONDS, Server
from keyward.v1 import verify_pb2

VERIFY = "/keyward.v1.KeyVerify/Verify"
BATCH = "/keyward.v1.KeyVerify/BatchVerify"


class Connection:
    """A connection on which calls are made by hand."""

    def __init__(self, stream: socket.socket, settings: dict[int, int]) -> None:
        self._stream = stream
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self._h2.local_settings = h2.settings.Settings(client=True, initial_values=settings)
        self._h2.initiate_connection()
        self.bodies: dict[int, bytes] = {}
        self.trailers: dict[int, dict[str, str]] = {}
        self.ended: set[int] = set()

    def call(self, path: str, key: str, message: bytes) -> int:
        """Sends a call, in as many frames as the windows take, and gives its stream."""
        stream = self._h2.get_next_available_stream_id()
        head = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "keyward", "te": "trailers"}
        head |= {"content-type": "application/grpc", "authorization": f"Bearer {key}"}
        self._h2.send_headers(stream, list(head.items()))
        body = b"\0" + len(message).to_bytes(4) + message
        while body:
            room = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size, len(body))
            if room == 0:
                self.receive()
                continue
            self._h2.send_data(stream, body[:room], end_stream=room == len(body))
            body = body[room:]
        self.flush()
        return stream

    def flush(self) -> None:
        self._stream.sendall(self._h2.data_to_send())

    def receive(self) -> None:
        """Takes what comes, and gives the windows back."""
        self.flush()
        data = self._stream.recv(65_536)
        assert data, "the server has closed the connection"
        for event in self._h2.receive_data(data):
            match event:
                case h2.events.DataReceived():
                    self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                    self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.TrailersReceived():
                    self.trailers[event.stream_id] = dict(event.headers)
                case h2.events.StreamEnded():
                    self.ended.add(event.stream_id)
                case h2.events.StreamReset() | h2.events.ConnectionTerminated():
                    raise AssertionError(event)
        self.flush()

    def reply(self, stream: int) -> bytes:
        """The message of the reply to a call that goes well."""
        while stream not in self.ended:
            self.receive()
        assert self.trailers[stream]["grpc-status"] == "0"
        body = self.bodies[stream]
        assert body[0] == 0 and int.from_bytes(body[1:5]) == len(body) - 5
        return body[5:]


@contextmanager
def connection(server: Server, settings: dict[int, int] | None = None) -> Iterator[Connection]:
    host, port = server.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), DEADLINE_SECONDS) as stream:
        yield Connection(stream, settings or {})


def reason(message: bytes) -> int:
    return verify_pb2.VerifyResponse.FromString(message).reason


def question(**asked: object) -> bytes:
    return verify_pb2.VerifyRequest(secret="nonsense", **asked).SerializeToString()


def test_calls_on_one_connection(server: Server) -> None:
    """Both ways through the server, turn by turn and many at once."""
    with connection(server) as peer:
        for _ in range(3):
            for explain in (False, True):
                stream = peer.call(VERIFY, server.admin_key, question(explain=explain))
                assert reason(peer.reply(stream)) == verify_pb2.REASON_MALFORMED
        streams = [peer.call(VERIFY, server.admin_key, question(explain=n % 3 == 0)) for n in range(100)]
        for stream in streams:
            assert reason(peer.reply(stream)) == verify_pb2.REASON_MALFORMED


def test_a_client_without_a_header_table(server: Server) -> None:
    with connection(server, {h2.settings.SettingCodes.HEADER_TABLE_SIZE: 0}) as peer:
        for explain in (False, True, False):
            stream = peer.call(VERIFY, server.admin_key, question(explain=explain))
            assert reason(peer.reply(stream)) == verify_pb2.REASON_MALFORMED


def test_a_reply_larger_than_the_windows(server: Server) -> None:
    with connection(server, {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1_000}) as peer:
        for explain in (False, True):
            requests = [verify_pb2.VerifyRequest(secret="n" * 90, explain=explain and n == 0) for n in range(1_000)]
            batch = verify_pb2.BatchVerifyRequest(requests=requests).SerializeToString()
            assert len(batch) > 65_535
            reply = verify_pb2.BatchVerifyResponse.FromString(peer.reply(peer.call(BATCH, server.admin_key, batch)))
            assert [result.response.reason for result in reply.results] == [verify_pb2.REASON_MALFORMED] * 1_000
