"""The fields of an Airflow connection, and the one clear error if it cannot be used."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import Connection

from airflow_provider_qwenimage.client.connection import TEST_TASK_ID, ConnectionSettings, read_connection
from airflow_provider_qwenimage.client.diagnosis import explain, judge_connection
from airflow_provider_qwenimage.contract import TaskSnapshot
from airflow_provider_qwenimage.exceptions import QwenImageConnectionError, QwenImageError
from airflow_provider_qwenimage.hooks import QwenImageAsyncHook, QwenImageHook
from airflow_provider_qwenimage.rules.answers import HttpAnswer, parse_status
from airflow_provider_qwenimage.rules.budgets import BooksOptions, Budgets
from tests.ports import free_ports

KEY = "sk-test-0123456789"


def settings(**fields: Any) -> ConnectionSettings:
    extra = fields.pop("extra", None)
    if isinstance(extra, dict):
        extra = json.dumps(extra)
    return read_connection(
        Connection(**{"conn_id": "my_qwen", "conn_type": "qwenimage", "extra": extra, "password": KEY} | fields)
    )


def test_a_key_alone_reaches_the_public_service() -> None:
    assert settings() == ConnectionSettings(base_url="https://qwen-image-2512.org", api_key=KEY)


@pytest.mark.parametrize(
    ("fields", "base_url"),
    [
        ({"host": "https://proxy.example/"}, "https://proxy.example"),
        ({"host": " https://proxy.example/qwen/ "}, "https://proxy.example/qwen"),
        ({"host": "http://127.0.0.1:8512"}, "http://127.0.0.1:8512"),
        ({"host": "http://127.0.0.1", "port": 8512}, "http://127.0.0.1:8512"),
        ({"host": "proxy.example"}, "https://proxy.example"),
        ({"host": "localhost", "schema": "http", "port": 8512}, "http://localhost:8512"),
        ({"host": "localhost:8512", "schema": "HTTP"}, "http://localhost:8512"),
        ({"host": "http://[::1]:8512"}, "http://[::1]:8512"),
        ({"host": ""}, "https://qwen-image-2512.org"),
        ({"port": 443}, "https://qwen-image-2512.org"),
        ({"host": "http://127.0.0.1", "port": 0}, "http://127.0.0.1"),
        ({"host": "https://proxy.example/qwen", "port": 443}, "https://proxy.example/qwen"),
        ({"host": "http://127.0.0.1:8512", "port": 443}, "http://127.0.0.1:8512"),
        ({"host": "http://proxy.example:80"}, "http://proxy.example"),
        ({"host": "https://proxy.example", "port": 80}, "https://proxy.example:80"),
        ({"host": "HTTPS://Proxy.Example:443/Qwen"}, "https://proxy.example/Qwen"),
        ({"host": "http://bücher.example"}, "http://xn--bcher-kva.example"),
        ({"host": "straße.example"}, "https://xn--strae-oqa.example"),
        ({"host": "xn--bcher-kva.example"}, "https://xn--bcher-kva.example"),
        ({"host": "http://[0:0:0:0:0:0:0:1]:8512"}, "http://[::1]:8512"),
        ({"host": "[::1]", "schema": "http", "port": 8512}, "http://[::1]:8512"),
        ({"host": "::1", "schema": "http", "port": 8512}, "http://[::1]:8512"),
        ({"host": "[2001:DB8::A]:8512"}, "https://[2001:db8::a]:8512"),
        ({"host": "my_proxy.internal"}, "https://my_proxy.internal"),
        ({"host": "proxy.example."}, "https://proxy.example."),
    ],
)
def test_the_host_is_a_full_url_or_host_schema_and_port(fields: dict[str, Any], base_url: str) -> None:
    assert settings(**fields).base_url == base_url


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "ftp://proxy.example"},
        {"host": "https://"},
        {"host": "proxy example"},
        {"host": "https://proxy.example?x=1"},
        {"host": "http://proxy.example:99999"},
        {"host": "proxy.example", "schema": "gopher"},
        {"host": "http://[::1"},
        {"host": "http://proxy..example"},
        {"host": f"http://{'a' * 64}.example"},
        {"port": 8512},
        {"host": "localhost", "port": 65536},
        {"host": "http://localhost", "port": -1},
        {"host": "1" * 5000},
        {"host": f"https://proxy.example/{'x' * 2000}"},
        {"host": "localhost", "schema": "s" * 5000},
    ],
)
def test_a_host_that_makes_no_url_is_named(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"'my_qwen' has host .*which do not form a URL; the host must be") as caught:
        settings(**fields)
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize(
    "host",
    [
        f"https://user:{KEY}@proxy.example",
        f"{KEY}@proxy.example",
        f"https://{KEY}@proxy.example:99999",
        f"https://:{KEY}@[bad",
        f"ftp://:{KEY}@proxy example",
        f"https:/{KEY}@proxy.example",
        f"https//user:{KEY}@proxy.example",
        f"https:///user:{KEY}@proxy.example",
        f"https:\\\\user:{KEY}@proxy.example",
        f"HTTPS:user:{KEY}@proxy.example",
        f"//{KEY}@proxy.example",
    ],
)
def test_a_key_inside_the_host_is_refused_without_being_shown(host: str) -> None:
    with pytest.raises(ValueError, match="inside its host") as caught:
        settings(host=host)
    assert KEY not in str(caught.value)


def test_the_path_of_a_host_may_contain_an_at_sign() -> None:
    assert settings(host="https://proxy.example/@team/a@b").base_url == "https://proxy.example/@team/a@b"
    assert settings(host="proxy.example/@team").base_url == "https://proxy.example/@team"


@pytest.mark.parametrize(
    "fields",
    [
        {"host": f"{KEY} x"},
        {"host": f"{KEY}:port"},
        {"host": "proxy.example", "schema": KEY},
        {"extra": json.dumps({"timeout_seconds": KEY})},
        {"extra": json.dumps({"max_requests_per_second": [KEY]})},
        {"extra": json.dumps({"verify": {"path": KEY}})},
    ],
    ids=str,
)
def test_a_key_that_was_put_into_another_field_as_well_is_not_shown(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"'my_qwen' has .*\*\*\*") as caught:
        settings(**{"host": "proxy example"} | fields if "extra" not in fields else fields)
    assert KEY not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_key_among_the_names_of_the_extra_is_not_shown() -> None:
    ignored = settings(extra=json.dumps({f"{'a' * 45}{KEY}": 1})).ignored
    assert "have no effect" in ignored
    assert KEY[:5] not in ignored


def test_a_query_of_the_host_is_not_shown() -> None:
    with pytest.raises(ValueError, match="do not form a URL") as caught:
        settings(host=f"https://proxy.example/?key={KEY}")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("password", [None, "", "  \n"])
def test_the_error_for_a_missing_key_names_the_field_for_it(password: str | None) -> None:
    with pytest.raises(ValueError, match=r"'my_qwen' has no API key.*password"):
        settings(password=password)


def test_white_space_around_a_pasted_key_does_not_count() -> None:
    assert settings(password=f" {KEY}\n").api_key == KEY


@pytest.mark.parametrize("password", ["sk-one two", "sk-\x00zero", "sk-schlüssel", "sk-a\r\nX-Evil: 1"])
def test_a_password_that_cannot_be_a_key_is_refused_without_being_shown(password: str) -> None:
    with pytest.raises(ValueError, match="cannot be an API key") as caught:
        settings(password=password)
    assert password not in str(caught.value)


def test_extra_is_read() -> None:
    extra = {"timeout_seconds": 5, "max_requests_per_second": 2.5, "verify": "/etc/ca.pem"}
    found = settings(extra=extra)
    assert (found.timeout_seconds, found.max_requests_per_second, found.verify) == (5.0, 2.5, "/etc/ca.pem")


def test_the_uri_form_makes_strings_of_extra_and_they_are_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"qwenimage://:{KEY}@localhost:8512/http?timeout_seconds=5&verify=false&max_requests_per_second=3"
    monkeypatch.setenv("AIRFLOW_CONN_MY_QWEN", uri)
    assert QwenImageHook("my_qwen").settings == ConnectionSettings(
        base_url="http://localhost:8512",
        api_key=KEY,
        timeout_seconds=5.0,
        max_requests_per_second=3.0,
        verify=False,
    )


def test_the_uri_form_takes_a_full_url_for_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MY_QWEN", f"qwenimage://:{KEY}@https%3A%2F%2Fproxy.example%2Fqwen")
    assert QwenImageHook("my_qwen").settings.base_url == "https://proxy.example/qwen"


def test_empty_form_fields_mean_the_defaults() -> None:
    extra = {"timeout_seconds": None, "max_requests_per_second": "", "verify": None}
    assert settings(extra=extra) == settings()


@pytest.mark.parametrize(
    ("extra", "per_day", "per_month"),
    [
        ({"credits_per_day": "10", "credits_per_month": ""}, 10.0, None),
        ({"credits_per_day": None, "credits_per_month": " 2.5e2 "}, None, 250.0),
        ({"credits_per_day": "", "credits_per_month": ""}, None, None),
        ({}, None, None),
    ],
)
def test_books_and_budgets_are_read_from_what_the_form_sends(
    extra: dict[str, Any], per_day: float | None, per_month: float | None
) -> None:
    found = settings(extra={"books_conn_id": " books "} | extra).books
    assert found == BooksOptions("books", Budgets(per_day, per_month))


@pytest.mark.parametrize("conn_id", [None, "", "  "])
def test_without_the_id_of_their_connection_there_are_no_books_and_a_budget_is_refused(conn_id: str | None) -> None:
    form = {"books_conn_id": conn_id, "credits_per_day": "", "credits_per_month": None}
    assert settings(extra=form) == settings()
    for name in ("credits_per_day", "credits_per_month"):
        with pytest.raises(ValueError, match=rf"'my_qwen' has {name} in its extra, but no books_conn_id; .*it must"):
            settings(extra=form | {name: "10"})


def test_books_and_budgets_are_read_from_the_uri_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MY_QWEN", f"qwenimage://:{KEY}@?books_conn_id=books&credits_per_day=100")
    assert QwenImageHook("my_qwen").settings.books == BooksOptions("books", Budgets(per_day=100.0))


@pytest.mark.parametrize("extra", ["{", "[]", '"text"', "5", "[" * 100_000])
def test_an_extra_that_is_not_a_json_object_is_refused(extra: str) -> None:
    with pytest.raises(ValueError, match=r"'my_qwen' has an extra that is not a JSON object; it must be"):
        read_connection(_RawConnection(extra))


class _RawConnection:
    """A connection with an extra that Airflow 2 refuses, but that its database may contain."""

    conn_id, host, schema, password, port = "my_qwen", None, None, KEY, None

    def __init__(self, extra: str) -> None:
        self.extra = extra


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout_seconds", 0),
        ("timeout_seconds", "soon"),
        ("timeout_seconds", True),
        ("timeout_seconds", float("inf")),
        ("timeout_seconds", 1e300),
        ("timeout_seconds", "1e10"),
        ("timeout_seconds", 1e-300),
        ("max_requests_per_second", -1),
        ("max_requests_per_second", 1e-300),
        ("max_requests_per_second", [1]),
        ("verify", 5),
        ("verify", ["a"]),
        ("books_conn_id", 5),
        ("books_conn_id", "a\nb"),
        ("books_conn_id", "x" * 251),
        ("credits_per_day", 0),
        ("credits_per_day", "ten"),
        ("credits_per_day", True),
        ("credits_per_month", float("nan")),
        ("credits_per_month", float("inf")),
    ],
)
def test_a_bad_extra_value_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"'my_qwen' has {name} = .*it must be"):
        settings(extra={name: value})


@pytest.mark.parametrize("value", ["5", " 5 ", 5, 5.0, "5e0"])
def test_numbers_in_extra_may_be_texts(value: object) -> None:
    assert settings(extra={"timeout_seconds": value}).timeout_seconds == 5.0


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("max_request_per_second", "max_requests_per_second"),
        ("max-requests-per-second", "max_requests_per_second"),
        ("maxRequestsPerSecond", "max_requests_per_second"),
        ("Timeout_Seconds", "timeout_seconds"),
        ("timeout_second", "timeout_seconds"),
        ("timeout", "timeout_seconds"),
        ("verfy", "verify"),
        ("credits_per_dya", "credits_per_day"),
        ("credits_per_months", "credits_per_month"),
        ("extra__qwenimage__books_conn_id", "books_conn_id"),
        ("extra__qwenimage__max_requests_per_second", "max_requests_per_second"),
        ("extra__qwenimage__verify", "verify"),
    ],
)
def test_a_misspelt_key_of_the_extra_is_warned_of_with_the_one_that_was_meant(
    key: str, meant: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = settings(conn_id=f"typo_{key}", extra={key: "its-value", "verify": False})
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"'typo_{key}'" in warning
    assert f"{key!r} (did you mean {meant!r}?)" in warning
    assert "its-value" not in warning
    assert found.verify is False


def test_an_unknown_key_of_the_extra_is_warned_of_once_in_a_process(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        settings(conn_id="once", extra={"credits_per_week": 10})
    settings(conn_id="another", extra={"credits_per_week": 10})
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    assert all("'credits_per_week'" in warning and "Known keys are timeout_seconds" in warning for warning in warnings)


@pytest.mark.parametrize("extra", [{"extra__qwenimage__verify": ""}, {"timeout_seconds": 3}, {}, None])
def test_known_keys_and_those_of_an_old_form_are_not_warned_of(extra: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings(conn_id="quiet", extra=extra)
    assert caplog.records == []


@pytest.mark.parametrize(
    "extra",
    [
        {KEY: 1},
        {"x" * 100_000: 1},
        {f"key{number}": 1 for number in range(10_000)},
        {"\x1b[2J\nverify\ud83d": 1},
    ],
)
def test_a_warning_of_unknown_keys_is_short_printable_and_without_the_key(
    extra: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    settings(conn_id="odd", extra=extra)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.isprintable()
    assert len(warning) < 600
    assert KEY not in warning


def test_a_bad_extra_value_is_shown_short() -> None:
    with pytest.raises(ValueError, match="timeout_seconds") as caught:
        settings(extra={"timeout_seconds": "9" * 100_000 + "x"})
    assert len(str(caught.value)) < 500


def test_the_connection_test_reports_unknown_keys() -> None:
    found = settings(conn_id="tested", extra={"max_request_per_second": 1})
    works, story = judge_connection(rejected(404), found)
    assert works
    assert "did you mean 'max_requests_per_second'?" in story


def test_an_argument_takes_precedence_over_the_connections_timeout_and_the_default_does_not() -> None:
    connection = Connection(conn_id="c", conn_type="qwenimage", password=KEY, extra='{"timeout_seconds": 7}')
    assert read_connection(connection).timeout_seconds == 7.0
    assert read_connection(connection, timeout_seconds=3.0).timeout_seconds == 3.0
    assert read_connection(connection, timeout_seconds=30.0).timeout_seconds == 30.0
    with pytest.raises(ValueError, match="timeout_seconds is -1"):
        read_connection(connection, timeout_seconds=-1)


@pytest.mark.parametrize(("arguments", "seconds"), [({}, 7.0), ({"timeout_seconds": 30.0}, 30.0)])
def test_both_hooks_use_a_timeout_that_is_passed_even_if_it_is_the_default(
    arguments: dict[str, float], seconds: float
) -> None:
    connection = Connection(conn_id="c", conn_type="qwenimage", password=KEY, extra='{"timeout_seconds": 7}')
    assert QwenImageHook(connection=connection, **arguments).settings.timeout_seconds == seconds
    settings = asyncio.run(QwenImageAsyncHook(connection=connection, **arguments).get_settings())
    assert settings.timeout_seconds == seconds


def test_the_key_does_not_show() -> None:
    assert KEY not in repr(settings())


def answered(status: int, body: object, **headers: str) -> TaskSnapshot | QwenImageError:
    """Return the snapshot or error made from an answer of the API or of another server."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        return parse_status(HttpAnswer(status, named, content), TEST_TASK_ID)
    except QwenImageError as error:
        return error


def rejected(code: int) -> TaskSnapshot | QwenImageError:
    return answered(code, {"code": code, "message": "No. Not at all."})


@pytest.mark.parametrize(
    ("outcome", "works", "story"),
    [
        (rejected(404), True, "Connection works: https://api.example answered and did not refuse the key"),
        (TaskSnapshot(task_id=TEST_TASK_ID, status="SUCCESS"), True, "Connection works"),
        (
            rejected(401),
            False,
            "https://api.example refused the key (code 401): put a valid one into the API key field",
        ),
        (answered(403, b"<html>"), False, "refused the key, but without the API's JSON (code 403): check the API key"),
        (answered(404, b"a page"), False, "is not the Qwen-Image API (code 404 without the API's JSON): correct"),
        (answered(200, b"a page"), False, "is not the Qwen-Image API (its answer is not the API's JSON): correct"),
        (
            answered(301, b"", location="https://www.api.example/a.b"),
            False,
            "is not the Qwen-Image API (it redirects to https://www.api.example/a.b): correct the base URL",
        ),
        (
            answered(502, b"<html>"),
            False,
            "not the Qwen-Image API, or a proxy in front of it failed (code 502 without the API's JSON)",
        ),
        (
            rejected(500),
            False,
            "https://api.example was reached, but the API failed (code 500): test again later",
        ),
        (rejected(429), False, "accepts no more requests for now (code 429): test again in a minute"),
        (
            answered(429, b"slow", retry_after="7"),
            False,
            "accepts no more requests for now (code 429): test again in 7 s",
        ),
        (rejected(402), False, "no credits left (code 402): buy credits"),
        (rejected(400), False, "rejected the test request (code 400), so the key could not be checked: run"),
        (QwenImageConnectionError("cut off"), False, "Cannot reach https://api.example: the response was incomplete"),
    ],
)
def test_a_connection_test_reports_each_outcome_in_one_sentence(
    outcome: TaskSnapshot | QwenImageError, works: bool, story: str
) -> None:
    result, message = judge_connection(outcome, settings(host="https://api.example"))
    assert result is works
    assert story in message
    assert_one_sentence(message)


def assert_one_sentence(message: str) -> None:
    assert message.endswith(".")
    assert ". " not in message
    assert "\n" not in message


def test_a_connection_test_does_not_show_a_key_that_it_was_sent() -> None:
    redirect = answered(302, b"", location=f"https://login.example/?key={KEY}")
    assert KEY not in judge_connection(redirect, settings())[1]


@pytest.mark.parametrize(
    ("cause", "story"),
    [
        (ConnectionRefusedError(111, "refused"), "nothing listens on that port"),
        (socket.gaierror(-2, "Name or service not known"), "the host name api.example could not be resolved"),
        (TimeoutError("timed out"), "no complete response within 14 s"),
        (ssl.SSLCertVerificationError(1, "self-signed"), "its TLS certificate is not trusted"),
        (ssl.SSLError(1, "wrong version number"), "the TLS handshake failed"),
        (OSError(101, "Network is unreachable"), "the response was incomplete (Network is unreachable)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, OSError) else None,
)
@pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "bare"])
def test_an_api_that_is_not_reached_is_named_with_the_reason(cause: OSError, story: str, wrapped: bool) -> None:
    error: BaseException = cause
    if wrapped:
        error = RuntimeError("what a library makes of it")
        error.__context__ = cause
    found = settings(host="https://api.example", extra={"timeout_seconds": 7})
    lost = QwenImageConnectionError("no answer")
    lost.reason = explain(error, found, found.seconds_for_a_call)
    works, message = judge_connection(lost, found)
    assert not works
    assert f"Cannot reach https://api.example: {story}" in message
    assert_one_sentence(message)


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that returns the message of a connection test, the same from either client."""

    async def ask() -> tuple[bool, str]:
        async with QwenImageAsyncHook("my_qwen") as hook:
            return await hook.test_connection()

    def test(**fields: Any) -> str:
        monkeypatch.setenv("AIRFLOW_CONN_MY_QWEN", json.dumps({"conn_type": "qwenimage", "password": KEY} | fields))
        with QwenImageHook("my_qwen") as hook:
            works, message = hook.test_connection()
        assert (works, message) == asyncio.run(ask())
        assert not works
        assert_one_sentence(message)
        assert KEY not in message
        return message

    return test


@pytest.mark.parametrize(
    ("fields", "story"),
    [
        ({"password": ""}, "The connection has no API key: put it"),
        ({"password": "sk-one two"}, "The connection has a password that cannot be an API key"),
        ({"host": "ftp://proxy.example"}, "The connection has host 'ftp://proxy.example'"),
        ({"host": f"https://:{KEY}@proxy.example"}, "The connection has a user or a key inside its host"),
        ({"extra": {"timeout_seconds": 0}}, "The connection has timeout_seconds = 0"),
        ({"extra": {"verify": "/no/such/file.pem"}}, "The connection has verify = '/no/such/file.pem'"),
    ],
)
def test_a_test_of_an_unusable_connection_explains_why_without_the_temporary_id_of_the_test_button(
    tested: Callable[..., str], fields: dict[str, Any], story: str
) -> None:
    message = tested(**fields)
    assert message.startswith(story)
    assert "my_qwen" not in message


def test_a_connection_test_names_a_port_on_which_nothing_listens(tested: Callable[..., str]) -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    assert tested(host=url).startswith(f"Cannot reach {url}: nothing listens on that port")


def test_a_connection_test_names_an_unknown_host(tested: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    message = tested(host="https://no-such-host.invalid")
    assert "the host name no-such-host.invalid could not be resolved" in message


def test_a_connection_test_names_a_proxy_that_cannot_be_reached(
    tested: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    proxy = f"http://127.0.0.1:{port}"
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, proxy)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert tested(host="http://api.example").startswith("Cannot reach http://api.example: the proxy of this machine")


@pytest.mark.parametrize(
    "value",
    [
        json.dumps(
            {"conn_type": "qwenimage", "host": "http://localhost:8512", "password": KEY, "extra": {"verify": False}}
        ),
        f"qwenimage://:{KEY}@localhost:8512/http?verify=false",
    ],
)
def test_both_forms_of_an_environment_variable_make_the_same_connection(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MY_QWEN", value)
    assert QwenImageHook("my_qwen").settings == ConnectionSettings(
        base_url="http://localhost:8512", api_key=KEY, verify=False
    )
