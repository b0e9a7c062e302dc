"""Each origin has one spelling, and no shown URL contains credentials."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.rules.origins import Origin, displayed_url, host_in_ascii
from airflow_provider_qwenimage.text.urls import without_access


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://bücher.example", "http://xn--bcher-kva.example:80/"),
        ("http://BÜCHER.example", "http://bücher.example/path"),
        ("https://straße.example", "https://xn--strae-oqa.example"),
        ("HTTPS://API.Example", "https://api.example:443/x?y"),
        ("https://api.example.", "https://api.example"),
        ("http://[0:0:0:0:0:0:0:1]:8512", "http://[::1]:8512/"),
        ("http://[2001:DB8::A]", "http://[2001:db8:0:0::a]:80"),
    ],
)
def test_two_spellings_of_one_origin_are_equal(one: str, other: str) -> None:
    assert Origin.of(one) == Origin.of(other)
    assert Origin.is_of(Origin.of(one), other)


@pytest.mark.parametrize(
    "other",
    [
        "http://api.example",
        "https://api.example:8443",
        "https://api.example.evil",
        "https://evil/https://api.example",
        "https://api.example@evil",
        "https://xapi.example",
        "//api.example",
        "api.example",
        "https://[bad",
        "",
    ],
)
def test_other_origins_are_recognized(other: str) -> None:
    assert not Origin.is_of(Origin.of("https://api.example"), other)


@pytest.mark.parametrize(
    "host", ["", "a..b", f"{'a' * 64}.example", "::g", "ü" * 64, "\u2025", "%31", "a%2eb", "a b", "a,b", "a\\b"]
)
def test_a_text_that_cannot_be_a_host_is_refused(host: str) -> None:
    if host:
        with pytest.raises(ValueError):  # noqa: PT011  IDNA's, ipaddress's and the codec's errors are such
            host_in_ascii(host)
    else:
        assert host_in_ascii(host) == ""


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@h.example:8443/a/b.png?token=secret#secret", "https://h.example:8443/a/b.png"),
        ("https://secret@h.example", "https://h.example"),
        ("//user:secret@h.example/a?secret", "//h.example/a"),
        ("/relative?secret", "/relative"),
        ("http://secret@[bad/a?secret", "http://[bad/a"),
        ("https://user:sec@ret@h.example/a", "https://h.example/a"),
        ("https:/user:secret@h.example/a", "https:/h.example/a"),
        ("https//user:secret@h.example", "https//h.example"),
        ("https:///user:secret@h.example", "https:///h.example"),
        ("user:secret@h.example/a", "h.example/a"),
        ("https:\\\\user:secret@h.example", "h.example"),
        ("https://h.example/a@b/c", "https://h.example/a@b/c"),
        ("HTTPS://h.example/A", "https://h.example/A"),
        ("https://h.example/R\udce9seaux", "https://h.example/R\N{REPLACEMENT CHARACTER}seaux"),
    ],
)
def test_a_url_is_shown_without_credentials(url: str, shown: str) -> None:
    assert displayed_url(url) == shown


@pytest.mark.parametrize(
    "text", ["\\", "/", "//@", ":", "a@", "//a?", "\\/", "//user:pass", "?", "&amp;", "&#0", "%25", "&#x2F;", "\\u"]
)
def test_a_long_text_is_read_at_once(text: str) -> None:
    # It would take minutes if the time grew with more than the length.
    long = text * (1_000_000 // len(text))
    without_access(long)
    without_access(f"//{long}")
    displayed_url(long)
    displayed_url(f"https://{long}")


@given(st.text(max_size=60))
def test_any_text_can_be_shown(text: str) -> None:
    assert "secret" not in displayed_url(f"https://user:secret@h.example/{text}?token=secret")
    displayed_url(text)


of_every_slash = pytest.mark.parametrize(
    "slash",
    ["/", "\\/", "\\\\/", "\\u002f", "\\\\u002F", "%2F", "%2f", "%252F", "&#x2F;", "&#47;", "&amp;#x2f;", "&sol;"],
)


@of_every_slash
@pytest.mark.parametrize("mark", ["?", "#", "%3F", "%23", "%253f", "\\u003F", "&#63;", "&#x3f;", "&amp;quest;"])
def test_an_escaped_url_in_a_text_is_shown_without_credentials_and_query(mark: str, slash: str) -> None:
    url = "https://user:Secret@cdn.example/images/a.png".replace("/", slash)
    assert without_access(f"cannot read {url}{mark}Signature=Secret again") == (
        f"cannot read {url.replace('user:Secret@', '')} again"
    )


@of_every_slash
def test_the_secret_of_a_callback_url_is_not_shown(slash: str) -> None:
    secret, instance = "S3cret_-" * 5, "019344f4-2a6e-7c11-b7fb-0123456789ab"
    url = f"https://airflow.example/base/qwenimage/callback/{instance}/".replace("/", slash)
    shown = without_access(f'{{"message": "cannot call {url}{secret}: no route"}}')
    assert secret not in shown
    assert instance in shown
    assert "no route" in shown
