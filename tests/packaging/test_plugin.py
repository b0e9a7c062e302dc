"""Every process of Airflow loads the plugin, so it imports little; without support for its pages it shows none."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest
from airflow.providers.common.compat.sdk import DAG, BaseOperator, task

from airflow_provider_qwenimage import (
    QwenImageBatchOperator,
    QwenImageChooseOperator,
    QwenImageGenerateOperator,
    QwenImageStatusSensor,
    plugin,
)
from airflow_provider_qwenimage.rules import gallery_urls
from tests.airflows import AIRFLOW
from tests.integration.dag_runs import dag_serialization
from tests.packaging.conftest import RunScript

# Modules that Airflow itself loads do not count.
LOADED = """
import json, sys
import airflow.plugins_manager
from airflow.providers.common.compat.sdk import AirflowPlugin, conf
before = set(sys.modules)
from importlib.metadata import entry_points
(found,) = (point for point in entry_points(group="airflow.plugins") if point.name == "qwenimage")
plugin = found.load()()
plugin.on_load()
views, apps = list(getattr(plugin, "external_views", [])), list(plugin.fastapi_apps)
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_airflow_finds_it() -> None:
    (found,) = (point for point in entry_points(group="airflow.plugins") if point.name == "qwenimage")
    assert found.load() is plugin.QwenImagePlugin


def test_outside_the_api_server_it_loads_almost_nothing(run_script: RunScript) -> None:
    loaded = run_script(LOADED)
    ours = {name.removeprefix("airflow_provider_qwenimage.") for name in loaded if name.startswith("airflow_provider_")}
    # Airflow 3 has already loaded the package and what describes it, to look for providers.
    found = ours - {"airflow_provider_qwenimage", "_version", "provider_info"}
    assert found == {"airflow_versions", "configuration", "rules", "rules.gallery_urls", "plugin"}
    assert not {"fastapi", "sqlalchemy", "PIL", "aiohttp", "requests", "jinja2"} & set(loaded)


@pytest.mark.airflow_feature("gallery", "yes")
def test_it_has_two_pages_and_three_tabs_of_different_routes() -> None:
    views = plugin.QwenImagePlugin().external_views
    assert [view["destination"] for view in views] == ["nav", "nav", "dag", "dag_run", "task_instance"]
    assert len({view["url_route"] for view in views}) == 5
    assert all(view["href"].startswith("/qwenimage/") for view in views)
    (app,) = plugin.QwenImagePlugin().fastapi_apps
    assert app["url_prefix"] == gallery_urls.PREFIX


@pytest.mark.airflow_feature("gallery", "yes")
@pytest.mark.parametrize(
    ("option", "prefixes"),
    [
        ("", ["/qwenimage"]),
        ("nonsense", ["/qwenimage"]),
        # Airflow asks the first application whose prefix fits.
        ("https://airflow.example.com", ["/qwenimage/callback", "/qwenimage"]),
    ],
)
def test_the_api_can_call_back_only_if_the_option_for_it_is_set(
    run_script: RunScript, option: str, prefixes: list[str]
) -> None:
    mounted = run_script(
        "import json, os\n"
        f"os.environ['AIRFLOW__QWENIMAGE__CALLBACK_BASE_URL'] = {option!r}\n"
        "from airflow_provider_qwenimage.plugin import QwenImagePlugin\n"
        "print(json.dumps([app['url_prefix'] for app in QwenImagePlugin.fastapi_apps]))"
    )
    assert mounted == prefixes


@pytest.mark.airflow_feature("gallery", "yes")
def test_its_pages_are_below_the_base_url_of_airflow(run_script: RunScript) -> None:
    hrefs = run_script(
        "import json, os\n"
        "os.environ['AIRFLOW__API__BASE_URL'] = 'https://example.com/airflow/'\n"
        "from airflow_provider_qwenimage.plugin import QwenImagePlugin\n"
        "print(json.dumps([view['href'] for view in QwenImagePlugin.external_views]))"
    )
    assert all(href.startswith("/airflow/qwenimage/") for href in hrefs)


@pytest.mark.airflow_feature("gallery", "yes")
def test_airflows_api_lists_each_view_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    from airflow import plugins_manager
    from airflow.api_fastapi.core_api.datamodels.plugins import PluginResponse

    (info,) = (info for info in plugins_manager.get_plugin_info() if info["name"] == "qwenimage")
    listed = PluginResponse.model_validate(info).model_dump()["external_views"]
    assert [view["applies_to"] for view in listed] == [view["applies_to"] for view in info["external_views"]]
    assert [view["url_route"] for view in listed] == [
        view["url_route"] for view in plugin.QwenImagePlugin.external_views
    ]
    assert "applies_to" not in caplog.text


class _OfAUser(QwenImageGenerateOperator):
    """An operator that is derived from ours."""


def _decorated() -> str:
    return "A fox"


def _decorated_batch() -> list[str]:
    return ["A fox"]


@pytest.mark.skipif(AIRFLOW < (3, 4), reason="Airflow restricts tabs since 3.4.")
def test_the_tab_of_a_task_is_on_all_tasks_with_images_and_on_no_other() -> None:
    from airflow.api_fastapi.core_api.datamodels.tasks import TaskResponse

    with DAG("foxes", schedule=None) as dag:
        QwenImageGenerateOperator(task_id="draw", prompt="A fox")
        QwenImageBatchOperator(task_id="batch", requests=["A fox"], output_path="/tmp/images")  # noqa: S108
        QwenImageStatusSensor(task_id="wait", image_task_id="n43")
        QwenImageChooseOperator(task_id="choose", images=[], subject="Which one?")
        _OfAUser(task_id="derived", prompt="A fox")
        task.qwenimage(_decorated)()
        task.qwenimage_batch(output_path="/tmp/images")(_decorated_batch)()  # noqa: S108
        _OfAUser.partial(task_id="mapped").expand(prompt=["A fox"])
        BaseOperator(task_id="other")
    serialization = dag_serialization()
    stored = serialization.from_dict(serialization.to_dict(dag))
    view = plugin.QwenImagePlugin.external_views[-1]
    ((path, values),) = view["applies_to"].items()
    record, field = path.split(".")
    assert (view["destination"], record) == ("task_instance", "task")
    with_tab = {
        task.task_id for task in stored.tasks if {*TaskResponse.model_validate(task).model_dump()[field]} & {*values}
    }
    assert with_tab == {task.task_id for task in stored.tasks} - {"other"}


@pytest.mark.airflow_feature("gallery", "yes")
@pytest.mark.parametrize(("option", "tags"), [("", []), (" images, art ,", ["images", "art"])])
def test_the_tabs_of_dags_can_be_limited_to_those_with_a_tag(
    run_script: RunScript, option: str, tags: list[str]
) -> None:
    scopes = run_script(
        "import json, os\n"
        f"os.environ['AIRFLOW__QWENIMAGE__GALLERY_DAG_TAGS'] = {option!r}\n"
        "from airflow_provider_qwenimage.plugin import QwenImagePlugin\n"
        "print(json.dumps({view['destination']: view['applies_to'] for view in QwenImagePlugin.external_views}))"
    )
    assert scopes["nav"] == {}
    assert scopes["dag"] == scopes["dag_run"] == {"dag.tags.name": tags}


@pytest.mark.airflow_feature("gallery", "yes")
def test_airflow_starts_and_parses_dags_without_it(run_script: RunScript) -> None:
    paths = run_script(
        "import json, sys\n"
        "sys.modules['airflow_provider_qwenimage.plugin'] = None\n"
        "from airflow.api_fastapi.app import create_app\n"
        "app = create_app(apps='core')\n"
        "from airflow_provider_qwenimage import QwenImageGenerateOperator\n"
        "assert QwenImageGenerateOperator(task_id='draw', prompt='A fox').operator_extra_links\n"
        "print(json.dumps([route.path for route in app.routes if hasattr(route, 'path')]))"
    )
    assert "/qwenimage" not in paths
    assert any(path.startswith("/api/v2") for path in paths)


@pytest.mark.airflow_feature("gallery", "no")
def test_it_shows_nothing_if_airflow_does_not_support_its_pages() -> None:
    shown = plugin.QwenImagePlugin()
    assert list(shown.fastapi_apps) == []
    assert list(shown.external_views) == []
