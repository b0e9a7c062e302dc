"""Both clients, every case of the contract, through real sockets: equal results and equal errors."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import pytest

from airflow_provider_qwenimage.contract import GenerateRequest, TaskSnapshot, TaskStatus
from airflow_provider_qwenimage.exceptions import (
    QwenImageAuthError,
    QwenImageConnectionError,
    QwenImageContentPolicyError,
    QwenImageContractError,
    QwenImageCreditsError,
    QwenImageError,
    QwenImageNotFoundError,
    QwenImageRateLimitError,
    QwenImageServerError,
    QwenImageSubmissionUnknownError,
    QwenImageTaskFailedError,
    QwenImageTimeoutError,
)
from airflow_provider_qwenimage.hooks import QwenImageAsyncHook, QwenImageHook
from airflow_provider_qwenimage.rules import answers, polling, retries
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.events import finish_images, run_when, status_reads
from tests.ports import free_ports
from tests.sending import note_sending

Verb = Callable[..., Any]
KEY = "sk-parity-test-key"


class SyncClient:
    """Calls the verbs of the requests client."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments

    def __call__(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        with QwenImageHook(**self.arguments) as hook:
            return getattr(hook, verb)(*args, **kwargs)


class AsyncClient(SyncClient):
    """Calls the verbs of the aiohttp client."""

    def __call__(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        async def call() -> Any:
            async with QwenImageAsyncHook(**self.arguments) as hook:
                return await getattr(hook, verb)(*args, **kwargs)

        return asyncio.run(call())


@pytest.fixture(scope="module")
def running() -> Iterator[Sandbox]:
    with Sandbox(port=0, seconds_per_image=0, api_keys=[KEY]) as sandbox:
        yield sandbox


@pytest.fixture(params=["http", "envelope"])
def sandbox(running: Sandbox, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    # At the end it is put back, should a test have moved it on.
    monkeypatch.setattr(running._state.books, "clock", running._state.books.clock)
    running.reset()
    running.configure(wire_style=request.param, seconds_per_image=0)
    connect(monkeypatch, host=running.url)
    return running


@pytest.fixture(params=[SyncClient, AsyncClient], ids=["requests", "aiohttp"])
def client(request: pytest.FixtureRequest) -> SyncClient:
    return request.param(timeout_seconds=60.0, retry_limit=0)


@pytest.fixture
def patient(client: SyncClient) -> SyncClient:
    return type(client)(timeout_seconds=60.0, retry_limit=3, retry_delay=0.01)


def connect(monkeypatch: pytest.MonkeyPatch, password: str = KEY, **fields: Any) -> None:
    connection = {"conn_type": "qwenimage", "password": password} | fields
    monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", json.dumps(connection))


def routes(sandbox: Sandbox) -> list[str]:
    return [record.route for record in sandbox.requests]


def submit_to(sandbox: Sandbox, behaviour: str, client: SyncClient, monkeypatch: pytest.MonkeyPatch) -> QwenImageError:
    """Return what a submission ends in that meets with a behaviour.

    Where that is to hang, the client's timeout is as long as the submission needs to arrive: it grows until it does.
    """
    seconds = 0.25 if "hang" in behaviour else 60.0
    while True:
        sandbox.script("generate", behaviour)
        with pytest.raises(QwenImageError) as caught:
            type(client)(**client.arguments | {"timeout_seconds": seconds})("generate", "a fox")
        has_arrived = sandbox.submissions if behaviour == "hang_after" else sandbox.requests
        if has_arrived or seconds > 15:
            return caught.value
        seconds *= 2
        # What is still on its way must not count.
        settings = {"wire_style": sandbox.settings.wire_style, "seconds_per_image": 0}
        sandbox.stop()
        sandbox.reset()
        sandbox.configure(**settings)
        sandbox.start()
        connect(monkeypatch, host=sandbox.url)


def test_a_submission_returns_the_task_id_and_charges_once(client: SyncClient, sandbox: Sandbox) -> None:
    callback = f"{sandbox.url}/nowhere"
    task_id = client("generate", "a fox", size="768*1024", seed=7, output_format="webp", callback_url=callback)
    (submission,) = sandbox.submissions
    assert submission.task_id == task_id
    assert submission.request == {
        "prompt": "a fox",
        "size": "768*1024",
        "seed": 7,
        "output_format": "webp",
        "callback_url": callback,
    }


def test_a_prompt_of_any_script_arrives_as_it_was(client: SyncClient, sandbox: Sandbox) -> None:
    prompt = '雪の中の狐 🦊 "quoted" \\ back\nline'
    client("generate", prompt)
    assert sandbox.submissions[0].request["prompt"] == prompt


def test_a_status_is_read(client: SyncClient, sandbox: Sandbox) -> None:
    task_id = client("generate", "a fox")
    snapshot = client("get_status", task_id)
    assert isinstance(snapshot, TaskSnapshot)
    assert (snapshot.task_id, snapshot.status, snapshot.consumed_credits) == (task_id, TaskStatus.SUCCESS, 5)
    assert len(snapshot.image_urls) == 1
    assert snapshot.request["prompt"] == "a fox"


def test_a_wait_ends_with_the_image(client: SyncClient, sandbox: Sandbox) -> None:
    sandbox.configure(seconds_per_image=3600)
    task_id = client("generate", "a fox")
    with run_when(lambda: status_reads(sandbox) > 2, lambda: finish_images(sandbox)):
        snapshot = client("wait_for_completion", task_id, poll_interval=0.02, timeout=3600.0)
    assert snapshot.status == TaskStatus.SUCCESS


def test_a_wait_ends_at_its_deadline(client: SyncClient, sandbox: Sandbox) -> None:
    sandbox.configure(seconds_per_image=3600)
    task_id = client("generate", "a fox")
    with pytest.raises(QwenImageTimeoutError, match=task_id):
        client("wait_for_completion", task_id, poll_interval=0.05, timeout=0.2)


@pytest.mark.parametrize(
    ("word", "error_class"), [("[policy]", QwenImageContentPolicyError), ("[fail]", QwenImageTaskFailedError)]
)
def test_a_failed_task_raises_with_the_apis_reason(
    client: SyncClient, sandbox: Sandbox, word: str, error_class: type[QwenImageTaskFailedError]
) -> None:
    task_id = client("generate", f"a fox {word}")
    with pytest.raises(QwenImageTaskFailedError) as caught:
        client("wait_for_completion", task_id, poll_interval=0.05)
    assert type(caught.value) is error_class
    assert caught.value.snapshot is not None
    assert caught.value.snapshot.consumed_credits == 0


def test_a_wait_survives_every_blip(client: SyncClient, sandbox: Sandbox) -> None:
    task_id = client("generate", "a fox")
    blips = ["server_error", "drop", "html", "empty", "malformed", "wrong_shape", "unknown_status", "redirect"]
    sandbox.script("status", *blips)
    assert client("wait_for_completion", task_id, poll_interval=0.01).status == TaskStatus.SUCCESS
    assert routes(sandbox).count("status") == len(blips) + 1


def test_a_wait_gives_up_after_ten_failures_in_a_row(client: SyncClient, sandbox: Sandbox) -> None:
    task_id = client("generate", "a fox")
    sandbox.script("status", *["server_error"] * 12)
    with pytest.raises(QwenImageServerError, match="after 10 failed reads in a row"):
        client("wait_for_completion", task_id, poll_interval=0.01)
    assert routes(sandbox).count("status") == 10


STATUS_ERRORS: list[tuple[str, type[QwenImageError]]] = [
    ("unauthorized", QwenImageAuthError),
    ("forbidden", QwenImageAuthError),
    ("payment", QwenImageCreditsError),
    ("not_found", QwenImageNotFoundError),
    ("rate_limit", QwenImageRateLimitError),
    ("server_error", QwenImageServerError),
    ("html", QwenImageServerError),
    ("empty", QwenImageContractError),
    ("malformed", QwenImageContractError),
    ("wrong_shape", QwenImageContractError),
    ("redirect", QwenImageContractError),
    ("drop", QwenImageConnectionError),
    ("drop_after", QwenImageConnectionError),
    ("hang", QwenImageConnectionError),
]


@pytest.mark.parametrize(("behaviour", "error_class"), STATUS_ERRORS)
def test_a_status_read_ends_in_the_same_error(
    client: SyncClient, sandbox: Sandbox, behaviour: str, error_class: type[QwenImageError]
) -> None:
    task_id = client("generate", "a fox")
    if behaviour == "hang":
        client.arguments["timeout_seconds"] = 0.25
    # Twice: aiohttp itself asks once more where a connection was dropped under a GET.
    sandbox.script("status", behaviour, behaviour)
    with pytest.raises(QwenImageError) as caught:
        client("get_status", task_id)
    assert type(caught.value) is error_class
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("behaviour", "error_class", "charged"),
    [
        ("unauthorized", QwenImageAuthError, 0),
        ("payment", QwenImageCreditsError, 0),
        ("rate_limit", QwenImageRateLimitError, 0),
        ("server_error", QwenImageServerError, 0),
        ("html", QwenImageSubmissionUnknownError, 0),
        ("drop", QwenImageSubmissionUnknownError, 0),
        ("drop_after", QwenImageSubmissionUnknownError, 1),
        ("hang", QwenImageSubmissionUnknownError, 0),
        ("hang_after", QwenImageSubmissionUnknownError, 1),
        ("empty", QwenImageSubmissionUnknownError, None),
        ("malformed", QwenImageSubmissionUnknownError, None),
        ("wrong_shape", QwenImageSubmissionUnknownError, None),
    ],
)
def test_a_submission_ends_in_the_same_error(
    client: SyncClient,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    *,
    behaviour: str,
    error_class: type[QwenImageError],
    charged: int | None,
) -> None:
    assert type(submit_to(sandbox, behaviour, client, monkeypatch)) is error_class
    assert routes(sandbox).count("generate") == 1
    if charged is not None:
        assert len(sandbox.submissions) == charged


@pytest.mark.parametrize(
    "behaviours", [["rate_limit", "rate_limit"], ["server_error"], ["rate_limit", "server_error", "rate_limit"]]
)
def test_a_submission_that_was_surely_refused_is_sent_again(
    patient: SyncClient, sandbox: Sandbox, behaviours: list[str]
) -> None:
    sandbox.configure(retry_after=0)
    sandbox.script("generate", *behaviours)
    patient("generate", "a fox")
    assert routes(sandbox).count("generate") == len(behaviours) + 1
    assert len(sandbox.submissions) == 1


@pytest.mark.parametrize("between", [[], ["rate_limit"]])
def test_a_submission_is_sent_again_once_after_a_plain_500(
    patient: SyncClient, sandbox: Sandbox, between: list[str]
) -> None:
    sandbox.configure(retry_after=0)
    sandbox.script("generate", "server_error", *between, *["server_error"] * 5)
    with pytest.raises(QwenImageServerError, match=r"answered 2 submissions .* with code 500.* may have been charged"):
        patient("generate", "a fox")
    assert routes(sandbox).count("generate") == 2 + len(between)


@pytest.mark.parametrize("behaviour", ["rate_limit", "server_error"])
def test_a_single_submission_is_sent_once_and_ends_in_the_same_error(
    patient: SyncClient, sandbox: Sandbox, behaviour: str
) -> None:
    sandbox.script("generate", behaviour, "ok")
    with pytest.raises((QwenImageRateLimitError, QwenImageServerError)):
        patient("submit_once", GenerateRequest(prompt="a fox"))
    assert routes(sandbox).count("generate") == 1
    assert patient("submit_once", GenerateRequest(prompt="a fox")) == sandbox.submissions[0].task_id


@pytest.mark.parametrize("behaviour", ["drop", "drop_after", "hang_after", "html", "empty"])
def test_a_submission_that_may_be_paid_is_never_sent_again(
    patient: SyncClient, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, behaviour: str
) -> None:
    assert type(submit_to(sandbox, behaviour, patient, monkeypatch)) is QwenImageSubmissionUnknownError
    assert routes(sandbox).count("generate") == 1


@pytest.mark.parametrize("behaviour", ["server_error", "rate_limit", "drop", "html"])
def test_a_status_read_is_sent_again(patient: SyncClient, sandbox: Sandbox, behaviour: str) -> None:
    sandbox.configure(retry_after=0)
    task_id = patient("generate", "a fox")
    sandbox.script("status", behaviour, behaviour, behaviour)
    assert patient("get_status", task_id).status == TaskStatus.SUCCESS
    assert routes(sandbox).count("status") == 4


def test_a_refused_submission_quotes_the_message_of_the_api(client: SyncClient, sandbox: Sandbox) -> None:
    sandbox.script("generate", "payment")
    with pytest.raises(QwenImageCreditsError, match="code 402"):
        client("generate", "a fox")


@pytest.mark.parametrize(
    ("fields", "name"),
    [({"size": "1*1"}, "size"), ({"seed": -2}, "seed"), ({"output_format": "gif"}, "output_format")],
)
def test_a_bad_argument_never_reaches_the_api(
    client: SyncClient, sandbox: Sandbox, fields: dict[str, Any], name: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is"):
        client("generate", "a fox", **fields)
    with pytest.raises(ValueError, match="^image_task_id is"):
        client("get_status", "")
    assert sandbox.requests == []


def test_the_wrong_key_is_refused(client: SyncClient, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, host=sandbox.url, password="sk-wrong")
    with pytest.raises(
        QwenImageAuthError,
        match=r"The key in connection 'qwenimage_default' was rejected\. Correct it, then clear the task\.$",
    ):
        client("generate", "a fox")
    works, message = client("test_connection")
    assert not works
    assert "refused the key" in message


def test_a_connection_test_works_and_costs_nothing(client: SyncClient, sandbox: Sandbox) -> None:
    assert client("test_connection")[0]
    assert sandbox.submissions == []


@pytest.mark.parametrize("behaviour", ["html", "redirect", "malformed", "empty"])
def test_a_connection_test_recognizes_another_api(client: SyncClient, sandbox: Sandbox, behaviour: str) -> None:
    sandbox.script("status", behaviour)
    works, message = client("test_connection")
    assert not works
    assert "not the Qwen-Image API" in message


def test_a_connection_test_reports_an_unusable_connection(client: SyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, password="")
    works, message = client("test_connection")
    assert not works
    assert "no API key" in message


@pytest.fixture
def closed_port() -> int:
    (port,) = free_ports(1)
    return port


@pytest.mark.parametrize("host", ["http://127.0.0.1:{port}", "http://no-such-host.invalid:{port}"])
def test_a_call_that_never_reached_the_api_is_safe_to_send_again(
    client: SyncClient, closed_port: int, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    connect(monkeypatch, host=host.format(port=closed_port))
    for verb, argument in (("generate", "a fox"), ("get_status", "n43")):
        with pytest.raises(QwenImageConnectionError, match="could not be reached") as caught:
            client(verb, argument)
        assert ".." not in str(caught.value)
    works, message = client("test_connection")
    assert not works
    assert "Cannot reach" in message


def test_https_to_a_plain_http_port_is_never_reached(
    client: SyncClient, running: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, host=running.url.replace("http://", "https://"))
    with pytest.raises(QwenImageConnectionError, match="should begin with http://"):
        client("generate", "a fox")


class Scripted:
    """A server that answers with bytes that no sandbox would send."""

    def __init__(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.seen: list[dict[str, str]] = []
        seen = self.seen

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen.append(dict(self.headers))
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                try:
                    self.wfile.write(content)
                except OSError:
                    return

            do_POST = do_GET  # noqa: N815  http.server's name

            def log_message(self, *args: Any) -> None:
                """Keep quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_an_api_that_quotes_the_key_does_not_spread_it(client: SyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    said = json.dumps({"code": 401, "message": f"Invalid key {KEY}", "data": None}).encode()
    with Scripted(said, 401) as server:
        connect(monkeypatch, host=server.url)
        with pytest.raises(QwenImageAuthError, match=r"Invalid key \*\*\*") as caught:
            client("get_status", "n43")
    assert KEY not in str(caught.value)


def test_an_endless_answer_is_cut_off(client: SyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(b"[" * (8 * 1024 * 1024)) as server:
        connect(monkeypatch, host=server.url)
        with pytest.raises(QwenImageContractError):
            client("get_status", "n43")


def test_a_redirect_never_carries_the_key(client: SyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(b"{}") as other, Scripted(b"", 307, {"Location": other.url}) as server:
        connect(monkeypatch, host=server.url)
        with pytest.raises(QwenImageContractError, match="redirect"):
            client("get_status", "n43")
        with pytest.raises(QwenImageContractError, match="redirect"):
            client("generate", "a fox")
        assert [request["Authorization"] for request in server.seen] == [f"Bearer {KEY}"] * 2
        assert other.seen == []


def test_the_session_carries_the_key_to_the_api_only(client: SyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fetch_async(*urls: str) -> None:
        async with QwenImageAsyncHook() as hook:
            session = await hook.get_conn()
            for url in urls:
                async with session.get(url) as response:
                    await response.read()

    with Scripted(b"{}") as api, Scripted(b"{}") as cdn:
        connect(monkeypatch, host=api.url)
        if isinstance(client, AsyncClient):
            asyncio.run(fetch_async(api.url, cdn.url))
        else:
            for url in (api.url, cdn.url):
                QwenImageHook().get_conn().get(url, timeout=60)
        assert [request.get("Authorization") for request in (*api.seen, *cdn.seen)] == [f"Bearer {KEY}", None]


def test_a_netrc_file_does_not_replace_the_key(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "netrc").write_text("default login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    # A proxy for some other scheme makes aiohttp look for the file at all.
    monkeypatch.setenv("ftp_proxy", "http://127.0.0.1:9")
    with Scripted(b"{}") as api:
        connect(monkeypatch, host=api.url)
        with pytest.raises(QwenImageContractError):
            client("get_status", "n43")
        assert api.seen[0]["Authorization"] == f"Bearer {KEY}"


def test_a_base_url_may_have_a_path(client: SyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    said = json.dumps({"code": 404, "message": "no", "data": None}).encode()
    with Scripted(said) as api:
        connect(monkeypatch, host=f"{api.url}/qwen/")
        assert client("test_connection")[0]


def test_the_rate_of_the_connection_is_kept(
    client: SyncClient, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.configure(seconds_per_image=3600)
    task_id = client("generate", "a fox")
    connect(monkeypatch, host=sandbox.url, extra={"max_requests_per_second": 20})
    sent, started = note_sending(monkeypatch), time.time()
    with run_when(lambda: status_reads(sandbox) > 5, lambda: finish_images(sandbox)):
        client("wait_for_completion", task_id, poll_interval=0.001, timeout=3600.0)
    assert len(sent) == status_reads(sandbox)
    assert all(later - earlier >= 0.05 - 1e-6 for (_, earlier), (_, later) in itertools.pairwise(sent))
    # Nor is it slower, but for what the machine adds.
    assert {limit.spacing for limit, _ in sent} == {0.05}
    arrived = [record.time for record in sandbox.requests if record.route == "status"]
    assert all(moment - started >= 0.05 * number - 0.005 for number, moment in enumerate(arrived))


def test_a_wait_keeps_nothing_of_an_answer_until_the_next_one(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer has up to a mebibyte, and a triggerer thousands of waits."""
    sandbox.configure(seconds_per_image=3600)
    decide, ask = polling.decide, answers.status_call
    told: list[weakref.ref[Any]] = []
    kept: list[Any] = []

    def note(policy: Any, state: Any, outcome: Any, **others: Any) -> polling.Decision:
        told.append(weakref.ref(outcome))
        if len(told) == 3:
            finish_images(sandbox)
        return decide(policy, state, outcome, **others)

    def look(image_task_id: str) -> Any:
        kept.extend(answer for answer in told if answer() is not None)
        return ask(image_task_id)

    monkeypatch.setattr(polling, "decide", note)
    monkeypatch.setattr(answers, "status_call", look)
    client = AsyncClient()
    client("wait_for_completion", client("generate", "a fox"), poll_interval=0.01)
    assert len(told) > 3
    assert kept == []


def test_the_last_reported_credits_outlast_a_failed_read(sandbox: Sandbox) -> None:
    async def check(hook: QwenImageHook | QwenImageAsyncHook) -> Any:
        outcome: Any = hook.check(task_id)
        return await outcome if isinstance(hook, QwenImageAsyncHook) else outcome

    async def look(hook: QwenImageHook | QwenImageAsyncHook) -> None:
        assert hook.last_credits is None
        sandbox.script("status", "ok", "server_error")
        told = await check(hook)
        assert told.task_id == task_id
        assert isinstance(await check(hook), QwenImageServerError)
        assert hook.last_credits == told.consumed_credits == 5

    async def look_with_both() -> None:
        with QwenImageHook() as hook:
            await look(hook)
        async with QwenImageAsyncHook() as async_hook:
            await look(async_hook)

    with QwenImageHook() as hook:
        task_id = hook.generate("a fox")
    asyncio.run(look_with_both())


def test_both_clients_have_the_same_verbs_and_arguments() -> None:
    import inspect

    verbs = (
        "__init__",
        "generate",
        "submit",
        "submit_once",
        "pause_before_resend",
        "get_status",
        "check",
        "wait_for_completion",
        "test_connection",
        "close",
    )
    for verb in verbs:
        sync, asynchronous = (inspect.signature(getattr(hook, verb)) for hook in (QwenImageHook, QwenImageAsyncHook))
        assert sync == asynchronous, verb


def test_neither_client_decides_what_is_sent_again() -> None:
    import inspect

    from airflow_provider_qwenimage import hooks
    from airflow_provider_qwenimage.client import transport

    source = inspect.getsource(hooks) + inspect.getsource(transport)
    for rule in ("429", "502", "retry_after", "raise QwenImageSubmissionUnknown"):
        assert rule not in source, f"a rule about {rule} belongs into {retries.__name__} or polling"
