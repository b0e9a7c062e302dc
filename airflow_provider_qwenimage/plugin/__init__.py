"""The gallery in Airflow's web UI, and the route of the API's callbacks (Airflow 3.1 and later).

Every Airflow process loads this module, so it imports very little. The API server loads the pages themselves at the
first request.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import AirflowPlugin, conf

from airflow_provider_qwenimage.airflow_versions import HAS_PLUGIN_PAGES
from airflow_provider_qwenimage.configuration import callback_base_url, text_option
from airflow_provider_qwenimage.rules.gallery_urls import (
    CALLBACK_PATH,
    CREDITS_PATH,
    CREDITS_ROUTE,
    DAG_ROUTE,
    NAV_ROUTE,
    PREFIX,
    RUN_ROUTE,
    TASK_ROUTE,
)

_NAME = "Generated images"
_CREDITS_NAME = "Image credits"
_CALLBACKS_NAME = "Callbacks of the image API"
# Short, because with a longer name the tabs of a mapped task take two lines.
_TAB_NAME = "Images"
# Airflow 3.4 shows a tab of a task only if the task has one of these template fields; older versions ignore it. Unlike
# the name of an operator, a derived operator and a decorated task have it as well. A task in which a person chooses has
# no connection, but images.
_TASKS = {"task.template_fields": ["qwenimage_conn_id", "images"]}


class GalleryApp:
    """The ASGI application of the gallery, loaded at the first request."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on to the application."""
        from airflow_provider_qwenimage.plugin.app import app

        if scope["path"].removeprefix(scope.get("root_path", "")).startswith(f"{CALLBACK_PATH}/"):
            # The option is set for the workers only, so nothing else answers callbacks.
            from airflow_provider_qwenimage.rules.callbacks import hide_secret

            hide_secret(scope)

        await app(scope, receive, send)


class CallbackApp:
    """The ASGI application that the API's callbacks reach, loaded at the first one. It needs no login."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on to the application."""
        from airflow_provider_qwenimage.plugin.callback_app import app

        await app(scope, receive, send)


def _apps() -> list[dict[str, Any]]:
    if not HAS_PLUGIN_PAGES:
        return []
    gallery = {"app": GalleryApp(), "url_prefix": PREFIX, "name": _NAME}
    if callback_base_url() is None:
        return [gallery]
    callbacks = {"app": CallbackApp(), "url_prefix": f"{PREFIX}{CALLBACK_PATH}", "name": _CALLBACKS_NAME}
    # First, because the gallery's prefix is the beginning of this one.
    return [callbacks, gallery]


def _tagged_dags() -> dict[str, list[str]]:
    # The UI does not know the operators of a DAG, and users without access to a DAG would see its id in a list of ids.
    tags = [tag.strip() for tag in text_option("gallery_dag_tags").split(",")]
    return {"dag.tags.name": [tag for tag in tags if tag]}


def _view(destination: str, route: str, path: str, applies_to: dict[str, list[str]] | None = None) -> dict[str, Any]:
    # If Airflow is not at the root of its host, its base URL has a path.
    root = f"{urlsplit(conf.get('api', 'base_url', fallback='') or '').path.rstrip('/')}{PREFIX}"
    return {
        "name": _NAME if destination == "nav" else _TAB_NAME,
        "href": f"{root}{path}",
        "destination": destination,
        "url_route": route,
        "icon": f"{root}/static/icon.svg",
        "icon_dark_mode": f"{root}/static/icon-dark.svg",
        # An empty list does not restrict anything.
        "applies_to": applies_to or {},
    }


class QwenImagePlugin(AirflowPlugin):
    """Adds the gallery to Airflow's UI: a page, and a tab on each DAG, DAG run and task instance."""

    name = "qwenimage"
    fastapi_apps = _apps()
    external_views = (
        [
            _view("nav", NAV_ROUTE, "/") | {"category": "browse"},
            _view("nav", CREDITS_ROUTE, CREDITS_PATH) | {"category": "browse", "name": _CREDITS_NAME},
            _view("dag", DAG_ROUTE, "/dags/{DAG_ID}", _tagged_dags()),
            _view("dag_run", RUN_ROUTE, "/dags/{DAG_ID}/runs/{RUN_ID}", _tagged_dags()),
            _view(
                "task_instance",
                TASK_ROUTE,
                "/dags/{DAG_ID}/runs/{RUN_ID}/tasks/{TASK_ID}?map_index={MAP_INDEX}",
                _TASKS,
            ),
        ]
        if HAS_PLUGIN_PAGES
        else []
    )
