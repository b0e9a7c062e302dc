"""Reads what the function of a `@task.qwenimage_batch` returned: rows, or the path of a file of them. No I/O."""

from __future__ import annotations

from itertools import islice
from typing import Any

from airflow_provider_qwenimage.batch.requests import check_requests, has_rows
from airflow_provider_qwenimage.rules.arguments import ALLOWED_REQUESTS, path_text, read_argument
from airflow_provider_qwenimage.rules.request_rows import MAX_ROWS
from airflow_provider_qwenimage.rules.returned_request import not_allowed


def read_rows(returned: object) -> object:
    """Return the rows that a function returned or yields as a list, up to one more than a batch may have.

    What has no rows is returned as it is. An error is the function's own, if it yields them.
    """
    return list(islice(returned, MAX_ROWS + 1)) if has_rows(returned) else returned


def read_returned_requests(function: str, returned: object) -> Any:
    """Return the argument `requests` of the operator that a function returned; its rows are checked with all others.

    Args:
        function: The name of the function, for messages.
        returned: What it returned, after `read_rows`.

    Raises:
        ValueError: If it has no rows, or is a text that is no path of a file of requests.
    """
    if isinstance(returned, str) or path_text(returned) is not None:
        try:
            requests = read_argument("requests", returned)
            check_requests(requests)
        except ValueError as error:
            raise ValueError(f"The function {function} returned requests that are not valid: {error}") from None
        return requests
    if not has_rows(returned):
        raise not_allowed(function, returned, f"{ALLOWED_REQUESTS}. Of a DataFrame return to_dict('records').")
    return returned
