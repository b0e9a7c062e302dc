"""The tests of docker-compose.yaml: it is for one Airflow, so they run in that one's environment alone."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = ["test_*.py"] if find_spec("podman_compose") is None else []
