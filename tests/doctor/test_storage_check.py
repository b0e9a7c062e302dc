"""The storage is checked with a file of its own, of which nothing is left, on the local disk and on S3."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_qwenimage.cli.doctor.findings import run_check
from airflow_provider_qwenimage.cli.doctor.storage_check import check_storage, storage_library

if TYPE_CHECKING:
    from tests.s3_server import Bucket


def checked(output_path: str) -> tuple[str, str]:
    check = run_check("storage", lambda: check_storage(output_path))
    return check.state, check.message


def names_in(bucket: Bucket) -> list[str]:
    listing = bucket.server.client().list_objects_v2(Bucket=bucket.name)
    return [each["Key"] for each in listing.get("Contents", [])]


def test_a_local_folder(tmp_path: Path) -> None:
    assert checked(str(tmp_path))[0] == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_is_not_left_behind(tmp_path: Path) -> None:
    assert checked(f"file://{tmp_path}/a/b/c")[0] == "ok"
    assert list(tmp_path.iterdir()) == []


def test_no_folder_is_skipped() -> None:
    assert check_storage(None).state == "skipped"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    state, message = checked(str(tmp_path))
    assert (state, "access was denied" in message) == ("failed", True)


@pytest.mark.parametrize(
    "output_path",
    ["", "  ", "a\0b", "nowhere://bucket/x", "s3://", "{{ ds }}", "s3://b/../c", "\ud800", "file:///dev/null"],
)
def test_a_path_that_cannot_be_used_is_one_clear_line(output_path: str) -> None:
    state, message = checked(output_path)
    assert state == "failed"
    assert message.isprintable()
    assert "The check itself failed" not in message


def test_a_bucket(bucket: Bucket) -> None:
    state, message = checked(f"{bucket.url}/images")
    assert (state, "an existing file is not replaced" in message) == ("ok", True)
    assert names_in(bucket) == []
    assert storage_library(bucket.url) == "s3fs"


@pytest.mark.parametrize(
    ("right", "state", "problem"),
    [
        ("list", "failed", "s3:ListBucket"),
        ("read", "failed", "s3:GetObject"),
        ("write", "failed", "s3:PutObject"),
        ("delete", "warning", "s3:DeleteObject"),
    ],
)
def test_a_missing_right_is_named(right: str, state: str, problem: str, bucket: Bucket) -> None:
    found = checked(f"s3://s3_without_{right}@{bucket.name}/images")
    assert (found[0], problem in found[1]) == (state, True), found
    # Without the right to delete, the user is told which file is left.
    left = names_in(bucket)
    assert len(left) == (right == "delete")
    assert all(f"{bucket.name}/{name}" in found[1] for name in left)


def test_a_bucket_that_does_not_exist(bucket: Bucket) -> None:
    state, message = checked("s3://s3@no-such-bucket-here/images")
    assert (state, "does not exist" in message) == ("failed", True)


def test_a_server_that_ignores_if_none_match_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.s3_server import Bucket, S3Server

    class Ignoring(S3Server):
        """Replaces objects, as some servers that are compatible with S3 do."""

        def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            environ.pop("HTTP_IF_NONE_MATCH", None)
            return super()._answer(environ, start_response)

    with Ignoring() as server:
        made = Bucket(server)
        server.client().create_bucket(Bucket=made.name)
        monkeypatch.setenv("AIRFLOW_CONN_S3_IGNORING", server.connection())
        state, message = checked(f"s3://s3_ignoring@{made.name}/images")
        assert (state, "If-None-Match" in message) == ("warning", True)
        assert names_in(made) == []
