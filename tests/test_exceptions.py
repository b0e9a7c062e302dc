"""The error tree is as documented, and its errors can be passed between processes."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from airflow_provider_qwenimage import exceptions
from airflow_provider_qwenimage.contract import TaskSnapshot, TaskStatus
from airflow_provider_qwenimage.exceptions import QwenImageError, QwenImageRequestError, QwenImageTaskFailedError

ERRORS = [value for value in vars(exceptions).values() if isinstance(value, type) and issubclass(value, QwenImageError)]


def test_the_tree_in_the_docstring_matches_the_classes() -> None:
    drawn: dict[str, str | None] = {}
    path: list[str] = []
    for line in inspect.getdoc(exceptions).splitlines():
        match = re.match(r"^([ │├└─]*)(QwenImage\w+)", line.removeprefix("    "))
        if match:
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            drawn[match[2]] = path[depth - 1] if depth else None
    real = {error.__name__: error.__mro__[1].__name__ if error is not QwenImageError else None for error in ERRORS}
    assert drawn == real


@pytest.mark.parametrize("error_class", ERRORS)
def test_errors_survive_pickling(error_class: type[QwenImageError]) -> None:
    error = error_class("what happened")
    if isinstance(error, QwenImageRequestError):
        error.code, error.retry_after = 429, 1.5
    if isinstance(error, QwenImageTaskFailedError):
        error.snapshot = TaskSnapshot(task_id="a", status=TaskStatus.FAILED)
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301  our own bytes
    assert type(copied) is error_class
    assert (str(copied), vars(copied)) == (str(error), vars(error))


def test_only_errors_that_repeat_are_permanent() -> None:
    assert {error.__name__ for error in ERRORS if error.permanent} == {
        "QwenImageBadRequestError",
        "QwenImageAuthError",
        "QwenImageCreditsError",
        "QwenImageNotFoundError",
        "QwenImageSubmissionUnknownError",
        "QwenImageContentPolicyError",
    }
