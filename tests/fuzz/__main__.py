"""Fuzz everything that reads untrusted input: `make fuzz`, or `python -m tests.fuzz --help`."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path

import tests.conftest  # noqa: F401  sets AIRFLOW_HOME to a temporary folder before Airflow is imported
from scripts.progress import Progress
from tests.fuzz.running import Fuzzing, show
from tests.fuzz.targets import TARGETS

_DATABASE = Path(__file__).resolve().parents[2] / ".hypothesis" / "fuzz"
_SECONDS = 600.0


def main() -> int:
    """Fuzz the chosen targets, and return the exit code."""
    options = _read_arguments()
    targets = {name: TARGETS[name] for name in options.target or TARGETS}
    # Libraries log odd input. The targets check these lines for the key themselves; they are not printed.
    logging.getLogger().handlers[:] = [logging.NullHandler()]
    logging.lastResort = None
    # Imported here, because Airflow 2 does not have it and must still be able to show --help.
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    warnings.simplefilter("ignore")
    progress = Progress()
    fuzzing = Fuzzing(targets, options.seconds, options.database, on_progress=progress.update)
    with progress.step(f"Fuzzing {', '.join(targets)}"):
        holds = fuzzing.run()
    show(fuzzing.report('make fuzz ARGS="--target {name} --seconds 60"'))
    return 0 if holds else 1


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Check everything that reads untrusted input with random examples from Hypothesis, each target in "
        "turn, until the time is over. Failing examples are stored and tried first in the next run.",
        epilog="targets: " + "; ".join(f"{name}: {target.what}" for name, target in TARGETS.items()),
    )
    parser.add_argument(
        "--seconds", type=_positive, default=_SECONDS, help="the time for all targets (default: %(default)g)"
    )
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="fuzz only this target; repeatable")
    parser.add_argument(
        "--database", type=Path, default=_DATABASE, help="the folder of failing examples (default: .hypothesis/fuzz)"
    )
    return parser.parse_args()


def _positive(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not allowed; it must be a number above 0")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
