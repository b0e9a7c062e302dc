"""What a Compose file says of containers, said of this machine: only names, ports and paths that are meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.compose_file import Service
from tests.cluster.translation import Translation

ADDRESSES = {("redis", 6379): 41001, ("airflow-apiserver", 8080): 41002, ("sandbox", 8512): 41003}
FOLDERS = {"/opt/airflow": Path("/here/own"), "/opt/airflow/images": Path("/here/volumes/images"), "/data": Path("/x")}


def translation(name: str) -> Translation:
    service = Service(name, "image:1", (), {}, (), (), {}, (), 1, 0, {})
    return Translation(service, ADDRESSES, FOLDERS)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("redis://:pw@redis:6379/0", "redis://:pw@127.0.0.1:41001/0"),
        ("http://airflow-apiserver:8080/execution/", "http://127.0.0.1:41002/execution/"),
        ('{"host": "http://sandbox:8512"}', '{"host": "http://127.0.0.1:41003"}'),
        ("file:///opt/airflow/images", "file:///here/volumes/images"),
        ("/opt/airflow/images/a.jpg", "/here/volumes/images/a.jpg"),
        ("/opt/airflow/logs", "/here/own/logs"),
        # A port that is not its own, and what only looks like a name or a path.
        ("--port 8080", "--port 8080"),
        ("my-redis:6379", "my-redis:6379"),
        ("redis:63790", "redis:63790"),
        ("/opt/airflow2", "/opt/airflow2"),
        ("/my/data", "/my/data"),
    ],
)
def test_a_worker_finds_what_it_names(said: str, meant: str) -> None:
    assert translation("airflow-worker").of(said) == meant


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("http://localhost:8512/sandbox", "http://127.0.0.1:41003/sandbox"),
        ("--host=0.0.0.0", "--host=127.0.0.1"),
        ("--port=8512", "--port=41003"),
        ("85120", "85120"),
        ("1.8512", "1.8512"),
    ],
)
def test_a_service_listens_where_the_others_look_for_it(said: str, meant: str) -> None:
    assert translation("sandbox").of(said) == meant
