"""Says in one sentence why a connection does not work, or why the API could not be reached. No I/O."""

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

# The whole of a connection test: it runs in Airflow's API server, which has other things to answer.
TEST_SECONDS = 10.0
# It answers with some forty threads, of which slow services under test may hold so many.
_MOST_TESTS = 8
_TESTS = threading.BoundedSemaphore(_MOST_TESTS)

_NO_ANSWER = "the response was incomplete; check the base URL (host) and the network"
_MOST_CHARACTERS = 500
_QUERY = re.compile(r"\?\S+")


def describe(error: BaseException, settings: ConnectionSettings | None = None) -> str:
    """Return what a library said as one sentence, without the API key, and without users and queries of URLs.

    Args:
        error: What the library raised. Of what it came from, the system's own error says most.
        settings: Whose key to blot out.
    """
    said = next((cause for cause in reversed(list(_causes(error))) if isinstance(cause, OSError)), error)
    # Errors of this package say by themselves what they are about.
    ours = isinstance(said, UnreadableAnswerError)
    text = str(said) if ours else f"{type(said).__name__}: {_words_of(said)}".rstrip(": ")
    # First what is secret, and only then cut: half a key is no longer found.
    text = settings.without_key(text) if settings else text
    # A proxy may quote what it was sent to log in, in the reason phrase of its refusal or in what is no answer.
    for password in proxy_passwords():
        text = Mask(password)(text)
    text = printable(_QUERY.sub("", without_access(text)))
    return text[:_MOST_CHARACTERS].rstrip(".") + "."


def _words_of(error: BaseException) -> str:
    """Return what an error says; of the system's own errors what they always say, since libraries reword some."""
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError | socket.gaierror) and error.errno:
        return f"[Errno {error.errno}] {os.strerror(error.errno)}"
    return str(error)


def explain(error: BaseException, settings: ConnectionSettings, seconds: float, *, by_proxy: bool = False) -> str:
    """Return why the API could not be reached and what to do, as one sentence without a full stop.

    Args:
        error: What a library raised, with what it came from.
        settings: What the connection says.
        seconds: How long the call could take at most.
        by_proxy: Whether a proxy was to connect to the API, and nothing was sent to the API.
    """
    causes = list(_causes(error))
    # Otherwise what a proxy did would be told as what the API did; a certificate is the API's own.
    if by_proxy and not any(isinstance(cause, ssl.SSLError) for cause in causes):
        variable = proxy_variable(settings.base_url)
        return (
            f"the proxy of this machine does not let it through; check {variable} and NO_PROXY in the environment of "
            "Airflow's processes"
        )
    stories = (_explain_cause(cause, settings, seconds) for cause in reversed(causes))
    last = causes[-1]
    detail = (isinstance(last, OSError) and last.strerror) or type(last).__name__
    story = next(
        filter(None, stories), f"the response was incomplete ({detail}); check the base URL (host) and the network"
    )
    return settings.without_key(printable(story))


@contextlib.contextmanager
def one_of_few_tests() -> Iterator[None]:
    """Count a connection test for as long as the block runs.

    Raises:
        ValueError: If as many run already in this process as may at once.
    """
    if not _TESTS.acquire(blocking=False):
        raise ValueError(f"Already {_MOST_TESTS} connection tests are running here: test again in {TEST_SECONDS:g} s.")
    try:
        yield
    finally:
        _TESTS.release()


def judge_connection(outcome: TaskSnapshot | QwenImageError, settings: ConnectionSettings) -> tuple[bool, str]:
    """Return whether a connection works, and one sentence that tells the user so.

    Args:
        outcome: What asking after a task that does not exist ended with.
        settings: What the connection says.
    """
    where = settings.base_url
    from_api = isinstance(outcome, QwenImageRequestError) and outcome.from_api
    if isinstance(outcome, TaskSnapshot) or (isinstance(outcome, QwenImageNotFoundError) and from_api):
        works, story = (
            True,
            f"Connection works: {where} answered and did not refuse the key; this test costs no credit.",
        )
    elif isinstance(outcome, QwenImageConnectionError):
        works, story = False, f"Cannot reach {where}: {outcome.reason or _NO_ANSWER}."
    elif isinstance(outcome, QwenImageRequestError):
        works, story = False, _explain_refusal(outcome, where)
    else:
        works, story = False, _not_the_api(where, _say_what_came(outcome))
    if settings.ignored:
        story = f"{story} {settings.ignored}"
    return works, settings.without_key(story)


def _explain_refusal(error: QwenImageRequestError, where: str) -> str:
    code = error.code
    if isinstance(error, QwenImageAuthError):
        story = f"{where} refused the key (code {code}): put a valid one into the API key field (password)."
        if not error.from_api:
            story = (
                f"{where} refused the key, but without the API's JSON (code {code}): check the API key (password) and "
                "the base URL (host)."
            )
    elif isinstance(error, QwenImageRateLimitError):
        pause = f"in {error.retry_after:g} seconds" if error.retry_after else "in a minute"
        story = f"{where} was reached, but takes no more requests for now (code {code}): test again {pause}."
    elif isinstance(error, QwenImageServerError) and not error.from_api:
        story = (
            f"What answers at {where} is not the Qwen-Image API (code {code} without the API's JSON), or a proxy "
            "before it: test again later, and check the base URL (host)."
        )
    elif not error.from_api:
        story = _not_the_api(where, f"code {code} without the API's JSON")
    elif isinstance(error, QwenImageServerError):
        story = f"{where} was reached, but the API is in trouble (code {code}): test again later."
    elif isinstance(error, QwenImageCreditsError):
        story = f"{where} was reached, but the key's account has no credits left (code {code}): buy credits."
    else:
        story = (
            f"{where} was reached, but the API did not accept the test's question (code {code}), which proves the key "
            "neither right nor wrong: run a task to find out."
        )
    return story


def _not_the_api(where: str, what: str) -> str:
    return (
        f"What answers at {where} is not the Qwen-Image API ({what}): correct the base URL (host), which is "
        f"{DEFAULT_BASE_URL} for the public service."
    )


def _say_what_came(error: QwenImageError) -> str:
    redirect = getattr(error, "redirect", None)
    return f"it redirects to {redirect}" if redirect else "its answer is not the API's JSON"


def _explain_cause(cause: BaseException, settings: ConnectionSettings, seconds: float) -> str | None:
    match cause:
        # The clients have errors of these types without what Python's own say.
        case ssl.SSLCertVerificationError():
            reason = getattr(cause, "verify_message", "").rstrip(".") or type(cause).__name__
            story = (
                f"its TLS certificate is not trusted ({reason}); check the base URL (host), or give the file of its "
                "certificate authority as verify in the extra"
            )
        case ssl.SSLError():
            reason = getattr(cause, "reason", None) or type(cause).__name__
            story = (
                f"the TLS handshake failed ({reason}); check whether the base URL (host) should begin with "
                "http://, and the certificate file where verify in the extra names one"
            )
        case socket.gaierror():
            host = urlsplit(settings.base_url).hostname
            story = f"the name {host} is not known here; check the base URL (host) and this machine's network"
        case ConnectionRefusedError():
            story = "nothing listens on that port; check the base URL (host) and that the service runs"
        case UnreadableAnswerError():
            story = f"{cause}; check the base URL (host), and any proxy before it"
        case TimeoutError():
            story = (
                f"no whole answer came within {seconds:g} s; check the base URL (host) and the network, or "
                "raise timeout_seconds in the extra"
            )
        case _:
            return None
    return story


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from, the innermost last."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        # requests and urllib3 hold some of what they wrap as an argument only.
        wrapped = [its for its in (getattr(link, "reason", None), *link.args) if isinstance(its, BaseException)]
        link = next(iter(wrapped), None) or link.__cause__ or link.__context__
