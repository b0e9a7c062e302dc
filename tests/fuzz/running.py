"""Fuzz the targets in turn until the time is over, and report the failing examples."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis.database import DirectoryBasedExampleDatabase

from tests.fuzz.targets import Target

# The approximate length of a turn: short, so that each target has many turns.
_TURN_SECONDS = 3.0
_FIRST_EXAMPLES = 20
_MOST_EXAMPLES = 5000
# The limit for the search for a smaller failing example, which may exceed the total time.
_SHRINK_SECONDS = 20.0
_SHOWN_CHARACTERS = 1500


class _OutOfTimeError(BaseException):
    """Ends a turn. A BaseException, because Hypothesis treats every Exception as a failing example."""


@dataclass
class Tally:
    """The result of a target so far.

    Attributes:
        examples: The number of checked examples.
        seconds: The time that they took.
        failure: The text of the first failure, or None.
    """

    examples: int = 0
    seconds: float = 0.0
    failure: str | None = None

    def next_turn(self) -> int:
        """Return how many examples fit into a turn."""
        if not self.examples or not self.seconds:
            return _FIRST_EXAMPLES
        return max(1, min(_MOST_EXAMPLES, int(_TURN_SECONDS * self.examples / self.seconds)))


@dataclass
class Fuzzing:
    """One run over some targets.

    Args:
        targets: The targets by name.
        seconds: The time for all targets together.
        database: The folder of failing examples, which are tried first in the next run.
        on_progress: Called with a text before each turn.
        clock: Returns seconds from any starting point.
    """

    targets: Mapping[str, Target]
    seconds: float
    database: Path
    on_progress: Callable[[str], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    tallies: dict[str, Tally] = field(default_factory=dict)

    def run(self) -> bool:
        """Fuzz the targets, and return whether no example failed."""
        self.tallies = {name: Tally() for name in self.targets}
        with ExitStack() as stack:
            checks = {name: stack.enter_context(target.prepare()) for name, target in self.targets.items()}
            # The time for the preparation does not count.
            began = self.clock()
            while self.clock() - began < self.seconds:
                running = [name for name, tally in self.tallies.items() if tally.failure is None]
                if not running:
                    break
                # The target that has had the least time is next.
                name = min(running, key=lambda name: self.tallies[name].seconds)
                self._take_turn(name, checks[name], began)
        return not any(tally.failure for tally in self.tallies.values())

    def _take_turn(self, name: str, check: Callable[[Any], None], began: float) -> None:
        tally = self.tallies[name]
        elapsed = self.clock() - began
        self.on_progress(f"{elapsed:.0f} of {self.seconds:.0f} s, {name}: {tally.examples} examples")
        turn_began = self.clock()
        deadline = min(turn_began + 2 * _TURN_SECONDS, began + self.seconds)
        found: str | None = None

        def counted(example: Any) -> None:
            nonlocal deadline, found
            if self.clock() > deadline:
                raise _OutOfTimeError
            tally.examples += 1
            try:
                check(example)
            except Exception as error:
                if found is None:
                    deadline = self.clock() + _SHRINK_SECONDS
                error.add_note(f"Example: {example!r}")
                found = _format(error)
                raise

        try:
            self._property(name, counted, tally.next_turn())()
        except _OutOfTimeError:
            tally.failure = found and f"{found}\nWith more time, a smaller example may be found."
        except Exception as error:  # noqa: BLE001  every failure is reported
            tally.failure = found or _format(error)
        tally.seconds += self.clock() - turn_began

    def _property(self, name: str, check: Callable[[Any], None], examples: int) -> Callable[[], None]:
        @settings(
            database=DirectoryBasedExampleDatabase(self.database / name),
            deadline=None,
            # By default, Hypothesis tries the same examples in each CI run.
            derandomize=False,
            max_examples=examples,
            phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
            print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.quiet,
        )
        @given(self.targets[name].examples())
        def holds(example: Any) -> None:
            check(example)

        return holds

    def report(self, command: str) -> str:
        """Return the table, and each failure with the command that repeats it.

        Args:
            command: The command that fuzzes one target, with ``{name}`` for the target's name.
        """
        lines = [f"{'target':<12} {'examples':>9} {'seconds':>8}  result"]
        for name, tally in self.tallies.items():
            result = "failed" if tally.failure else "passed" if tally.examples else "not reached"
            lines.append(f"{name:<12} {tally.examples:>9} {tally.seconds:>8.0f}  {result}")
        for name, tally in self.tallies.items():
            if tally.failure:
                lines += ["", f"== {name}", tally.failure, f"Run it again: {command.format(name=name)}"]
        return "\n".join(lines)


def _format(error: BaseException) -> str:
    lines = "".join(traceback.format_exception(error, limit=-6)).rstrip().splitlines()
    return "\n".join(_cut(line) for line in lines)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}… ({len(text)} characters)"


def show(text: str) -> None:
    """Print a text to stdout at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
