"""Python services that talk to Keyward through grpcio, with stubs that grpcio-tools made from our protos."""

from __future__ import annotations

import base64
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from conftest import Start
from harness import DEADLINE_SECONDS, SERVICES, Server, command, environment, open_channel, parse
from keyward.v1 import admin_pb2 as admin
from keyward.v1 import admin_pb2_grpc, key_pb2, verify_pb2, verify_pb2_grpc
from pki import Pki

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

ALLOWED = (verify_pb2.DECISION_ALLOW, verify_pb2.REASON_OK, 200)
DISABLED = (verify_pb2.DECISION_DENY, verify_pb2.REASON_DISABLED, 401)
REVOKED = (verify_pb2.DECISION_DENY, verify_pb2.REASON_REVOKED, 401)


class Bearer(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Puts the credential on each call, and a deadline."""

    def __init__(self, key: str) -> None:
        self._metadata = [("authorization", f"Bearer {key}")]

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        details = details._replace(metadata=self._metadata, timeout=DEADLINE_SECONDS)
        return continuation(details, request)

    intercept_stream_stream = intercept_unary_unary


class Talk:
    """A stream of verifications: one request, one answer, and so on."""

    def __init__(self, stub: verify_pb2_grpc.KeyVerifyStub) -> None:
        self._requests: SimpleQueue[verify_pb2.StreamVerifyRequest | None] = SimpleQueue()
        self.answers = stub.StreamVerify(iter(self._requests.get, None))

    def ask(self, secret: str, **asked: Any) -> verify_pb2.StreamVerifyResponse:
        request = verify_pb2.VerifyRequest(secret=secret, **asked)
        self._requests.put(verify_pb2.StreamVerifyRequest(request=request))
        return next(self.answers)

    def hang_up(self) -> None:
        self._requests.put(None)


class Client:
    """Both services of Keyward, called with one key."""

    def __init__(self, target: str, key: str, pki: Pki | None = None) -> None:
        channel = grpc.intercept_channel(pki.channel(target) if pki else open_channel(target), Bearer(key))
        self.admin = admin_pb2_grpc.KeyAdminStub(channel)
        self._verify = verify_pb2_grpc.KeyVerifyStub(channel)

    def create(self, display_name: str = "Zapier", **fields: Any) -> admin.CreateKeyResponse:
        return self.admin.CreateKey(admin.CreateKeyRequest(display_name=display_name, **fields))

    def talk(self) -> Talk:
        return Talk(self._verify)

    def verify(self, secret: str, **asked: Any) -> verify_pb2.VerifyResponse:
        return self._verify.Verify(verify_pb2.VerifyRequest(secret=secret, **asked))

    def verdict(self, secret: str) -> tuple[int, int, int]:
        reply = self.verify(secret)
        return reply.decision, reply.reason, reply.http_status


def client_of(server: Server, pki: Pki | None = None) -> Client:
    return Client(server.address, server.admin_key, pki)


@pytest.fixture
def client(server: Server) -> Client:
    return client_of(server)


# The operator's story.


def test_a_key_is_issued_relabelled_disabled_enabled_and_revoked(client: Client) -> None:
    created = client.create("Zapier", owner="acme", scopes=["orders.*"])
    key_id = created.key.key_id
    verified = client.verify(created.secret, all_scopes=["orders.read"])
    assert (verified.decision, verified.key.key_id, verified.key.owner) == (ALLOWED[0], key_id, "acme")

    relabel = admin.UpdateKeyRequest(key=key_pb2.Key(key_id=key_id, display_name="Zapier 2"))
    relabel.update_mask.FromJsonString("displayName")
    assert client.admin.UpdateKey(relabel).key.display_name == "Zapier 2"
    assert client.verify(created.secret).key.display_name == "Zapier 2"

    client.admin.DisableKey(admin.DisableKeyRequest(key_id=key_id))
    assert client.verdict(created.secret) == DISABLED
    client.admin.EnableKey(admin.EnableKeyRequest(key_id=key_id))
    assert client.verdict(created.secret) == ALLOWED
    client.admin.RevokeKey(admin.RevokeKeyRequest(key_id=key_id))
    assert client.verdict(created.secret) == REVOKED


def test_a_disabled_key_is_refused_at_once_every_time(client: Client) -> None:
    created = client.create()
    for _ in range(100):
        client.admin.DisableKey(admin.DisableKeyRequest(key_id=created.key.key_id))
        assert client.verdict(created.secret) == DISABLED
        client.admin.EnableKey(admin.EnableKeyRequest(key_id=created.key.key_id))
        assert client.verdict(created.secret) == ALLOWED


def test_pages_show_every_key_once_and_in_order(client: Client) -> None:
    key_ids = [client.create(key_id=f"key-{number}").key.key_id for number in range(7)]

    pages: list[list[str]] = []
    request = admin.ListKeysRequest(page_size=3)
    while not pages or request.page_token:
        reply = client.admin.ListKeys(request)
        pages.append([key.key_id for key in reply.keys])
        request.page_token = reply.next_page_token

    assert [key_id for page in pages for key_id in page] == key_ids
    assert max(map(len, pages)) == 3


def test_a_page_token_is_good_only_for_the_list_that_it_came_from(client: Client) -> None:
    for _ in range(2):
        client.create(owner="acme")
    first = client.admin.ListKeys(admin.ListKeysRequest(page_size=1, selector={"owner": "acme"}))

    other = admin.ListKeysRequest(page_size=1, selector={"owner": "globex"}, page_token=first.next_page_token)
    code, details = refusal(client.admin.ListKeys, other)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in details[BadRequest].field_violations] == ["page_token"]


# Streams.


def test_a_stream_of_verdicts_sees_each_change_at_once(client: Client) -> None:
    created, talk = client.create(), client.talk()
    for number in range(100):
        answer = talk.ask(created.secret, correlation_id=f"allowed {number}")
        assert (answer.correlation_id, answer.response.reason) == (f"allowed {number}", verify_pb2.REASON_OK)
        client.admin.DisableKey(admin.DisableKeyRequest(key_id=created.key.key_id))
        assert talk.ask(created.secret).response.reason == verify_pb2.REASON_DISABLED
        client.admin.EnableKey(admin.EnableKeyRequest(key_id=created.key.key_id))
    wrong = talk.ask(created.secret, client_ip="nowhere", correlation_id="wrong")
    assert (wrong.WhichOneof("result"), wrong.error.reason, wrong.correlation_id) == ("error", "BAD_FIELDS", "wrong")
    talk.hang_up()
    assert list(talk.answers) == [] and talk.answers.code() == grpc.StatusCode.OK


def test_a_stream_ends_with_its_caller(server: Server, client: Client) -> None:
    service = client.create(tenant="system", scopes=["keyward.verifier"])
    talk = Client(server.address, service.secret).talk()
    assert talk.ask("nonsense").response.reason == verify_pb2.REASON_MALFORMED
    client.admin.DisableKey(admin.DisableKeyRequest(key_id=service.key.key_id, tenant="system"))
    with pytest.raises(grpc.RpcError) as raised:
        talk.ask("nonsense")
    assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_an_open_stream_hears_of_the_end_and_does_not_delay_it(start: Start) -> None:
    server = start()
    talk = client_of(server).talk()
    assert talk.ask("nonsense").response.reason == verify_pb2.REASON_MALFORMED

    began = time.monotonic()
    server.terminate()
    with pytest.raises(grpc.RpcError) as raised:
        next(talk.answers)
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert server.wait() == 0
    assert time.monotonic() - began < 5, "the stream held up the end"


# Errors that programs can read.


def refusal(call: Any, request: Any) -> tuple[grpc.StatusCode, dict[type, Any]]:
    """The code of a call that fails, and its details by their type."""
    with pytest.raises(grpc.RpcError) as raised:
        call(request)
    status = rpc_status.from_call(raised.value)
    assert status
    details: dict[type, Any] = {}
    for packed in status.details:
        for kind in (BadRequest, ErrorInfo):
            if packed.Is(kind.DESCRIPTOR):
                details[kind] = kind.FromString(packed.value)
    assert details[ErrorInfo].domain == "keyward"
    return raised.value.code(), details


def test_an_error_carries_its_details(client: Client) -> None:
    code, details = refusal(client.admin.CreateKey, admin.CreateKeyRequest(display_name="x", scopes=["ok", "Not OK"]))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details[ErrorInfo].reason == "BAD_FIELDS"
    assert [violation.field for violation in details[BadRequest].field_violations] == ["scopes[1]"]


def test_an_outdated_etag_is_refused(client: Client) -> None:
    key = client.create().key
    client.admin.DisableKey(admin.DisableKeyRequest(key_id=key.key_id))

    code, details = refusal(client.admin.EnableKey, admin.EnableKeyRequest(key_id=key.key_id, etag=key.etag))
    assert (code, details[ErrorInfo].reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")


def test_an_id_is_given_only_once(client: Client) -> None:
    client.create(key_id="the-one")
    code, details = refusal(client.admin.CreateKey, admin.CreateKeyRequest(display_name="x", key_id="the-one"))
    assert (code, details[ErrorInfo].reason) == (grpc.StatusCode.ALREADY_EXISTS, "KEY_EXISTS")


# Health and reflection.


@pytest.mark.parametrize("service", SERVICES)
def test_health_is_serving(server: Server, service: str) -> None:
    health = health_pb2_grpc.HealthStub(open_channel(server.address))
    reply = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE_SECONDS)
    assert reply.status == SERVING


@pytest.mark.parametrize("service", ["", "keyward.v1.KeyVerify"])
def test_a_watcher_hears_of_the_end_and_does_not_delay_it(start: Start, service: str) -> None:
    server = start()
    health = health_pb2_grpc.HealthStub(open_channel(server.address))
    watch = health.Watch(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE_SECONDS)
    assert next(watch).status == SERVING

    began = time.monotonic()
    server.terminate()
    assert next(watch).status == NOT_SERVING
    assert list(watch) == []
    assert watch.code() == grpc.StatusCode.OK
    assert server.wait() == 0
    assert time.monotonic() - began < 5, "the watcher held up the end"


def test_reflection_is_enough_to_make_a_call(server: Server, client: Client) -> None:
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(open_channel(server.address)))
    method = pool.FindServiceByName("keyward.v1.KeyVerify").methods_by_name["Verify"]
    assert [asked.name for asked in method.input_type.fields][:2] == ["secret", "tenant"]
    assert pool.FindMessageTypeByName("google.rpc.ErrorInfo").fields_by_name["reason"]


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_is_served_in_both_versions(server: Server, version: str) -> None:
    # Both versions have the same messages.
    reflect = open_channel(server.address).stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    [reply] = reflect(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=DEADLINE_SECONDS)
    names = {service.name for service in reply.list_services_response.service}
    assert {"keyward.v1.KeyAdmin", "keyward.v1.KeyVerify", f"grpc.reflection.{version}.ServerReflection"} <= names


# The process.


def test_a_unix_socket_serves_and_is_gone_afterwards(start: Start, tmp_path: Path) -> None:
    socket = tmp_path / "k.sock"
    server = start(listen=f"unix:{socket}")
    assert server.address == f"unix:{socket}"

    client = client_of(server)
    assert client.verdict(client.create().secret) == ALLOWED

    server.stop()
    assert not socket.exists()


def test_a_second_process_on_the_same_data_is_refused_and_says_why(start: Start, data_dir: Path) -> None:
    client = client_of(start())

    second = subprocess.run(
        command(data_dir),
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert second.returncode == 1
    assert second.stderr.startswith(f"keyward: the data directory {data_dir} is in use")
    assert client.verdict(client.create().secret) == ALLOWED


def test_keys_outlive_an_orderly_restart(start: Start) -> None:
    first = start()
    client = client_of(first)
    kept, disabled = client.create(), client.create(disabled=True)
    first.stop()

    client = client_of(start())
    assert client.verdict(kept.secret) == ALLOWED
    assert client.verdict(disabled.secret) == DISABLED


@dataclass
class Promises:
    """What Keyward has acknowledged to several workers, so far."""

    created: dict[str, str] = field(default_factory=dict)
    """Secrets by the ids of their keys."""
    asked_to_disable: set[str] = field(default_factory=set)
    disabled: set[str] = field(default_factory=set)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for_keys(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.created) >= count, DEADLINE_SECONDS)

    def check(self, client: Client) -> None:
        """Holds Keyward to them. A key that it was only asked to disable may be either."""
        for key_id, secret in self.created.items():
            if key_id in self.disabled:
                assert client.verdict(secret) == DISABLED, key_id
            elif key_id not in self.asked_to_disable:
                assert client.verdict(secret) == ALLOWED, key_id


def create_and_disable_until_it_breaks(server: Server, promises: Promises) -> grpc.StatusCode:
    """Creates keys, disables every third, and returns the error that ended it."""
    client = client_of(server)
    number = 0
    while True:
        try:
            number += 1
            created = client.create(f"number {number}")
            key_id = created.key.key_id
            with promises.changed:
                promises.created[key_id] = created.secret
                promises.changed.notify_all()
            if number % 3 == 0:
                promises.asked_to_disable.add(key_id)
                client.admin.DisableKey(admin.DisableKeyRequest(key_id=key_id))
                promises.disabled.add(key_id)
        except grpc.RpcError as error:
            return error.code()


def test_what_was_acknowledged_outlives_kill_9(start: Start) -> None:
    workers = 8
    promises = Promises()
    with ThreadPoolExecutor(workers) as pool:
        for round_ in range(1, 4):
            server = start()
            ends = [pool.submit(create_and_disable_until_it_breaks, server, promises) for _ in range(workers)]
            try:
                promises.wait_for_keys(150 * round_)
            finally:
                server.kill()
            # All were in the middle of a call, or about to make one, and heard of nothing but the end.
            assert {end.result(DEADLINE_SECONDS) for end in ends} == {grpc.StatusCode.UNAVAILABLE}

            server = start()
            promises.check(client_of(server))
            server.stop()
    assert len(promises.created) >= 450 and len(promises.disabled) >= 100


# Secrets.


def disguises(secret: str) -> Iterator[bytes]:
    """Forms in which a part of a secret, enough to be of use to a thief, may lie about."""
    digits = secret.rpartition("_")[2]
    for start in range(0, len(digits) - 11, 12):
        part = digits[start : start + 12].encode()
        yield part
        yield part.hex().encode()
        yield part.hex().upper().encode()
        yield ", ".join(map(str, part)).encode()
    for shift in range(3):
        # Base64 of a text depends on where it begins; its first and last digits depend on the neighbours.
        yield base64.b64encode(b"_" * shift + digits.encode())[4:-4]


def leaks(secrets: list[str], text: bytes) -> list[tuple[str, bytes]]:
    """Each secret that is in the text, with what comes before and after it."""
    found = []
    for secret in secrets:
        for part in disguises(secret):
            at = text.find(part)
            if at >= 0:
                found.append((secret, text[max(0, at - 200) : at + 200]))
    return found


def bytes_under(directory: Path, but: Path) -> bytes:
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path != but)
    assert len(files) >= 3, files
    return b"\n".join(f"{path}\n".encode() + path.read_bytes() for path in files)


def use_secrets_in_every_way(client: Client, server: Server, secrets: list[str]) -> list[str]:
    """Creates keys and uses their secrets, also where they do not belong. The ids of the keys."""
    client.admin.CreateTenant(admin.CreateTenantRequest(tenant="acme", secret_prefix="acme"))
    created = [client.create(f"number {number}", tenant="acme") for number in range(4)]
    created.append(client.create(environment="test"))
    gateway = client.create("gateway", tenant="system", scopes=["keyward.verifier"])
    secrets += [reply.secret for reply in [*created, gateway]]
    assert all(secrets)

    for reply in created:
        assert client.verify(reply.secret, explain=True).decision == verify_pb2.DECISION_ALLOW
        assert client.verify(reply.secret + "x").reason == verify_pb2.REASON_MALFORMED
        assert client.verify(reply.secret, tenant="system").reason == verify_pb2.REASON_UNKNOWN
    first, second, third = ({"tenant": "acme", "key_id": reply.key.key_id} for reply in created[:3])
    client.admin.DisableKey(admin.DisableKeyRequest(**first))
    client.admin.RevokeKey(admin.RevokeKeyRequest(**second))
    client.admin.UpdateKey(admin.UpdateKeyRequest(key=key_pb2.Key(**third), update_mask={"paths": ["scopes"]}))
    for reply in created:
        client.verify(reply.secret)
    client.admin.ListKeys(admin.ListKeysRequest(selector={"tenant": "acme"}))

    # Pasted into the wrong place.
    misplaced = created[0].secret
    for call, request in [
        (client.admin.GetKey, admin.GetKeyRequest(key_id=misplaced)),
        (client.admin.ListKeys, admin.ListKeysRequest(page_token=misplaced)),
        (client.admin.GetTenant, admin.GetTenantRequest(tenant=misplaced)),
        (client.admin.CreateKey, admin.CreateKeyRequest(display_name="x", scopes=[misplaced + " "])),
        (client.admin.CreateKey, admin.CreateKeyRequest(display_name="x", labels={misplaced + " ": ""})),
        (client.admin.DisableKey, admin.DisableKeyRequest(**first, etag=misplaced)),
        (Client(server.address, misplaced).admin.GetKey, admin.GetKeyRequest(key_id="none")),
        (Client(server.address, gateway.secret).admin.GetKey, admin.GetKeyRequest(key_id="none")),
    ]:
        with pytest.raises(grpc.RpcError) as raised:
            call(request)
        told = f"{raised.value.details()} {raised.value.trailing_metadata()}"
        assert leaks([misplaced, gateway.secret], told.encode()) == []
    assert Client(server.address, gateway.secret).verdict(misplaced) == DISABLED
    return [reply.key.key_id for reply in [*created, gateway]]


def test_no_secret_lies_in_the_data_or_in_the_log(start: Start, data_dir: Path) -> None:
    server = start(log_filter="trace")
    client = client_of(server)
    secrets = [server.admin_key]
    key_ids = use_secrets_in_every_way(client, server, secrets)
    # Lines wait in a queue before they are written, and a kill takes the queue with it.
    server.wait_for_log("call", caller=key_ids[-1])
    # The data as a crash leaves it, and as it is after a start that read it all again and an orderly end.
    server.kill()
    admin_key_file = data_dir / "admin.key"
    data = bytes_under(data_dir, but=admin_key_file)
    again = start(log_filter="trace")
    assert client_of(again).verdict(secrets[-1]) == ALLOWED
    again.stop()
    data += bytes_under(data_dir, but=admin_key_file)
    log = "\n".join([*server.log, *again.log]).encode()

    # The search finds what is there: ids, and any secret in any disguise.
    assert [key_id for key_id in key_ids if key_id.encode() not in data] == []
    callers = {entry["caller"] for entry in map(parse, server.log) if "caller" in entry}
    callers.remove("keyward")  # the first start makes the administrator
    assert len(callers) == 2 and key_ids[-1] in callers
    assert b'"level":"TRACE"' in log and b'"target":"sled::' in log
    for secret in secrets:
        for planted in disguises(secret):
            assert leaks([secret], data[:100] + planted + data[:100])

    assert leaks(secrets, data) == []
    assert leaks(secrets, log) == []
    assert admin_key_file.read_text() == f"{secrets[0]}\n"
