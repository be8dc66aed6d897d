"""TLS, met by openssl, testssl.sh, grpcio, grpcurl (grpc-go) and Envoy; certificates that change under load."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from harness import DEADLINE_SECONDS, Grpcurl, Server, command, environment
from keyward.v1 import verify_pb2
from pki import Pki, serial_of
from test_grpcio import client_of

RELOAD_SECONDS = float(os.environ.get("RELOAD_SECONDS", "6"))
"""How long certificates change under load."""


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki.make(tmp_path / "pki")


@pytest.fixture
def serve(data_dir: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server that encrypts. Its own health is not asked for in plaintext, as it is elsewhere."""
    running: list[Server] = []

    def serve(**settings: str) -> Server:
        server = Server(data_dir, settings=settings)
        running.append(server)
        server.wait_for_log("serving")
        return server

    yield serve
    for server in running:
        server.clean_up()


def channel(server: Server, pki: Pki, shows: str | None = "caller") -> grpc.Channel:
    return pki.channel(server.address, shows)


def check(of: grpc.Channel) -> int:
    request = health_pb2.HealthCheckRequest()
    return health_pb2_grpc.HealthStub(of).Check(request, timeout=DEADLINE_SECONDS).status


def s_client(server: Server, *options: str) -> str:
    asked = ["openssl", "s_client", "-connect", server.address, *options]
    told = subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    return told.stdout + told.stderr


def test_openssl_sees_the_versions_and_protocols_that_are_promised(serve: Callable[..., Server], pki: Pki) -> None:
    server = serve(**pki.settings(demand=False))
    trusts = ("-CAfile", pki.file("ca.pem"), "-verify_return_error")
    for version, shown in (("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2")):
        told = s_client(server, *trusts, version, "-alpn", "h2")
        assert f"New, {shown}" in told and "ALPN protocol: h2" in told and "Verify return code: 0 (ok)" in told, told
        assert "Secure Renegotiation IS NOT supported" in told or version == "-tls1_2", told
    assert "no application protocol" in s_client(server, *trusts, "-alpn", "http/1.1").lower()
    for version in ("-tls1", "-tls1_1"):
        told = s_client(server, version, "-cipher", "DEFAULT@SECLEVEL=0")
        assert "New, (NONE)" in told, told
    # What was negotiated with weak ciphers of 1.2: nothing.
    told = s_client(server, *trusts, "-tls1_2", "-cipher", "AES128-SHA:AES256-SHA:AES128-GCM-SHA256")
    assert "New, (NONE)" in told, told


def test_grpcio_and_grpcurl_show_certificates(serve: Callable[..., Server], pki: Pki) -> None:
    server = serve(**pki.settings())
    with channel(server, pki) as shows:
        assert check(shows) == health_pb2.HealthCheckResponse.SERVING
    with channel(server, pki, shows=None) as shows_none, pytest.raises(grpc.RpcError) as refused:
        check(shows_none)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    identity = ("-cacert", pki.file("ca.pem"), "-cert", pki.file("caller.pem"), "-key", pki.file("caller.key"))
    grpcurl = Grpcurl(server.address, server.admin_key, identity, plaintext=False)
    created = grpcurl.call("keyward.v1.KeyAdmin/CreateKey", display_name="Zapier")
    verdict = grpcurl.call("keyward.v1.KeyVerify/Verify", secret=created["secret"])
    assert verdict["decision"] == "DECISION_ALLOW"
    shows_none_too = Grpcurl(server.address, server.admin_key, identity[:2], plaintext=False)
    without = shows_none_too.run("list", options=("-connect-timeout", "2"))
    assert without.returncode != 0 and without.stdout == "", without.stderr


TESTSSL_SECONDS_MAX = 300
"""Far more than it takes."""

NOT_OFFERED = (
    *("SSLv2", "SSLv3", "TLS1", "TLS1_1"),
    # The last one is every suite with CBC that is in none of the others.
    *("cipherlist_NULL", "cipherlist_aNULL", "cipherlist_EXPORT", "cipherlist_LOW", "cipherlist_3DES_IDEA", "cipherlist_AVERAGE"),
)
OFFERED = ("TLS1_2", "TLS1_3", "cipherlist_STRONG", "PFS")
NOT_VULNERABLE = (
    *("heartbleed", "CCS", "ROBOT", "secure_client_renego", "CRIME_TLS", "POODLE_SSL", "SWEET32", "FREAK", "DROWN"),
    *("LOGJAM", "BEAST", "LUCKY13", "RC4"),
)
PROMISED = {
    **{name: "not offered" for name in NOT_OFFERED},
    **{name: "offered" for name in OFFERED},
    **{name: "not vulnerable" for name in NOT_VULNERABLE},
    "ALPN_HTTP2": "h2",
    "secure_renego": "supported",
    "fallback_SCSV": "no protocol below TLS 1.2 offered",
}
"""What testssl must say, as its findings begin. Left out: what is about HTTP/1 (BREACH, Ticketbleed)."""

OF_THIS_MACHINE = {"engine_problem"}
"""Findings that are about its own openssl."""


@dataclass(frozen=True)
class Finding:
    severity: str
    text: str


def found_by_testssl(address: str, directory: Path, *groups: str) -> dict[str, Finding]:
    """What testssl finds, by its own names. Groups of checks are made at once: it mostly waits."""
    host, _ = address.split(":")
    options = ["--quiet", "--color", "0", "--warnings", "batch", "--nodns", "none", "--ip", host]

    def check(group: str) -> dict[str, Finding]:
        report = directory / f"testssl{group.replace(' ', '')}.json"
        told = subprocess.run(
            ["testssl", *options, "--jsonfile", str(report), *group.split(), address],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TESTSSL_SECONDS_MAX,
        )
        assert report.exists(), told.stdout + told.stderr
        return {found["id"]: Finding(found["severity"], found["finding"]) for found in json.loads(report.read_text())}

    with ThreadPoolExecutor() as pool:
        return {name: finding for found in pool.map(check, groups) for name, finding in found.items()}


def faults(found: dict[str, Finding], promised: Mapping[str, str]) -> set[str]:
    """What is missing or is not as promised, and what testssl thinks ill of beside that."""
    broken = {name for name, text in promised.items() if name not in found or not found[name].text.startswith(text)}
    blamed = {name for name, finding in found.items() if finding.severity not in ("OK", "INFO", "DEBUG")}
    return broken | blamed - OF_THIS_MACHINE


def test_testssl_finds_no_fault(serve: Callable[..., Server], pki: Pki, tmp_path: Path) -> None:
    """It offers no ALPN, but in one check: its handshakes finish, and then the server closes."""
    server = serve(**pki.settings(demand=False))
    found = found_by_testssl(server.address, tmp_path, "-p -s", "-f -U")
    assert not faults(found, PROMISED), found


def test_testssl_finds_the_faults_of_a_server_that_has_some(pki: Pki, tmp_path: Path) -> None:
    """That what is promised above can be broken: openssl, with all that it still has."""
    files = ("-cert", pki.file("server.pem"), "-key", pki.file("server.key"))
    log = tmp_path / "s_server.log"
    with log.open("wb") as sink, subprocess.Popen(
        ["openssl", "s_server", "-accept", "127.0.0.1:0", *files, "-cipher", "ALL:COMPLEMENTOFALL:@SECLEVEL=0"],
        # It ends with its input.
        stdin=subprocess.PIPE,
        stdout=sink,
        stderr=subprocess.STDOUT,
    ) as server:
        try:
            found = found_by_testssl(address_of(log), tmp_path, "-p -s --lucky13")
        finally:
            server.kill()
    checked = {name: PROMISED[name] for name in (*NOT_OFFERED, "TLS1_2", "TLS1_3", "LUCKY13")}
    protocols, suites = {"TLS1", "TLS1_1"}, {"cipherlist_NULL", "cipherlist_aNULL", "cipherlist_AVERAGE"}
    assert faults(found, checked) == protocols | suites | {"LUCKY13"}, found


def address_of(log: Path) -> str:
    """Where an openssl listens, as soon as it says so."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (told := re.search(r"^ACCEPT (\S+)$", log.read_text(errors="replace"), re.MULTILINE)):
        assert time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.02)
    return told[1]


@contextmanager
def calls(server: Server, pki: Pki, failed: list[str], seen: list[int]) -> Iterator[None]:
    """Calls on one connection, and a new connection each tenth of a second, whose certificate is noted."""
    end = threading.Event()
    trusts = ssl.create_default_context(cafile=pki.file("ca.pem"))
    trusts.set_alpn_protocols(["h2"])
    trusts.load_cert_chain(pki.file("caller.pem"), pki.file("caller.key"))
    host, port = server.address.split(":")

    def hot() -> None:
        with channel(server, pki) as on_one:
            while not end.is_set():
                try:
                    check(on_one)
                except grpc.RpcError as error:
                    failed.append(f"on an open connection: {error}")

    def anew() -> None:
        while not end.wait(0.1):
            try:
                with channel(server, pki) as fresh:
                    check(fresh)
                with socket.create_connection((host, int(port))) as plain, trusts.wrap_socket(plain, server_hostname=host) as tls:
                    der = tls.getpeercert(binary_form=True)
                    assert der
                    seen.append(serial_of(ssl.DER_cert_to_PEM_cert(der).encode()))
            except (grpc.RpcError, OSError) as error:
                failed.append(f"on a new connection: {error}")

    threads = [threading.Thread(target=run) for run in (hot, anew)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join()


def test_certificates_change_under_load_and_no_call_fails(serve: Callable[..., Server], pki: Pki) -> None:
    server = serve(**pki.settings())
    failed: list[str] = []
    seen: list[int] = []
    renewals, deadline = 0, time.monotonic() + RELOAD_SECONDS
    with calls(server, pki, failed, seen):
        while time.monotonic() < deadline or renewals < 3:
            if renewals % 2:
                # Broken in between: it must not be taken.
                whole = pki.read("server.pem")
                (pki.path / "server.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\n")
                os.kill(server.pid, signal.SIGHUP)
                server.wait_for_log("the TLS files cannot be used; those that were read before stay in use")
                (pki.path / "server.pem").write_bytes(whole)
            pki.issue("server", "DNS:localhost,IP:127.0.0.1", "serverAuth")
            expected = pki.serial("server.pem")
            os.kill(server.pid, signal.SIGHUP)
            began = time.monotonic()
            while not seen or seen[-1] != expected:
                assert time.monotonic() < began + DEADLINE_SECONDS and not failed, (failed, expected, seen)
                time.sleep(0.02)
            since = len(seen)
            while len(seen) < since + 3:
                assert time.monotonic() < began + DEADLINE_SECONDS
                time.sleep(0.02)
            assert set(seen[since:]) == {expected}, "an old certificate came back"
            renewals += 1
    assert not failed, failed
    # Its log has errors, as it should: those of the broken files.
    server.terminate()
    assert server.wait() == 0


def test_a_link_that_moves_is_seen_without_a_signal(serve: Callable[..., Server], pki: Pki) -> None:
    """As Kubernetes changes a volume: the files are links through a link to a directory, which is replaced."""
    volume = pki.path / "volume"
    for version in ("first", "second"):
        (volume / version).mkdir(parents=True)
        if version == "second":
            pki.issue("server", "DNS:localhost,IP:127.0.0.1", "serverAuth")
        for name in ("server.pem", "server.key"):
            (volume / version / name).write_bytes(pki.read(name))
            (volume / version / name).chmod(0o600)
    (volume / "..data").symlink_to("first")
    for name in ("server.pem", "server.key"):
        (volume / name).symlink_to(f"..data/{name}")
    files = {"tls_certificate_file": str(volume / "server.pem"), "tls_key_file": str(volume / "server.key")}
    server = serve(**files)
    (volume / "..new").symlink_to("second")
    (volume / "..new").rename(volume / "..data")
    server.wait_for_log("the TLS certificate was read again")
    told = s_client(server, "-alpn", "h2")
    pem = told[told.index("-----BEGIN") : told.index("-----END")] + "-----END CERTIFICATE-----\n"
    assert serial_of(pem.encode()) == serial_of((volume / "second" / "server.pem").read_bytes())


STORM_SECONDS = float(os.environ.get("STORM_SECONDS", "8"))
"""How long each storm of handshakes takes."""

P99_SECONDS_MAX = 0.010
"""So long do calls of somebody else take meanwhile, but for one in a hundred."""


def client_hello(pki: Pki) -> bytes:
    """The first message of a client, of which the server cannot know that nothing will follow."""
    sent = ssl.MemoryBIO()
    client = ssl.create_default_context(cafile=pki.file("ca.pem"))
    client.set_alpn_protocols(["h2"])
    with pytest.raises(ssl.SSLWantReadError):
        client.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost").do_handshake()
    return sent.read()


BURST = 100


@contextmanager
def handshakes_that_never_finish(server: Server, pki: Pki) -> Iterator[None]:
    """A hundred ClientHellos at once, five times a second: each costs the server a key exchange and a signature."""
    host, port = server.address.split(":")
    hello = client_hello(pki)
    end = threading.Event()
    held: list[socket.socket] = []

    def connect() -> None:
        while not end.wait(0.2):
            burst = [socket.create_connection((host, int(port))) for _ in range(BURST)]
            for silent in burst:
                silent.send(hello)
            held.extend(burst)

    strangers = threading.Thread(target=connect)
    strangers.start()
    try:
        yield
    finally:
        end.set()
        strangers.join()
        for silent in held:
            silent.close()


@contextmanager
def handshakes_without_calls(server: Server, _: Pki) -> Iterator[None]:
    """As many whole handshakes as the processor has time for beside everything else, each then closed."""
    asked = ["nice", "-n", "19", "openssl", "s_time", "-connect", server.address, "-new", "-time", str(int(STORM_SECONDS) + 2)]
    strangers = [
        subprocess.Popen(asked, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(4)
    ]
    try:
        yield
        assert all(stranger.poll() is None for stranger in strangers), "the storm was over before the calls"
    finally:
        for stranger in strangers:
            stranger.kill()
            stranger.wait()


def times_of(verify: Callable[[], verify_pb2.VerifyResponse]) -> Iterator[float]:
    """How long calls take, of which there are some two hundred a second, one after the other."""
    end = time.monotonic() + STORM_SECONDS
    while time.monotonic() < end:
        began = time.perf_counter()
        assert verify().decision == verify_pb2.DECISION_ALLOW
        yield time.perf_counter() - began
        time.sleep(0.004)


@pytest.mark.parametrize("storm", [handshakes_that_never_finish, handshakes_without_calls])
def test_a_storm_of_handshakes_delays_no_other_caller(
    storm: Callable[[Server, Pki], AbstractContextManager[None]], data_dir: Path, pki: Pki
) -> None:
    # They all come from one address here, and the storm is to be one.
    settings = pki.settings(demand=False) | {"stranger_connections_per_address_max": "8192"}
    server = Server(data_dir, ops="127.0.0.1:0", settings=settings)
    try:
        server.wait_for_log("serving")
        operator = client_of(server, pki)
        secret = operator.create().secret
        operator.verify(secret)
        told = ""
        # A busy machine adds to what is measured and takes nothing away, so the better of two counts.
        for _ in range(2):
            with storm(server, pki):
                took = sorted(times_of(lambda: operator.verify(secret)))
            p99 = took[len(took) * 99 // 100]
            handshakes = {name: count for name, count in server.metrics().items() if "handshakes" in name and count}
            told += f"{len(took)} calls, half within {took[len(took) // 2]:.4f} s, p99 {p99:.4f} s; {handshakes}\n"
            print(told)
            assert sum(handshakes.values()) > 100 * STORM_SECONDS, f"no storm: {told}"
            if p99 <= P99_SECONDS_MAX:
                return
        raise AssertionError(told)
    finally:
        server.clean_up()


PARENT = textwrap.dedent(
    """
    import os, socket, sys
    held = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(held.getsockname()[1], flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.dup2(held.fileno(), 3)
            os.set_inheritable(3, True)
            names = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "calls"}
            os.execve(sys.argv[1], sys.argv[1:], os.environ | names)
        print(child, flush=True)
        os.waitpid(child, 0)
        print("ended", flush=True)
    """
)
"""Holds a socket while the servers behind it come and go."""


def test_a_socket_that_a_parent_holds_refuses_nobody_over_restarts(data_dir: Path) -> None:
    serve = command(data_dir, "fd:calls")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *serve],
        env=environment() | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdin and parent.stdout
    try:
        port = int(parent.stdout.readline())
        refused: list[str] = []
        answered = threading.Semaphore(0)
        end = threading.Event()

        def connect() -> None:
            while not end.wait(0.002):
                try:
                    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as fresh:
                        request = health_pb2.HealthCheckRequest()
                        health_pb2_grpc.HealthStub(fresh).Check(request, timeout=DEADLINE_SECONDS)
                        answered.release()
                except grpc.RpcError as error:
                    # A stop answers calls under way; what it says to one that it cannot take is no refusal of
                    # the socket.
                    if "refused" in str(error).lower():
                        refused.append(str(error))

        client = threading.Thread(target=connect)
        client.start()
        for _ in range(3):
            print(file=parent.stdin, flush=True)
            child = int(parent.stdout.readline())
            for _ in range(5):
                assert answered.acquire(timeout=DEADLINE_SECONDS), "nobody answers"
            os.kill(child, signal.SIGTERM)
            assert parent.stdout.readline() == "ended\n"
        # Nobody serves now, and yet there is a connection.
        socket.create_connection(("127.0.0.1", port)).close()
        end.set()
        parent.stdin.close()
        client.join(2 * DEADLINE_SECONDS)
        assert not refused, refused
    finally:
        end.set()
        parent.kill()
        parent.wait()
