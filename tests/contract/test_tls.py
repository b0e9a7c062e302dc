"""Which certificates are trusted: both clients ask the same authorities, also through a proxy's tunnel."""

from __future__ import annotations

import contextlib
import datetime as dt
import gc
import ipaddress
import json
import socket
import ssl
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from airflow_provider_qwenimage.exceptions import QwenImageConnectionError
from tests.contract.test_odd_answers import KEY, TASK, answer, set_proxy
from tests.contract.test_parity import AsyncClient, SyncClient
from tests.raw_server import RawServer, finish, read_request

AUTHORITY_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")


@dataclass
class Authority:
    """A certificate that a server shows, and which is its own authority."""

    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("authority")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Tests")])
    names = x509.SubjectAlternativeName(
        [
            x509.DNSName("xn--bcher-kva.example"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
    )
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    found = Authority(folder / "certificate.pem", folder / "key.pem")
    found.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    found.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return found


def server_context(authority: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate, authority.key)
    return context


@contextlib.contextmanager
def tls_server(authority: Authority) -> Iterator[tuple[RawServer, list[bytes]]]:
    context = server_context(authority)
    requests: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            requests.append(read_request(secure))
            secure.sendall(answer())
            finish(secure)

    with RawServer(serve, at_once=True) as server:
        yield server, requests


@pytest.fixture(autouse=True)
def no_authorities_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in AUTHORITY_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=[SyncClient, AsyncClient], ids=["requests", "aiohttp"])
def client(request: pytest.FixtureRequest) -> SyncClient:
    return request.param(timeout_seconds=60.0, retry_limit=0)


def connect(monkeypatch: pytest.MonkeyPatch, host: str, **extra: Any) -> None:
    connection = {"conn_type": "qwenimage", "password": KEY, "host": host, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", json.dumps(connection))


def test_an_unknown_authority_means_that_nothing_was_sent(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    with tls_server(authority) as (server, requests):
        connect(monkeypatch, f"https://127.0.0.1:{server.port}")
        with pytest.raises(QwenImageConnectionError, match="TLS certificate is not trusted"):
            client("generate", "a fox")
        assert not requests


def test_a_file_in_the_connection_is_trusted(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    # It takes precedence.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/file")
    with tls_server(authority) as (server, requests):
        connect(monkeypatch, f"https://127.0.0.1:{server.port}", verify=str(authority.certificate))
        assert client("generate", "a fox") == TASK
        assert f"Authorization: Bearer {KEY}".encode() in requests[0]


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_file_in_the_environment_is_trusted(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, authority: Authority, variable: str
) -> None:
    monkeypatch.setenv(variable, str(authority.certificate))
    with tls_server(authority) as (server, _):
        connect(monkeypatch, f"https://127.0.0.1:{server.port}")
        assert client("generate", "a fox") == TASK


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_nothing_is_checked_if_the_connection_disables_it(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    with tls_server(authority) as (server, _):
        connect(monkeypatch, f"https://127.0.0.1:{server.port}", verify=False)
        assert client("generate", "a fox") == TASK


def test_a_certificate_of_another_host_is_not_trusted(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    with tls_server(authority) as (server, requests):
        connect(monkeypatch, f"https://localhost:{server.port}", verify=str(authority.certificate))
        with pytest.raises(QwenImageConnectionError, match="TLS certificate is not trusted"):
            client("generate", "a fox")
        assert not requests


@contextlib.contextmanager
def tunnelling_proxy(server: RawServer, headers: bytes = b"X-Proxy: y\r\n") -> Iterator[RawServer]:
    def tunnel(connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as other:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n" + headers + b"\r\n")
            forward = threading.Thread(target=carry, args=(connection, other), daemon=True)
            forward.start()
            carry(other, connection)
            forward.join(60)

    with RawServer(tunnel) as proxy:
        yield proxy


@pytest.mark.parametrize(
    "headers",
    [b"", b"X-Proxy: " + b"a" * 9000 + b"\r\n", b"X-Proxy: " + b"a" * 60_000 + b"\r\n", b"X-Proxy: y\r\n" * 90],
    ids=["none", "one of 9,000 bytes", "one of 60,000 bytes", "90"],
)
def test_a_proxys_tunnel_leads_to_the_api_and_its_certificate_is_checked(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, authority: Authority, headers: bytes
) -> None:
    with tls_server(authority) as (server, requests), tunnelling_proxy(server, headers) as proxy:
        set_proxy(monkeypatch, "HTTPS_PROXY", proxy.url.replace("//", "//user:pass-word@"))
        connect(monkeypatch, "https://bücher.example", verify=str(authority.certificate))
        assert client("generate", "a fox") == TASK
        assert f"Authorization: Bearer {KEY}".encode() in requests[0]
        assert proxy.requests[0].startswith(b"CONNECT xn--bcher-kva.example:443 ")
        assert b"Proxy-Authorization: Basic " in proxy.requests[0]
        assert KEY.encode() not in proxy.requests[0]


def test_a_certificate_that_is_not_trusted_is_no_fault_of_the_proxy(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    with tls_server(authority) as (server, requests), tunnelling_proxy(server) as proxy:
        set_proxy(monkeypatch, "HTTPS_PROXY", proxy.url)
        connect(monkeypatch, "https://bücher.example")
        with pytest.raises(QwenImageConnectionError, match="TLS certificate is not trusted"):
            client("generate", "a fox")
        assert not requests


def test_a_server_that_does_not_end_tls_is_not_waited_for(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    context = server_context(authority)
    ended_first: list[bool] = []

    def answer_and_stay(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            read_request(secure)
            secure.sendall(answer())
            ended_first.append(server.released.wait(20))

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always", ResourceWarning)
        with RawServer(answer_and_stay, at_once=True) as server:
            connect(monkeypatch, f"https://127.0.0.1:{server.port}", verify=str(authority.certificate))
            assert client("generate", "a fox") == TASK
        gc.collect()
    assert ended_first == [True]
    assert [str(warning.message) for warning in shown if "unclosed" in str(warning.message)] == []


def carry(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
