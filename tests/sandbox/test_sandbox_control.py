"""The control path does over HTTP what the Python API does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.sandbox.conftest import Api


def test_settings_are_shown_and_changed(api: Api) -> None:
    assert api.request("GET", "/sandbox/settings").json()["wire_style"] == "http"
    changes = {"wire_style": "envelope", "api_keys": ["sk-a"], "credits": 20}
    answer = api.request("PATCH", "/sandbox/settings", json=changes)
    assert answer.status_code == 200
    assert {name: answer.json()[name] for name in changes} == changes
    assert api.sandbox.settings.credits == 20
    assert api.generate().json()["code"] == 401


@pytest.mark.parametrize(
    ("method", "path", "body", "names"),
    [
        ("PATCH", "settings", b'{"speed": 3}', "seconds_per_image"),
        ("PATCH", "settings", b'{"drop_share": 3}', "from 0 to 1"),
        ("PATCH", "settings", b'{"drop_share": 1' + b"0" * 400 + b"}", "from 0 to 1"),
        ("PATCH", "settings", b"{", "allowed is a JSON object"),
        ("PATCH", "settings", b"[]", "allowed is a JSON object"),
        ("POST", "script", b'{"route": "status"}', "allowed is"),
        ("POST", "script", b'{"route": [], "behaviours": []}', "generate, status, image"),
        ("POST", "script", b'{"route": "cdn", "behaviours": ["ok"]}', "generate, status, image"),
        ("POST", "script", b'{"route": "status", "behaviours": ["explode"]}', "rate_limit"),
        ("GET", "books?last=all", b"", "last is 'all'"),
    ],
)
def test_a_mistake_is_answered_with_what_is_allowed(api: Api, method: str, path: str, body: bytes, names: str) -> None:
    answer = api.request(method, f"/sandbox/{path}", data=body)
    assert answer.status_code == 400
    assert names in answer.json()["error"]


def test_scripts_are_appended_and_shown(api: Api) -> None:
    script = {"route": "status", "behaviours": ["server_error", ["rate_limit", 2]]}
    waiting = api.request("POST", "/sandbox/script", json=script).json()
    assert waiting["status"] == ["server_error", "rate_limit", "rate_limit"]
    assert [api.status("n43").status_code for _ in range(4)] == [500, 429, 429, 404]
    assert api.request("GET", "/sandbox/script").json() == {"generate": [], "status": [], "image": []}


def test_the_books_are_shown(api: Api) -> None:
    api.sandbox.configure(credits=20)
    task_id = api.submit()
    api.status(task_id)
    books: dict[str, Any] = api.request("GET", "/sandbox/books").json()
    assert (books["credits_charged"], books["credits_left"]) == (5, 15)
    assert [submission["task_id"] for submission in books["submissions"]] == [task_id]
    assert [record["route"] for record in books["requests"]] == ["generate", "status"]
    assert [r["route"] for r in api.request("GET", "/sandbox/books?last=1").json()["requests"]] == ["status"]
    assert api.request("GET", "/sandbox/books?last=0").json()["requests"] == []


def test_reset_empties_the_books(api: Api) -> None:
    api.submit()
    api.sandbox.configure(drop_share=1)
    assert api.request("POST", "/sandbox/reset").json()["drop_share"] == 0
    assert api.request("GET", "/sandbox/books").json()["submissions"] == []


def test_the_control_path_suffers_no_faults_and_is_not_in_the_books(api: Api) -> None:
    api.sandbox.configure(drop_share=1)
    assert api.request("GET", "/sandbox").status_code == 200
    assert "wrong_shape" in api.request("GET", "/sandbox").json()["behaviours"]["status"]
    assert api.sandbox.requests == []
