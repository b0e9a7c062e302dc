"""Who may see the images of a DAG: the gallery shows XComs, so it requires the permission to read them."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag
from fastapi import HTTPException, Request

# A dependency of every route; it checks the DAG in the path, or without one that the user may read XComs at all.
requires_xcom_access = requires_access_dag("GET", DagAccessEntity.XCOM)


def may_read_xcoms(request: Request, user: Any, dag_id: str) -> bool:
    """Whether the user may read the XComs of a DAG."""
    try:
        requires_access_dag("GET", DagAccessEntity.XCOM, dag_id)(request, user)
    except HTTPException:
        return False
    return True


def readable_dags(user: Any) -> set[str]:
    """Return the ids of the DAGs that the user may read; whether their XComs as well is decided for each."""
    return get_auth_manager().get_authorized_dag_ids(user=user, method="GET")
