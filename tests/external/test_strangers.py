"""The strangers' matrix: ordinary clients and proxies, each on one connection, at 1,000 calls a second, plain and
with certificates.

Their calls take as long as `STRANGERS_SECONDS` says, 20 by default. A stream stays open on the same connection all the
while, and must answer at the end as it did at the beginning.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from ipaddress import ip_network
from pathlib import Path

import grpc
import pytest

from conftest import Start
from harness import Server
from pki import Pki
from strangers import CALLS, RATE, WORKERS, Accepted, Report, drive, free_port, proxy
from test_grpcio import Client, client_of

CANCEL_PERCENT = 75
"""Calls that are given up as soon as they are sent, where some are."""


VERIFY_WAYS = 'keyward_calls_by_way_total{call="KeyVerify/Verify",way="'
"""How the server names the ways that verdicts take."""

AT_ONCE_SHARE = 0.99
"""Of ordinary calls so many must be answered where they are read."""


PROXY = "127.0.0.3"
"""Where the proxies call from."""

NETWORKS = [str(block) for block in ip_network("0.0.0.0/0").address_exclude(ip_network(PROXY))]
"""All but the proxies' address. Envoy names its own machine's address in place of a client on loopback."""


LOG_FILTER = "info,keyward::serve=debug"
"""What a connection ended with is told by one line at this level."""


class CallsWereLost(AssertionError):
    """A client did not get what it asked for."""


@pytest.fixture
def server(start: Start) -> Server:
    return start(log_filter=LOG_FILTER, ops="127.0.0.1:0")


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki.make(tmp_path / "pki")


@pytest.fixture
def encrypting_server(data_dir: Path, pki: Pki) -> Iterator[Server]:
    """A server that demands certificates."""
    server = Server(data_dir, log_filter=LOG_FILTER, ops="127.0.0.1:0", settings=pki.settings())
    try:
        server.wait_for_log("serving")
        yield server
    finally:
        server.clean_up()


def run(
    server: Server,
    client: str,
    through: str | None = None,
    *,
    workers: int = WORKERS,
    cancel_percent: int = 0,
    connections: int = 1,
    pki: Pki | None = None,
    networks: Sequence[str] = (),
) -> Report:
    """Has a client make its calls, all of which must succeed, over so many connections.

    A server that demands certificates is met with those of `pki`. The client's key is good from some networks alone.
    """
    operator = client_of(server, pki)
    secret = operator.create("Zapier").secret
    service = operator.create(
        "Orders service", tenant="system", scopes=["keyward.verifier"], allowed_cidrs=networks
    )
    with Accepted(server.pid) as accepted:
        # A proxy shows the certificate itself.
        shown = None if through else pki
        target = through or server.address
        report = drive(client, target, service.secret, secret, workers, cancel_percent, pki=shown)
    ends = [line for line in server.log if "a connection ended with an error" in line]
    told = f"{report}, {accepted.count} connections"
    print(told)
    if report.failed or not report.stream_ok or accepted.count != connections:
        raise CallsWereLost("\n".join([told, *ends]))
    assert report.calls == CALLS
    ways = {name: count for name, count in server.metrics().items() if name.startswith(VERIFY_WAYS) and count}
    assert ways.get(f'{VERIFY_WAYS}AT_ONCE"}}', 0) >= AT_ONCE_SHARE * sum(ways.values()), ways
    if report.calls / report.seconds < RATE / 2:
        warnings.warn(f"a slow machine, which shows less than it should: {told}", stacklevel=2)
    return report


CLIENTS = ["grpc-go", "grpc-java", "grpcio", "grpc-js"]


@pytest.mark.parametrize("client", CLIENTS)
def test_an_ordinary_client_loses_no_call(server: Server, client: str) -> None:
    report = run(server, client)
    assert report.cancelled == 0


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_that_gives_up_calls_loses_no_other(server: Server, client: str) -> None:
    report = run(server, client, cancel_percent=CANCEL_PERCENT)
    assert report.cancelled > CALLS / 4


@pytest.mark.parametrize("client", CLIENTS)
def test_an_ordinary_client_that_shows_a_certificate_loses_no_call(
    encrypting_server: Server, client: str, pki: Pki
) -> None:
    report = run(encrypting_server, client, pki=pki)
    assert report.cancelled == 0


# HAProxy and Envoy send all calls over one connection. nginx gives each call that is under way one of its
# own: one to the stream, and another to all other calls, as long as these come one after the other.
PROXIES = pytest.mark.parametrize(
    ("name", "workers", "connections"),
    [
        pytest.param("haproxy", WORKERS, 1, id="haproxy"),
        pytest.param("envoy", WORKERS, 1, id="envoy"),
        pytest.param("nginx", 1, 2, id="nginx"),
    ],
)


@PROXIES
def test_a_proxy_loses_no_call_and_says_whom_it_speaks_for(
    data_dir: Path, name: str, workers: int, connections: int, tmp_path: Path
) -> None:
    trusting = f"127.0.0.1:{free_port()}"
    config = tmp_path / "keyward.toml"
    config.write_text(
        f'[[listener]]\naddress = "{trusting}"\nservices = ["verify"]\ntrusted_proxies = ["{PROXY}"]\n'
    )
    server = Server(data_dir, log_filter=LOG_FILTER, ops="127.0.0.1:0", settings={"config": str(config)})
    try:
        server.wait_until_serving()
        with proxy(name, name, tmp_path, upstream=trusting) as address:
            run(server, "grpc-go", address, workers=workers, connections=connections, networks=NETWORKS)
        bound = client_of(server).create(
            "Elsewhere", tenant="system", scopes=["keyward.verifier"], allowed_cidrs=NETWORKS
        )
        # Where it is not trusted, its own address counts, which is not in the key's network.
        with proxy(name, name, tmp_path, upstream=server.address) as address, pytest.raises(grpc.RpcError) as refused:
            Client(address, bound.secret).verify("any")
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    finally:
        server.clean_up()


@PROXIES
def test_a_proxy_that_shows_a_certificate_loses_no_call(
    encrypting_server: Server, name: str, workers: int, connections: int, tmp_path: Path, pki: Pki
) -> None:
    with proxy(name, name, tmp_path, pki, upstream=encrypting_server.address) as address:
        run(encrypting_server, "grpc-go", address, workers=workers, connections=connections, pki=pki)


AGE_SECONDS = 2
"""How old connections become, where they are to end often."""


@pytest.mark.parametrize("through", [pytest.param("", id="grpc-go"), pytest.param("haproxy", id="haproxy")])
def test_connections_that_end_by_their_age_cost_no_call(data_dir: Path, tmp_path: Path, through: str) -> None:
    settings = {"connection_age_max": f"{AGE_SECONDS}s", "stranger_connections_per_address_max": "2"}
    server = Server(data_dir, log_filter=LOG_FILTER, ops="127.0.0.1:0", settings=settings)
    try:
        server.wait_until_serving()
        operator = client_of(server)
        secret = operator.create("Zapier").secret
        service = operator.create("Orders service", tenant="system", scopes=["keyward.verifier"]).secret
        with ExitStack() as stack:
            accepted = stack.enter_context(Accepted(server.pid))
            behind = proxy(through, through, tmp_path, upstream=server.address) if through else nullcontext(server.address)
            report = drive("grpc-go", stack.enter_context(behind), service, secret, WORKERS, 0)
        print(f"{report}, {accepted.count} connections")
        assert not report.failed and report.stream_ok, report
        assert accepted.count >= report.seconds / AGE_SECONDS / 2, accepted.count
    finally:
        server.clean_up()
