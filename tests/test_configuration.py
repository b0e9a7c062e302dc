"""Options of the section [qwenimage]: a bad value is reported once and never stops the API server."""

import logging
import re

import pytest

from airflow_provider_qwenimage import configuration, provider_info
from airflow_provider_qwenimage.configuration import callback_base_url, text_option, whole_option

MEGABYTES = "AIRFLOW__QWENIMAGE__THUMBNAILS_MEGABYTES"


def megabytes() -> int:
    return whole_option("thumbnails_megabytes", at_least=1)


def test_an_option_that_is_not_set_has_the_declared_default(monkeypatch: pytest.MonkeyPatch) -> None:
    # The gallery's tests set it for their process.
    monkeypatch.delenv("AIRFLOW__QWENIMAGE__THUMBNAILS_FOLDER", raising=False)
    assert megabytes() == int(provider_info.CONFIG_OPTIONS["thumbnails_megabytes"]["default"]) == 256
    assert text_option("thumbnails_folder") == ""
    # A process may ask before Airflow has read what providers declare.
    monkeypatch.setattr(configuration, "CONFIG_SECTION", "qwenimage_undeclared")
    assert megabytes() == 256


def test_an_option_that_is_set_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MEGABYTES, " 12 ")
    monkeypatch.setenv("AIRFLOW__QWENIMAGE__GALLERY_DAG_TAGS", " images, art")
    assert megabytes() == 12
    assert text_option("gallery_dag_tags") == "images, art"


@pytest.mark.parametrize("value", ["abc", "-1", "0", "1.5", "nan", "1e3", "9" * 5000])
def test_a_bad_number_is_reported_without_its_value_and_the_default_is_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    monkeypatch.setenv(MEGABYTES, value)
    caplog.set_level(logging.ERROR)
    assert megabytes() == 256
    (message,) = caplog.messages
    assert re.match(r"The option thumbnails_megabytes in section \[qwenimage\] .*the default \(256\) is used", message)
    assert value not in message.replace("at least 1", "")


def test_an_option_that_airflow_cannot_read_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def get(self, *_: object, **__: object) -> str:
            raise RuntimeError("the secrets backend is down")

    monkeypatch.setattr(configuration, "conf", Broken())
    assert text_option("thumbnails_folder") == ""
    assert "cannot be read (RuntimeError)" in caplog.text


def test_a_folder_that_no_file_system_can_have_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIRFLOW__QWENIMAGE__THUMBNAILS_FOLDER", "/var/\x1bcache")
    assert text_option("thumbnails_folder") == ""
    assert "thumbnails_folder" in caplog.text


@pytest.mark.parametrize(("value", "expected"), [("", False), (" ", False), ("a", True), ("a\u200b", True)])
def test_an_option_is_set_also_if_its_value_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: bool
) -> None:
    monkeypatch.setenv("AIRFLOW__QWENIMAGE__THUMBNAILS_FOLDER", value)
    assert configuration.is_set("thumbnails_folder") is expected
    monkeypatch.setattr(configuration, "conf", None)
    assert configuration.is_set("thumbnails_folder")


BASE_URL = "AIRFLOW__QWENIMAGE__CALLBACK_BASE_URL"


@pytest.mark.airflow_feature("gallery", "yes")
def test_the_base_url_of_callbacks_is_a_url_or_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert callback_base_url() is None
    monkeypatch.setenv(BASE_URL, " https://airflow.example.com/team ")
    assert callback_base_url() == "https://airflow.example.com/team"
    monkeypatch.setenv(BASE_URL, " ")
    assert callback_base_url() is None


@pytest.mark.airflow_feature("gallery", "no")
def test_without_a_route_for_them_there_are_no_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BASE_URL, "https://airflow.example.com")
    assert callback_base_url() is None


@pytest.mark.airflow_feature("gallery", "yes")
def test_a_bad_base_url_of_callbacks_is_reported_once_and_ignored(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(BASE_URL, "https://user:s3cr3t@airflow.example.com")
    assert [callback_base_url() for _ in range(3)] == [None] * 3
    (message,) = caplog.messages
    assert "callback_base_url" in message
    assert "without user, query and fragment; the default (empty) is used. Correct it." in message
    assert "s3cr3t" not in message
