"""Records in the sidecars of candidates what was chosen, and replaces nothing that is not the sidecar of that image."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.choosing.candidates import AT_ONCE, problem_with, sidecar_of
from airflow_provider_qwenimage.rules.choices import VERDICTS, entry_of, with_entry
from airflow_provider_qwenimage.rules.recorded_paths import check_recorded_path
from airflow_provider_qwenimage.storage.files import update_json
from airflow_provider_qwenimage.storage.image_pairs import exists
from airflow_provider_qwenimage.storage.paths import path_of
from airflow_provider_qwenimage.text.messages import printable

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_qwenimage.rules.choices import Candidate

log = logging.getLogger(__name__)

# A longer sidecar could not be read again.
_MOST_BYTES = 1024**2 - 64 * 1024


class _ReplacedError(Exception):
    """The file is no longer the image that was shown."""


def record_verdict(
    candidates: Sequence[Candidate], verdict: Mapping[str, Any], task: Mapping[str, Any], writer: str
) -> None:
    """Write a verdict into the sidecar of each candidate.

    What cannot be written is logged: the answer of a person must not be lost for it.

    Args:
        candidates: The candidates, in their order.
        verdict: The XCom `VERDICT`.
        task: The task instance that chose.
        writer: See `writer_of`.

    Raises:
        ValueError: If a chosen file is no longer the image that was shown, or does not exist. The others are recorded.
    """
    replaced: list[str] = []

    def record(numbered: tuple[int, Candidate]) -> None:
        number, candidate = numbered
        try:
            _record(candidate, entry_of(verdict, number, task), writer)
        except _ReplacedError as error:
            if number in verdict["chosen"]:
                replaced.append(f"{number} ({candidate.path} {error})")
            else:
                log.warning("Candidate %d: %s %s; the verdict is not recorded there.", number, candidate.path, error)
        except Exception as error:  # noqa: BLE001  each storage has its own classes
            log.warning(
                "The verdict could not be recorded in the sidecar of %s (%s).",
                candidate.path,
                printable(f"{type(error).__name__}: {error}"),
            )

    with ThreadPoolExecutor(min(AT_ONCE, len(candidates))) as pool:
        list(pool.map(record, enumerate(candidates, start=1)))
    if replaced:
        raise ValueError(
            f"The files of chosen candidates were replaced or removed since they were shown: "
            f"{', '.join(sorted(replaced))}. Clear the task to choose among the images that are stored now."
        )


def _record(candidate: Candidate, entry: Mapping[str, Any], writer: str) -> None:
    image: ObjectStoragePath = path_of(check_recorded_path(candidate.path))

    if entry["chosen"] and not exists(image):
        raise _ReplacedError("is no longer stored")

    def with_verdict(sidecar: dict[str, Any] | None) -> dict[str, Any] | None:
        problem = problem_with(sidecar, image, candidate.task_id)
        if problem is not None or sidecar is None:
            raise _ReplacedError(problem)
        entries = with_entry(sidecar.get(VERDICTS), entry)
        if entries == sidecar.get(VERDICTS):
            return None
        described = sidecar | {VERDICTS: entries}
        if len(json.dumps(described)) > _MOST_BYTES:
            raise ValueError("The sidecar would be too long.")
        return described

    # Tasks of one DAG run may end at the same time, and the image may be drawn again.
    update_json(sidecar_of(image), with_verdict, writer=writer, indent=2)
