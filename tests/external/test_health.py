"""Health and reflection, as probes, balancers and tools ask for them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from conftest import Start
from harness import DEADLINE_SECONDS, Grpcurl, Server, environment, open_channel
from strangers import tools

AT_ONCE_SECONDS = 5
"""Within the deadline of 10 s that a stop gives to what hangs."""

NOT_FOUND = grpc.StatusCode.NOT_FOUND.value[0]

Asked = reflection_pb2.ServerReflectionRequest


def go(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(tools() / arguments[0]), *arguments[1:]],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


class Reflection:
    """An open stream, in either version: the messages are the same."""

    def __init__(self, address: str, version: str) -> None:
        self._requests: SimpleQueue[Asked | None] = SimpleQueue()
        self._channel = open_channel(address)
        self.answers = self._channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            Asked.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )(iter(self._requests.get, None))

    def ask(self, **asked: str) -> reflection_pb2.ServerReflectionResponse:
        self._requests.put(Asked(**asked))
        return next(self.answers)

    def close(self) -> None:
        self._requests.put(None)
        self._channel.close()


@pytest.fixture(params=["v1", "v1alpha"])
def reflection(server: Server, request: pytest.FixtureRequest) -> Iterator[Reflection]:
    stream = Reflection(server.address, request.param)
    yield stream
    stream.close()


# Reflection.


@pytest.mark.parametrize(
    "symbol", ["google.protobuf.Timestamp", "google.protobuf.FieldDescriptorProto", "grpc.health.v1.Health.List"]
)
def test_grpcurl_describes_what_is_not_keywards_own(server: Server, symbol: str) -> None:
    assert symbol.rpartition(".")[2] in Grpcurl(server.address).read("describe", symbol)


def test_grpcurl_says_that_a_symbol_is_not_found(server: Server) -> None:
    done = Grpcurl(server.address).run("describe", "keyward.v1.Nothing")
    assert done.returncode != 0
    assert "Symbol not found: keyward.v1.Nothing" in done.stderr


def test_a_stream_goes_on_after_what_is_not_known(reflection: Reflection) -> None:
    for asked in ({"file_containing_symbol": "keyward.v1.Nothing"}, {"file_by_filename": "nothing.proto"}):
        answer = reflection.ask(**asked)
        assert answer.error_response.error_code == NOT_FOUND
        assert answer.original_request == Asked(**asked)
    known = reflection.ask(file_by_filename="google/protobuf/descriptor.proto")
    assert known.file_descriptor_response.file_descriptor_proto


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_an_idle_stream_does_not_delay_the_end(start: Start, version: str) -> None:
    server = start()
    stream = Reflection(server.address, version)
    assert stream.ask(list_services="").list_services_response.service
    began = time.monotonic()
    server.terminate()
    with pytest.raises(grpc.RpcError) as ended:
        next(stream.answers)
    assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
    assert server.wait() == 0
    assert time.monotonic() - began < AT_ONCE_SECONDS
    stream.close()


# Health.


def test_a_watch_of_an_unknown_service_says_so_and_stays_open(server: Server) -> None:
    health = health_pb2_grpc.HealthStub(open_channel(server.address))
    request = health_pb2.HealthCheckRequest(service="nothing")
    watch = health.Watch(request, timeout=1)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    with pytest.raises(grpc.RpcError) as ended:
        next(watch)
    assert ended.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED, "the caller ended it"


def test_grpc_go_lists_the_health_of_all_services(server: Server) -> None:
    listed = go("health-client", "list", server.address)
    assert listed.returncode == 0, listed.stderr
    names = ("", "keyward.v1.KeyAdmin", "keyward.v1.KeyAudit", "keyward.v1.KeyVerify")
    assert json.loads(listed.stdout) == dict.fromkeys(names, "SERVING")


@pytest.mark.parametrize(("service", "code"), [("", 0), ("keyward.v1.KeyVerify", 0), ("nothing", 3)])
def test_grpc_health_probe_exits_as_the_service_is(server: Server, service: str, code: int) -> None:
    probed = go("grpc-health-probe", f"-addr={server.address}", f"-service={service}")
    assert probed.returncode == code, probed.stderr


def test_grpc_go_turns_to_a_server_that_serves_and_from_one_that_stops(start: Start) -> None:
    server = start()
    balanced = subprocess.Popen(
        [str(tools() / "health-client"), "balance", "keyward.v1.KeyVerify", server.address],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert balanced.stdin and balanced.stdout
    with ThreadPoolExecutor(1) as reader:
        try:
            states = iter(balanced.stdout.readline, "")

            def wait_for(state: str) -> bool:
                return any(line.strip() == state for line in states)

            assert reader.submit(wait_for, "READY").result(DEADLINE_SECONDS)
            server.terminate()
            assert reader.submit(wait_for, "TRANSIENT_FAILURE").result(DEADLINE_SECONDS)
        finally:
            balanced.stdin.close()
            balanced.wait(DEADLINE_SECONDS)
    assert server.wait() == 0
