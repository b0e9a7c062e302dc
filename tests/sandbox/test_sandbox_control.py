"""The control path offers over HTTP what the Python API offers, but not to web pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import requests

from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.sandbox.access import CONTROL_HEADER, CONTROL_HEADERS, Caller, is_own_host, refusal

if TYPE_CHECKING:
    from tests.sandbox.conftest import Api


def test_settings_are_shown_and_changed(api: Api) -> None:
    assert api.request("GET", "/sandbox/settings").json()["wire_style"] == "http"
    changes = {"wire_style": "envelope", "api_keys": ["sk-a"], "credits": 20}
    answer = api.control("PATCH", "/sandbox/settings", json=changes)
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
        ("PATCH", "settings", b"{", "must be a JSON object"),
        ("PATCH", "settings", b"[]", "must be a JSON object"),
        ("POST", "script", b'{"route": "status"}', "must be a JSON object"),
        ("POST", "script", b'{"route": [], "behaviours": []}', "generate, status, image"),
        ("POST", "script", b'{"route": "cdn", "behaviours": ["ok"]}', "generate, status, image"),
        ("POST", "script", b'{"route": "status", "behaviours": ["explode"]}', "rate_limit"),
        ("GET", "books?last=all", b"", "last is 'all'"),
    ],
)
def test_a_mistake_is_answered_with_the_allowed_values(
    api: Api, method: str, path: str, body: bytes, names: str
) -> None:
    answer = api.control(method, f"/sandbox/{path}", data=body)
    assert answer.status_code == 400
    assert names in answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "settings", b'{"wire_style": "' + b"x" * 900_000 + b'"}'),
        ("PATCH", "settings", b'{"' + b"x" * 900_000 + b'": 1}'),
        ("PATCH", "settings", b'["' + b"x" * 900_000 + b'"]'),
        ("PATCH", "settings", b'{"request_log_size": 1' + b"0" * 40 + b"}"),
        ("PATCH", "settings", b'{"seconds_per_image": NaN}'),
        ("PATCH", "settings", b"[" * 100_000),
        ("PATCH", "settings", b'{"api_keys": ["\ud83d"]}'),
        ("POST", "script", b'{"route": "status", "behaviours": [' + b'["ok", 1000000],' * 50_000 + b'"ok"]}'),
        ("POST", "script", b'{"route": "status", "behaviours": [["ok", 1e3]]}'),
        ("POST", "script", b'{"route": "' + b"x" * 900_000 + b'", "behaviours": []}'),
    ],
    ids=range(10),
)
def test_an_odd_body_is_refused_with_a_short_error_and_changes_nothing(
    api: Api, method: str, path: str, body: bytes
) -> None:
    before = api.sandbox.settings
    answer = api.control(method, f"/sandbox/{path}", data=body)
    assert answer.status_code == 400
    assert len(answer.content) < 3000
    assert "must be" in answer.json()["error"]
    assert api.sandbox.settings == before
    assert not any(api.request("GET", "/sandbox/script").json().values())


def test_a_body_past_a_megabyte_is_not_read(api: Api) -> None:
    answer = api.control("PATCH", "/sandbox/settings", data=b" " * 2 * 1024 * 1024)
    assert answer.status_code == 413


def test_the_books_record_only_the_beginning_of_a_long_request(api: Api) -> None:
    api.status("x" * 7000)
    api.request("GET", f"/cdn/{'x' * 7000}.png")
    (status, image) = api.sandbox.requests
    assert max(len(text) for record in (status, image) for text in (record.path, record.task_id or "")) <= 2000


CHANGES = (
    ("PATCH", "settings", '{"server_error_share": 1}'),
    ("POST", "script", '{"route": "status", "behaviours": ["hang"]}'),
    ("POST", "reset", ""),
    ("POST", "reset", "{}"),
)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        # A web page can send these to any address without a CORS preflight.
        ({"Content-Type": "text/plain", "Origin": "https://evil.example"}, 403),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "text/plain; application/json", CONTROL_HEADER: "control"}, 415),
        ({"Content-Type": "text/plain", CONTROL_HEADER: "control"}, 415),
        ({CONTROL_HEADER: "control"}, 415),
        ({}, 415),
        ({"Content-Type": "application/json"}, 403),
        ({"Content-Type": "application/json", CONTROL_HEADER: "yes"}, 403),
        # A web page can send these to its own domain, after the domain was pointed at this machine (DNS rebinding).
        ({**CONTROL_HEADERS, "Origin": "http://evil.example:8512"}, 403),
        ({**CONTROL_HEADERS, "Origin": "null"}, 403),
        ({**CONTROL_HEADERS, "Sec-Fetch-Site": "same-origin"}, 403),
        ({**CONTROL_HEADERS, "Host": "evil.example:8512"}, 403),
    ],
)
def test_a_web_page_cannot_control_the_sandbox(api: Api, headers: dict[str, str], status: int) -> None:
    api.submit()
    before = api.sandbox.settings
    for method, path, body in CHANGES:
        answer = api.request(method, f"/sandbox/{path}", data=body, headers=headers)
        assert answer.status_code == status
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert answer.json()["error"]
    assert api.sandbox.settings == before
    assert len(api.sandbox.submissions) == 1
    assert not any(api.request("GET", "/sandbox/script").json().values())


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example:8512", "Host": "evil.example:8512"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "same-origin", "Host": "evil.example:8512"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
    ids=str,
)
def test_a_web_page_cannot_make_the_sandbox_call_an_address(api: Api, headers: dict[str, str]) -> None:
    # The key of a sandbox is public, and a page whose domain was pointed at this machine can send it.
    authorized = {"Authorization": "Bearer sk-sandbox", **headers}
    body = {"prompt": "a cat", "callback_url": f"{api.sandbox.url}/called-back"}
    answer = api.request("POST", "/api/generate", json=body, headers=authorized)
    assert (answer.status_code, answer.json()["code"]) == (403, 403)
    assert api.request("GET", "/api/status?task_id=n43", headers=authorized).status_code == 403
    assert api.sandbox.submissions == []


def test_a_cors_preflight_is_refused(api: Api) -> None:
    preflight = {
        "Origin": "https://evil.example",
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": f"content-type, {CONTROL_HEADER.lower()}",
    }
    answer = api.request("OPTIONS", "/sandbox/settings", headers=preflight)
    assert not answer.ok
    assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


@pytest.mark.parametrize("path", ["", "/settings", "/books", "/script"])
def test_a_page_whose_domain_was_pointed_here_cannot_read(api: Api, path: str) -> None:
    answer = api.request("GET", f"/sandbox{path}", headers={"Host": "evil.example:8512"})
    assert answer.status_code == 403
    assert "--control-host" in answer.json()["error"]


@pytest.mark.parametrize(
    "host",
    ["localhost:8512", "LOCALHOST.", "app.localhost:1", "127.0.0.1", "[::1]:8512", "192.168.1.7:8512", "sandbox:8512"],
)
def test_hosts_that_nobody_else_can_own_are_accepted(api: Api, host: str) -> None:
    assert api.control("POST", "/sandbox/reset", headers={"Host": host}).status_code == 200


def test_a_domain_name_among_the_control_hosts_is_accepted() -> None:
    with Sandbox(control_hosts=["Sandbox.team.example"]) as sandbox:
        for host, status in (("sandbox.team.example:8512", 200), ("other.team.example", 403), ("example", 200)):
            headers = {**CONTROL_HEADERS, "Host": host}
            assert requests.post(f"{sandbox.url}/sandbox/reset", headers=headers, timeout=60).status_code == status
            assert requests.get(f"{sandbox.url}/sandbox", headers=headers, timeout=60).status_code == status


@pytest.mark.parametrize(
    "host",
    [
        "",
        ":8512",
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "[::1",
        "[evil.example]",
        "a@127.0.0.1",
        "127.0.0.1/.x",
        "[cafe]",
        "127.0.0.1:x",
    ],
)
def test_a_host_that_somebody_else_may_own_is_refused(host: str) -> None:
    assert not is_own_host(host, ())


def test_a_header_with_two_values_is_refused() -> None:
    one = {"content_types": ["application/json"], "control_headers": ["control"]}
    assert refusal(Caller("POST", **one)) is None
    assert refusal(Caller("POST", ["localhost", "evil.example"], **one)) is not None
    assert refusal(Caller("POST", **one | {"content_types": ["application/json", "text/plain"]})) is not None
    assert refusal(Caller("POST", **one | {"control_headers": ["control", "control"]})) is not None


def test_scripts_are_appended_and_shown(api: Api) -> None:
    script = {"route": "status", "behaviours": ["server_error", ["rate_limit", 2]]}
    waiting = api.control("POST", "/sandbox/script", json=script).json()
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
    assert api.control("POST", "/sandbox/reset").json()["drop_share"] == 0
    assert api.request("GET", "/sandbox/books").json()["submissions"] == []


def test_the_control_path_has_no_faults_and_is_not_in_the_books(api: Api) -> None:
    api.sandbox.configure(drop_share=1)
    assert api.request("GET", "/sandbox").status_code == 200
    assert "wrong_shape" in api.request("GET", "/sandbox").json()["behaviours"]["status"]
    assert api.sandbox.requests == []
