"""What a storage refused is one sentence, whatever library has said it and however."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage.storage import files as storage
from airflow_provider_qwenimage.storage.libraries import (
    DELETE,
    LIST,
    READ,
    WRITE,
    content_type_of,
    explaining,
    is_denied,
    reason_of,
)
from airflow_provider_qwenimage.storage.paths import open_output_path
from airflow_provider_qwenimage.text.urls import without_credentials
from tests.stores import MemoryStore, attach


class HttpError(Exception):
    """As the libraries of Google and Azure have theirs: no OSError, and the status under a name of its own."""

    def __init__(self, message: str, **status: Any) -> None:
        super().__init__(message)
        self.__dict__.update(status)


class StoreOfGoogle(MemoryStore):
    """Takes what gcsfs takes for a content type, and notes it."""

    __module__ = "gcsfs.core"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self.arguments = kwargs
        super().pipe_file(path, value, mode)


@pytest.mark.parametrize("status", [{"status_code": 403}, {"code": 401}, {"status": 403}])
@pytest.mark.parametrize("action", [READ, WRITE, DELETE, LIST])
def test_a_denied_request_is_a_permission_error_that_names_path_and_connection(
    action: str, status: dict[str, int]
) -> None:
    start = attach(MemoryStore("gs"), "gs")
    folder = open_output_path(f"{start}bucket/x")
    with pytest.raises(PermissionError) as raised, explaining(action, folder):
        raise HttpError("no\nsuch\x1b[31m luck", **status)
    text = str(raised.value)
    assert text.startswith(f"{folder} cannot be {action}: access was denied (HttpError: no such")
    assert repr(start.removeprefix("gs://")[:-1]) in text
    assert text.isprintable()


def test_a_disk_that_is_read_only_is_denied_as_well(tmp_path: Path) -> None:
    folder = open_output_path(str(tmp_path))
    with pytest.raises(PermissionError) as raised, explaining(WRITE, folder):
        raise OSError(errno.EROFS, "Read-only file system", f"{tmp_path}/.hidden.part")
    assert str(raised.value).startswith(f"{tmp_path} cannot be written: access was denied (OSError: [Errno")


def test_a_bucket_that_does_not_exist_is_told_by_its_status() -> None:
    folder = open_output_path(f"{attach(MemoryStore('abfs'), 'abfs')}bucket/x")
    with pytest.raises(FileNotFoundError, match="its bucket or container does not exist"), explaining(WRITE, folder):
        raise HttpError("The specified container does not exist.", status_code=404)


def test_any_other_error_of_a_library_is_an_os_error_without_what_grants_access() -> None:
    folder = open_output_path(f"{attach(MemoryStore('abfs'), 'abfs')}bucket/x")
    url = "https://account.blob.example/c?sv=1&sig=secret"
    told = r"cannot be written \(HttpError: .*Check the path"
    with pytest.raises(OSError, match=told) as raised, explaining(WRITE, folder):
        raise HttpError(f"No answer from '{url}'.")
    assert "secret" not in str(raised.value)
    assert len(reason_of(HttpError("x" * 100_000))) < 2000


@pytest.mark.parametrize(
    "error", [HttpError("x"), HttpError("x", status_code="403"), HttpError("x", code=404), FileNotFoundError("x")]
)
def test_what_was_not_denied_is_not_said_to_be(error: Exception) -> None:
    assert not is_denied(error)


def test_a_store_of_google_is_told_what_a_file_is() -> None:
    store = StoreOfGoogle("gs")
    folder = open_output_path(f"{attach(store, 'gs')}bucket/x")
    storage.put_bytes(b"x", folder / "fox.webp")
    assert store.arguments == {"content_type": "image/webp"}


@pytest.mark.parametrize("name", ["fox.PNG", "a.b.png", ".hidden.png"])
def test_the_end_of_a_name_tells_what_a_file_is(name: str) -> None:
    assert content_type_of(name) == "image/png"


@pytest.mark.parametrize("url", ["s3://aws_default@bucket/a:b@c", "s3://bucket/x", "/data/a:b@c", "file:///a:b@c"])
def test_what_holds_no_password_is_shown_as_it_is(url: str) -> None:
    assert without_credentials(url) == url
