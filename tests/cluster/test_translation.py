"""Names, ports and paths of containers are translated to those of this machine, and nothing else is."""

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
    ("text", "translated"),
    [
        ("redis://:pw@redis:6379/0", "redis://:pw@127.0.0.1:41001/0"),
        ("http://airflow-apiserver:8080/execution/", "http://127.0.0.1:41002/execution/"),
        ('{"host": "http://sandbox:8512"}', '{"host": "http://127.0.0.1:41003"}'),
        ("file:///opt/airflow/images", "file:///here/volumes/images"),
        ("/opt/airflow/images/a.jpg", "/here/volumes/images/a.jpg"),
        ("/opt/airflow/logs", "/here/own/logs"),
        # A port of another service, and texts that only look like a name or a path.
        ("--port 8080", "--port 8080"),
        ("my-redis:6379", "my-redis:6379"),
        ("redis:63790", "redis:63790"),
        ("/opt/airflow2", "/opt/airflow2"),
        ("/my/data", "/my/data"),
    ],
)
def test_names_and_paths_in_the_text_of_a_worker_are_translated(text: str, translated: str) -> None:
    assert translation("airflow-worker").translate(text) == translated


@pytest.mark.parametrize(
    ("text", "translated"),
    [
        ("http://localhost:8512/sandbox", "http://127.0.0.1:41003/sandbox"),
        ("--host=0.0.0.0", "--host=127.0.0.1"),
        ("--port=8512", "--port=41003"),
        ("85120", "85120"),
        ("1.8512", "1.8512"),
    ],
)
def test_a_service_listens_on_its_translated_port(text: str, translated: str) -> None:
    assert translation("sandbox").translate(text) == translated
