"""How long a signed URL is valid is read without showing its signature."""

from __future__ import annotations

import pytest

from airflow_provider_qwenimage.text.signed_urls import query_names, query_of, stated_lifetime

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("query", "names", "seconds"),
    [
        ("", (), None),
        (
            "X-Amz-Date=20260101T000000Z&X-Amz-Expires=3600&X-Amz-Signature=abc",
            ("X-Amz-Date", "X-Amz-Expires", "X-Amz-Signature"),
            3600,
        ),
        (f"Expires={NOW + 60:.0f}&Signature=abc", ("Expires", "Signature"), 60),
        ("se=2023-11-14T23%3A13%3A20Z&sig=abc", ("se", "sig"), 3600),
        ("Expires=1", ("Expires",), None),
        ("Expires=never&X-Amz-Expires=1e400", ("Expires", "X-Amz-Expires"), None),
        ("se=tomorrow", ("se",), None),
        # The name may be the secret.
        ("c2VjcmV0LXRva2Vu", ("(other)",), None),
        ("dG9rZW4x=1", ("(other)",), None),
    ],
)
def test_names_and_lifetime(query: str, names: tuple[str, ...], seconds: float | None) -> None:
    url = f"https://cdn.example.com/image.png?{query}"
    assert query_names(url) == names
    assert stated_lifetime(url, NOW) == seconds


@pytest.mark.parametrize("url", ["http://[", "", "https://x/?" + "a&" * 100_000, "https://x/?\ud800=\x00"])
def test_any_text_is_read(url: str) -> None:
    assert len(query_names(url)) <= 20
    assert stated_lifetime(url, NOW) is None


@pytest.mark.parametrize("name", ["Expires", "X-Amz-Expires", "se"])
def test_a_new_query_states_the_same(name: str) -> None:
    url = f"https://x/?{query_of((name, 'Signature'), 90.0, NOW)}"
    assert query_names(url) == (name, "Signature")
    assert stated_lifetime(url, NOW) == 90
    assert stated_lifetime(f"https://x/?{query_of((name,), None, NOW)}", NOW) is None
