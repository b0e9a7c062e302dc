"""Test whole DAGs with pytest: a throw-away Airflow for each test, with nothing set up.

The fixture ``qwenimage_airflow`` runs a DAG, and ``qwenimage_sandbox`` stands in for the API::

    def test_daily_fox_stores_an_image(qwenimage_sandbox, qwenimage_airflow):
        from my_dags.daily_fox import dag

        run = qwenimage_airflow.run(dag)
        assert run.state == "success"
        assert qwenimage_sandbox.credits_charged == 5

The classes here are those of the fixture and of what it returns, for annotations. They load when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_qwenimage.testing.results import DagRunResult, ImageResult, TaskResult
    from airflow_provider_qwenimage.testing.temporary_airflow import TemporaryAirflow

__all__ = ["DagRunResult", "ImageResult", "TaskResult", "TemporaryAirflow"]

_MODULES = {
    "DagRunResult": "results",
    "ImageResult": "results",
    "TaskResult": "results",
    "TemporaryAirflow": "temporary_airflow",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
