"""A local stand-in for the Qwen-Image-2512 API: test DAGs offline and for free.

On the command line:

    python -m airflow_provider_qwenimage.sandbox --port 8512

From Python (the server runs in its own thread):

    from airflow_provider_qwenimage.sandbox import Sandbox

    with Sandbox(seconds_per_image=0.2) as sandbox:
        os.environ["AIRFLOW_CONN_QWENIMAGE_DEFAULT"] = sandbox.connection_json
        sandbox.script("status", "server_error", "rate_limit")  # the next two status requests
        ...
        assert sandbox.credits_charged == 5

Words in a prompt trigger problems: ``[policy]`` fails with a content policy violation, ``[fail]`` fails with a
general message, ``[slow]`` takes ten times as long.

The sandbox needs the packages ``aiohttp`` and ``Pillow``, which it imports when it starts, not before.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_qwenimage.sandbox.books import CallbackRecord, RequestRecord, Submission
    from airflow_provider_qwenimage.sandbox.running import Sandbox
    from airflow_provider_qwenimage.sandbox.settings import SandboxSettings

__all__ = ["CallbackRecord", "RequestRecord", "Sandbox", "SandboxSettings", "Submission"]

_MODULES = {
    "CallbackRecord": "books",
    "RequestRecord": "books",
    "Sandbox": "running",
    "SandboxSettings": "settings",
    "Submission": "books",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
