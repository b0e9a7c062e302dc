"""Who may see the images of a DAG: the gallery shows XComs, so it requires the permission to read them."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails, DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag
from airflow.models.connection import Connection
from fastapi import HTTPException, Request

# A DAG cannot have this id, so only a user who may read every DAG may read this one.
_ANY_DAG = "(any DAG)"

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


def may_read_every_dag(request: Request, user: Any) -> bool:
    """Whether the user may read the XComs of any DAG, also of one that Airflow does not know."""
    return may_read_xcoms(request, user, _ANY_DAG)


def may_read_connection(user: Any, conn_id: str) -> bool:
    """Whether the user may read an Airflow connection."""
    details = ConnectionDetails(conn_id=conn_id)
    # Teams of connections, which Airflow has since 3.2.
    team_of = getattr(Connection, "get_team_name", None)
    if team_of is not None:
        details = ConnectionDetails(conn_id=conn_id, team_name=team_of(conn_id))
    return bool(get_auth_manager().is_authorized_connection(method="GET", details=details, user=user))
