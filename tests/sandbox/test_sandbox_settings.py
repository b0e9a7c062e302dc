"""A wrong setting is reported with its name, its value and the allowed values."""

from __future__ import annotations

import math
from typing import Any

import pytest

from airflow_provider_qwenimage.sandbox import Sandbox, SandboxSettings


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("server_error_share", 1.1, "from 0 to 1"),
        ("server_error_share", -0.1, "from 0 to 1"),
        ("drop_share", "often", "from 0 to 1"),
        ("drop_share", True, "from 0 to 1"),
        ("seconds_per_image", -1, "at least 0"),
        ("seconds_per_image", math.nan, "at least 0"),
        ("hang_seconds", math.inf, "at least 0"),
        ("wire_style", "soap", "http or envelope"),
        ("wire_style", ["http"], "http or envelope"),
        ("callback", "sometimes", "on_time, late, twice, early or never"),
        ("callback", ["late"], "on_time, late, twice, early or never"),
        ("callback_delay_seconds", -1, "at least 0"),
        ("api_keys", [], "at least one key"),
        ("api_keys", "sk-sandbox", "list"),
        ("api_keys", ["has space"], "without spaces"),
        ("credits", -5, "none"),
        ("fault_paths", ["cdn"], "generate, status, image"),
        ("fault_seed", 1.5, "integer"),
        ("request_log_size", 0, "at least 1"),
        ("oversized_bytes", 1.0, "at least 1"),
    ],
)
def test_a_wrong_setting_is_reported_with_its_value_and_the_allowed_values(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=allowed) as caught:
        SandboxSettings(**{name: value})
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)


def test_an_unknown_setting_is_reported_with_the_known_ones() -> None:
    sandbox = Sandbox()
    with pytest.raises(ValueError, match=r"'server_errors'.*server_error_share"):
        sandbox.configure(server_errors=0.2)
    with pytest.raises(ValueError, match=r"'speed'.*seconds_per_image"):
        Sandbox(speed=3)


@pytest.mark.parametrize(
    "shares", [{"drop_share": 0.6, "hang_share": 0.5}, {"failure_share": 0.6, "policy_share": 0.5}]
)
def test_shares_of_exclusive_faults_cannot_exceed_one(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"_share \+ .*_share is 1\.1; the sum must be at most 1"):
        SandboxSettings().changed(shares)


def test_a_refused_change_changes_nothing() -> None:
    sandbox = Sandbox(drop_share=0.1)
    with pytest.raises(ValueError, match="hang_share"):
        sandbox.configure(drop_share=0.2, hang_share=2)
    assert sandbox.settings.drop_share == 0.1


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"port": -1}, "port is -1"),
        ({"port": 70_000}, "65535"),
        ({"cdn_port": "8513"}, "cdn_port is '8513'"),
        ({"cdn_url": "cdn.example.com"}, "cdn_url"),
        ({"ssl_certfile": "/nonexistent.pem"}, "ssl_certfile is '/nonexistent.pem'"),
        ({"ssl_keyfile": "key.pem"}, "without an ssl_certfile"),
    ],
)
def test_a_wrong_argument_is_reported_by_name(arguments: dict[str, Any], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        Sandbox(**arguments)
