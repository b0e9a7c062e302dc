"""Explains in one sentence why a connection does not work, or why the API could not be reached. No I/O."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

from airflow_provider_qwenimage.client.connection import ConnectionSettings
from airflow_provider_qwenimage.client.network_environment import proxy_passwords, proxy_variable
from airflow_provider_qwenimage.contract import DEFAULT_BASE_URL, TaskSnapshot
from airflow_provider_qwenimage.exceptions import (
    QwenImageAuthError,
    QwenImageConnectionError,
    QwenImageCreditsError,
    QwenImageError,
    QwenImageNotFoundError,
    QwenImageRateLimitError,
    QwenImageRequestError,
    QwenImageServerError,
)
from airflow_provider_qwenimage.rules.http_answers import UnreadableAnswerError
from airflow_provider_qwenimage.text.masking import Mask
from airflow_provider_qwenimage.text.messages import printable
from airflow_provider_qwenimage.text.urls import without_access

# The limit of a connection test, which runs in Airflow's API server and blocks one of its threads.
TEST_SECONDS = 10.0
# The server has some forty threads; tests of slow services may block at most so many.
_MOST_TESTS = 8
_TESTS = threading.BoundedSemaphore(_MOST_TESTS)

_NO_ANSWER = "the response was incomplete; check the base URL (host) and the network"
_MOST_CHARACTERS = 500
_QUERY = re.compile(r"\?\S+")


def describe(error: BaseException, settings: ConnectionSettings | None = None) -> str:
    """Return an error of a library as one sentence, without the API key, and without users and queries of URLs.

    Args:
        error: The error. If the system raised one of its causes, that one is described.
        settings: The settings whose key is masked.
    """
    # The system's own error is the most precise.
    cause = next((each for each in reversed(list(_causes(error))) if isinstance(each, OSError)), error)
    # The class of this package's own error adds nothing.
    is_ours = isinstance(cause, UnreadableAnswerError)
    text = str(cause) if is_ours else f"{type(cause).__name__}: {_text_of(cause)}".rstrip(": ")
    # Masked before it is shortened: half a key is no longer found.
    text = settings.without_key(text) if settings else text
    # A proxy may quote the credentials that it was sent, in its reason phrase or in an unreadable answer.
    for password in proxy_passwords():
        text = Mask(password)(text)
    text = printable(_QUERY.sub("", without_access(text)))
    return text[:_MOST_CHARACTERS].rstrip(".") + "."


def _text_of(error: BaseException) -> str:
    """Return the text of an error; for a system error the system's own, since libraries reword some."""
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError | socket.gaierror) and error.errno:
        return f"[Errno {error.errno}] {os.strerror(error.errno)}"
    return str(error)


def is_interruption(error: BaseException) -> bool:
    """Whether Airflow raised an error: it interrupts running code by raising errors in a signal handler."""
    return type(error).__module__.partition(".")[0] == "airflow"


def explain(error: BaseException, settings: ConnectionSettings, seconds: float, *, by_proxy: bool = False) -> str:
    """Return why the API could not be reached and what to do, as one sentence without a full stop.

    Args:
        error: The error of a library, with its causes.
        settings: The settings of the connection.
        seconds: The time limit of the call.
        by_proxy: Whether the call went to a proxy, and nothing was sent to the API.
    """
    causes = list(_causes(error))
    # Otherwise the proxy's fault would be reported as the API's; a certificate is the API's own.
    if by_proxy and not any(isinstance(cause, ssl.SSLError) for cause in causes):
        variable = proxy_variable(settings.base_url)
        return (
            f"the proxy of this machine did not connect to it; check {variable} and NO_PROXY in the environment of "
            "Airflow's processes"
        )
    explanations = (_explain_cause(cause, settings, seconds) for cause in reversed(causes))
    explanation = next(filter(None, explanations), None) or _explain_other(causes[-1])
    return settings.without_key(printable(explanation))


@contextlib.contextmanager
def one_of_few_tests() -> Iterator[None]:
    """Count a connection test for as long as the block runs.

    Raises:
        ValueError: If the maximum is running in this process already.
    """
    if not _TESTS.acquire(blocking=False):
        raise ValueError(
            f"{_MOST_TESTS} connection tests are already running in this process: test again in {TEST_SECONDS:g} s."
        )
    try:
        yield
    finally:
        _TESTS.release()


def judge_connection(outcome: TaskSnapshot | QwenImageError, settings: ConnectionSettings) -> tuple[bool, str]:
    """Return whether a connection works, and one sentence for the user.

    Args:
        outcome: The outcome of a read of a task that does not exist.
        settings: The settings of the connection.
    """
    base_url = settings.base_url
    from_api = isinstance(outcome, QwenImageRequestError) and outcome.from_api
    if isinstance(outcome, TaskSnapshot) or (isinstance(outcome, QwenImageNotFoundError) and from_api):
        works = True
        message = f"Connection works: {base_url} answered and did not refuse the key; this test costs no credit."
    elif isinstance(outcome, QwenImageConnectionError):
        works, message = False, f"Cannot reach {base_url}: {outcome.reason or _NO_ANSWER}."
    elif isinstance(outcome, QwenImageRequestError):
        works, message = False, _explain_refusal(outcome, base_url)
    else:
        works, message = False, _not_the_api(base_url, _describe_answer(outcome))
    if settings.ignored:
        message = f"{message} {settings.ignored}"
    return works, settings.without_key(message)


def _explain_refusal(error: QwenImageRequestError, base_url: str) -> str:
    code = error.code
    if isinstance(error, QwenImageAuthError):
        explanation = f"{base_url} refused the key (code {code}): put a valid one into the API key field (password)."
        if not error.from_api:
            explanation = (
                f"{base_url} refused the key, but without the API's JSON (code {code}): check the API key (password) "
                "and the base URL (host)."
            )
    elif isinstance(error, QwenImageRateLimitError):
        pause = f"in {error.retry_after:g} seconds" if error.retry_after else "in a minute"
        explanation = f"{base_url} was reached, but accepts no more requests for now (code {code}): test again {pause}."
    elif isinstance(error, QwenImageServerError) and not error.from_api:
        explanation = (
            f"The server at {base_url} is not the Qwen-Image API, or a proxy in front of it failed (code {code} "
            "without the API's JSON): test again later, and check the base URL (host)."
        )
    elif not error.from_api:
        explanation = _not_the_api(base_url, f"code {code} without the API's JSON")
    elif isinstance(error, QwenImageServerError):
        explanation = f"{base_url} was reached, but the API failed (code {code}): test again later."
    elif isinstance(error, QwenImageCreditsError):
        explanation = f"{base_url} was reached, but the key's account has no credits left (code {code}): buy credits."
    else:
        explanation = (
            f"{base_url} was reached, but the API rejected the test request (code {code}), so the key could not be "
            "checked: run a task to check it."
        )
    return explanation


def _not_the_api(base_url: str, reason: str) -> str:
    return (
        f"The server at {base_url} is not the Qwen-Image API ({reason}): correct the base URL (host), which is "
        f"{DEFAULT_BASE_URL} for the public service."
    )


def _describe_answer(error: QwenImageError) -> str:
    redirect = getattr(error, "redirect", None)
    return f"it redirects to {redirect}" if redirect else "its answer is not the API's JSON"


def _explain_cause(cause: BaseException, settings: ConnectionSettings, seconds: float) -> str | None:
    match cause:
        # The clients raise errors of these types without the attributes of Python's own.
        case ssl.SSLCertVerificationError():
            reason = getattr(cause, "verify_message", "").rstrip(".") or type(cause).__name__
            explanation = (
                f"its TLS certificate is not trusted ({reason}); check the base URL (host), or give the file of its "
                "certificate authority as verify in the extra"
            )
        case ssl.SSLError():
            reason = getattr(cause, "reason", None) or type(cause).__name__
            explanation = (
                f"the TLS handshake failed ({reason}); check whether the base URL (host) should begin with "
                "http://, and the certificate file if verify in the extra names one"
            )
        case socket.gaierror():
            host = urlsplit(settings.base_url).hostname
            explanation = (
                f"the host name {host} could not be resolved; check the base URL (host) and this machine's network"
            )
        case ConnectionRefusedError():
            explanation = "nothing listens on that port; check the base URL (host) and that the service runs"
        case UnreadableAnswerError():
            explanation = f"{cause}; check the base URL (host), and any proxy in front of it"
        case TimeoutError():
            explanation = (
                f"no complete response within {seconds:g} s; check the base URL (host) and the network, or "
                "raise timeout_seconds in the extra"
            )
        case _:
            return None
    return explanation


def _explain_other(error: BaseException) -> str:
    detail = (isinstance(error, OSError) and error.strerror) or type(error).__name__
    return f"the response was incomplete ({detail}); check the base URL (host) and the network"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes, the innermost last."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        # requests and urllib3 keep some of the errors that they wrap only as an argument.
        wrapped = [part for part in (getattr(link, "reason", None), *link.args) if isinstance(part, BaseException)]
        link = next(iter(wrapped), None) or link.__cause__ or link.__context__
