"""Reads the options of the section ``[qwenimage]`` of Airflow's configuration, as `provider_info` declares them.

Every Airflow process may load this module, so it imports very little. A bad value is logged and counts as not set.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from airflow.providers.common.compat.sdk import conf

from airflow_provider_qwenimage.airflow_versions import HAS_PLUGIN_PAGES
from airflow_provider_qwenimage.provider_info import CONFIG_OPTIONS, CONFIG_SECTION

log = logging.getLogger(__name__)


def text_option(name: str) -> str:
    """Return an option, without white space around it; the declared default if it is not set or cannot be read.

    Args:
        name: Its name in `provider_info.CONFIG_OPTIONS`.
    """
    default = _default_of(name)
    try:
        # With a fallback: a process may ask before Airflow has read what providers declare.
        value = str(conf.get(CONFIG_SECTION, name, fallback=default)).strip()
    except Exception as error:  # noqa: BLE001  Airflow's, of a secrets backend, or of a `%` in the file
        _report(name, f"cannot be read ({type(error).__name__})")
        return default
    if not value.isprintable():
        _report(name, "contains characters that cannot be printed")
        return default
    return value


def is_set(name: str) -> bool:
    """Whether an option is set, also if its value cannot be used.

    Args:
        name: As for `text_option`.
    """
    try:
        return bool(str(conf.get(CONFIG_SECTION, name, fallback="")).strip())
    except Exception:  # noqa: BLE001  as in `text_option`
        return True


def whole_option(name: str, at_least: int) -> int:
    """Return an option that is an integer; the declared default if it is anything else.

    Args:
        name: Its name in `provider_info.CONFIG_OPTIONS`.
        at_least: The lowest allowed value.
    """
    default = int(_default_of(name))
    text = text_option(name)
    try:
        value = int(text) if text else default
    except ValueError:
        value = at_least - 1
    if value < at_least:
        _report(name, f"is not an integer of at least {at_least}")
        return default
    return value


def callback_base_url() -> str | None:
    """Return the option `callback_base_url`, or None if the API is not to call back: before Airflow 3.1, never.

    A process reports a bad value once.
    """
    text = text_option("callback_base_url") if HAS_PLUGIN_PAGES else ""
    return _checked_base_url(text) if text else None


@lru_cache(maxsize=1)
def _checked_base_url(text: str) -> str | None:
    from airflow_provider_qwenimage.rules.callbacks import is_base_url

    if is_base_url(text):
        return text
    _report("callback_base_url", "is not an http:// or https:// URL without user, query and fragment")
    return None


def _default_of(name: str) -> str:
    declared: Any = CONFIG_OPTIONS[name]
    return str(declared["default"])


def _report(name: str, problem: str) -> None:
    # Without the value, which a secrets backend may have returned.
    log.error(
        "The option %s in section [%s] of Airflow's configuration %s; the default (%s) is used. Correct it.",
        name,
        CONFIG_SECTION,
        problem,
        _default_of(name) or "empty",
    )
