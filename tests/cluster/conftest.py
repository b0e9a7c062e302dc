"""The tests of docker-compose.yaml, which run only in the environment of the Airflow version that it uses."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = ["test_*.py"] if find_spec("podman_compose") is None else []
