"""What an Airflow connection may look like, and the one clear error where it cannot be used."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import Connection

from airflow_provider_qwenimage.connection import ConnectionSettings, judge_connection, read_connection
from airflow_provider_qwenimage.contract import TaskSnapshot
from airflow_provider_qwenimage.exceptions import (
    QwenImageAuthError,
    QwenImageConnectionError,
    QwenImageContractError,
    QwenImageError,
    QwenImageNotFoundError,
    QwenImageServerError,
)
from airflow_provider_qwenimage.hooks import QwenImageHook

KEY = "sk-test-0123456789"


def settings(**fields: Any) -> ConnectionSettings:
    extra = fields.pop("extra", None)
    if isinstance(extra, dict):
        extra = json.dumps(extra)
    return read_connection(
        Connection(conn_id="my_qwen", conn_type="qwenimage", extra=extra, **{"password": KEY} | fields)
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
        {"port": 8512},
    ],
)
def test_a_host_that_makes_no_url_is_named(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"'my_qwen' has host .*which make no URL; allowed is"):
        settings(**fields)


def test_a_key_inside_the_host_is_refused_without_being_shown() -> None:
    with pytest.raises(ValueError, match="inside its host") as caught:
        settings(host=f"https://user:{KEY}@proxy.example")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("password", [None, "", "  \n"])
def test_a_missing_key_says_where_it_goes(password: str | None) -> None:
    with pytest.raises(ValueError, match=r"'my_qwen' has no API key.*password"):
        settings(password=password)


def test_white_space_around_a_pasted_key_does_not_count() -> None:
    assert settings(password=f" {KEY}\n").api_key == KEY


@pytest.mark.parametrize("password", ["sk-one two", "sk-\x00zero", "sk-schlüssel", "sk-a\r\nX-Evil: 1"])
def test_what_cannot_be_a_key_is_refused_without_being_shown(password: str) -> None:
    with pytest.raises(ValueError, match="cannot be an API key") as caught:
        settings(password=password)
    assert password not in str(caught.value)


def test_extra_is_read() -> None:
    extra = {"timeout_seconds": 5, "max_requests_per_second": 2.5, "verify": "/etc/ca.pem"}
    found = settings(extra=extra)
    assert (found.timeout_seconds, found.max_requests_per_second, found.verify) == (5.0, 2.5, "/etc/ca.pem")


def test_the_uri_form_makes_strings_of_extra_and_they_are_read_too() -> None:
    uri = f"qwenimage://:{KEY}@localhost:8512/http?timeout_seconds=5&verify=false&max_requests_per_second=3"
    found = read_connection(Connection(conn_id="my_qwen", uri=uri))
    assert found == ConnectionSettings(
        base_url="http://localhost:8512",
        api_key=KEY,
        timeout_seconds=5.0,
        max_requests_per_second=3.0,
        verify=False,
    )


def test_the_uri_form_takes_a_full_url_for_a_host() -> None:
    uri = f"qwenimage://:{KEY}@https%3A%2F%2Fproxy.example%2Fqwen"
    assert read_connection(Connection(conn_id="my_qwen", uri=uri)).base_url == "https://proxy.example/qwen"


def test_empty_form_fields_mean_the_defaults() -> None:
    extra = {"timeout_seconds": None, "max_requests_per_second": "", "verify": None}
    assert settings(extra=extra) == settings()


@pytest.mark.parametrize("extra", ["{", "[]", '"text"', "5", "[" * 100_000])
def test_an_extra_that_is_no_json_object_is_refused(extra: str) -> None:
    with pytest.raises(ValueError, match=r"'my_qwen' has an extra that is not a JSON object; allowed is"):
        read_connection(_RawConnection(extra))


class _RawConnection:
    """Airflow 2 refuses some of these extras itself, but they may stand in its database."""

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
        ("max_requests_per_second", -1),
        ("max_requests_per_second", [1]),
        ("verify", 5),
        ("verify", ["a"]),
    ],
)
def test_a_bad_extra_value_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"'my_qwen' has {name} = .*allowed are"):
        settings(extra={name: value})


def test_an_explicit_timeout_goes_before_the_connections_and_the_default_after_it() -> None:
    connection = Connection(conn_id="c", conn_type="qwenimage", password=KEY, extra='{"timeout_seconds": 7}')
    assert read_connection(connection).timeout_seconds == 7.0
    assert read_connection(connection, timeout_seconds=3.0).timeout_seconds == 3.0
    with pytest.raises(ValueError, match="timeout_seconds is -1"):
        read_connection(connection, timeout_seconds=-1)


def test_the_key_does_not_show() -> None:
    assert KEY not in repr(settings())


@pytest.mark.parametrize(
    ("outcome", "works", "story"),
    [
        (QwenImageNotFoundError("no such task", code=404, from_api=True), True, "works"),
        (TaskSnapshot(task_id="connection-test", status="SUCCESS"), True, "works"),
        (QwenImageAuthError("bad key", code=401, from_api=True), False, "refused the key"),
        (QwenImageConnectionError("refused"), False, "Cannot reach"),
        (QwenImageNotFoundError("a page", code=404, from_api=False), False, "not the Qwen-Image API"),
        (QwenImageContractError("a page"), False, "not the Qwen-Image API"),
        (QwenImageServerError("oops", code=500, from_api=True), False, "in trouble"),
        (ValueError("Connection 'c' has no API key"), False, "no API key"),
    ],
)
def test_a_connection_test_tells_its_outcomes_apart(
    outcome: TaskSnapshot | QwenImageError | ValueError, works: bool, story: str
) -> None:
    result, message = judge_connection(outcome)
    assert result is works
    assert story in message


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
