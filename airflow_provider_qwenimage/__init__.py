"""Apache Airflow provider for the Qwen-Image-2512 text-to-image API. Public names load when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage._version import __version__

if TYPE_CHECKING:
    from airflow_provider_qwenimage.hooks import QwenImageAsyncHook, QwenImageHook
    from airflow_provider_qwenimage.operators import (
        QwenImageBatchOperator,
        QwenImageChooseOperator,
        QwenImageGenerateOperator,
    )
    from airflow_provider_qwenimage.publish.sweeps import sweep
    from airflow_provider_qwenimage.retry_policies import QwenImageRetryPolicy
    from airflow_provider_qwenimage.sensors import QwenImageStatusSensor
    from airflow_provider_qwenimage.triggers import QwenImageStatusTrigger

__all__ = [
    "QwenImageAsyncHook",
    "QwenImageBatchOperator",
    "QwenImageChooseOperator",
    "QwenImageGenerateOperator",
    "QwenImageHook",
    "QwenImageRetryPolicy",
    "QwenImageStatusSensor",
    "QwenImageStatusTrigger",
    "__version__",
    "sweep",
]

_MODULES = {
    "QwenImageAsyncHook": "hooks",
    "QwenImageBatchOperator": "operators",
    "QwenImageChooseOperator": "operators",
    "QwenImageGenerateOperator": "operators",
    "QwenImageHook": "hooks",
    "QwenImageRetryPolicy": "retry_policies",
    "QwenImageStatusSensor": "sensors",
    "QwenImageStatusTrigger": "triggers",
    "sweep": "publish.sweeps",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
