"""Draws images as ``doctor --draw`` does, for tests that look at what is recorded of it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from airflow_provider_qwenimage.cli.doctor.drawing import Drawing
from airflow_provider_qwenimage.cli.doctor.recording_file import RecordingFile
from airflow_provider_qwenimage.client.connection import ConnectionSettings
from airflow_provider_qwenimage.exceptions import QwenImageError
from airflow_provider_qwenimage.recordings.format import RecordedAnswer, read_recording

KEY = "sk-a-very-secret-key"


def record(
    url: str, file: Path, *, count: int = 1, key: str = KEY, poll_interval: float = 0.05
) -> list[RecordedAnswer]:
    """Draw images at a URL, and return the answers of the recording."""
    settings = ConnectionSettings(base_url=url, api_key=key, timeout_seconds=10.0)
    with RecordingFile(str(file)) as recording, suppress(QwenImageError):
        Drawing(settings, recording.add, lambda *_: None, poll_interval).draw(count, lambda _: None)
    assert recording.problem == ""
    return read_recording(file.read_bytes().splitlines(keepends=True))
