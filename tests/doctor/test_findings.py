"""A check that fails, crashes or hangs is one line, and the others go on."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from airflow_provider_qwenimage.cli.doctor.findings import Check, Finding, run_check
from airflow_provider_qwenimage.exceptions import QwenImageConnectionError


def _raise(error: BaseException) -> Callable[[], Finding]:
    def check() -> Finding:
        raise error

    return check


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("host is wrong; correct it."), "host is wrong; correct it."),
        (QwenImageConnectionError("Nothing answers.\nStart it."), "Nothing answers. Start it."),
        (OSError(), "OSError"),
        (KeyError("x"), "The check itself failed: KeyError: 'x'."),
        (SystemExit(3), "The check itself failed: SystemExit: 3."),
        (KeyboardInterrupt(), "The check itself failed: KeyboardInterrupt."),
        (ValueError("see https://u:p@host/a?sig=s and sk-key"), "see https://host/a and ***"),
    ],
)
def test_an_error_is_one_failed_line(error: BaseException, message: str) -> None:
    check = run_check("name", _raise(error), without_key=lambda text: text.replace("sk-key", "***"))
    assert check == Check("name", "failed", message)


def test_a_check_that_hangs_is_given_up() -> None:
    released = threading.Event()

    def hang() -> Finding:
        released.wait(60)
        return Finding("ok", "late")

    check = run_check("name", hang, seconds=0.1)
    released.set()
    assert (check.state, "did not end within 0.1 s" in check.message) == ("failed", True)


def test_a_long_message_is_shortened() -> None:
    assert len(run_check("name", lambda: Finding("ok", "x" * 10_000)).message) < 1100
