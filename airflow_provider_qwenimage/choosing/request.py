"""Writes the request to a person as Airflow shows it: pictures by their numbers, and a form for other numbers.

Before 3.4, Airflow keeps the first request of a task instance, also after a Clear. So nothing of it is about today's
candidates: the server draws their prompts and seeds into the pictures.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import conf

from airflow_provider_qwenimage.rules.choices import NUMBERS, options_of
from airflow_provider_qwenimage.rules.gallery_urls import candidate_path, candidates_note_path, task_tab
from airflow_provider_qwenimage.rules.made_by import instance_of, region_of


def body_of(ti: Any, count: int) -> str:
    """Return the text of a request in Markdown.

    Args:
        ti: The task instance that asks.
        count: How many candidates there are.
    """
    instance, region = instance_of(ti), region_of(ti)
    # Airflow may be below a path. Its pages and the pictures have the same host, whatever its name in the browser.
    prefix = urlsplit(conf.get("api", "base_url", fallback="")).path.rstrip("/")
    note = f"![What to choose]({prefix}{candidates_note_path(*instance, region=region)})"
    pictures = [
        f"![{number}]({prefix}{candidate_path(*instance, int(number), region=region)})" for number in options_of(count)
    ]
    tab = f"{prefix}{task_tab(*instance, region=region)}"
    return "\n\n".join(
        (
            note,
            *pictures,
            f"[Open the candidates in the gallery]({tab}) to see them larger, and to choose there.",
            "If a candidate has no option, write its number into the field *Numbers*.",
        )
    )


def form() -> dict[str, Any]:
    """Return the fields of the form, as Airflow's parameters."""
    from airflow.sdk import Param

    # Without a section of its own, above which Airflow's page would show the whole text, with all pictures, again.
    return {
        NUMBERS: Param(
            None,
            type=["null", "string"],
            title="Numbers",
            description=(
                "Candidates by their numbers, such as 3, 70. If it is filled in, no chosen option counts, but Airflow "
                "takes no answer without one: choose any."
            ),
        )
    }
