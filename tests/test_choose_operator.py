"""The arguments of `QwenImageChooseOperator` are checked when the DAG is parsed, and so is the version of Airflow."""

from __future__ import annotations

from datetime import timedelta
from importlib.util import find_spec, module_from_spec
from typing import Any

import pytest
from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_qwenimage import QwenImageChooseOperator
from tests.airflows import AIRFLOW

can_ask = pytest.mark.skipif(AIRFLOW < (3, 1), reason="Airflow 3.1 and later can ask a person")
ARGUMENTS: dict[str, Any] = {"task_id": "choose", "images": [], "subject": "Which?"}


@pytest.mark.airflow_feature("choosing", "no")
@pytest.mark.parametrize("make", [QwenImageChooseOperator, QwenImageChooseOperator.partial])
def test_an_airflow_that_cannot_ask_is_named_when_the_dag_is_parsed(make: Any) -> None:
    with pytest.raises(RuntimeError, match=rf"needs Airflow 3.1 or later, .* Airflow {airflow_version} is installed"):
        make(**ARGUMENTS)


@can_ask
def test_a_standard_provider_without_time_limits_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class OlderOperator(BaseOperator):
        """Takes what the `HITLOperator` of version 1.12.1 takes."""

        def __init__(self, *, subject: str, options: list[str], **kwargs: Any) -> None:
            super().__init__(**kwargs)

    monkeypatch.setattr("airflow.providers.standard.operators.hitl.HITLOperator", OlderOperator)
    spec = find_spec("airflow_provider_qwenimage.choosing.operator")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(
        RuntimeError, match=r"needs apache-airflow-providers-standard 1\.12\.2 or later, .*; upgrade it"
    ):
        module.QwenImageChooseOperator(**ARGUMENTS)


@can_ask
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("images", "n43abc"),
        ("images", 7),
        ("images", {1, 2}),
        ("subject", " "),
        ("subject", 7),
        ("at_least", 0),
        ("at_least", 1.5),
        ("at_most", 0),
        ("defaults", 0),
        ("defaults", "first"),
        ("defaults", [1, 2]),
        ("response_timeout", 0),
        ("response_timeout", "1h"),
        ("response_timeout", timedelta(0)),
        ("assigned_users", "ada"),
        ("assigned_users", [{"id": "1"}]),
        ("assigned_users", {"id": 1, "name": "Ada"}),
        ("assigned_users", {"id": " ", "name": "Ada"}),
        ("assigned_users", [{"id": "1", "name": "Ada"}, None]),
        # Airflow takes it for everybody.
        ("assigned_users", []),
        ("options", ["1"]),
        ("body", "Look at the hats."),
        ("multiple", True),
    ],
)
def test_a_bad_argument_is_refused_when_the_dag_is_parsed(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{argument} is .*; it must be"):
        QwenImageChooseOperator(**ARGUMENTS | {argument: value})


@can_ask
def test_a_user_that_no_database_can_store_is_refused() -> None:
    with pytest.raises(ValueError, match="the id of a user in assigned_users is a text whose character 2 cannot"):
        QwenImageChooseOperator(**ARGUMENTS, assigned_users={"id": "a\0", "name": "Ada"})


@can_ask
def test_counts_have_to_agree() -> None:
    with pytest.raises(ValueError, match="at_most is 1; it must be at least at_least, 2, or None"):
        QwenImageChooseOperator(**ARGUMENTS, at_least=2)
    with pytest.raises(ValueError, match=r"defaults is \[1\]; it must be 2 to 3 numbers"):
        QwenImageChooseOperator(**ARGUMENTS, at_least=2, at_most=3, defaults=1)
    QwenImageChooseOperator(**ARGUMENTS, at_least=2, at_most=None, defaults=["7", 9])


@can_ask
def test_arguments_are_converted() -> None:
    task = QwenImageChooseOperator(
        **ARGUMENTS, defaults="2", response_timeout=90, assigned_users={"id": "1", "name": "Ada", "more": "x"}
    )
    assert task.default_numbers == [2]
    assert task.response_timeout == timedelta(seconds=90)
    assert task.assigned_users == [{"id": "1", "name": "Ada"}]


@can_ask
def test_mapped_arguments_are_checked_too() -> None:
    with pytest.raises(ValueError, match=r"at_least is 0"):
        QwenImageChooseOperator.partial(task_id="choose", subject="Which?", at_least=0)
    with pytest.raises(ValueError, match=r"body is 'Look'; it must be left out, because the task writes"):
        QwenImageChooseOperator.partial(task_id="choose", subject="Which?", body="Look")
    with pytest.raises(ValueError, match=r"multiple is True; it must be left out, because at_most"):
        QwenImageChooseOperator.partial(**ARGUMENTS).expand_kwargs([{"multiple": True}])
