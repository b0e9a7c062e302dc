"""A client for Airflow's REST API: log in, trigger, read states, clear."""

from __future__ import annotations

from typing import Any

import requests

_UNAUTHORIZED = 401


class AirflowApi:
    """The API server of a composition, used as the user that the Compose file creates."""

    def __init__(self, url: str, username: str, password: str) -> None:
        self.url = url
        self._login = {"username": username, "password": password}
        self.session = requests.Session()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Call the API and return its decoded answer.

        Raises:
            requests.RequestException: If the API server refuses or does not answer.
        """
        answer = self._send(method, path, body)
        if answer.status_code == _UNAUTHORIZED:
            token = self.session.post(f"{self.url}/auth/token", json=self._login, timeout=30)
            token.raise_for_status()
            self.session.headers["Authorization"] = f"Bearer {token.json()['access_token']}"
            answer = self._send(method, path, body)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def dag_ids(self) -> set[str]:
        """Return the ids of the DAGs that Airflow has loaded."""
        return {dag["dag_id"] for dag in self.call("GET", "dags?limit=100")["dags"]}

    def import_errors(self) -> list[str]:
        """Return the stack traces of DAG files that could not be imported."""
        return [error["stack_trace"] for error in self.call("GET", "importErrors")["import_errors"]]

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None) -> str:
        """Start a DAG run and return its id."""
        body = {"logical_date": None, "conf": conf or {}}
        return str(self.call("POST", f"dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        return str(self.call("GET", f"dags/{dag_id}/dagRuns/{run_id}")["state"])

    def clear(self, dag_id: str, run_id: str, task_id: str, map_indexes: list[int]) -> None:
        """Clear failed instances of a mapped task, as a user does in the Airflow UI."""
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "only_failed": True,
            "task_ids": [[task_id, map_index] for map_index in map_indexes],
        }
        self.call("POST", f"dags/{dag_id}/clearTaskInstances", body)

    def _send(self, method: str, path: str, body: Any) -> requests.Response:
        return self.session.request(method, f"{self.url}/api/v2/{path}", json=body, timeout=60)
