"""Tells OpenLineage, if its provider is installed, which folder a task writes, which file it reads, and what it pays.

Airflow's OpenLineage provider calls these methods, in the process that ran the task, also if it was deferred before.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from airflow_provider_qwenimage.rules.arguments import path_text, read_argument

log = logging.getLogger(__name__)

# As OpenLineage prescribes for facets that are not in its standard: with the name of the project before it.
FACET = "qwenimage_images"
MAX_TASK_IDS = 1000

# The facet's fields, by the names that tasks use.
_FIELDS = {
    "task_ids": "taskIds",
    "consumed_credits": "consumedCredits",
    "images": "images",
    "reused": "reused",
    "failed": "failed",
    "manifest": "manifest",
}


class ReportsLineage:
    """The methods of an operator that Airflow's OpenLineage provider calls. None of them raises anything."""

    def lineage_facts(self) -> Mapping[str, Any]:
        """Return what is known of the task's images when it ends: ``task_ids``, ``consumed_credits`` and so on."""
        return {}

    def lineage_folders(self) -> Iterable[str]:
        """Return the folders of the stored images that the task has read when it ends."""
        return ()

    def get_openlineage_facets_on_start(self) -> Any:
        """Return the datasets of a task that starts."""
        return _lineage(self)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:  # noqa: ARG002
        """Return the datasets of a task that succeeded, with what it paid."""
        return _lineage(self, ended=True)

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> Any:  # noqa: ARG002
        """Return the datasets of a task that failed, with what it has paid all the same."""
        return _lineage(self, ended=True)


def _lineage(operator: ReportsLineage, *, ended: bool = False) -> Any:
    try:
        from airflow.providers.common.compat.openlineage.facet import InputDataset, OutputDataset
        from airflow.providers.openlineage.extractors import OperatorLineage

        facets = {}
        facts = operator.lineage_facts() if ended else {}
        read = [*_read_by(operator), *(_without_passwords(operator.lineage_folders()) if ended else ())]
        if facts:
            facets[FACET] = _facet_class()(**{field: facts.get(name) for name, field in _FIELDS.items()})
        return OperatorLineage(
            inputs=[InputDataset(namespace=namespace, name=name) for namespace, name in dict.fromkeys(read)],
            outputs=[OutputDataset(namespace=namespace, name=name) for namespace, name in _written_by(operator)],
            run_facets=facets,
        )
    except Exception:
        log.warning("The lineage of this task could not be reported.", exc_info=True)
    return None


def _written_by(operator: Any) -> Iterator[tuple[str, str]]:
    output_path = _argument(operator, "output_path")
    # A dry run of a batch writes nothing.
    if output_path is not None and not getattr(operator, "only_plans", False):
        # It refuses a path with a password.
        yield _dataset(read_argument("output_path", output_path))


def _read_by(operator: Any) -> Iterator[tuple[str, str]]:
    from airflow_provider_qwenimage.rules.request_rows import file_reader

    source = _argument(operator, "requests")
    source = path_text(source) or source
    if isinstance(source, str) and file_reader(source) is not None:
        yield from _without_passwords([source])


def _without_passwords(locations: Iterable[str]) -> Iterator[tuple[str, str]]:
    from airflow_provider_qwenimage.text.urls import without_credentials

    for location in locations:
        if location == without_credentials(location):
            yield _dataset(location)


def _argument(operator: Any, name: str) -> Any:
    """Return an argument of a task; None if there is none, or if its template did not render as intended."""
    return None if name in operator.refusals else getattr(operator, name, None)


def _dataset(location: str) -> tuple[str, str]:
    from airflow_provider_qwenimage.rules.dataset_names import openlineage_name
    from airflow_provider_qwenimage.storage.paths import absolute
    from airflow_provider_qwenimage.text.storable import storable_text

    namespace, name = openlineage_name(absolute(location))
    return storable_text(namespace), storable_text(name)


@functools.cache
def _facet_class() -> Any:
    """Return the class of the run facet, which can be defined only if OpenLineage is installed."""
    import attrs
    from airflow.providers.common.compat.openlineage.facet import RunFacet

    @attrs.define
    class QwenImageRunFacet(RunFacet):
        """What a task drew and paid.

        Its schema URL is that of any run facet: OpenLineage wants an address that never changes, and this package has
        no place to publish one.
        """

        taskIds: list[str] | None  # noqa: N815  OpenLineage's spelling
        consumedCredits: float | None  # noqa: N815
        images: int | None
        reused: int | None
        failed: int | None
        manifest: str | None

    return QwenImageRunFacet
