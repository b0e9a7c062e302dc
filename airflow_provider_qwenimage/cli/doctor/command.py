"""Runs ``airflow qwenimage doctor``: the checks, and on request a paid drawing beside the documented contract."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict

import yaml
from airflow.utils.cli import suppress_logs_and_warning

from airflow_provider_qwenimage.cli.doctor.airflow_checks import (
    check_gallery,
    check_triggerer,
    check_versions,
)
from airflow_provider_qwenimage.cli.doctor.api_checks import ApiChecks
from airflow_provider_qwenimage.cli.doctor.books_check import check_books
from airflow_provider_qwenimage.cli.doctor.callback_check import check_callbacks
from airflow_provider_qwenimage.cli.doctor.drawing import Drawing
from airflow_provider_qwenimage.cli.doctor.findings import FAILED, OK, WARNING, Check, Finding, run_check
from airflow_provider_qwenimage.cli.doctor.kept_images import keep_image
from airflow_provider_qwenimage.cli.doctor.recording_file import RecordingFile
from airflow_provider_qwenimage.cli.doctor.storage_check import check_storage, storage_library
from airflow_provider_qwenimage.cli.exit_codes import EXIT_ARGUMENTS, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from airflow_provider_qwenimage.cli.metadata_database import with_database
from airflow_provider_qwenimage.cli.output import print_line, say
from airflow_provider_qwenimage.client.connection import ConnectionSettings
from airflow_provider_qwenimage.client.diagnosis import describe
from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE
from airflow_provider_qwenimage.exceptions import QwenImageError
from airflow_provider_qwenimage.recordings.format import RecordedAnswer
from airflow_provider_qwenimage.rules.contract_facts import DIFFERENT, ContractFact, contract_facts
from airflow_provider_qwenimage.text.messages import printable

# Enough to compare equal seeds; each costs credits.
MOST_IMAGES = 4

# Without any of these, nothing is submitted.
_NEEDED = ("connection", "key", "TLS", "storage")


@suppress_logs_and_warning  # type: ignore[untyped-decorator,unused-ignore]  # Airflow's; they would be part of the output
def run(arguments: Namespace) -> None:
    """Run the command.

    Args:
        arguments: `conn_id`, `output_path`, `output` ("table", "plain", "json" or "yaml"), `draw` (how many images;
            None for one), `yes`, `record` and `verbose`.

    Raises:
        SystemExit: With code 1 if a check or the drawing failed, 2 for arguments that are not valid, and 130 after
            Ctrl-C.
    """
    count: int = 1 if arguments.draw is None else arguments.draw
    _check_arguments(count, arguments)
    report = _Report(arguments.output)
    with with_database():
        api = ApiChecks(arguments.conn_id)
        code = EXIT_FAILED
        try:
            _run_checks(api, arguments, report)
            if count:
                report.check(_draw(count, api.settings, arguments, report))
            code = EXIT_FAILED if report.has_failed else EXIT_OK
        except KeyboardInterrupt:
            say("Interrupted.")
            code = EXIT_INTERRUPTED
        report.end()
    if code != EXIT_OK:
        raise SystemExit(code)


def _check_arguments(count: int, arguments: Namespace) -> None:
    problem = ""
    if not count and (arguments.record is not None or arguments.yes):
        problem = "--record and --yes have no effect without --draw."
    elif not 0 <= count <= MOST_IMAGES:
        problem = f"--draw is {count}; it must be a number of images from 1 to {MOST_IMAGES}."
    if problem:
        say(problem)
        raise SystemExit(EXIT_ARGUMENTS)


def _run_checks(api: ApiChecks, arguments: Namespace, report: _Report) -> None:
    output_path: str | None = arguments.output_path
    checks = {
        "versions": lambda: check_versions(storage_library(output_path)),
        "connection": api.connection,
        "key": api.key,
        "TLS": api.tls,
        "proxy": api.proxy,
        "storage": lambda: check_storage(output_path),
        "books": lambda: check_books(api.settings, arguments.conn_id),
        "triggerer": check_triggerer,
        "gallery": check_gallery,
        "callbacks": check_callbacks,
    }
    for name, check in checks.items():
        report.check(run_check(name, check, without_key=api.without_key))


class _Report:
    """Prints each line when it is known; JSON and YAML as one object at the end.

    Args:
        output: The format.
    """

    def __init__(self, output: str) -> None:
        self._output = output
        self._is_object = output in ("json", "yaml")
        self._checks: list[Check] = []
        self._facts: Sequence[ContractFact] = ()

    @property
    def has_failed(self) -> bool:
        return any(check.state == FAILED for check in self._checks)

    def lacking(self) -> list[str]:
        """Return the names of the failed checks without which nothing is submitted."""
        return [check.name for check in self._checks if check.state == FAILED and check.name in _NEEDED]

    def check(self, check: Check) -> None:
        self._checks.append(check)
        if not self._is_object:
            print_line(f"{check.state:<8} {check.name:<11} {check.message}")

    def facts(self, facts: Sequence[ContractFact]) -> None:
        self._facts = facts
        if not self._is_object:
            widths = [max((len(text) for text in column), default=0) for column in zip(*map(_left, facts), strict=True)]
            for fact in facts:
                left = "  ".join(text.ljust(width) for text, width in zip(_left(fact), widths, strict=True))
                print_line(f"{left}  documented: {fact.documented}; seen: {fact.seen}")

    def end(self) -> None:
        if self._is_object:
            report = {"checks": [asdict(check) for check in self._checks], "contract": list(map(asdict, self._facts))}
            print_line(json.dumps(report) if self._output == "json" else yaml.dump(report, sort_keys=False).rstrip())


def _left(fact: ContractFact) -> tuple[str, str]:
    return fact.verdict, fact.fact


def _draw(count: int, settings: ConnectionSettings | None, arguments: Namespace, report: _Report) -> Check:
    lacking = report.lacking()
    if settings is None or lacking:
        return _drawn(FAILED, f"Nothing was submitted, because of: {', '.join(lacking) or 'connection'}.")
    if not arguments.yes and not _is_confirmed(count, settings):
        return _drawn(FAILED, "Nothing was submitted, because it was not confirmed. Answer y, or give --yes.")
    answers: list[RecordedAnswer] = []
    with ExitStack() as stack:
        try:
            recording = stack.enter_context(RecordingFile(arguments.record)) if arguments.record is not None else None
        except ValueError as error:
            return _drawn(FAILED, f"Nothing was submitted: {error}")

        def note(answer: RecordedAnswer) -> None:
            answers.append(answer)
            if recording is not None:
                recording.add(answer)

        drawing = Drawing(
            settings,
            note,
            lambda task_id, image: _keep(task_id, image, arguments.output_path),
            conn_id=arguments.conn_id,
        )
        try:
            check = _draw_all(drawing, count)
        except KeyboardInterrupt:
            say(" ".join(_what_is_paid(drawing)))
            report.facts(contract_facts(answers))
            raise
    facts = contract_facts(answers)
    report.facts(facts)
    differing = [fact.fact for fact in facts if fact.verdict == DIFFERENT]
    problems = [f"The recording is not complete: {recording.problem}."] if recording and recording.problem else []
    if differing:
        problems.append(
            f"Not as documented: {', '.join(differing)}. Report it to the maintainers of this package, with a "
            "recording (--record)."
        )
    if recording is not None and not recording.problem:
        check = _drawn(check.state, f"{check.message} The answers are in {arguments.record}.")
    return _drawn(check.state if check.state != OK or not problems else WARNING, " ".join([check.message, *problems]))


def _draw_all(drawing: Drawing, count: int) -> Check:
    try:
        drawing.draw(count, say)
    except (QwenImageError, ValueError, OSError) as error:
        problem = str(error)
    except Exception as error:  # noqa: BLE001  what is paid is reported, whatever fails
        problem = describe(error, drawing.settings)
    else:
        return _drawn(OK, f"{count} of {count} images drawn: {', '.join(drawing.paid)}.")
    return _drawn(FAILED, drawing.settings.without_key(printable(" ".join([problem, *_what_is_paid(drawing)]))))


def _what_is_paid(drawing: Drawing) -> Iterable[str]:
    if drawing.is_submitting:
        yield (
            "A submission was under way: it may be paid, and its task id is unknown. Compare the credits on your "
            "account."
        )
    if drawing.unfinished:
        yield (
            f"Paid, but not downloaded: image task {', '.join(drawing.unfinished)}. A QwenImageStatusSensor or "
            "QwenImageHook().get_status(…) reads it at no cost."
        )


def _is_confirmed(count: int, settings: ConnectionSettings) -> bool:
    images = "1 image" if count == 1 else f"{count} images"
    say(f"This submits {images} for {CREDITS_PER_IMAGE} credits each to {settings.base_url}.")
    if sys.stdin is None or sys.stderr is None or not sys.stdin.isatty():
        say("Nobody can be asked here; --yes submits without a question.")
        return False
    sys.stderr.write("Continue? (y/N) ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _keep(task_id: str, image: bytes, output_path: str | None) -> None:
    say(f"Image task {task_id}: {keep_image(task_id, image, output_path)}")


def _drawn(state: str, message: str) -> Check:
    finding = Finding(state, message)
    return Check("draw", finding.state, finding.message)
