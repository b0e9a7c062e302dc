"""Runs checks one by one, each within a time limit: one that fails, crashes or hangs does not end the others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from airflow_provider_qwenimage.client.diagnosis import describe
from airflow_provider_qwenimage.exceptions import QwenImageError
from airflow_provider_qwenimage.text.messages import printable, shorten
from airflow_provider_qwenimage.text.urls import without_access

OK, WARNING, FAILED, SKIPPED = STATES = ("ok", "warning", "failed", "skipped")
# A storage library waits this long for a host that does not answer, and then tries again.
SECONDS_FOR_A_CHECK = 60.0

_MOST_CHARACTERS = 1000


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        state: One of `STATES`.
        message: What was found and, if that is not well, what to do about it; one line.
    """

    state: str
    message: str


@dataclass(frozen=True)
class Check:
    """A finding under the name of its check."""

    name: str
    state: str
    message: str


def run_check(
    name: str,
    check: Callable[[], Finding],
    *,
    seconds: float = SECONDS_FOR_A_CHECK,
    without_key: Callable[[str], str] = str,
) -> Check:
    """Run a check in a thread of its own, and return what it found, whatever happens in it.

    Args:
        name: The name of the check.
        check: The check.
        seconds: Its time limit. A check that takes longer goes on in its thread, which ends with the process.
        without_key: Removes the API key from a text.
    """
    found: list[Finding] = []

    def run() -> None:
        try:
            found.append(check())
        except (QwenImageError, ValueError, OSError, ImportError) as error:
            # Errors of this package and of storages say what to do.
            found.append(Finding(FAILED, str(error) or type(error).__name__))
        except BaseException as error:  # noqa: BLE001  the other checks go on
            found.append(Finding(FAILED, f"The check itself failed: {describe(error)}"))

    thread = threading.Thread(target=run, name=f"qwenimage-doctor-{name}", daemon=True)
    thread.start()
    thread.join(seconds)
    finding = next(
        iter(found),
        Finding(
            FAILED, f"The check did not end within {seconds:g} s. Check the network of this machine, and run it again."
        ),
    )
    message = shorten(printable(without_access(without_key(finding.message))), _MOST_CHARACTERS)
    return Check(name, finding.state, message)
