"""Draws one image through a real Airflow, with the sandbox or, with a key, with the real service.

Environment variables: ``PROMPT``, ``QWENIMAGE_API_KEY`` (uses the real service, which costs credits) and
``QWENIMAGE_BASE_URL`` (the URL of that service).
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE, DEFAULT_BASE_URL, GenerateRequest
from airflow_provider_qwenimage.sandbox import Sandbox
from scripts.local_airflow import IMAGES, AirflowCommandError, CannotGoOnError, LocalAirflow, run_to_the_end, stop
from scripts.progress import Progress

DAG_ID = "qwenimage_prompt_to_file"
DEFAULT_PROMPT = "A paper boat on a calm lake at sunrise, watercolour"
SIZE = "1024*1024"
SECONDS_PER_IMAGE = 4.0

_SHOWN_LOG_LINES = 15
_TICK_SECONDS = 0.2

_SUBMITTED = re.compile(r"Submitted image task (\S+) ")
_STATUS = re.compile(r"Image task \S+ is ([A-Z_]+)\.")
_TROUBLE = re.compile(r"(Reading the status of image task .*|GET \S+ failed;.*|POST \S+ failed;.*)")
_REASON = re.compile(r"\b((?:QwenImage\w+Error|ValueError|ParamValidationError): .*)")


@dataclass(frozen=True)
class Service:
    """The service that draws the image.

    Attributes:
        name: Its name on the screen.
        connection: The Airflow connection, as JSON.
        is_real: Whether it costs real credits.
    """

    name: str
    connection: str
    is_real: bool


def main() -> int:
    """Draw the image and print its path.

    Returns:
        The exit code.
    """
    return run_to_the_end(_draw)


def _draw() -> None:
    request = _read_request()
    with ExitStack() as stack:
        service = _choose_service(stack)
        airflow = LocalAirflow("demo", {"AIRFLOW_CONN_QWENIMAGE_DEFAULT": service.connection})
        print(f"One image through Apache Airflow {airflow.version}")
        print(f"  Prompt   {request.prompt}")
        print(f"  Service  {service.name}", flush=True)
        progress = Progress()
        try:
            if not airflow.is_prepared:
                with progress.step("creating Airflow's database (the first time only)"):
                    airflow.prepare()
            _run_dag(airflow, request, progress)
        except AirflowCommandError as error:
            raise CannotGoOnError(_explain(error, airflow, service)) from error
        with progress.step("checking the stored image"):
            image, sidecar = _find_image(request)
            pixels = _decode(image, request)
    print(
        f"\nImage    {image}\n"
        f"         {pixels[0]} x {pixels[1]} pixels, {request.output_format}, {image.stat().st_size:,} bytes\n"
        f"Cost     {_cost(sidecar['consumed_credits'])}{'' if service.is_real else ' of the sandbox, which is free'}\n"
        f"Details  {image.with_suffix('.json')}\n"
        f'\nAnother picture:           PROMPT="A red fox in the snow" make demo'
    )
    if not service.is_real:
        print(f"With a real key ({CREDITS_PER_IMAGE} credits): QWENIMAGE_API_KEY=sk-… make demo")


def _read_request() -> GenerateRequest:
    prompt = os.environ.get("PROMPT") or DEFAULT_PROMPT
    # Each run has its own seed, so each image gets its own file and can be drawn again.
    seed = random.SystemRandom().randrange(2**31)
    try:
        return GenerateRequest(prompt=prompt, size=SIZE, seed=seed)
    except ValueError as error:
        raise CannotGoOnError(f"PROMPT cannot be used: {error}") from error


def _choose_service(stack: ExitStack) -> Service:
    key = os.environ.get("QWENIMAGE_API_KEY", "").strip()
    if not key:
        sandbox = stack.enter_context(Sandbox(seconds_per_image=SECONDS_PER_IMAGE))
        return Service(f"the sandbox on this machine, {sandbox.url}", sandbox.connection_json, is_real=False)
    url = os.environ.get("QWENIMAGE_BASE_URL") or DEFAULT_BASE_URL
    connection = json.dumps({"conn_type": "qwenimage", "host": url, "password": key})
    return Service(f"{url}, with your key: this costs {CREDITS_PER_IMAGE} credits", connection, is_real=True)


def _run_dag(airflow: LocalAirflow, request: GenerateRequest, progress: Progress) -> None:
    conf = {
        "prompt": request.prompt,
        "size": request.size,
        "seed": request.seed,
        "output_format": request.output_format,
    }
    with progress.step("starting Airflow"):
        position = airflow.log.stat().st_size
        process = airflow.start("dags", "test", DAG_ID, "--conf", json.dumps(conf))
        try:
            lines = _new_lines(airflow.log, position)
            while True:
                running = process.poll() is None
                for line in iter(lambda: next(lines), ""):
                    _show(line, progress)
                if not running:
                    break
                time.sleep(_TICK_SECONDS)
        finally:
            stop(process, patience=2.0)
        if process.returncode:
            raise AirflowCommandError(f"airflow dags test {DAG_ID} ended with exit code {process.returncode}.")


def _new_lines(log: Path, position: int) -> Iterator[str]:
    """Yield each complete line of the log, and an empty string whenever there is no new line yet."""
    with log.open(errors="replace") as stream:
        stream.seek(position)
        rest = ""
        while True:
            rest += stream.readline()
            if rest.endswith("\n"):
                yield rest
                rest = ""
            else:
                yield ""


def _show(line: str, progress: Progress) -> None:
    if "[DAG TEST] starting" in line:
        progress.begin("starting the task")
    elif _SUBMITTED.search(line):
        progress.begin("submitted; waiting")
    elif found := _STATUS.search(line):
        progress.update(f"submitted; waiting: {found[1]}")
    elif found := _TROUBLE.search(line):
        progress.update(found[1])
    elif "[DAG TEST] Trigger completed" in line:
        progress.begin("fetching the image")
    elif " is done: " in line:
        progress.begin("closing Airflow")


def _find_image(request: GenerateRequest) -> tuple[Path, dict[str, Any]]:
    """Return the image of a request and its sidecar."""
    for file in sorted(IMAGES.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True):
        sidecar: dict[str, Any] = json.loads(file.read_text())
        if sidecar["request"] == request.payload():
            return IMAGES / sidecar["image"], sidecar
    raise CannotGoOnError(
        f"Airflow reported that it stored the image, but no image with this seed is in {IMAGES}. Run make demo again."
    )


def _decode(file: Path, request: GenerateRequest) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            image.load()
            pixels = image.size
    except OSError as error:
        raise CannotGoOnError(f"{file} could not be decoded: {error}. Run make demo again.") from error
    if pixels != request.pixel_size:
        raise CannotGoOnError(f"{file} has {pixels[0]} x {pixels[1]} pixels, not {request.size}. Run make demo again.")
    return pixels


def _cost(consumed_credits: float | None) -> str:
    return "unknown: the API did not report it" if consumed_credits is None else f"{consumed_credits:g} credits"


def _explain(error: AirflowCommandError, airflow: LocalAirflow, service: Service) -> str:
    reasons = [found[1] for line in airflow.last_log_lines(500) if (found := _REASON.search(line))]
    if not reasons:
        story = "\n".join(["The end of the log:", *airflow.last_log_lines(_SHOWN_LOG_LINES), "", str(error)])
        advice = f"Try make demo again. If it fails again, remove {airflow.home} and try once more."
    else:
        story = f"The image was not drawn. {reasons[-1]}"
        advice = "Fix the cause, then run make demo again."
        if service.is_real:
            advice = f"{advice} Without QWENIMAGE_API_KEY, it uses the sandbox, which needs no account."
    return f"{story}\n\n{advice}\nThe full log: {airflow.log}"


if __name__ == "__main__":
    sys.exit(main())
