"""Adds what a task made to the events of its outlets: Airflow sends them when the task has succeeded."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from airflow.providers.common.compat.sdk import Asset, AssetAlias

from airflow_provider_qwenimage.airflow_versions import HAS_SUPERVISOR, HASHES_ALIAS_EVENTS
from airflow_provider_qwenimage.contract import MAX_IMAGES, MAX_URL_CHARACTERS
from airflow_provider_qwenimage.rules.dataset_names import asset_uri
from airflow_provider_qwenimage.storage.paths import absolute
from airflow_provider_qwenimage.tasks.failures import logging_errors
from airflow_provider_qwenimage.text.storable import storable, storable_text
from airflow_provider_qwenimage.text.urls import public_url

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_qwenimage.contract import GenerateRequest

log = logging.getLogger(__name__)

# What an event takes over from the result of a task.
_OF_IMAGES = ("task_id", "image_urls", "paths", "consumed_credits", "reused")


class Producer(Protocol):
    """The part of an operator that its asset events need."""

    outlets: Any
    output_path: Any


class ImageProducer(Producer, Protocol):
    """The part of `QwenImageGenerateOperator` that its asset events need."""

    prompt_in_asset_events: bool


def add_image_events(
    operator: ImageProducer, context: Context, result: Mapping[str, Any], request: GenerateRequest
) -> None:
    """Add what is known of a task's image to the events of its outlets. It raises nothing: the image is paid.

    Args:
        operator: The operator, with its `output_path` rendered.
        context: The task's context.
        result: What the task returns, or as much of it as is known when it only submits.
        request: The request of the image.
    """
    extra = {name: result[name] for name in _OF_IMAGES if name in result} | request.description()
    if not operator.prompt_in_asset_events:
        del extra["prompt"]
    _add(operator, context, extra)


def add_batch_events(operator: Producer, context: Context, result: Mapping[str, Any]) -> None:
    """Add the result of a batch, and its folder, to the events of its outlets. It raises nothing.

    Args:
        operator: The operator, with its `output_path` rendered.
        context: The task's context.
        result: What the task returns, and what else is known of its files.
    """
    _add(operator, context, {**result, "folder": operator.output_path})


def _add(operator: Producer, context: Context, extra: dict[str, Any]) -> None:
    for outlet in operator.outlets or ():
        # Airflow's own errors among them, such as one about a name that is too long for an asset.
        with logging_errors("an asset event"):
            if isinstance(outlet, AssetAlias):
                _add_folder(operator, context["outlet_events"][outlet], _bounded(extra))
            elif isinstance(outlet, _assets()):
                context["outlet_events"][outlet].extra.update(_bounded(extra))


def _bounded(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an event can have: JSON of bounded length, and URLs without what grants access."""
    bounded: dict[str, Any] = storable(extra)
    # Anybody can edit a sidecar in shared storage, from which these may come.
    for name, change in (("image_urls", public_url), ("paths", str)):
        if name in bounded:
            texts = [change(str(text)) for text in bounded[name][:MAX_IMAGES]]
            bounded[name] = [storable_text(text, MAX_URL_CHARACTERS) for text in texts]
    return bounded


def _add_folder(operator: Producer, events: Any, extra: dict[str, Any]) -> None:
    if operator.output_path is None:
        log.info("No asset is added to an asset alias among the outlets: the task has no output_path.")
        return
    if HASHES_ALIAS_EVENTS:
        # In the database a tuple is a list. Airflow 3.0 sends it to its API server first, where it is one already.
        hashable: Callable[[list[Any]], Any] = json.dumps if HAS_SUPERVISOR else tuple
        extra = {name: hashable(value) if isinstance(value, list) else value for name, value in extra.items()}
    events.add(Asset(uri=asset_uri(absolute(operator.output_path))), extra=extra)


def _assets() -> tuple[type[Any], ...]:
    """Return the classes of outlets that have an event; others are for lineage only."""
    if not HAS_SUPERVISOR:
        return (Asset,)
    from airflow.sdk.definitions.asset import AssetRef

    return (Asset, AssetRef)
