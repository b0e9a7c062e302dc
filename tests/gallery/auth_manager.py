"""An auth manager whose users may read the DAGs in their names: "foxes,hares", or "*" for all of them.

Of "-foxes", a user may read the DAG and not its XComs.
"""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager


class DagsInTheirNames(SimpleAuthManager):
    """Reads each user's DAGs from the user's name."""

    def is_authorized_dag(self, *, method: Any, user: Any, access_entity: Any = None, details: Any = None) -> bool:
        dag_id = details.id if details else None
        names = user.username.split(",")
        known = dag_id is None or "*" in names or dag_id in names
        if f"-{dag_id}" in names:
            known = access_entity is not DagAccessEntity.XCOM
        return known and super().is_authorized_dag(
            method=method, user=user, access_entity=access_entity, details=details
        )
