"""The links on Airflow's page of a task instance: to its gallery, and to its image."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from airflow.providers.common.compat.sdk import BaseOperatorLink, XCom, conf

from airflow_provider_qwenimage.airflow_versions import HAS_PLUGIN_PAGES
from airflow_provider_qwenimage.rules.gallery_urls import image_path, task_tab
from airflow_provider_qwenimage.rules.made_by import instance_of, region_of
from airflow_provider_qwenimage.text.urls import is_http_url, without_user

log = logging.getLogger(__name__)


class GeneratedImagesLink(BaseOperatorLink):
    """Links to the gallery of the task instance, from the submission on, even if the task fails."""

    name = "Generated images"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002  Airflow's signature
        """Return the URL of the gallery's tab, or "" on Airflow below 3.1, which has no such tabs."""
        return _absolute(task_tab(*instance_of(ti_key), region=region_of(ti_key))) if HAS_PLUGIN_PAGES else ""


class ImageLink(BaseOperatorLink):
    """Links to the first image of a task instance that succeeded: as stored, or else at the API."""

    name = "Image"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the URL of the image, or "" if there is none (yet).

        Args:
            operator: The operator, with its `outcome`. Airflow 2 passes a stored one, whose outcome is an XCom.
            ti_key: The key of the task instance.
        """
        outcome = operator.outcome if hasattr(operator, "outcome") else _returned(ti_key)
        if not isinstance(outcome, Mapping):
            return ""
        if outcome.get("paths") and HAS_PLUGIN_PAGES:
            return _absolute(image_path(*instance_of(ti_key), 1, region=region_of(ti_key)))
        urls = outcome.get("image_urls")
        url = urls[0] if isinstance(urls, list | tuple) and urls else ""
        # Others may have written the XCom on Airflow 2: a javascript: URL would run in the viewer's name.
        return without_user(url) if is_http_url(url) else ""


GENERATED_IMAGES = GeneratedImagesLink()
IMAGE = ImageLink()


class PendingLinks:
    """The links of this package that Airflow has yet to store for a task that runs.

    Airflow stores every link of an operator, each with a request to its API, whenever a process of the task defers or
    ends. So an operator offers its own links once, when they lead somewhere. A subclass's links are always offered.

    Args:
        operator: The operator of the task. None of its own links is pending at first.
    """

    def __init__(self, operator: Any) -> None:
        self._operator = operator
        self._subclass_links = [
            link for link in type(operator).operator_extra_links if link not in (GENERATED_IMAGES, IMAGE)
        ]
        self._pending: list[BaseOperatorLink] = []
        self._offer()

    def add(self, link: BaseOperatorLink) -> None:
        """Have Airflow store a link when the process defers or ends."""
        self._pending.append(link)
        self._offer()

    def store_gallery(self, ti: Any) -> None:
        """Store the link to the gallery now, rather than when the task ends; nothing else is pending then."""
        if HAS_PLUGIN_PAGES:
            try:
                _store_past_the_backend(GENERATED_IMAGES, self._operator, ti)
            except Exception as error:  # noqa: BLE001  the image is paid: a link is no reason to fail its task
                log.warning("The link %r could not be stored (%s).", GENERATED_IMAGES.name, type(error).__name__)
        self._pending.clear()
        self._offer()

    def _offer(self) -> None:
        self._operator.operator_extra_links = (*self._pending, *self._subclass_links)


def _store_past_the_backend(link: BaseOperatorLink, operator: Any, ti: Any) -> None:
    from airflow.sdk.bases.xcom import BaseXCom

    # As Airflow itself does it: the UI reads links from the database, whatever the XCom backend.
    BaseXCom.set(
        key=link.xcom_key,
        value=link.get_link(operator, ti_key=ti),
        **instance_of(ti)._asdict(),
    )


def _returned(ti_key: Any) -> object:
    returned = XCom.get_value(ti_key=ti_key, key="return_value")
    return {"image_urls": returned} if isinstance(returned, list) else returned


def _absolute(path: str) -> str:
    return f"{conf.get('api', 'base_url', fallback='').rstrip('/')}{path}"
