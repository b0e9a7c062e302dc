"""The URLs by which the API wakes a deferred task: what is one, what is logged of it, and whom a secret is for."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.contract import MAX_URL_CHARACTERS, GenerateRequest
from airflow_provider_qwenimage.rules.callbacks import (
    TRIGGER,
    callback_url,
    digest_of,
    is_base_url,
    is_digest,
    is_secret,
    matches,
    new_secret,
    read_path,
    without_secret,
)
from airflow_provider_qwenimage.triggers import QwenImageStatusTrigger

ID = "0190a5b4-7d3a-7c21-9c4e-1f2e3d4c5b6a"
SECRET = "Zm94-aGFyZV9vd2wtZm94LWhhcmUtb3dsLWZveC0xMj"
PATH = f"/qwenimage/callback/{ID}/{SECRET}"


def test_each_submission_has_a_secret_of_its_own_that_only_its_digest_matches() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(is_secret(secret) for secret in secrets)
    digest = digest_of(SECRET)
    assert is_digest(digest)
    assert SECRET not in digest
    assert matches(SECRET, digest)
    assert not any(matches(secret, digest) for secret in secrets)


@pytest.mark.parametrize("value", [None, "", 5, b"x", [], "ä", digest_of("other"), digest_of(SECRET).upper(), SECRET])
def test_no_other_value_counts_as_the_digest_of_a_secret(value: object) -> None:
    assert not matches(SECRET, value)


@pytest.mark.parametrize("value", [None, 5, "", "a" * 63, "a" * 65, "g" * 64, "A" * 64, "a" * 63 + "\n", "\u0660" * 64])
def test_a_digest_is_64_hexadecimal_digits(value: object) -> None:
    assert not is_digest(value)


@pytest.mark.parametrize("text", ["", "a" * 42, "a" * 44, "a" * 42 + "/", "a" * 42 + "\n", "ä" * 43, "a" * 42 + "="])
def test_a_secret_is_43_characters_of_a_url(text: str) -> None:
    assert not is_secret(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://airflow.example.com",
        "https://airflow.example.com/",
        "http://10.0.0.7:8080/team/airflow/",
        "https://airflow.example.com/qwenimage",
        "https://[2001:db8::1]:8443",
    ],
)
def test_the_api_can_be_given_a_url_below_a_base_url(text: str) -> None:
    assert is_base_url(text)
    url = callback_url(text, uuid.UUID(ID), SECRET)
    assert url == f"{text.rstrip('/')}{PATH}"
    # What is submitted is checked as well.
    GenerateRequest(prompt="A fox", callback_url=url)


@pytest.mark.parametrize("end", ["/qwenimage/callback", "/qwenimage/callback/"])
def test_a_base_url_may_end_with_the_path_of_callbacks(end: str) -> None:
    assert callback_url(f"https://host/airflow{end}", ID, SECRET) == f"https://host/airflow{PATH}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "airflow.example.com",
        "ftp://airflow.example.com",
        "https://",
        "https://air flow.example.com",
        "https://airflow.example.com/\n",
        "https://user:password@airflow.example.com",
        "https://airflow.example.com?",
        "https://airflow.example.com/?a=b",
        "https://airflow.example.com/#",
        "https://airflow.example.com/#part",
        "https://airflow.example.com:99999",
        "https://airflow.example.com/" + "a" * MAX_URL_CHARACTERS,
        "https://[::1",
    ],
)
def test_no_path_can_follow_any_other_text(text: str) -> None:
    assert not is_base_url(text)


@pytest.mark.parametrize("before", ["", "/airflow", "/team/airflow"])
def test_a_path_is_read_whatever_airflows_base_url_has_in_front(before: str) -> None:
    callback = read_path(before + PATH)
    assert callback is not None
    assert (callback.task_instance_id, callback.secret) == (ID, SECRET)
    assert SECRET not in repr(callback)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/qwenimage/callback",
        "/qwenimage/callback/",
        f"/qwenimage/callback/{ID}",
        f"/qwenimage/callback/{ID}/",
        f"/qwenimage/callback/{SECRET}",
        f"/qwenimage/callback/{SECRET}/{ID}",
        f"/qwenimage/{ID}/{SECRET}",
        f"{PATH}/",
        f"{PATH}/more",
        PATH + PATH,
        f"{PATH}\n",
        f"{PATH}%",
        PATH.replace(f"{ID}/", f"{ID}//"),
        PATH.replace(ID, ID.upper()),
        PATH.replace(ID, ID.replace("-", "")),
        PATH.replace(ID, f"{{{ID}}}"),
        PATH.replace(ID, f"urn:uuid:{ID}"),
        PATH.replace(ID, "\u0660" + ID[1:]),
        PATH.replace(ID, f"{ID}\x00"),
    ],
)
def test_any_other_path_is_none_of_a_callback(path: str) -> None:
    assert read_path(path) is None


@pytest.mark.parametrize(
    ("path", "logged"),
    [
        (PATH, f"/qwenimage/callback/{ID}/masked"),
        (f"/airflow{PATH}", f"/airflow/qwenimage/callback/{ID}/masked"),
        (PATH + PATH, f"/qwenimage/callback/{ID}/masked"),
        (f"{PATH}/{SECRET}", f"/qwenimage/callback/{ID}/masked"),
        (f"/qwenimage/callback/{SECRET}", "/qwenimage/callback/masked/masked"),
        (f"/qwenimage/callback//{ID}/{SECRET}", "/qwenimage/callback/masked/masked"),
    ],
)
def test_a_secret_is_not_logged(path: str, logged: str) -> None:
    assert without_secret(path) == logged


@given(st.text(), st.text())
def test_nothing_behind_the_route_is_logged_but_the_id_of_a_task_instance(first: str, second: str) -> None:
    assert SECRET not in without_secret(f"/qwenimage/callback/{first}{SECRET}{second}")
    assert read_path(f"/qwenimage/callback/{first}/{second}") is None


def test_only_tasks_that_wait_with_the_status_trigger_are_woken() -> None:
    assert QwenImageStatusTrigger("n43").serialize()[0] == TRIGGER
