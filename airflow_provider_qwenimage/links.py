"""The links on Airflow's page of a task: to its place in the gallery, and to its image."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import BaseOperatorLink, XCom, conf

from airflow_provider_qwenimage.rules.gallery_urls import image_path, task_tab
from airflow_provider_qwenimage.text.urls import is_http_url, without_user

log = logging.getLogger(__name__)

# Plugins have pages of their own in Airflow's UI since 3.1.
HAS_GALLERY = tuple(int(part) for part in airflow_version.split(".")[:2]) >= (3, 1)


class GeneratedImagesLink(BaseOperatorLink):
    """The gallery, at this task instance; from the submission on, and whatever becomes of it."""

    name = "Generated images"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002  Airflow's signature
        """Return the URL of the gallery's tab, or nothing where Airflow (below 3.1) has none.

        Args:
            operator: The task.
            ti_key: Its instance.
        """
        return _absolute(task_tab(*_place_of(ti_key))) if HAS_GALLERY else ""


class ImageLink(BaseOperatorLink):
    """The first image of a task instance that has succeeded: where it is stored, or else where the API has it."""

    name = "Image"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the URL of the image, or nothing where there is none (yet).

        Args:
            operator: The task; what it ended with is its `outcome`, or is looked up where Airflow 2 draws the link.
            ti_key: Its instance.
        """
        outcome = operator.outcome if hasattr(operator, "outcome") else _returned(ti_key)
        if not isinstance(outcome, Mapping):
            return ""
        if outcome.get("paths") and HAS_GALLERY:
            return _absolute(image_path(*_place_of(ti_key), 1))
        urls = outcome.get("image_urls")
        url = urls[0] if isinstance(urls, list | tuple) and urls else ""
        # Airflow 2 looks up an XCom, which others may have written: a javascript: URL would run in the viewer's name.
        return without_user(url) if is_http_url(url) else ""


GENERATED_IMAGES = GeneratedImagesLink()
IMAGE = ImageLink()


def links_to_store(operator: Any, *links: BaseOperatorLink) -> None:
    """Choose the links that Airflow stores when a process of a task defers or ends: a request to its API for each.

    Left alone it stores all of them each time, also those that it has stored before the task was deferred.

    Args:
        operator: The task, which runs.
        *links: The links.
    """
    operator.operator_extra_links = links


def show_gallery(operator: Any, ti: Any) -> None:
    """Store the link to the gallery now, rather than when the task ends.

    Args:
        operator: The task.
        ti: Its instance, which runs.
    """
    if HAS_GALLERY:
        try:
            _store_past_the_backend(GENERATED_IMAGES, operator, ti)
        except Exception as error:  # noqa: BLE001  the image is paid: a link is no reason to fail its task
            log.warning("The link %r could not be stored (%s).", GENERATED_IMAGES.name, type(error).__name__)
    links_to_store(operator)


def _store_past_the_backend(link: BaseOperatorLink, operator: Any, ti: Any) -> None:
    from airflow.sdk.bases.xcom import BaseXCom

    # As Airflow itself does it: the UI reads links from the database, whatever the XCom backend.
    BaseXCom.set(
        key=link.xcom_key,
        value=link.get_link(operator, ti_key=ti),
        dag_id=ti.dag_id,
        task_id=ti.task_id,
        run_id=ti.run_id,
        map_index=-1 if ti.map_index is None else ti.map_index,
    )


def _returned(ti_key: Any) -> object:
    returned = XCom.get_value(ti_key=ti_key, key="return_value")
    return {"image_urls": returned} if isinstance(returned, list) else returned


def _place_of(ti_key: Any) -> tuple[str, str, str, int]:
    return ti_key.dag_id, ti_key.run_id, ti_key.task_id, -1 if ti_key.map_index is None else ti_key.map_index


def _absolute(path: str) -> str:
    return f"{conf.get('api', 'base_url', fallback='').rstrip('/')}{path}"
