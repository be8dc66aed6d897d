"""The operator's story, told with grpcurl and nothing else: no proto file, only reflection."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from conftest import Start
from harness import SERVICES, UNIX, Grpcurl, Server

ADMIN = "keyward.v1.KeyAdmin"
VERIFY = "keyward.v1.KeyVerify/Verify"
BATCH_VERIFY = "keyward.v1.KeyVerify/BatchVerify"
STREAM_VERIFY = "keyward.v1.KeyVerify/StreamVerify"
HEALTH = "grpc.health.v1.Health/Check"


@pytest.fixture
def anyone(server: Server) -> Grpcurl:
    return Grpcurl(server.address)


@pytest.fixture
def admin(anyone: Grpcurl, server: Server) -> Grpcurl:
    return anyone.with_key(server.admin_key)


@pytest.fixture
def verifier(admin: Grpcurl) -> Grpcurl:
    """A service that checks keys, with the least it needs."""
    created = create(admin, "gateway", tenant="system", scopes=["keyward.verifier"])
    return admin.with_key(created["secret"])


def create(admin: Grpcurl, display_name: str, **fields: Any) -> dict[str, Any]:
    return admin.call(f"{ADMIN}/CreateKey", display_name=display_name, **fields)


def verdict(verifier: Grpcurl, secret: str) -> tuple[str, str, int]:
    reply = verifier.call(VERIFY, secret=secret)
    return reply["decision"], reply["reason"], reply["httpStatus"]


ALLOWED = ("DECISION_ALLOW", "REASON_OK", 200)


def labels_of(admin: Grpcurl, **selector: Any) -> list[str]:
    """The labels of the selected keys, as a list shows them."""
    listed = admin.call(f"{ADMIN}/ListKeys", selector=selector)
    return [key["displayName"] for key in listed.get("keys", [])]


# The other client.


def test_the_command_line_prints_what_grpcurl_prints(admin: Grpcurl, server: Server) -> None:
    full = {"description": "a", "owner": "Kunde \"7\" 顧客", "scopes": ["a.*", "b"], "audiences": ["x"], "labels": {"a": "b"}}
    bounds = {"allowed_cidrs": ["10.0.0.0/8"], "annotations": {"n": "\\"}, "expire_time": "2090-01-01T00:00:00.250Z"}
    create(admin, "Zapier", key_id="zapier", **full, **bounds)
    create(admin, "Other", key_id="other")
    admin.call(f"{ADMIN}/DisableKey", key_id="other", reason="unpaid")

    def printed(*args: str) -> Any:
        command = [os.environ["KEYWARD_BIN"], *args, "--server", server.address, "--key-file", str(server.data_dir / "admin.key")]
        return json.loads(subprocess.run(command, env={}, check=True, capture_output=True, timeout=20).stdout)

    assert printed("key", "get", "zapier") == admin.call(f"{ADMIN}/GetKey", key_id="zapier")["key"]
    assert printed("key", "list") == admin.call(f"{ADMIN}/ListKeys")["keys"]
    assert printed("tenant", "list") == admin.call(f"{ADMIN}/ListTenants")["tenants"]


# Finding one's way.


def test_the_services_are_found_by_reflection_of_v1alpha(anyone: Grpcurl) -> None:
    # This grpcurl knows no other version, so an answer is an answer of v1alpha.
    assert set(anyone.read("list").split()) == {
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "keyward.v1.KeyAdmin",
        "keyward.v1.KeyAudit",
        "keyward.v1.KeyVerify",
    }


@pytest.mark.parametrize(
    ("symbol", "comment", "declaration"),
    [
        ("keyward.v1.KeyAdmin", "Issues keys and changes them", "rpc DisableKey ("),
        ("keyward.v1.KeyVerify", 'Answers "may this key do this, now?"', "rpc Verify ("),
        ("keyward.v1.CreateKeyResponse", "It is shown here and never again.", "string secret = 2"),
        ("keyward.v1.State", "The key is refused until it is enabled again.", "STATE_DISABLED = 2;"),
    ],
)
def test_describe_shows_what_the_protos_say(anyone: Grpcurl, symbol: str, comment: str, declaration: str) -> None:
    described = anyone.read("describe", symbol)
    assert declaration in described
    assert [line for line in described.splitlines() if line.strip().startswith("//") and comment in line]


@pytest.mark.parametrize("service", SERVICES)
def test_health_is_told_to_anyone(anyone: Grpcurl, service: str) -> None:
    assert anyone.call(HEALTH, service=service) == {"status": "SERVING"}


def test_health_of_an_unknown_service_is_not_found(anyone: Grpcurl) -> None:
    assert anyone.refused(HEALTH, service="keyward.v1.Nothing").code == "NotFound"


# Issuing keys.


def test_a_secret_is_shown_by_its_creation_and_never_again(admin: Grpcurl, verifier: Grpcurl) -> None:
    created = create(admin, "Zapier", owner="acme")
    secret, key_id = created["secret"], created["key"]["keyId"]
    assert secret.startswith("kw_live_") and secret not in str(created["key"])

    later = [
        admin.call(f"{ADMIN}/GetKey", key_id=key_id),
        admin.call(f"{ADMIN}/ListKeys"),
        admin.call(f"{ADMIN}/UpdateKey", key={"key_id": key_id, "owner": "b"}, update_mask={"paths": ["owner"]}),
        verifier.call(VERIFY, secret=secret, explain=True),
        admin.call(f"{ADMIN}/DisableKey", key_id=key_id),
        admin.call(f"{ADMIN}/EnableKey", key_id=key_id),
        admin.call(f"{ADMIN}/RevokeKey", key_id=key_id),
    ]
    assert all(key_id in str(reply) for reply in later)
    assert not [reply for reply in later if secret in str(reply) or "secret" in reply]


def test_an_owner_may_hold_several_keys(admin: Grpcurl, verifier: Grpcurl) -> None:
    mine = [create(admin, label, owner="acme") for label in ("Zapier", "n8n", "Zapier")]
    create(admin, "Make", owner="globex")

    assert len({key["secret"] for key in mine}) == len({key["key"]["keyId"] for key in mine}) == 3
    assert labels_of(admin, owner="acme") == ["Zapier", "n8n", "Zapier"]
    assert all(verdict(verifier, key["secret"]) == ALLOWED for key in mine)


def test_a_key_gets_another_label_and_keeps_the_rest(admin: Grpcurl, verifier: Grpcurl) -> None:
    created = create(admin, "Zapier", owner="acme", scopes=["orders.read"])
    before = created["key"]

    change = {"key_id": before["keyId"], "display_name": "Zapier (billing)", "owner": "not in the mask"}
    after = admin.call(f"{ADMIN}/UpdateKey", key=change, update_mask={"paths": ["display_name"]})["key"]

    assert after["displayName"] == "Zapier (billing)"
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"displayName", "updateTime", "revision", "etag"}
    assert admin.call(f"{ADMIN}/GetKey", key_id=before["keyId"])["key"] == after
    assert verdict(verifier, created["secret"]) == ALLOWED


# Taking keys out of use.


def test_a_disabled_key_is_refused_at_once(admin: Grpcurl, verifier: Grpcurl) -> None:
    created = create(admin, "Zapier")
    assert verdict(verifier, created["secret"]) == ALLOWED

    admin.call(f"{ADMIN}/DisableKey", key_id=created["key"]["keyId"], reason="leaked")
    assert verdict(verifier, created["secret"]) == ("DECISION_DENY", "REASON_DISABLED", 401)


def test_a_refusal_tells_nothing_of_the_key_but_its_id(admin: Grpcurl, verifier: Grpcurl) -> None:
    created = create(admin, "Zapier", owner="acme", disabled=True)
    reply = verifier.call(VERIFY, secret=created["secret"])
    assert reply["key"] == {"keyId": created["key"]["keyId"]}


def test_disabled_keys_are_listed_apart_from_active_ones(admin: Grpcurl) -> None:
    create(admin, "active")
    create(admin, "off", key_id="off-key")
    create(admin, "gone", key_id="gone-key")
    admin.call(f"{ADMIN}/DisableKey", key_id="off-key")
    admin.call(f"{ADMIN}/RevokeKey", key_id="gone-key")

    assert labels_of(admin, states=["STATE_ACTIVE"]) == ["active"]
    assert labels_of(admin, states=["STATE_DISABLED"]) == ["off"]
    assert sorted(labels_of(admin, states=["STATE_DISABLED", "STATE_REVOKED"])) == ["gone", "off"]
    assert sorted(labels_of(admin)) == ["active", "gone", "off"]


def test_an_enabled_key_works_again_with_the_same_secret(admin: Grpcurl, verifier: Grpcurl) -> None:
    created = create(admin, "Zapier")
    admin.call(f"{ADMIN}/DisableKey", key_id=created["key"]["keyId"])
    admin.call(f"{ADMIN}/EnableKey", key_id=created["key"]["keyId"])
    assert verdict(verifier, created["secret"]) == ALLOWED


@pytest.mark.parametrize("call", ["EnableKey", "DisableKey"])
def test_a_revoked_key_stays_revoked(admin: Grpcurl, verifier: Grpcurl, call: str) -> None:
    created = create(admin, "Zapier")
    admin.call(f"{ADMIN}/RevokeKey", key_id=created["key"]["keyId"])

    assert admin.refused(f"{ADMIN}/{call}", key_id=created["key"]["keyId"]).code == "FailedPrecondition"
    assert verdict(verifier, created["secret"]) == ("DECISION_DENY", "REASON_REVOKED", 401)


# Being told what is wrong.


@pytest.mark.parametrize(
    ("field", "fault", "value"),
    [
        ("display_name", {"display_name": "bad\x07label"}, "label"),
        ("allowed_cidrs[1]", {"display_name": "x", "allowed_cidrs": ["10.0.0.0/8", "10.9.8.7.6"]}, "10.9.8.7.6"),
        ("scopes[0]", {"display_name": "x", "scopes": ["Orders Read"]}, "Orders"),
        ("key_id", {"display_name": "x", "key_id": "Capital"}, "Capital"),
    ],
)
def test_a_bad_field_is_named_and_its_value_is_not(
    admin: Grpcurl, field: str, fault: dict[str, Any], value: str
) -> None:
    refused = admin.refused(f"{ADMIN}/CreateKey", **fault)
    assert refused.code == "InvalidArgument"
    assert refused.bad_fields == [field]
    assert value not in refused.text
    assert labels_of(admin) == []


# Who may call.


def methods(anyone: Grpcurl) -> list[str]:
    listed = [anyone.read("list", service).split() for service in (ADMIN, "keyward.v1.KeyVerify")]
    return [name[::-1].replace(".", "/", 1)[::-1] for names in listed for name in names]


def test_no_call_is_answered_without_a_credential(anyone: Grpcurl) -> None:
    names = methods(anyone)
    assert f"{ADMIN}/CreateKey" in names and VERIFY in names
    assert {name: anyone.refused(name).code for name in names} == dict.fromkeys(names, "Unauthenticated")


def test_a_verifier_verifies_and_administers_nothing(admin: Grpcurl, verifier: Grpcurl) -> None:
    secrets = [create(admin, "Zapier")["secret"], "kw_live_x"]
    assert verdict(verifier, secrets[0]) == ALLOWED
    batch = verifier.call(BATCH_VERIFY, requests=[{"secret": secret} for secret in secrets])
    reasons = [result["response"]["reason"] for result in batch["results"]]
    assert reasons == ["REASON_OK", "REASON_MALFORMED"]
    answer = verifier.call(STREAM_VERIFY, request={"secret": secrets[0], "correlation_id": "one"})
    assert (answer["correlationId"], answer["response"]["reason"]) == ("one", "REASON_OK")

    names = [name for name in methods(verifier) if name not in (VERIFY, BATCH_VERIFY, STREAM_VERIFY)]
    assert {name: verifier.refused(name).code for name in names} == dict.fromkeys(names, "PermissionDenied")


def test_a_customers_key_is_no_credential_for_keyward(admin: Grpcurl) -> None:
    customer = admin.with_key(create(admin, "Zapier", scopes=["admin"])["secret"])
    assert customer.refused(f"{ADMIN}/ListKeys").code == "Unauthenticated"


def test_a_disabled_verifier_is_no_verifier_any_more(admin: Grpcurl, verifier: Grpcurl) -> None:
    [key] = admin.call(f"{ADMIN}/ListKeys", selector={"tenant": "system", "states": ["STATE_ACTIVE"]})["keys"][1:]
    admin.call(f"{ADMIN}/DisableKey", tenant="system", key_id=key["keyId"])
    assert verifier.refused(VERIFY, secret="any").code == "Unauthenticated"


# Over a socket in the file system.


def test_a_unix_socket_is_met_by_the_same_grpcurl(start: Start, tmp_path: Path) -> None:
    server = start(listen=f"unix:{tmp_path}/k.sock")
    admin = Grpcurl(f"{tmp_path}/k.sock", server.admin_key, transport=UNIX)
    assert ADMIN in admin.read("list")
    assert create(admin, "Zapier")["secret"]


def test_the_admin_key_is_for_its_owners_eyes(server: Server) -> None:
    assert Path(server.data_dir, "admin.key").stat().st_mode & 0o777 == 0o600
