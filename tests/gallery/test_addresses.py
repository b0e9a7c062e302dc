"""Which addresses of images a page links: never one of Airflow's own host, however it is spelt."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.plugin.addresses import host_of, hosts_in, linkable_address

OWN = hosts_in("Airflow.Example:8080", "proxy.example, inner.example:80", "https://airflow.corp/base", "127.0.0.1:80")


@pytest.mark.parametrize(
    "url",
    [
        "https://airflow.example/api/v2/auth/logout",
        "https://AIRFLOW.example./x.png",
        "https://airflow.example:9999/x.png",
        "https://airflow.example:8080/x.png",
        "https://user:password@airflow.example/x.png",
        "https://proxy.example/x.png",
        "https://inner.example/x.png",
        "https://airflow.corp/x.png",
        "https://localhost/x.png",
        "https://sub.localhost./x.png",
        "https://127.0.0.1/x.png",
        "https://127.1/x.png",
        "https://2130706433/x.png",
        "https://0x7f.0.0.1/x.png",
        "https://0177.0.0.1/x.png",
        "https://127.8.8.8/x.png",
        "https://0.0.0.0/x.png",
        "https://0/x.png",
        "https://[::1]/x.png",
        "https://[0:0:0:0:0:0:0:1]/x.png",
        "https://[::ffff:127.0.0.1]/x.png",
        "https://[::]/x.png",
        # Read in different ways by browsers and libraries.
        "https://airflow.example\\@cdn.example/x.png",
        "https://cdn.example\\@airflow.example/x.png",
        "https://%61irflow.example/x.png",
        "https://\N{FULLWIDTH LATIN SMALL LETTER A}irflow.example/x.png",
        "https://air\tflow.example/x.png",
        "https://air\nflow.example/x.png",
        "https://airflow。example/x.png",
        "https://cdn.example:port/x.png",
        "https:///airflow.example/x.png",
        "https:airflow.example/x.png",
        "//airflow.example/x.png",
        "javascript:alert(1)",
        "data:image/png;base64,AAAA",
        "ftp://cdn.example/x.png",
        "blob:https://cdn.example/x",
        "http://cdn.example/x.png",
        "",
        "https://cdn.example/" + 3000 * "x",
    ],
)
def test_an_address_that_may_lead_to_airflow_is_not_linked(url: str) -> None:
    assert linkable_address(url, OWN, is_page_secure=True) is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://cdn.example/a.png?sig=1#x", "https://cdn.example/a.png?sig=1#x"),
        ("https://CDN.example.:8443/a.png", "https://cdn.example:8443/a.png"),
        ("https://user:password@cdn.example/a.png", "https://cdn.example/a.png"),
        ("https://airflow.example.evil.example/a.png", "https://airflow.example.evil.example/a.png"),
        ("https://[2001:db8::1]/a.png", "https://[2001:db8::1]/a.png"),
    ],
)
def test_an_address_on_another_host_is_linked_without_its_user(url: str, shown: str) -> None:
    assert linkable_address(url, OWN, is_page_secure=True) == shown


def test_http_is_linked_only_from_a_page_loaded_without_tls() -> None:
    assert linkable_address("http://cdn.example/a.png", OWN, is_page_secure=False) == "http://cdn.example/a.png"
    assert linkable_address("http://airflow.example/a.png", OWN, is_page_secure=False) is None


@given(st.integers(min_value=0, max_value=2**32 - 1), st.sampled_from(["{}", "0x{:x}", "0{:o}"]))
def test_all_notations_of_an_ipv4_address_are_the_same_host(number: int, spelling: str) -> None:
    plain = socket.inet_ntoa(number.to_bytes(4, "big"))
    assert host_of(spelling.format(number)) == host_of(plain)


@given(st.text(max_size=60))
def test_any_text_can_be_checked(text: str) -> None:
    for url in (text, f"https://{text}", f"https://cdn.example/{text}"):
        shown = linkable_address(url, OWN, is_page_secure=True)
        assert shown is None or shown.startswith("https://")
    hosts_in(text)
