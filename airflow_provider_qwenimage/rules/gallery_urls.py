"""Where the gallery is in Airflow's web UI. Plain text: the links on a task need it in every worker."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

if TYPE_CHECKING:
    from typing import Literal

    from airflow_provider_qwenimage.rules.made_by import Region

# The mount point of the plugin's own pages in the API server.
PREFIX = "/qwenimage"
# Below it.
CREDITS_PATH = "/credits"
CALLBACK_PATH = "/callback"
# What Airflow calls the gallery's tabs and page in its own URLs; each has to differ from the others.
NAV_ROUTE = "qwenimage"
CREDITS_ROUTE = "qwenimage_credits"
DAG_ROUTE = "qwenimage_dag_images"
RUN_ROUTE = "qwenimage_run_images"
TASK_ROUTE = "qwenimage_task_images"


def task_tab(dag_id: str, run_id: str, task_id: str, map_index: int, *, region: Region | None = None) -> str:
    """Return the path of the gallery's tab on Airflow's page of a task instance; see `task_page`."""
    return f"{_task_path(dag_id, run_id, task_id, map_index)}/plugin/{TASK_ROUTE}{_query(region)}"


def task_page(dag_id: str, run_id: str, task_id: str, map_index: int, *, region: Region | None = None) -> str:
    """Return the path of Airflow's page of a task instance.

    Args:
        dag_id: The DAG.
        run_id: The DAG run.
        task_id: The task.
        map_index: -1 where the task is not mapped.
        region: Of a task in a loop; see `made_by.region_of`.
    """
    return f"{_task_path(dag_id, run_id, task_id, map_index)}{_query(region)}"


def _task_path(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    mapped = "" if map_index < 0 else f"/mapped/{map_index}"
    return f"{run_page(dag_id, run_id)}/tasks/{quoted(task_id)}{mapped}"


def _query(region: Region | None, **parameters: int) -> str:
    known = {} if region is None else {"region_id": region.id, "region_index": region.position}
    query = urlencode(parameters | known)
    return f"?{query}" if query else ""


def run_page(dag_id: str, run_id: str) -> str:
    """Return the path of Airflow's page of a DAG run."""
    return f"{dag_page(dag_id)}/runs/{quoted(run_id)}"


def dag_page(dag_id: str) -> str:
    """Return the path of Airflow's page of a DAG."""
    return f"/dags/{quoted(dag_id)}"


def image_path(
    dag_id: str,
    run_id: str,
    task_id: str,
    map_index: int,
    number: int,
    *,
    region: Region | None = None,
    kind: str = "",
    files: Literal["images", "sheets"] = "images",
) -> str:
    """Return the path of a stored image, or of what belongs to it, as the plugin serves it.

    Args:
        dag_id: The DAG.
        run_id: The DAG run.
        task_id: The task.
        map_index: -1 where the task is not mapped.
        number: The image's place among those of the task instance, counted from 1.
        region: Of a task in a loop; see `made_by.region_of`.
        kind: ``thumbnail`` or ``details`` instead of the image itself.
        files: ``sheets`` for a page of a batch's contact sheet instead, which has no details.
    """
    path = f"{PREFIX}{run_page(dag_id, run_id)}/tasks/{quoted(task_id)}/{files}/{number}"
    return f"{path}{f'/{kind}' if kind else ''}{_query(region, map_index=map_index)}"


def candidate_path(
    dag_id: str, run_id: str, task_id: str, map_index: int, number: int, *, region: Region | None = None
) -> str:
    """Return the path of a picture of a candidate: numbered, with its prompt and seed, at most 300 pixels wide.

    It shows what the task offers when the picture is requested, also after the task was cleared.

    Args:
        dag_id: The DAG.
        run_id: The DAG run.
        task_id: The task that has a person choose.
        map_index: -1 where the task is not mapped.
        number: The candidate's place among those of the task instance, counted from 1.
        region: Of a task in a loop; see `made_by.region_of`.
    """
    return f"{_candidates(dag_id, run_id, task_id)}/{number}{_query(region, map_index=map_index)}"


def candidates_note_path(
    dag_id: str, run_id: str, task_id: str, map_index: int, *, region: Region | None = None
) -> str:
    """Return the path of a picture that says what is asked, as it is asked now; see `candidate_path`."""
    return f"{_candidates(dag_id, run_id, task_id)}/note{_query(region, map_index=map_index)}"


def answer_path(dag_id: str, run_id: str, task_id: str, map_index: int, *, region: Region | None = None) -> str:
    """Return the path of Airflow's own route for the question of a task instance to a person, and for the answer."""
    run = f"/api/v2/dags/{quoted(dag_id)}/dagRuns/{quoted(run_id)}"
    return f"{run}/taskInstances/{quoted(task_id)}/{map_index}/hitlDetails{_query(region)}"


def _candidates(dag_id: str, run_id: str, task_id: str) -> str:
    return f"{PREFIX}{run_page(dag_id, run_id)}/tasks/{quoted(task_id)}/candidates"


def quoted(name: str) -> str:
    """Return an id as one segment of a path."""
    return quote(name, safe="")
