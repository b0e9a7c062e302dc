"""Values of the last seconds: made once for all who ask, and an error as well."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from airflow_provider_qwenimage.plugin.fresh_values import FreshValues
from tests.events import wait_until


def soon() -> float:
    return time.monotonic() + 100


def test_many_who_ask_at_once_share_one_value() -> None:
    values = FreshValues(60, most_weight=100, most_values=10)
    made: list[None] = []
    end = threading.Event()

    def make() -> str:
        made.append(None)
        assert end.wait(100)
        return "read"

    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(values.get, "books", make, len, soon()) for _ in range(20)]
        wait_until(lambda: made, "the first read")
        end.set()
        assert {one.result() for one in asked} == {"read"}
    assert values.get("books", make, len, soon()) == "read"
    assert len(made) == 1
    # Another user has other rights, and so another key.
    assert values.get("other books", lambda: "theirs", len, soon()) == "theirs"


def test_an_error_is_shared_and_later_tried_again() -> None:
    values = FreshValues(60, most_weight=100, most_values=10)
    made: list[None] = []

    def fail() -> str:
        made.append(None)
        raise ValueError("away")

    for _ in range(3):
        with pytest.raises(ValueError, match="away"):
            values.get("books", fail, len, soon())
    assert len(made) == 1
    values.clear()
    assert values.get("books", lambda: "read", len, soon()) == "read"


def test_an_old_value_is_made_again() -> None:
    values = FreshValues(0, most_weight=100, most_values=10)
    assert [values.get("books", lambda text=text: text, len, soon()) for text in ("a", "b")] == ["a", "b"]  # type: ignore[misc]


def test_nobody_waits_longer_than_until_the_deadline() -> None:
    values = FreshValues(60, most_weight=100, most_values=10)
    begun, end = threading.Event(), threading.Event()

    def make() -> str:
        begun.set()
        assert end.wait(100)
        return "read"

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(values.get, "books", make, len, soon())
        assert begun.wait(100)
        with pytest.raises(TimeoutError):
            values.get("books", make, len, time.monotonic() + 0.01)
        end.set()
        assert first.result() == "read"
