"""What the task of one image takes from its operator, and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_qwenimage.contract import GenerateRequest, TaskStatus
from airflow_provider_qwenimage.tasks import deferral

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class GeneratingOperator(deferral.DeferrableTask, Protocol):
    """The part of `QwenImageGenerateOperator` that its task needs: its arguments, converted and rendered."""

    qwenimage_conn_id: Any
    wait_for_completion: bool
    deferrable: bool
    poll_interval: Any
    timeout: Any
    max_consecutive_failures: Any
    defer_after: Any
    output_path: Any
    image_name: Any
    image_label: Any
    max_image_bytes: Any
    provenance: Any
    overwrite: bool
    durable: bool
    max_credits: Any
    prompt_in_asset_events: bool
    outlets: Any
    outcome: dict[str, Any] | None

    def execute(self, context: Context) -> Any:
        """Begin a try."""

    def check_rendered(self, *names: str) -> None:
        """Check the rendered arguments."""


@dataclass(frozen=True)
class Outcome:
    """What the task returns; `QwenImageGenerateOperator` documents it."""

    request: GenerateRequest
    task_id: str
    image_urls: Sequence[str]
    paths: Sequence[str]
    consumed_credits: float | None
    reused: bool

    def to_json(self) -> dict[str, Any]:
        """Return it as an object."""
        return {
            "task_id": self.task_id,
            "status": str(TaskStatus.SUCCESS),
            "image_urls": list(self.image_urls),
            "paths": list(self.paths),
            "consumed_credits": self.consumed_credits,
            "seed": self.request.seed,
            "size": self.request.size,
            "output_format": self.request.output_format,
            "reused": self.reused,
        }
