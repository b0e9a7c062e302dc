"""Compare ways to wait for many image tasks in one event loop: CPU, memory, lateness and connections."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from airflow_provider_qwenimage.contract import GENERATE_PATH
from airflow_provider_qwenimage.rules.wait_defaults import DEFAULT_POLL_INTERVAL
from benchmarks.certificates import write_certificate
from benchmarks.measured_waits import Measured, Plan
from benchmarks.sandbox_process import ROOT, SandboxProcess
from benchmarks.settings import COMPILED
from benchmarks.tables import machine
from benchmarks.wait_table import EXPLANATION, Outcome, Setting, summary, wait_table
from benchmarks.waits import CONTESTANTS, Api
from scripts.progress import Progress

_SUBMITTING = 20
# No image task ends during the benchmark.
_SECONDS_PER_IMAGE = 1e6
_STOP_SECONDS = 120.0
_TICK_SECONDS = 0.05
_TRANSPORTS = ("plain", "tls")


class ContestantFailedError(Exception):
    """A contestant's process ended without a result; the message contains the end of its output."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison, and print the table.

    Returns:
        The exit code.
    """
    options = _parse(arguments)
    progress = Progress(sys.stderr)
    outcomes: dict[tuple[Setting, str], list[Outcome]] = defaultdict(list)
    print(f"Waits in one event loop. {machine()}", flush=True)
    with TemporaryDirectory(prefix="qwenimage-bench-") as folder:
        certificate = Path(folder, "certificate.pem")
        write_certificate(certificate)
        for number in range(options.rounds):
            for setting in (Setting(transport, waits) for waits in options.waits for transport in options.transports):
                for contestant in options.contestants:
                    title = f"round {number + 1}, {setting.waits:,} waits, {setting.transport}: {contestant}"
                    with progress.step(title):
                        outcome = _run(setting, contestant, options, Path(folder), certificate)
                    outcomes[setting, contestant].append(outcome)
                    print(f"    {summary(outcome)}", file=sys.stderr, flush=True)
    print(
        f"\n{options.seconds:g} s measured after {options.warm_up:g} s of warm-up, {options.rounds} round(s), median; "
        f"first interval {options.poll_interval:g} s. {machine()}\n"
    )
    print(wait_table(outcomes))
    print(f"\n{EXPLANATION}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.waiting", description=__doc__)
    parser.add_argument("--waits", type=int, nargs="+", default=[1000, 10_000], help="waits in one event loop")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a measurement (default: %(default)g)")
    parser.add_argument(
        "--warm-up",
        type=float,
        default=20.0,
        help="seconds before the measurement; the waits start evenly during the first half (default: %(default)g)",
    )
    parser.add_argument(
        "--poll-interval",
        type=float,
        default=DEFAULT_POLL_INTERVAL,
        help="seconds between the first polls of a wait, at least 1 (default: %(default)g)",
    )
    parser.add_argument("--rounds", type=int, default=1, help="number of rounds; the table shows medians")
    parser.add_argument(
        "--transports", nargs="+", choices=_TRANSPORTS, default=list(_TRANSPORTS), help="plain http or TLS"
    )
    parser.add_argument(
        "--contestants",
        nargs="+",
        choices=list(CONTESTANTS),
        default=list(CONTESTANTS),
        help="; ".join(f"{name}: {contestant.title}" for name, contestant in CONTESTANTS.items()),
    )
    options = parser.parse_args(arguments)
    if options.poll_interval < 1:
        parser.error("--poll-interval must be at least 1: shorter pauses look like yielding to the event loop.")
    if min(options.waits) < 1 or options.rounds < 1 or options.seconds <= 0 or options.warm_up <= 0:
        parser.error("--waits, --rounds, --seconds and --warm-up must be above 0.")
    return options


def _run(setting: Setting, contestant: str, options: argparse.Namespace, folder: Path, certificate: Path) -> Outcome:
    with SandboxProcess(
        seconds_per_image=_SECONDS_PER_IMAGE,
        request_log_size=10_000_000,
        ssl_certfile=str(certificate) if setting.transport == "tls" else None,
    ) as sandbox:
        api = Api(sandbox.url, sandbox.api_key)
        plan = Plan(
            contestant=contestant,
            url=api.url,
            api_key=api.api_key,
            image_task_ids=asyncio.run(_submit(api, setting.waits)),
            poll_interval=options.poll_interval,
            warm_up=options.warm_up,
            seconds=options.seconds,
        )
        while sandbox.take_counts().still_open:
            time.sleep(_TICK_SECONDS)
        authorities = dict.fromkeys(("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), str(certificate))
        environment = _environment(folder) | api.to_environment() | authorities
        with _started(plan, environment, folder / "log.txt") as process:
            _read(process, plan, folder / "log.txt")
            warm_up = sandbox.take_counts()
            measured = _read(process, plan, folder / "log.txt")
            return Outcome(Measured(**measured), warm_up, sandbox.take_counts(), options.seconds)


async def _submit(api: Api, number: int) -> list[str]:
    """Submit that many images, and return their ids."""
    limit = asyncio.Semaphore(_SUBMITTING)
    # The certificate is not checked, because this is not measured and stays on this machine.
    connector = aiohttp.TCPConnector(ssl=False)
    async with aiohttp.ClientSession(headers=api.headers, connector=connector) as session:

        async def submit(index: int) -> str:
            async with limit, session.post(f"{api.url}{GENERATE_PATH}", json={"prompt": f"{index}"}) as response:
                return str((await response.json())["data"]["task_id"])

        return await asyncio.gather(*(submit(index) for index in range(number)))


@contextmanager
def _started(plan: Plan, environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a contestant in its own process during the block."""
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.measured_waits"],
            cwd=ROOT,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        )
    try:
        assert process.stdin is not None  # noqa: S101  for mypy: it is a pipe
        process.stdin.write(json.dumps(asdict(plan)))
        process.stdin.close()
        yield process
    finally:
        _stop(process)


def _read(process: subprocess.Popen[str], plan: Plan, log: Path) -> Any:
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        output = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise ContestantFailedError(f"{plan.contestant} ended without a result. The end of its output:\n{output}")
    return json.loads(line)


def _stop(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(_STOP_SECONDS)
    except BaseException:
        process.kill()
        process.wait()
        raise


def _environment(folder: Path) -> dict[str, str]:
    """Return this environment without the user's Airflow settings, and with an empty AIRFLOW_HOME."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    return mine | COMPILED | {"AIRFLOW_HOME": str(folder / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}


if __name__ == "__main__":
    sys.exit(main())
