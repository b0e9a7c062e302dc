"""Decides which task instances belong to this package, and what kind of task each is. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

from airflow_provider_qwenimage.contract import SIZES
from airflow_provider_qwenimage.plugin.bounds import mapping, path, request_fields, sequence
from airflow_provider_qwenimage.plugin.image_records import TaskInstance
from airflow_provider_qwenimage.rules.choices import CANDIDATES, QUESTION, VERDICT

BATCH_OPERATOR = "QwenImageBatchOperator"
SENSOR = "QwenImageStatusSensor"
CHOOSE_OPERATOR = "QwenImageChooseOperator"


class TaskKind(Enum):
    """What a task of this package does."""

    IMAGE = auto()
    BATCH = auto()
    SENSOR = auto()
    CHOICE = auto()


_KINDS: Mapping[str | None, TaskKind] = {
    "QwenImageGenerateOperator": TaskKind.IMAGE,
    "_QwenImageDecoratedOperator": TaskKind.IMAGE,
    BATCH_OPERATOR: TaskKind.BATCH,
    "_QwenImageBatchDecoratedOperator": TaskKind.BATCH,
    SENSOR: TaskKind.SENSOR,
    CHOOSE_OPERATOR: TaskKind.CHOICE,
}
OPERATORS = tuple(name for name in _KINDS if name is not None)
# The XComs that describe images.
XCOM_KEYS = (
    "request",
    "task_id",
    "return_value",
    "consumed_credits",
    "error",
    "progress",
    "manifest",
    "contact_sheet",
    CANDIDATES,
    QUESTION,
    VERDICT,
)
# By these, an operator that is derived from one of this package is found.
XCOM_KEYS_OF_OPERATORS = ("request", "progress", CANDIDATES)


def kind_of(task: TaskInstance, xcoms: Mapping[str, Any]) -> TaskKind | None:
    """Return the kind of a task instance, or None if it is not a task of this package.

    A class derived from one of the operators has another name, so it is recognized by the XComs that it pushed.
    """
    if task.operator in _KINDS:
        return _KINDS[task.operator]
    if "requests" in mapping(xcoms.get("progress")):
        return TaskKind.BATCH
    if any(_is_candidate(value) for value in sequence(xcoms.get(CANDIDATES), 1)):
        return TaskKind.CHOICE
    # Other operators may push an XCom with the key "request" as well.
    request = request_fields(xcoms.get("request"))
    return TaskKind.IMAGE if "prompt" in request and request.get("size") in SIZES else None


def _is_candidate(value: object) -> bool:
    # Tasks of other packages may push an XCom with the key "candidates" as well.
    fields = mapping(value)
    return path(fields.get("path")) is not None and request_fields(fields).get("size") in SIZES
