"""Pictures of the candidates of a task in which a person chooses, for the text of Airflow's required actions.

They show what the task offers now: Airflow keeps the text of the first question, also after the task was cleared. What
cannot be shown is a picture that says why, because in a text nothing else is visible.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import APIRouter, Depends, Request, Response

from airflow_provider_qwenimage.plugin.candidate_pictures import MEDIA_TYPE, PICTURES, STYLE
from airflow_provider_qwenimage.plugin.data_routes import RegionDep
from airflow_provider_qwenimage.plugin.image_records import ChoiceRecord
from airflow_provider_qwenimage.plugin.image_routes import HEADERS, SHARES, RequestedImage
from airflow_provider_qwenimage.plugin.runs import RUNS
from airflow_provider_qwenimage.plugin.storage_access import RefusedError
from airflow_provider_qwenimage.rules.made_by import Region

_CANDIDATES = "/dags/{dag_id}/runs/{run_id}/tasks/{task_id}/candidates"
_UNCACHED = {**HEADERS, "Cache-Control": "no-store"}
# A browser asks each time whether the picture is still that of the current candidate.
_REVALIDATED = {**HEADERS, "Cache-Control": "private, no-cache"}

router = APIRouter()


@dataclass(frozen=True)
class _RequestedChoice:
    """A task instance in which a person chooses, as the user may see it."""

    request: Request
    user: Any
    dag_id: str
    run_id: str
    key: tuple[str, int, Region | None]

    def read(self) -> ChoiceRecord | None:
        """Return the choice as it is now, or None if the task instance has none."""
        return RUNS.get(self.dag_id, self.run_id).find_choice(*self.key)

    def image(self, choice: ChoiceRecord, number: int) -> RequestedImage | None:
        """Return the image of a candidate, unopened; None if there is no such candidate, or it has no path."""
        found = choice.candidate(number)
        if found is None or found.path is None:
            return None
        return RequestedImage(self.request, self.user, self.dag_id, self.run_id, (*self.key, number), found)


def _requested_choice(
    *,
    request: Request,
    dag_id: str,
    run_id: str,
    task_id: str,
    user: GetUserDep,
    region: RegionDep,
    map_index: int = -1,
) -> _RequestedChoice:
    return _RequestedChoice(request, user, dag_id, run_id, (task_id, map_index, region))


ChoiceDep = Annotated[_RequestedChoice, Depends(_requested_choice)]


@router.get(f"{_CANDIDATES}/note")
async def send_note(requested: ChoiceDep) -> Response:
    """Send a picture that says how many candidates to choose, and what was wrong with the last answer."""
    return await SHARES.run(requested.dag_id, lambda: _uncached(_note(requested.read())))


@router.get(f"{_CANDIDATES}/{{number}}")
async def send_candidate(requested: ChoiceDep, number: int) -> Response:
    """Send the picture of the candidate that has this number now."""
    return await SHARES.run(requested.dag_id, lambda: _candidate(requested, number))


def _candidate(requested: _RequestedChoice, number: int) -> Response:
    choice = requested.read()
    image = None if choice is None else requested.image(choice, number)
    if image is None:
        return _uncached(PICTURES.missing(number, f"no candidate {number}", None))
    record = image.record
    try:
        sidecar = image.sidecar()
        facts = STYLE, number, dict(record.request), record.label, record.path, sidecar["sha256"]
        etag = f'"{hashlib.sha256(repr(facts).encode()).hexdigest()}"'
        headers = {**_REVALIDATED, "ETag": etag}
        if requested.request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        content = PICTURES.candidate(number, record, image.thumbnail(sidecar))
    except RefusedError as refusal:
        return _uncached(PICTURES.missing(number, str(refusal), record))
    return Response(content, media_type=MEDIA_TYPE, headers=headers)


def _uncached(content: bytes) -> Response:
    return Response(content, media_type=MEDIA_TYPE, headers=_UNCACHED)


def _note(choice: ChoiceRecord | None) -> bytes:
    if choice is None or not (choice.candidates or choice.problem):
        return PICTURES.note("Nothing can be chosen now", None, "The task has pushed no candidates.")
    if choice.problem is not None:
        return PICTURES.note("The candidates cannot be listed", choice.problem, "")
    count = len(choice.candidates)
    candidates = f"{count} {'candidate' if count == 1 else 'candidates'}"
    if choice.verdict is not None:
        by = f" by {choice.verdict.by}" if choice.verdict.by else ""
        return PICTURES.note(f"{choice.verdict.chosen} of {candidates} chosen{by}", None, "The task has its answer.")
    return PICTURES.note(f"Choose {choice.how_many} of {candidates}", choice.note, "")
