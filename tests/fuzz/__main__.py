"""Throws odd input at everything that reads strangers' input: `make fuzz`, or `python -m tests.fuzz --help`."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path

import tests.conftest  # noqa: F401  gives Airflow a home of its own, before anything imports it
from scripts.progress import Progress
from tests.fuzz.running import Fuzzing, show
from tests.fuzz.targets import TARGETS

_DATABASE = Path(__file__).resolve().parents[2] / ".hypothesis" / "fuzz"
_SECONDS = 600.0


def main() -> int:
    """Run it, and return the exit code."""
    options = _read_arguments()
    targets = {name: TARGETS[name] for name in options.target or TARGETS}
    # What libraries say of odd input is kept, and checked for the key; nobody reads it here.
    logging.getLogger().handlers[:] = [logging.NullHandler()]
    logging.lastResort = None
    # Airflow 3 has it; on Airflow 2 only the arguments are read here.
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    warnings.simplefilter("ignore")
    progress = Progress()
    fuzzing = Fuzzing(targets, options.seconds, options.database, say=progress.update)
    with progress.step(f"Fuzzing {', '.join(targets)}"):
        holds = fuzzing.run()
    show(fuzzing.report('make fuzz ARGS="--target {name} --seconds 60"'))
    return 0 if holds else 1


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Runs Hypothesis over what strangers send, in turn and with random examples, until the budget is "
        "spent. Failing examples are kept and tried first the next time.",
        epilog="targets: " + "; ".join(f"{name}: {target.what}" for name, target in TARGETS.items()),
    )
    parser.add_argument("--seconds", type=_positive, default=_SECONDS, help="the budget (default: %(default)g)")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="only this one; can be repeated")
    parser.add_argument(
        "--database", type=Path, default=_DATABASE, help="where failing examples are kept (default: .hypothesis/fuzz)"
    )
    return parser.parse_args()


def _positive(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError("allowed is a number above 0")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
