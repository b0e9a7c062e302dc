"""Reads a row of a batch: the request, and what only describes the row and its image. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from airflow_provider_qwenimage.contract import GenerateRequest
from airflow_provider_qwenimage.rules.arguments import ROW_FIELDS, read_request
from airflow_provider_qwenimage.rules.image_names import check_image_name
from airflow_provider_qwenimage.rules.image_texts import check_image_text, check_label
from airflow_provider_qwenimage.text.messages import shown

A_REQUEST = "a prompt or an object with a prompt"


@dataclass(frozen=True, kw_only=True)
class RequestRow:
    """A row that was checked.

    Attributes:
        request: The request.
        name: The name that the user has chosen for the file, without suffix; or None.
        label: What people see with the image, or None.
        text: The image's text in a dataset, or None.
    """

    request: GenerateRequest
    name: str | None = None
    label: str | None = None
    text: str | None = None

    def own_fields(self) -> dict[str, str]:
        """Return the fields that it has besides those of the request."""
        fields = {"name": self.name, "label": self.label, "text": self.text}
        return {name: value for name, value in fields.items() if value is not None}


def read_row(value: object) -> RequestRow:
    """Return the request of a row, and its other fields.

    Args:
        value: A prompt, or an object with the fields of a request (see `arguments.read_request`), ``name``, ``label``
            and ``text``.

    Raises:
        ValueError: If it is not a request that the API allows, no file can have that name, or a text is not valid.
    """
    if isinstance(value, str):
        return RequestRow(request=read_request({"prompt": value}))
    if not isinstance(value, Mapping):
        raise ValueError(f"the row is {shown(value)}; it must be {A_REQUEST}.")
    unknown = [name for name in value if name not in ROW_FIELDS]
    if unknown:
        raise ValueError(f"{shown(unknown[0])} is not a field of a request; the fields are {', '.join(ROW_FIELDS)}.")
    fields = dict(value)
    return RequestRow(
        name=check_image_name("name", fields.pop("name", None)),
        label=check_label("label", fields.pop("label", None)),
        text=check_image_text("text", fields.pop("text", None)),
        request=read_request(fields),
    )
