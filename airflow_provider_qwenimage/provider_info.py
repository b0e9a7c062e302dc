"""The provider's metadata for Airflow. Plain data without heavy imports: Airflow reads it in every process.

The connection form is described here only. Airflow 3.2 and later build it from `get_provider_info`; older versions ask
the hook, which returns the same values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow_provider_qwenimage._version import __version__

HOOK_NAME = "Qwen Image"
INTEGRATION_NAME = "Qwen-Image"

# The port stays visible although the base URL may contain it: the Test button of Airflow 3.3 sends 0 for a missing port
# and gets "Bad Request".
HIDDEN_FIELDS: Sequence[str] = ("login", "schema")
RELABELING: Mapping[str, str] = {
    "host": "Base URL",
    "password": "API key",
}
PLACEHOLDERS: Mapping[str, str] = {
    "host": "https://qwen-image-2512.org",
    "password": "sk-…",
    "port": "443, for the Test button; a port in the base URL takes precedence",
}
# The names are also the keys in the connection's extra.
CONN_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "timeout_seconds": {
        "label": "Timeout in seconds",
        "description": "Seconds to wait for the connection, and for each part of a response. Default: 30.",
        "schema": {"type": ["number", "null"], "default": 30, "exclusiveMinimum": 0},
    },
    "max_requests_per_second": {
        "label": "Maximum requests per second",
        "description": "Request limit per process, shared by all waits of a triggerer. Empty: no limit.",
        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
    },
    # A string, because the form has no field for a switch or a path.
    "verify": {
        "label": "Verify TLS certificates",
        "description": "true (default), false, or the path of a file of certificate authorities to trust.",
        "schema": {"type": ["string", "null"]},
    },
    "books_conn_id": {
        "label": "Books: Airflow connection",
        "description": "Id of a connection to an SQL database that keeps a row for each image. Empty: no books.",
        "schema": {"type": ["string", "null"]},
    },
    "credits_per_day": {
        "label": "Budget: credits per day",
        "description": "The most credits of a day (UTC), for all that use this connection. Needs the books.",
        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
    },
    "credits_per_month": {
        "label": "Budget: credits per month",
        "description": "The most credits of a month (UTC), for all that use this connection. Needs the books.",
        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
    },
}
# The section of Airflow's configuration, and its options in the format of Airflow: every default is a string.
CONFIG_SECTION = "qwenimage"
CONFIG_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "gallery_dag_tags": {
        "description": (
            "Tags of DAGs, separated by commas: on Airflow 3.4 and later, the gallery's tab is shown only on DAGs with "
            "one of these tags, and on their runs. Empty: on every DAG.\n"
        ),
        "version_added": "0.1.0",
        "type": "string",
        "example": "images, art",
        "default": "",
    },
    "thumbnails_folder": {
        "description": (
            "The folder on the API server in which the gallery caches thumbnails of stored images. Empty: "
            "qwenimage-thumbnails below AIRFLOW_HOME.\n"
        ),
        "version_added": "0.1.0",
        "type": "string",
        "example": "/var/cache/airflow/qwenimage",
        "default": "",
    },
    "thumbnails_megabytes": {
        "description": (
            "The size of that cache in MiB, at which the thumbnails that were not used for the longest time are "
            "deleted.\n"
        ),
        "version_added": "0.1.0",
        "type": "integer",
        "example": "512",
        # Some 15,000 thumbnails.
        "default": "256",
    },
    "callback_base_url": {
        "description": (
            "The URL at which the Qwen-Image API reaches Airflow's API server. With it, the API's callback wakes "
            "deferred operators as soon as their image is drawn, and they poll only every 30 s. Set it on the workers "
            "and on the API servers (Airflow 3.1 and later). Empty: no callbacks.\n"
        ),
        "version_added": "0.1.0",
        "type": "string",
        "example": "https://airflow.example.com",
        "default": "",
    },
    "contact_sheet_font": {
        "description": (
            "The font file (TrueType or OpenType) for the texts of contact sheets, on the workers, and of the pictures "
            "of candidates, on the API server; for characters that it lacks, and if this is empty, fonts of the system "
            "are used.\n"
        ),
        "version_added": "0.1.0",
        "type": "string",
        "example": "/usr/share/fonts/company/Sans-Regular.ttf",
        "default": "",
    },
}


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata in the format of Airflow's provider_info.schema.json."""
    return {
        "package-name": "airflow-provider-qwenimage",
        "name": "Qwen-Image",
        "description": "`Qwen-Image-2512 <https://qwen-image-2512.org>`__ text-to-image API.\n",
        "versions": [__version__],
        "integrations": [
            {
                "integration-name": INTEGRATION_NAME,
                "external-doc-url": "https://qwen-image-2512.org",
                "tags": ["service"],
            }
        ],
        "hooks": _modules("hooks"),
        "operators": _modules("operators"),
        "sensors": _modules("sensors"),
        "triggers": _modules("triggers"),
        # Airflow 3.2 and later; older versions ignore it.
        "cli": ["airflow_provider_qwenimage.cli.definition.get_qwenimage_cli_commands"],
        "task-decorators": [
            {"name": name, "class-name": f"airflow_provider_qwenimage.decorators.{name}_task"}
            for name in ("qwenimage", "qwenimage_batch")
        ],
        "config": {
            CONFIG_SECTION: {
                "description": (
                    "Options of the provider for the Qwen-Image API: its gallery in the Airflow UI, contact sheets, "
                    "callbacks.\n"
                ),
                "options": {name: dict(option) for name, option in CONFIG_OPTIONS.items()},
            }
        },
        # Airflow 2 shows only the links listed here.
        "extra-links": [
            "airflow_provider_qwenimage.links.GeneratedImagesLink",
            "airflow_provider_qwenimage.links.ImageLink",
        ],
        "connection-types": [
            {
                "connection-type": "qwenimage",
                "hook-class-name": "airflow_provider_qwenimage.hooks.QwenImageHook",
                "hook-name": HOOK_NAME,
                "conn-fields": {name: dict(field) for name, field in CONN_FIELDS.items()},
                "ui-field-behaviour": {
                    "hidden-fields": list(HIDDEN_FIELDS),
                    "relabeling": dict(RELABELING),
                    "placeholders": dict(PLACEHOLDERS),
                },
            }
        ],
    }


def _modules(name: str) -> list[dict[str, Any]]:
    return [{"integration-name": INTEGRATION_NAME, "python-modules": [f"airflow_provider_qwenimage.{name}"]}]
