"""The connection form of Airflow 3.1 and older. Later versions read it from the provider info."""

from __future__ import annotations

from typing import Any

from airflow_provider_qwenimage import provider_info


def ui_field_behaviour() -> dict[str, Any]:
    """Return which of Airflow's own fields are hidden, and the labels and placeholders of the others."""
    return {
        "hidden_fields": list(provider_info.HIDDEN_FIELDS),
        "relabeling": dict(provider_info.RELABELING),
        "placeholders": dict(provider_info.PLACEHOLDERS),
    }


def widgets() -> dict[str, Any]:
    """Return the fields that the form stores in the extra."""
    # Only Airflow 2 and the older 3 have these libraries.
    from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
    from wtforms import StringField

    return {
        name: StringField(field["label"], description=field["description"], widget=BS3TextFieldWidget())
        for name, field in provider_info.CONN_FIELDS.items()
    }
