"""Changes that are asked for again, by grpcio and grpcurl; their sealed secrets are opened by Go and by Python."""

from __future__ import annotations

import base64
import subprocess
import uuid
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pyhpke import AEADId, CipherSuite, KDFId, KEMId, KEMKey
from keyward.v1 import admin_pb2, admin_pb2_grpc

from harness import DEADLINE_SECONDS, Grpcurl, Refused, Server, open_channel
from strangers import tools

CREATE = "keyward.v1.KeyAdmin/CreateKey"
VECTORS = Path(__file__).resolve().parents[2] / "testdata/sealed-secrets.txt"
SUITE = CipherSuite.new(KEMId.DHKEM_X25519_HKDF_SHA256, KDFId.HKDF_SHA256, AEADId.CHACHA20_POLY1305)


def opened_by_python(private: bytes, call: str, request_id: str, sealed: bytes) -> str:
    key = KEMKey.from_pyca_cryptography_key(X25519PrivateKey.from_private_bytes(private))
    recipient = SUITE.create_recipient_context(sealed[:32], key, info=f"{call}\0{request_id}".encode())
    return recipient.open(sealed[32:]).decode()


def opened_by_go(private: bytes, call: str, request_id: str, sealed: bytes) -> str:
    line = f"{private.hex()} {call} {request_id or '-'} {sealed.hex()}\n"
    done = subprocess.run([tools() / "unseal"], input=line, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


OPENERS = pytest.mark.parametrize("opened", [opened_by_go, opened_by_python])


@OPENERS
def test_the_vectors_open(opened) -> None:
    lines = [line.split() for line in VECTORS.read_text().splitlines()]
    assert len(lines) == 4
    for private, _, call, request_id, secret, sealed in lines:
        request_id = "" if request_id == "-" else request_id
        assert opened(bytes.fromhex(private), call, request_id, bytes.fromhex(sealed)) == secret


@OPENERS
def test_a_call_that_was_given_up_is_asked_again(server: Server, opened) -> None:
    """Each time with a deadline that is longer: most of the first calls get no answer, whether they were made or not."""
    key = X25519PrivateKey.generate()
    request = admin_pb2.CreateKeyRequest(
        display_name="Zapier", request_id=str(uuid.uuid4()), reply_public_key=key.public_key().public_bytes_raw()
    )
    metadata = [("authorization", f"Bearer {server.admin_key}")]
    with open_channel(server.address) as channel:
        admin = admin_pb2_grpc.KeyAdminStub(channel)
        replies = []
        for timeout in (0.000_5, 0.001, 0.002, 0.004, 0.01, DEADLINE_SECONDS, DEADLINE_SECONDS):
            try:
                replies.append(admin.CreateKey(request, metadata=metadata, timeout=timeout))
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
        assert len(replies) >= 2 and all(reply == replies[0] for reply in replies)
        found = admin.ListKeys(admin_pb2.ListKeysRequest(), metadata=metadata, timeout=DEADLINE_SECONDS).keys
        assert [key.key_id for key in found] == [replies[0].key.key_id]
    secret = opened(key.private_bytes_raw(), CREATE, request.request_id, replies[0].sealed_secret)
    verdict = Grpcurl(server.address, server.admin_key).call("keyward.v1.KeyVerify/Verify", secret=secret)
    assert verdict["decision"] == "DECISION_ALLOW" and verdict["key"]["keyId"] == replies[0].key.key_id


@OPENERS
def test_a_server_that_was_killed_knows_the_request(server: Server, opened) -> None:
    key, request_id = X25519PrivateKey.generate(), str(uuid.uuid4())
    public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    fields = {"display_name": "Zapier", "request_id": request_id}
    first = Grpcurl(server.address, server.admin_key).call(CREATE, **fields, reply_public_key=public)
    server.kill()
    again = Server(server.data_dir).wait_until_serving()
    try:
        admin = Grpcurl(again.address, again.admin_key)
        assert admin.call(CREATE, **fields, reply_public_key=public) == first
        reused = admin.refused(CREATE, **fields)
        assert isinstance(reused, Refused) and reused.code == "Aborted" and "REQUEST_ID_REUSED" in reused.text
    finally:
        again.clean_up()
    sealed = base64.b64decode(first["sealedSecret"])
    assert "secret" not in first
    assert opened(key.private_bytes_raw(), CREATE, request_id, sealed).startswith("kw_live_")
