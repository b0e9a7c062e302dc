"""The two clients of the API: `QwenImageHook` over requests and `QwenImageAsyncHook` over aiohttp.

They only send and receive. `contract`, `answers`, `retries` and `polling` decide for both what a request is, what an
answer means, whether a request is sent again and how a wait goes on.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import closing
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

from airflow_provider_qwenimage import contract
from airflow_provider_qwenimage.books.calls import booked_calls, settle_end
from airflow_provider_qwenimage.client import connection_form
from airflow_provider_qwenimage.client.common_hook import CommonHook
from airflow_provider_qwenimage.client.connection import TEST_TASK_ID, AirflowConnection, ConnectionSettings
from airflow_provider_qwenimage.client.connection_lookup import look_up_connection_async
from airflow_provider_qwenimage.client.diagnosis import TEST_SECONDS, judge_connection, one_of_few_tests
from airflow_provider_qwenimage.client.shared_clients import SharedClient
from airflow_provider_qwenimage.client.spans import span
from airflow_provider_qwenimage.client.transport import AiohttpTransport, RequestsTransport
from airflow_provider_qwenimage.exceptions import QwenImageError
from airflow_provider_qwenimage.rules import answers, polling, retries, wait_defaults
from airflow_provider_qwenimage.rules.arguments import REQUEST_FIELDS, Number, Seconds, read_request

if TYPE_CHECKING:
    from typing import Self

    import aiohttp
    import requests

    from airflow_provider_qwenimage.contract import TaskSnapshot
    from airflow_provider_qwenimage.rules.answers import ApiCall, Result
    from airflow_provider_qwenimage.rules.budgets import BooksOptions


class QwenImageHook(CommonHook):
    """Calls the Qwen-Image API from a worker, over requests.

    Args:
        qwenimage_conn_id: The Airflow connection that holds the API key and the base URL.
        timeout_seconds: Seconds to wait for the connection, and for each part of an answer; a whole call takes at
            most twice as long. By default the `timeout_seconds` in the connection's extra, otherwise 30.
        retry_limit: How often a request is sent again after a fault that may pass. A submission is only
            sent again if the API surely did not accept it.
        retry_delay: The longest first pause before that, in seconds. It doubles each time, with full jitter.
        connection: The Airflow connection, if it was looked up already.
        log_statuses: Whether a wait logs each new status of its image task.
    """

    # What the last `check` returned, for the message of a wait that is ended from outside.
    last_read: TaskSnapshot | QwenImageError | None = None

    # Airflow 3.1 and older look for these in the class that the provider info names, but not in its bases.
    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the look of the connection form in Airflow 3.1 and older."""
        return connection_form.ui_field_behaviour()

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the connection form's own fields for Airflow 3.1 and older."""
        return connection_form.widgets()

    @property
    def settings(self) -> ConnectionSettings:
        """The checked fields of the connection.

        Raises:
            ValueError: If a field of the connection is not usable.
        """
        return self._settings or self._read_connection(self._find_connection())

    @cached_property
    def _transport(self) -> RequestsTransport:
        return RequestsTransport(self.settings)

    def get_conn(self) -> requests.Session:
        """Return the session, which sends the key to the API's own host only.

        Raises:
            ValueError: If a field of the connection is not usable.
        """
        return self._transport.session

    def close(self) -> None:
        """Close the session's connections. The hook may be used again, which opens new ones."""
        transport = self.__dict__.pop("_transport", None)
        if transport is not None:
            transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def generate(
        self,
        prompt: str,
        *,
        size: str = contract.DEFAULT_SIZE,
        seed: Number | str = contract.RANDOM_SEED,
        output_format: str = contract.DEFAULT_OUTPUT_FORMAT,
        callback_url: str | None = None,
    ) -> str:
        """Submit one image. Costs credits (5, as documented).

        Args:
            prompt: What to draw, 1 to 2000 characters.
            size: Width times height in pixels, one of `contract.SIZES`.
            seed: An integer from 0 upwards, or -1 for a random one.
            output_format: ``jpeg``, ``png`` or ``webp``.
            callback_url: An http(s) URL that the API calls when the task completes.

        Returns:
            The API's id of the new image task.

        Raises:
            ValueError: If an argument or the connection is not usable; nothing was sent.
            QwenImageRequestError: If the API answered with an error; nothing was accepted.
            QwenImageConnectionError: If the API was never reached.
            QwenImageSubmissionUnknownError: If the response was lost; the image may be paid.
        """
        fields = (prompt, size, seed, output_format, callback_url)
        return self.submit(read_request(dict(zip(REQUEST_FIELDS, fields, strict=True))))

    def submit(self, request: contract.GenerateRequest) -> str:
        """Submit a request that is already checked; otherwise like `generate`."""
        tries = retries.SubmissionTries(self.pause_before_resend)
        with closing(booked_calls(self.settings.books, self.qwenimage_conn_id, request)) as booked:
            while True:
                booked.reserve()
                try:
                    image_task_id = self.submit_once(request)
                except QwenImageError as error:
                    booked.note(error)
                    pause, failure = tries.after(error)
                else:
                    booked.note(image_task_id)
                    if self.settings.books.conn_id is not None:
                        self._note_booked(image_task_id)
                    return image_task_id
                if pause is None:
                    raise failure
                time.sleep(pause)

    def submit_once(self, request: contract.GenerateRequest) -> str:
        """Submit a request that is already checked, in one POST that is never sent again; otherwise like `generate`."""
        with span("submit", size=request.size, output_format=request.output_format) as submission:
            try:
                image_task_id = self._transport.send(answers.submission_call(request))
            except QwenImageError as error:
                self._name_connection(error)
                raise
            submission.note(task_id=image_task_id)
            return image_task_id

    def get_status(self, image_task_id: str) -> TaskSnapshot:
        """Read the status of an image task. Costs nothing.

        Args:
            image_task_id: The id that a submission returned.

        Raises:
            ValueError: If the id is empty, or the connection is not usable.
            QwenImageRequestError: If the API answered with an error.
            QwenImageConnectionError: If there was no response.
            QwenImageContractError: If the response does not have the documented shape.
        """
        return self._call(answers.status_call(image_task_id))

    def check(self, image_task_id: str, *, seconds: float | None = None) -> TaskSnapshot | QwenImageError:
        """Read the status of an image task once, and return an error instead of raising it: one poll of a wait.

        Args:
            image_task_id: The id that a submission returned.
            seconds: The time limit, if it is less than the connection allows for a call.
        """
        try:
            snapshot = self._transport.send(answers.status_call(image_task_id), seconds)
        except QwenImageError as error:
            self.last_read = self._name_connection(error)
            return self.last_read
        self.last_read = snapshot
        self.last_credits = snapshot.consumed_credits
        return snapshot

    def wait_for_completion(
        self,
        image_task_id: str,
        *,
        poll_interval: Seconds = wait_defaults.DEFAULT_POLL_INTERVAL,
        timeout: Seconds | None = wait_defaults.DEFAULT_TIMEOUT,
        max_consecutive_failures: int = wait_defaults.DEFAULT_MAX_CONSECUTIVE_FAILURES,
    ) -> TaskSnapshot:
        """Wait until an image task ends.

        Args:
            image_task_id: The id that a submission returned.
            poll_interval: Seconds between the first polls; it grows up to 10 s (see `polling.PollPolicy`).
            timeout: Seconds to wait at most, or None for no limit.
            max_consecutive_failures: How many failed reads in a row end the wait.

        Returns:
            The snapshot with status ``SUCCESS``.

        Raises:
            QwenImageTaskFailedError: If the task ended as FAILED.
            QwenImageTimeoutError: If it did not end in time.
            QwenImageError: If too many reads failed in a row.
        """
        policy = polling.PollPolicy.for_timeout(timeout, poll_interval, max_consecutive_failures, now=time.time())
        decision = self.follow(image_task_id, policy)
        _settle_booked(self, self.settings.books, decision)
        if isinstance(decision, polling.GiveUp):
            raise decision.error
        return decision.snapshot

    @overload
    def follow(self, image_task_id: str, policy: polling.PollPolicy) -> polling.Done | polling.GiveUp: ...
    @overload
    def follow(self, image_task_id: str, policy: polling.PollPolicy, *, defer_at: float) -> polling.Decision: ...
    def follow(self, image_task_id: str, policy: polling.PollPolicy, *, defer_at: float = math.inf) -> polling.Decision:
        """Wait until an image task ends, and return the end; or what is next, if the wait is to be deferred.

        Args:
            image_task_id: The id that a submission returned.
            policy: The wait's pace and limits.
            defer_at: When the wait is to be deferred, in epoch seconds. One that has passed polls once.
        """
        state = polling.PollState()
        with span("wait", task_id=image_task_id) as wait:
            while True:
                outcome = self.check(image_task_id, seconds=policy.seconds_for_a_read(time.time()))
                decision = polling.decide(policy, state, outcome, image_task_id=image_task_id, now=time.time())
                self._log_notice(decision)
                if not isinstance(decision, polling.Wait):
                    wait.note_end(decision)
                    return decision
                delay = polling.delay_before_deferral(decision, time.time(), defer_at)
                if delay is None:
                    return decision
                state = decision.state
                time.sleep(delay)

    def test_connection(self) -> tuple[bool, str]:
        """Return whether the connection works, and what is wrong otherwise, after 10 s at most. Costs no credit."""
        try:
            with one_of_few_tests():
                settings = self._settings or self._read_connection(self._find_connection(), is_tested=True)
                return judge_connection(self.check(TEST_TASK_ID, seconds=TEST_SECONDS), settings)
        except Exception as error:  # noqa: BLE001  the user wants a report, whatever is wrong
            return False, self._why_not_tested(error)

    def _find_connection(self) -> AirflowConnection:
        return self._connection or self.get_connection(self.qwenimage_conn_id)

    def _call(self, call: ApiCall[Result]) -> Result:
        sent_again = 0
        while True:
            try:
                return self._transport.send(call)
            except QwenImageError as error:
                self._name_connection(error)
                pause = self._pause_before_read(error, call, sent_again)
                if pause is None:
                    raise
            time.sleep(pause)
            sent_again += 1


class QwenImageAsyncHook(CommonHook):
    """Calls the Qwen-Image API from an event loop, over aiohttp, with the same methods, results and errors.

    Use it in an ``async with`` block, or call `close` at the end. One hook belongs to one event loop, in which all
    hooks of one connection share a session and the connection's `max_requests_per_second`.

    Args:
        qwenimage_conn_id: The Airflow connection that holds the API key and the base URL.
        timeout_seconds: As for `QwenImageHook`.
        retry_limit: As for `QwenImageHook`.
        retry_delay: As for `QwenImageHook`.
        connection: As for `QwenImageHook`.
        log_statuses: As for `QwenImageHook`.
    """

    # Not a cached property, which makes a dict of the attributes of each of many hooks.
    _shared: SharedClient | None = None

    @property
    def _client(self) -> SharedClient:
        if self._shared is None:
            self._shared = SharedClient(self.qwenimage_conn_id)
        return self._shared

    async def _join(self) -> AiohttpTransport:
        transport = await self._client.join(self._find_connection, self._read_connection)
        # All users of a session have equal settings, but for what is not compared: one object for thousands of waits.
        if self._settings is not None and self._settings.ignored == transport.settings.ignored:
            self._settings = transport.settings
        return transport

    async def get_settings(self) -> ConnectionSettings:
        """Return the checked fields of the connection.

        Raises:
            ValueError: If a field of the connection is not usable.
        """
        return self._settings or self._read_connection(await self._find_connection())

    @property
    def has_books(self) -> bool:
        """Whether the connection names books, as far as the hook has looked it up."""
        if self._client.transport is not None:
            return self._client.transport.books.conn_id is not None
        return self._settings is not None and self._settings.books.conn_id is not None

    async def get_conn(self) -> aiohttp.ClientSession:
        """Return the session, which sends the key to the API's own host only. Other hooks share it: do not close it.

        Raises:
            ValueError: If a field of the connection is not usable.
        """
        return (await self._join()).session

    async def close(self) -> None:
        """Leave the session; the last hook that leaves closes it. The hook may be used again, which joins again."""
        await self._client.leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def generate(
        self,
        prompt: str,
        *,
        size: str = contract.DEFAULT_SIZE,
        seed: Number | str = contract.RANDOM_SEED,
        output_format: str = contract.DEFAULT_OUTPUT_FORMAT,
        callback_url: str | None = None,
    ) -> str:
        """Submit one image; see `QwenImageHook.generate`."""
        fields = (prompt, size, seed, output_format, callback_url)
        return await self.submit(read_request(dict(zip(REQUEST_FIELDS, fields, strict=True))))

    async def submit(self, request: contract.GenerateRequest) -> str:
        """Submit a request that is already checked; otherwise like `generate`."""
        tries = retries.SubmissionTries(self.pause_before_resend)
        # The client's own settings: a thousand hooks share one look-up of the connection.
        books = (self._client.transport or await self._join()).books
        in_thread = asyncio.to_thread if books.conn_id else _in_place
        booked = await in_thread(booked_calls, books, self.qwenimage_conn_id, request)
        try:
            while True:
                await in_thread(booked.reserve)
                try:
                    image_task_id = await self.submit_once(request)
                except QwenImageError as error:
                    booked.note(error)
                    pause, failure = tries.after(error)
                else:
                    booked.note(image_task_id)
                    if books.conn_id is not None:
                        self._note_booked(image_task_id)
                    return image_task_id
                if pause is None:
                    raise failure
                await asyncio.sleep(pause)
        finally:
            await in_thread(booked.close)

    async def submit_once(self, request: contract.GenerateRequest) -> str:
        """Submit a request that is already checked, in one POST; see `QwenImageHook.submit_once`."""
        transport = self._client.transport or await self._join()
        with span("submit", size=request.size, output_format=request.output_format) as submission:
            try:
                image_task_id = await transport.send(answers.submission_call(request))
            except QwenImageError as error:
                self._name_connection(error)
                raise
            submission.note(task_id=image_task_id)
            return image_task_id

    async def get_status(self, image_task_id: str) -> TaskSnapshot:
        """Read the status of an image task; see `QwenImageHook.get_status`."""
        return await self._call(answers.status_call(image_task_id))

    async def check(self, image_task_id: str, *, seconds: float | None = None) -> TaskSnapshot | QwenImageError:
        """Read the status once, and return an error instead of raising it; see `QwenImageHook.check`."""
        try:
            transport = self._client.transport or await self._join()
            snapshot = await transport.send(answers.status_call(image_task_id), seconds)
        except QwenImageError as error:
            return self._name_connection(error)
        self.last_credits = snapshot.consumed_credits
        return snapshot

    async def wait_for_completion(
        self,
        image_task_id: str,
        *,
        poll_interval: Seconds = wait_defaults.DEFAULT_POLL_INTERVAL,
        timeout: Seconds | None = wait_defaults.DEFAULT_TIMEOUT,  # noqa: ASYNC109  same verbs as the sync hook
        max_consecutive_failures: int = wait_defaults.DEFAULT_MAX_CONSECUTIVE_FAILURES,
    ) -> TaskSnapshot:
        """Wait until an image task ends; see `QwenImageHook.wait_for_completion`."""
        policy = polling.PollPolicy.for_timeout(timeout, poll_interval, max_consecutive_failures, now=time.time())
        decision = await self.follow(image_task_id, policy)
        if self.booked_ids:
            await asyncio.to_thread(_settle_booked, self, (await self.get_settings()).books, decision)
        if isinstance(decision, polling.GiveUp):
            raise decision.error
        return decision.snapshot

    async def follow(
        self, image_task_id: str, policy: polling.PollPolicy, *, first_delay: float = 0.0
    ) -> polling.Done | polling.GiveUp:
        """Wait until an image task ends, and return the end.

        Args:
            image_task_id: The id that a submission returned.
            policy: The wait's pace and limits.
            first_delay: Seconds before the first poll.
        """
        state = polling.PollState()
        delay = first_delay
        with span("wait", task_id=image_task_id) as wait:
            while True:
                await asyncio.sleep(delay)
                outcome = await self._check_in_time(image_task_id, policy)
                decision = polling.decide(policy, state, outcome, image_task_id=image_task_id, now=time.time())
                self._log_notice(decision)
                if not isinstance(decision, polling.Wait):
                    wait.note_end(decision)
                    return decision
                state, delay = decision.state, decision.delay
                # Ten thousand waits may sleep here, and Python's garbage collection visits every object that one keeps.
                del outcome, decision

    async def _check_in_time(self, image_task_id: str, policy: polling.PollPolicy) -> TaskSnapshot | QwenImageError:
        now = time.time()
        seconds = policy.seconds_for_a_read(now)
        transport = self._client.transport
        if transport is not None and transport.sends_at_once:
            # Nothing is waited for before the read, which has a limit of its own.
            return await self.check(image_task_id, seconds=seconds)
        most = policy.seconds_for_a_turn(now)
        try:
            async with asyncio.timeout(most):
                return await self.check(image_task_id, seconds=seconds)
        except TimeoutError:
            return polling.read_too_late(most or 0.0)

    async def test_connection(self) -> tuple[bool, str]:
        """Return whether the connection works, and what is wrong otherwise; see `QwenImageHook.test_connection`."""
        try:
            settings = self._settings or self._read_connection(await self._find_connection(), is_tested=True)
            return judge_connection(await self.check(TEST_TASK_ID, seconds=TEST_SECONDS), settings)
        except Exception as error:  # noqa: BLE001  as in the other client
            return False, self._why_not_tested(error)

    async def _find_connection(self) -> AirflowConnection:
        return self._connection or await look_up_connection_async(self.qwenimage_conn_id)

    async def _call(self, call: ApiCall[Result]) -> Result:
        transport = await self._join()
        sent_again = 0
        while True:
            try:
                return await transport.send(call)
            except QwenImageError as error:
                self._name_connection(error)
                pause = self._pause_before_read(error, call, sent_again)
                if pause is None:
                    raise
            await asyncio.sleep(pause)
            sent_again += 1


def _settle_booked(hook: CommonHook, books: BooksOptions, end: polling.Done | polling.GiveUp) -> None:
    """Write in the books how an image task ended that the hook itself has submitted."""
    snapshot = end.snapshot if isinstance(end, polling.Done) else getattr(end.error, "snapshot", None)
    if snapshot is not None and hook.booked_ids and snapshot.task_id in hook.booked_ids:
        hook.booked_ids.discard(snapshot.task_id)
        settle_end(books, hook.qwenimage_conn_id, snapshot)


async def _in_place(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function that does not block."""
    return function(*arguments)
