"""Access: every page requires a user who may read the DAG, and only images of its tasks are served."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from PIL import Image

from airflow_provider_qwenimage import QwenImageBatchOperator
from airflow_provider_qwenimage.airflow_versions import HAS_LOOPS
from airflow_provider_qwenimage.plugin import app as app_module
from airflow_provider_qwenimage.plugin.app import app
from airflow_provider_qwenimage.plugin.runs import RUNS
from airflow_provider_qwenimage.plugin.storage_access import RefusedError, log_problem, open_recorded
from tests.gallery.airflow_server import Server
from tests.gallery.conftest import Shown
from tests.integration.dag_runs import TestDag, dag_that_draws
from tests.stores import MemoryStore, attach

PATHS = sorted({route.path for route in app.routes if hasattr(route, "path")})


@pytest.fixture(scope="module")
def foxes(show: Callable[[TestDag], Shown], tmp_path_factory: pytest.TempPathFactory) -> Shown:
    return show(dag_that_draws(output_path=str(tmp_path_factory.mktemp("foxes")), prompt="A fox", seed=1))


@pytest.fixture(scope="module")
def hares(show: Callable[[TestDag], Shown], tmp_path_factory: pytest.TempPathFactory) -> Shown:
    return show(dag_that_draws(output_path=str(tmp_path_factory.mktemp("hares")), prompt="A hare", seed=1))


def filled(path: str, shown: Shown) -> str:
    return "/qwenimage" + path.format(
        dag_id=shown.dag_id,
        run_id=shown.run_id.replace("+", "%2B"),
        task_id="draw",
        number=1,
        page=1,
        name="gallery.css",
    )


def image(shown: Shown, kind: str = "") -> str:
    return f"{shown.path}/tasks/draw/images/1{kind}"


def push(shown: Shown, key: str, value: Any) -> None:
    """Overwrite an XCom, and drop the cached runs."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    with create_session() as session:
        XComModel.set(
            key=key,
            value=value,
            dag_id=shown.dag_id,
            task_id="draw",
            run_id=shown.run_id,
            map_index=-1,
            session=session,
        )
    RUNS._cache.clear()


@pytest.fixture
def forge(foxes: Shown) -> Iterator[Callable[..., None]]:
    """Return a function that changes the return value of the foxes' task until the end of the test."""
    returned = foxes.run["draw"].returned

    def change(**fields: Any) -> None:
        push(foxes, "return_value", returned | fields)

    yield change
    push(foxes, "return_value", returned)


def test_no_page_loads_an_image_from_another_host(server: Server, foxes: Shown) -> None:
    policy = server.get(foxes.path).headers["Content-Security-Policy"]
    assert "img-src 'self';" in policy
    assert "http" not in policy


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("https://127.0.0.1/api/v2/auth/logout", {}),
        ("https://LOCALHOST.:1/api/v2/auth/logout", {}),
        ("https://airflow.example/api/v2/auth/logout", {"Host": "airflow.example:8080"}),
        ("https://airflow.example/api/v2/auth/logout", {"X-Forwarded-Host": "inner, airflow.example"}),
        ("http://cdn.example/a.png", {"X-Forwarded-Proto": "https"}),
    ],
)
def test_an_address_on_airflows_own_host_is_neither_loaded_nor_linked(
    *, server: Server, foxes: Shown, forge: Callable[..., None], url: str, headers: dict[str, str]
) -> None:
    forge(paths=[], image_urls=[url])
    answer = server.get(f"{foxes.path}/data", headers=headers)
    (item,) = answer.json()["items"]
    assert (item["status"], item["image"], item["thumbnail"], item["address"]) == ("done", None, None, None)
    assert url not in answer.text


def test_an_address_on_another_host_is_linked_and_not_loaded(
    server: Server, foxes: Shown, forge: Callable[..., None]
) -> None:
    forge(paths=[], image_urls=["https://user:password@cdn.example/a.png?signature=1"])
    (item,) = server.get(f"{foxes.path}/data").json()["items"]
    assert (item["image"], item["thumbnail"]) == (None, None)
    assert item["address"] == "https://cdn.example/a.png?signature=1"


def test_forged_xcoms_are_limited_and_can_be_encoded(server: Server, foxes: Shown, forge: Callable[..., None]) -> None:
    request = foxes.run["draw"].xcoms["request"]
    paths = [f"/images/{number}.jpg" for number in range(5000)]
    forge(paths=paths, image_urls=paths, seed=10**31)
    push(foxes, "request", request | {"prompt": "A fox \ud83d" + 100_000 * "x", "seed": 10**31})
    try:
        answer = server.get(f"{foxes.path}/data?limit=200")
        assert (answer.status_code, len(answer.json()["items"])) == (200, 100)
        assert len(answer.content) < 100 * 5000
        assert answer.json()["items"][0]["prompt"].startswith("A fox ?xxx")
        assert answer.json()["items"][0]["seed"] is None
        # Far too large ones are not even read from the database.
        for value in (3_000_000 * "x", [f"/images/{number}.jpg" for number in range(300_000)]):
            push(foxes, "request", request | {"prompt": value})
            forge(paths=value)
            answer = server.get(f"{foxes.path}/data?limit=200")
            (item,) = answer.json()["items"]
            assert len(answer.content) < 5000
            assert (item["status"], item["prompt"]) == ("done", None)
            assert "the limit of the gallery" in item["message"]
    finally:
        push(foxes, "request", request)


@pytest.mark.parametrize("value", ["[" * 100_000 + "]" * 100_000, "1" * 5000, "nothing", '"\\ud800"'])
def test_an_xcom_that_cannot_be_decoded_hides_no_other_run(server: Server, foxes: Shown, value: str) -> None:
    import sqlite3

    from airflow import settings

    with sqlite3.connect(str(settings.SQL_ALCHEMY_CONN).removeprefix("sqlite:///"), timeout=60) as database:
        key = (foxes.dag_id, "consumed_credits")
        # Since Airflow 3.4 the XComs of new tasks are in another table, which has no id of the DAG.
        own = "task_instance_id IN (SELECT id FROM task_instance WHERE dag_id = ?)" if HAS_LOOPS else "dag_id = ?"
        place = f"{'xcom_v2' if HAS_LOOPS else 'xcom'} {{}} WHERE {own} AND key = ?"
        (before,) = database.execute(f"SELECT value FROM {place.format('')}", key).fetchone()  # noqa: S608  constants
        change = f"UPDATE {place.format('SET value = ?')}"
        database.execute(change, (value, *key))
        database.commit()
        RUNS._cache.clear()
        try:
            (item,) = server.get(f"{foxes.path}/data").json()["items"]
            assert (item["status"], item["credits"]) == ("done", None)
            assert server.get("/qwenimage/data").status_code == 200
        finally:
            database.execute(change, (before, *key))
            database.commit()
            RUNS._cache.clear()


def test_there_are_pages_to_test() -> None:
    assert len(PATHS) >= 12
    assert "/dags/{dag_id}/runs/{run_id}/tasks/{task_id}/images/{number}" in PATHS


@pytest.mark.parametrize("path", PATHS)
def test_every_page_requires_a_login(server: Server, foxes: Shown, path: str) -> None:
    answer = server.get(filled(path, foxes), user=None)
    assert answer.status_code == 401
    assert "fox" not in answer.text
    junk = {"Authorization": "Bearer junk"}
    assert server.get(filled(path, foxes), user=None, headers=junk).status_code in (401, 403)


@pytest.mark.parametrize("path", [path for path in PATHS if "{dag_id}" in path])
def test_a_user_who_may_not_read_the_dag_sees_none_of_its_images(
    server: Server, foxes: Shown, hares: Shown, path: str
) -> None:
    answer = server.get(filled(path, foxes), user=hares.dag_id)
    assert answer.status_code == 403
    assert "fox" not in answer.text


# Contact sheets have tests of their own, because this DAG has no batch.
@pytest.mark.parametrize("path", [path for path in PATHS if "{page}" not in path])
def test_a_user_who_may_read_the_dag_sees_every_page_with_strict_headers(
    server: Server, foxes: Shown, path: str
) -> None:
    answer = server.get(filled(path, foxes), user=foxes.dag_id)
    assert answer.status_code == 200
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    if answer.headers["Content-Type"].startswith("image/") and ("{number}" in path or "/candidates/" in path):
        assert policy == "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; sandbox"
    else:
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'self'" in policy
    assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_the_session_cookie_of_the_browser_logs_in(server: Server, foxes: Shown) -> None:
    from tests.gallery.airflow_server import token

    assert server.get(image(foxes), user=None, cookies={"_token": token(foxes.dag_id)}).status_code == 200
    assert server.get(image(foxes), user=None, cookies={"_token": token("another_dag")}).status_code == 403


def test_the_page_of_all_dags_lists_those_that_the_user_may_read(server: Server, foxes: Shown, hares: Shown) -> None:
    def listed(user: str) -> set[str]:
        return {item["dag_id"] for item in server.get("/qwenimage/data?limit=200", user=user).json()["items"]}

    assert listed("*") >= {foxes.dag_id, hares.dag_id}
    assert listed(foxes.dag_id) == {foxes.dag_id}
    assert listed("another_dag") == set()


def test_the_page_of_all_dags_leaves_out_those_whose_xcoms_the_user_may_not_read(
    server: Server, foxes: Shown, hares: Shown
) -> None:
    user = f"-{foxes.dag_id},{hares.dag_id}"
    # Not the page of the DAG itself: with it, Airflow changes how all of this process read DAGs.
    readable = server.get("/api/v2/dags?limit=1000", user=user).json()["dags"]
    assert {dag["dag_id"] for dag in readable} >= {foxes.dag_id, hares.dag_id}
    assert server.get(f"{foxes.path}/data", user=user).status_code == 403
    answer = server.get("/qwenimage/data?limit=200", user=user)
    assert {item["dag_id"] for item in answer.json()["items"]} == {hares.dag_id}
    assert "fox" not in answer.text


@pytest.mark.parametrize("dag_id", ["~", "%7E", "*", ""])
def test_no_id_means_all_dags(server: Server, foxes: Shown, dag_id: str) -> None:
    for path in (f"/qwenimage/dags/{dag_id}/data", f"/qwenimage/dags/{dag_id}/runs/{foxes.run_id}/data"):
        answer = server.get(path, user="another_dag")
        assert answer.status_code in (403, 404, 307) or answer.json()["items"] == []


def test_a_stored_image_is_sent_complete_with_its_type(server: Server, foxes: Shown) -> None:
    (path,) = foxes.run["draw"].returned["paths"]
    answer = server.get(image(foxes))
    assert answer.headers["Content-Type"] == "image/jpeg"
    assert answer.content == Path(path).read_bytes()
    assert answer.headers["Content-Disposition"].startswith("inline")
    download = server.get(image(foxes, "?download=true"))
    assert download.headers["Content-Disposition"] == f"attachment; filename*=UTF-8''{Path(path).name}"
    again = server.get(image(foxes), headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_thumbnail_is_small(server: Server, foxes: Shown) -> None:
    answer = server.get(image(foxes, "/thumbnail"))
    assert answer.headers["Content-Type"] == "image/webp"
    assert len(answer.content) < 40_000
    assert server.get(image(foxes, "/thumbnail")).content == answer.content


@pytest.mark.parametrize(
    "path",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "/etc/hostname.png",
        "../../etc/passwd",
        "relative.png",
        "http://127.0.0.1:1/secret.png",
        "https://169.254.169.254/latest/meta-data.png",
        "ftp://127.0.0.1/a.png",
        "data:image/png;base64,AAAA",
        "unheard-of://bucket/a.png",
        "file:///etc/../etc/passwd.png",
        "simplecache::file:///etc/passwd.png",
        "",
        "\0.png",
    ],
)
def test_a_forged_path_is_refused(server: Server, foxes: Shown, forge: Callable[..., None], path: str) -> None:
    forge(paths=[path])
    for kind in ("", "/thumbnail", "/details"):
        answer = server.get(image(foxes, kind))
        assert answer.status_code == 404
        assert answer.headers["Content-Type"] == "application/json"
        assert set(answer.json()) == {"detail"}
        assert "root:" not in answer.text


def test_a_forged_path_to_the_image_of_another_dag_is_refused_to_everybody(
    server: Server, foxes: Shown, hares: Shown, forge: Callable[..., None]
) -> None:
    theirs = hares.run["draw"].returned
    forge(paths=theirs["paths"])
    assert server.get(image(foxes)).status_code == 404
    forge(paths=theirs["paths"], task_id=theirs["task_id"])
    assert server.get(image(foxes), user="*").json()["detail"] == "This image was drawn in another DAG."
    # Used again, it may be shown; but not to one who may not see where it was drawn.
    forge(paths=theirs["paths"], task_id=theirs["task_id"], reused=True)
    for kind in ("", "/thumbnail", "/details"):
        assert server.get(image(foxes, kind), user=foxes.dag_id).status_code == 404
        assert server.get(image(foxes, kind), user=f"{foxes.dag_id},{hares.dag_id}").status_code == 200


def test_an_image_is_not_served_after_it_was_changed(
    server: Server, foxes: Shown, forge: Callable[..., None], tmp_path: Path
) -> None:
    (path,) = foxes.run["draw"].returned["paths"]
    copy = tmp_path / Path(path).name
    copy.write_bytes(Path(path).read_bytes())
    sidecar = copy.with_suffix(".json")
    sidecar.write_text(Path(path).with_suffix(".json").read_text())
    forge(paths=[str(copy)])
    assert server.get(image(foxes)).status_code == 200
    copy.write_bytes(copy.read_bytes() + b"!")
    assert server.get(image(foxes)).json()["detail"] == "This file has changed since the image was verified and stored."
    sidecar.unlink()
    assert "no readable sidecar" in server.get(image(foxes)).json()["detail"]
    copy.unlink()
    assert server.get(image(foxes)).status_code == 404


@pytest.mark.parametrize("suffix", [".png", ".svg", ".html", ".json"])
@pytest.mark.parametrize("content", [b"<svg onload='alert(1)'/>", b"<script>alert(1)</script>", b"GIF89a"])
def test_a_file_that_is_not_an_image_is_not_served_even_with_a_valid_sidecar(
    *, server: Server, foxes: Shown, forge: Callable[..., None], tmp_path: Path, suffix: str, content: bytes
) -> None:
    (path,) = foxes.run["draw"].returned["paths"]
    sidecar = json.loads(Path(path).with_suffix(".json").read_text())
    file = tmp_path / f"page{suffix}"
    file.write_bytes(content)
    changed = {"image": file.name, "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    if suffix != ".json":
        file.with_suffix(".json").write_text(json.dumps(sidecar | changed))
    forge(paths=[str(file)])
    assert server.get(image(foxes)).status_code == 404
    assert server.get(image(foxes, "/thumbnail")).status_code == 404


@pytest.mark.parametrize("sha256", ["../../../etc/passwd", "", None, 5, "A" * 64, "0" * 63])
def test_a_sidecar_cannot_choose_the_file_of_a_thumbnail(
    server: Server, foxes: Shown, forge: Callable[..., None], tmp_path: Path, sha256: Any
) -> None:
    (path,) = foxes.run["draw"].returned["paths"]
    copy = tmp_path / Path(path).name
    copy.write_bytes(Path(path).read_bytes())
    sidecar = json.loads(Path(path).with_suffix(".json").read_text())
    copy.with_suffix(".json").write_text(json.dumps(sidecar | {"sha256": sha256}))
    forge(paths=[str(copy)])
    answer = server.get(image(foxes, "/thumbnail"))
    assert (answer.status_code, answer.json()["detail"]) == (
        404,
        "The sidecar of this image has no valid SHA-256 or size.",
    )


def test_a_decompression_bomb_is_not_opened(
    server: Server, foxes: Shown, forge: Callable[..., None], tmp_path: Path
) -> None:
    (path,) = foxes.run["draw"].returned["paths"]
    sidecar = json.loads(Path(path).with_suffix(".json").read_text())
    bomb = tmp_path / "bomb.png"
    with Image.new("1", (30_000, 30_000)) as picture:
        picture.save(bomb)
    content = bomb.read_bytes()
    changed = {"image": bomb.name, "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    bomb.with_suffix(".json").write_text(json.dumps(sidecar | changed))
    forge(paths=[str(bomb)])
    assert "more than 16,777,216 pixels" in server.get(image(foxes)).json()["detail"]


@pytest.mark.parametrize(
    "rest",
    [
        "images/../../../../../../../etc/passwd",
        "images/..%2f..%2f..%2fetc%2fpasswd",
        "images/1%2f..%2f..%2f..",
        "images/file:%2f%2f%2fetc%2fpasswd",
        "images/1?path=/etc/passwd",
        "images/1?map_index=../../etc/passwd",
        "images/-1",
        "images/0",
        "images/2",
        "images/99999999999999999999",
    ],
)
def test_the_client_cannot_name_a_file(server: Server, foxes: Shown, rest: str) -> None:
    answer = server.raw(f"{foxes.path}/tasks/draw/{rest}")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"root:" not in answer
    assert head.split()[1] in (b"404", b"422", b"307") or body.startswith(b"\xff\xd8") or b"\xff\xd8" in body[:20]


@pytest.mark.parametrize(
    "name",
    [
        "../app.py",
        "..%2fapp.py",
        "%2e%2e/app.py",
        "..",
        "%2e%2e",
        "%2fetc%2fpasswd",
        "/etc/passwd",
        "..%5capp.py",
        "gallery.js%00.svg",
        "x" * 5000,
        "gallery.html",
        "nothing.js",
        "",
    ],
)
def test_no_other_file_is_served_as_a_static_file(server: Server, name: str) -> None:
    assert server.raw(f"/qwenimage/static/{name}").split()[1] == b"404"


@pytest.mark.parametrize(
    ("name", "media_types"),
    [
        ("gallery.js", {"text/javascript", "application/javascript"}),
        ("gallery.css", {"text/css"}),
        ("icon.svg", {"image/svg+xml"}),
    ],
)
def test_a_static_file_is_cached_and_not_sent_again(server: Server, name: str, media_types: set[str]) -> None:
    answer = server.get(f"/qwenimage/static/{name}")
    assert answer.content == (Path(app_module.__file__).parent / "static" / name).read_bytes()
    assert answer.headers["Content-Type"].split(";")[0] in media_types
    assert answer.headers["Cache-Control"] == "private, max-age=3600"
    same = {"If-None-Match": answer.headers["ETag"]}
    again = server.get(f"/qwenimage/static/{name}", headers=same)
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["Cache-Control"] == "private, max-age=3600"
    assert again.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in again.headers["Content-Security-Policy"]
    assert server.get(f"/qwenimage/static/{name}", headers=same | {"If-None-Match": '"old"'}).status_code == 200
    # Whoever is not logged in does not learn whether a cached file is current.
    assert server.get(f"/qwenimage/static/{name}", user=None, headers=same).status_code == 401


def test_the_headers_of_a_static_file_can_be_requested_alone(server: Server) -> None:
    head = server.raw("/qwenimage/static/gallery.css", method="HEAD")
    assert head.split()[1] == b"200"
    assert head.partition(b"\r\n\r\n")[2] == b""
    assert b"content-security-policy" in head.lower()
    assert server.raw("/qwenimage/static/gallery.css", method="POST").split()[1] == b"405"


def test_the_pages_have_no_public_api_description(server: Server) -> None:
    for path in ("/qwenimage/docs", "/qwenimage/redoc", "/qwenimage/openapi.json"):
        assert server.get(path, user=None).status_code in (401, 404)


def test_a_manifest_cannot_be_forged_to_read_another_file(
    server: Server, show: Callable[[TestDag], Shown], tmp_path: Path
) -> None:
    dag = TestDag()
    with dag:
        QwenImageBatchOperator(task_id="draw", requests=["An owl"], output_path=str(tmp_path / "owls"))
    owls = show(dag)
    secret = tmp_path / "secrets.jsonl"
    secret.write_text('{"row": 1, "status": "FAILED", "prompt": "a secret"}\n')
    other = tmp_path / "manifest.jsonl"
    other.write_text('{"row": 1, "status": "FAILED", "prompt": "a secret", "writer": "somebody else"}\n')
    for path in ("/etc/passwd", str(secret), str(other), f"file://{other}", "http://127.0.0.1:1/manifest.jsonl"):
        push(owls, "progress", {"requests": 1, "rows": path})
        push(owls, "manifest", path)
        answer = server.get(f"{owls.path}/data")
        assert answer.status_code == 200
        assert "a secret" not in answer.text
        assert "root:" not in answer.text
        assert answer.json()["batches"][0]["problem"]


def test_a_page_does_not_execute_text_from_its_address(server: Server) -> None:
    for dag_id in ("%3Cscript%3Ealert(1)", "a%22%20onload=%22x", "%3Fq#%25"):
        answer = server.get(f"/qwenimage/dags/{dag_id}", headers={"Accept": "text/html"})
        assert answer.status_code == 200
        assert "<script>alert" not in answer.text
        assert not re.search(r'"\s+onload="', answer.text)
        assert f'data-url="/qwenimage/dags/{quote(unquote(dag_id.split("#")[0]), safe="")}/data"' in answer.text


def test_an_error_page_describes_the_error_in_words(server: Server, foxes: Shown) -> None:
    page = server.get(foxes.path, user="another_dag", headers={"Accept": "text/html"})
    assert "You need permission to read the XComs of this DAG." in page.text
    page = server.get(foxes.path, user=None, headers={"Accept": "text/html"})
    assert "Log in to Airflow" in page.text
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]


def copied(shown: Shown, folder: Path) -> Path:
    """Return a copy of a run's image, with its sidecar."""
    (path,) = shown.run["draw"].returned["paths"]
    copy = folder / Path(path).name
    copy.write_bytes(Path(path).read_bytes())
    copy.with_suffix(".json").write_text(Path(path).with_suffix(".json").read_text())
    return copy


def test_a_path_with_dots_is_refused_wherever_it_leads(
    server: Server, foxes: Shown, forge: Callable[..., None], tmp_path: Path
) -> None:
    copy = copied(foxes, tmp_path)
    (tmp_path / "below").mkdir()
    forge(paths=[str(copy)])
    assert server.get(image(foxes)).status_code == 200
    forge(paths=[f"{tmp_path}/below/../{copy.name}"])
    assert server.get(image(foxes)).status_code == 404


@pytest.mark.parametrize("scheme", ["http", "https", "ftp", "data"])
def test_the_api_server_does_not_read_images_from_web_servers(scheme: str) -> None:
    # Airflow would open it.
    path = f"{attach(MemoryStore(scheme), scheme)}host/images/a.png"
    with pytest.raises(RefusedError, match=f"is a {scheme}:// URL"):
        open_recorded(path)


@pytest.mark.parametrize("path", ["nothing://host/a\n[error] forged.png", "nothing://\x1b[2J\r/\u2028\x9b.png"])
def test_a_recorded_path_cannot_forge_a_log_line(path: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(RefusedError):
        open_recorded(path)
    log_problem(f"read {path} for the gallery", OSError(path))
    assert [message.split()[:2] for message in caplog.messages] == [["Cannot", "open"], ["Cannot", "read"]]
    assert all(message.isprintable() for message in caplog.messages)


def test_an_overwritten_image_is_not_shown_for_the_previous_one(
    server: Server, show: Callable[[TestDag], Shown], tmp_path: Path
) -> None:
    dag = dag_that_draws(output_path=str(tmp_path), prompt="A fox", seed=1, overwrite=True)
    first, second = show(dag), show(dag)
    assert server.get(image(second)).status_code == 200
    assert server.get(image(first)).json()["detail"] == "This image was replaced by another one."
