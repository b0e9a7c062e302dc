"""Connection, key, TLS and proxy, against real servers."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from airflow_provider_qwenimage.cli.doctor.api_checks import ApiChecks
from airflow_provider_qwenimage.cli.doctor.findings import Check, run_check
from airflow_provider_qwenimage.cli.metadata_database import with_database
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.airflows import AIRFLOW
from tests.contract.test_odd_answers import KEY, set_proxy
from tests.contract.test_tls import Authority, authority, tls_server, tunnelling_proxy  # noqa: F401  a fixture
from tests.doctor.running import CONN

NAMES = ("connection", "key", "tls", "proxy")


def checked(
    monkeypatch: pytest.MonkeyPatch, connection: str | None, conn_id: str = "qwenimage_default"
) -> dict[str, Check]:
    if connection is not None:
        monkeypatch.setenv(CONN, connection)
    api = ApiChecks(conn_id)
    checks = {name: run_check(name, getattr(api, name), without_key=api.without_key) for name in NAMES}
    for check in checks.values():
        assert check.message.isprintable()
        assert KEY not in check.message
    return checks


def as_json(**fields: Any) -> str:
    return json.dumps({"conn_type": "qwenimage", "password": KEY, **fields})


def states(checks: dict[str, Check]) -> list[str]:
    return [checks[name].state for name in NAMES]


def test_a_connection_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(api_keys=[KEY]) as sandbox:
        checks = checked(monkeypatch, sandbox.connection_json)
        assert sandbox.credits_charged == 0
    assert states(checks) == ["ok", "ok", "skipped", "ok"]
    assert "did not refuse the key" in checks["key"].message


# Airflow 3.0 and 3.1 refuse such an extra themselves.
BAD_EXTRA = "Airflow cannot read it" if (3, 0) <= AIRFLOW < (3, 2) else "extra that is not a JSON object"


@pytest.mark.parametrize(
    ("connection", "problem"),
    [
        (as_json(extra="{not json"), BAD_EXTRA),
        (as_json(extra='["timeout_seconds"]'), BAD_EXTRA),
        (as_json(extra={"verify": 3}), "verify = 3"),
        (as_json(host="ht!tp://%%%"), "do not form a URL"),
        (as_json(host="https://\ud800.example"), "do not form a URL|could not look up"),
        (as_json(host="https://someone@example.com"), "a user or a key inside its host"),
        (as_json(password=f"{KEY}\x00"), "cannot be an API key"),
        (as_json(password=""), "has no API key"),
        ("qwenimage://:a#b@", "Airflow cannot read it|has no API key|host"),
        ("{", "cannot read it"),
    ],
)
def test_a_strangers_connection_is_one_clear_line(
    connection: str, problem: str, monkeypatch: pytest.MonkeyPatch, airflow_database: None
) -> None:
    checks = checked(monkeypatch, connection)
    assert states(checks) == ["failed", "skipped", "skipped", "skipped"]
    assert re.search(problem, checks["connection"].message)


@pytest.mark.parametrize("conn_id", ["missing", "", "a\0b", "\ud800", "x" * 10_000, "{{ conn }}"])
def test_a_connection_that_does_not_exist(
    conn_id: str, monkeypatch: pytest.MonkeyPatch, airflow_database: None
) -> None:
    checks = checked(monkeypatch, None, conn_id)
    assert states(checks) == ["failed", "skipped", "skipped", "skipped"]


def test_a_connection_in_the_metadata_database_is_found(
    monkeypatch: pytest.MonkeyPatch, airflow_database: None
) -> None:
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session

    monkeypatch.delenv(CONN, raising=False)
    with create_session() as session:
        session.add(Connection(conn_id="of_doctor", conn_type="http", host="http://127.0.0.1:1", password=KEY))
    try:
        with with_database():
            checks = checked(monkeypatch, None, "of_doctor")
    finally:
        with create_session() as session:
            session.query(Connection).filter(Connection.conn_id == "of_doctor").delete()
    assert states(checks) == ["warning", "failed", "skipped", "ok"]
    assert "type 'http'" in checks["connection"].message
    assert "nothing listens on that port" in checks["key"].message


@pytest.mark.parametrize(
    ("behaviour", "problem"),
    [
        ("unauthorized", "refused the key (code 401)"),
        ("html", "is not the Qwen-Image API, or a proxy"),
        ("rate_limit", "accepts no more requests for now"),
        ("redirect", "it redirects to"),
        ("drop", "closed before the response was complete"),
    ],
)
def test_a_key_that_is_refused_or_an_api_that_fails(
    behaviour: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sandbox(api_keys=[KEY]) as sandbox:
        sandbox.script("status", (behaviour, 3))
        checks = checked(monkeypatch, sandbox.connection_json)
    assert states(checks) == ["ok", "failed", "skipped", "ok"]
    assert problem in checks["key"].message


def test_an_unknown_key_in_the_extra_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = checked(monkeypatch, as_json(host="http://127.0.0.1:1", extra={"timeout_second": 3}))
    assert checks["connection"].state == "warning"
    assert "did you mean 'timeout_seconds'" in checks["connection"].message


def test_a_certificate_of_an_unknown_authority(monkeypatch: pytest.MonkeyPatch, authority: Authority) -> None:  # noqa: F811
    with tls_server(authority) as (server, _):
        url = server.url.replace("http:", "https:")
        unknown = checked(monkeypatch, as_json(host=url))["tls"]
        known = checked(monkeypatch, as_json(host=url, extra={"verify": str(authority.certificate)}))["tls"]
        unchecked = checked(monkeypatch, as_json(host=url, extra={"verify": False}))["tls"]
    assert (unknown.state, "certificate is not trusted" in unknown.message) == ("failed", True)
    # That of the tests is valid for a day.
    assert (known.state, "expires in 1 days" in known.message) == ("warning", True)
    assert (unchecked.state, "another server could read the API key" in unchecked.message) == ("warning", True)


def test_tls_through_a_proxy(monkeypatch: pytest.MonkeyPatch, authority: Authority) -> None:  # noqa: F811
    extra = {"verify": str(authority.certificate)}
    with tls_server(authority) as (server, _), tunnelling_proxy(server) as proxy:
        set_proxy(monkeypatch, "HTTPS_PROXY", proxy.url.replace("//", "//user:pass-word@"))
        checks = checked(monkeypatch, as_json(host="https://bücher.example", extra=extra))
        assert all(request.startswith(b"CONNECT xn--bcher-kva.example:443 ") for request in proxy.requests)
        assert all(b"Proxy-Authorization: Basic " in request for request in proxy.requests)
    assert (checks["tls"].state, "expires in 1 days" in checks["tls"].message) == ("warning", True)
    assert (
        f"http://127.0.0.1:{proxy.port} with credentials is used for xn--bcher-kva.example, by HTTPS_PROXY"
        in checks["proxy"].message
    )
    assert not [check for check in checks.values() if "pass-word" in check.message]


def test_a_proxy_that_does_not_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    set_proxy(monkeypatch, "https_proxy", "http://127.0.0.1:1")
    checks = checked(monkeypatch, as_json(host="https://example.com"))
    assert (checks["tls"].state, "the proxy of this machine" in checks["tls"].message) == ("failed", True)


@pytest.mark.parametrize(
    ("proxy", "state", "problem"),
    [
        ("socks5://user:pass-word@127.0.0.1:1", "warning", "SOCKS proxy, which triggers and batches cannot use"),
        ("http://[", "failed", "does not contain the URL of a proxy"),
        ("http://token@proxy.example:3128", "ok", "http://proxy.example:3128 with credentials is used"),
    ],
)
def test_the_proxy_is_shown_without_credentials(
    proxy: str, state: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_proxy(monkeypatch, "HTTP_PROXY", proxy)
    monkeypatch.setenv(CONN, as_json(host="http://api.example"))
    api = ApiChecks("qwenimage_default")
    run_check("connection", api.connection)
    check = run_check("proxy", api.proxy)
    assert (check.state, problem in check.message) == (state, True), check.message
    assert "pass-word" not in check.message
    assert "token" not in check.message


def test_http_to_another_machine_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONN, as_json(host="http://api.example"))
    api = ApiChecks("qwenimage_default")
    run_check("connection", api.connection)
    check = run_check("tls", api.tls)
    assert (check.state, "sends the API key unencrypted" in check.message) == ("warning", True)
