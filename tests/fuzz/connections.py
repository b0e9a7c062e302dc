"""Connections of any form: they give settings that both HTTP libraries accept, or one short error."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from airflow_provider_qwenimage.client.connection import ConnectionSettings, read_connection
from airflow_provider_qwenimage.client.diagnosis import judge_connection
from airflow_provider_qwenimage.exceptions import QwenImageConnectionError, QwenImageContractError
from tests.fuzz.junk import KEY, json_values, texts
from tests.fuzz.storable import check_message, check_text

_MOST_CHARACTERS = 3000
_HOSTS = st.one_of(
    st.none(),
    texts(),
    st.sampled_from(
        (
            "qwen-image-2512.org",
            "https://qwen-image-2512.org/",
            "http://bücher.example",
            "http://[0:0:0:0:0:0:0:1]:8512",
            "[::1]",
            "::1",
            "http://[fe80::1%25eth0]:80",
            "HTTPS://Example.ORG.:443/base//",
            "http://a:99999",
            "http://a:b",
            "http://user:pw@a",
            "http://a?x=1#y",
            "http://a\\b",
            "http://a_b.example",
            "http://" + "a" * 300 + ".example",
            "http://1.2.3.4.5",
            "http://127.1",
            "//host",
            "ftp://a",
            "http:///x",
            "http://a b",
            "http://\u212a.example",
        )
    ),
    st.builds(
        lambda scheme, name, rest: f"{scheme}://{name}{rest}", st.sampled_from(("http", "https")), texts(), texts()
    ),
)
_EXTRAS = st.one_of(
    st.none(),
    texts(),
    json_values().map(json.dumps),
    st.dictionaries(
        st.sampled_from(("timeout_seconds", "max_requests_per_second", "verify", "max_request_per_second", "Timeout")),
        json_values(),
    ).map(json.dumps),
)
_PASSWORDS = st.one_of(
    st.none(), st.just(KEY), st.just(f" {KEY}\n"), st.just(f"{KEY}\u00e9"), st.just(f"{KEY} {KEY}"), texts()
)


@dataclass
class Connection:
    """The fields of an Airflow connection."""

    conn_id: str
    host: str | None
    schema: str | None
    port: Any
    password: str | None
    extra: str | None


def connections() -> st.SearchStrategy[Connection]:
    """Return connections with usual and unusual fields."""
    return st.builds(
        Connection,
        # The connection ids that Airflow accepts.
        conn_id=st.one_of(st.just("qwenimage_default"), st.from_regex(r"[\w#!()\-.:/\\]{1,250}", fullmatch=True)),
        host=_HOSTS,
        schema=st.one_of(st.none(), st.sampled_from(("http", "https", "", "HTTP ", "ftp")), texts()),
        port=st.one_of(st.none(), st.sampled_from((0, 80, 443, 8512, 65535, 65536, -1)), st.integers()),
        password=_PASSWORDS,
        extra=_EXTRAS,
    )


@contextlib.contextmanager
def prepare() -> Iterator[Callable[[Connection], None]]:
    """Yield the check of one connection. Nothing is sent."""

    def check(connection: Connection) -> None:
        # If the key is in another field as well, it cannot be recognized as a key there.
        others = (connection.conn_id, connection.host, connection.schema, connection.extra)
        is_secret = not any(KEY[:8] in (other or "") for other in others)
        try:
            settings = read_connection(connection)
        except ValueError as error:
            if is_secret:
                check_message(error, _MOST_CHARACTERS)
            length = len(str(error))
            assert length <= _MOST_CHARACTERS, f"{length} characters"
            return
        check_settings(settings)
        if is_secret:
            check_text(repr(settings))
        for outcome in (QwenImageConnectionError("x"), QwenImageContractError("x")):
            _, story = judge_connection(outcome, settings)
            if is_secret:
                check_text(story, _MOST_CHARACTERS)
            length = len(story)
            assert length <= _MOST_CHARACTERS, f"{length} characters"

    yield check


def check_settings(settings: ConnectionSettings) -> None:
    """Check that both libraries send requests to the same host and path, with a key that they can send."""
    import requests
    from yarl import URL

    address = f"{settings.base_url}/api/status"
    prepared = requests.Request("GET", address, headers={"Authorization": f"Bearer {settings.api_key}"}).prepare()
    other = URL(address)
    assert prepared.url is not None
    assert other.raw_host is not None
    assert other.raw_host.isascii()
    assert URL(prepared.url).host == other.host, f"requests: {prepared.url}; aiohttp: {other}"
    assert URL(prepared.url).port == other.port
    assert URL(prepared.url).raw_path == other.raw_path
    assert settings.timeout_seconds > 0
    assert settings.max_requests_per_second is None or settings.max_requests_per_second > 0
    assert len(settings.base_url) <= _MOST_CHARACTERS
