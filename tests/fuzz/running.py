"""Runs the targets in turn until a budget of seconds is spent, and reports what does not hold."""

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

# A turn takes about so long, so that each target has many of them and the progress moves.
_TURN_SECONDS = 3.0
_FIRST_EXAMPLES = 20
_MOST_EXAMPLES = 5000
# Looking for a smaller example takes no longer than this, and may pass the budget by so much.
_SHRINK_SECONDS = 20.0
_SHOWN_CHARACTERS = 1500


class _OutOfTimeError(BaseException):
    """Ends a turn. Hypothesis takes every Exception for a failure of the property."""


@dataclass
class Tally:
    """How far a target is.

    Attributes:
        examples: How many were checked.
        seconds: How long that took.
        failure: What did not hold, as people read it, or None.
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
        targets: The targets by their names.
        seconds: The budget of all of them together.
        database: The folder where failing examples are kept, to be tried first the next time.
        say: Told how far it is.
        clock: Tells the seconds, from wherever.
    """

    targets: Mapping[str, Target]
    seconds: float
    database: Path
    say: Callable[[str], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    tallies: dict[str, Tally] = field(default_factory=dict)

    def run(self) -> bool:
        """Run it, and return whether everything held."""
        self.tallies = {name: Tally() for name in self.targets}
        with ExitStack() as stack:
            checks = {name: stack.enter_context(target.prepare()) for name, target in self.targets.items()}
            # The budget is for examples.
            began = self.clock()
            while self.clock() - began < self.seconds:
                going_on = [name for name, tally in self.tallies.items() if tally.failure is None]
                if not going_on:
                    break
                # Whoever had the least of the time is next: a slow start does not cost a target its share.
                name = min(going_on, key=lambda name: self.tallies[name].seconds)
                self._take_turn(name, checks[name], began)
        return not any(tally.failure for tally in self.tallies.values())

    def _take_turn(self, name: str, check: Callable[[Any], None], began: float) -> None:
        tally = self.tallies[name]
        elapsed = self.clock() - began
        self.say(f"{elapsed:.0f} of {self.seconds:.0f} s, {name}: {tally.examples} examples")
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
                found = _told(error)
                raise

        try:
            self._property(name, counted, tally.next_turn())()
        except _OutOfTimeError:
            tally.failure = found and f"{found}\nA smaller example may be found with more time."
        except Exception as error:  # noqa: BLE001  whatever does not hold is reported
            tally.failure = found or _told(error)
        tally.seconds += self.clock() - turn_began

    def _property(self, name: str, check: Callable[[Any], None], examples: int) -> Callable[[], None]:
        @settings(
            database=DirectoryBasedExampleDatabase(self.database / name),
            deadline=None,
            # In CI, Hypothesis would try the same examples each time.
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
        """Return the table, and what did not hold with how to run it again.

        Args:
            command: What runs one target again, with ``{name}`` where its name belongs.
        """
        lines = [f"{'target':<12} {'examples':>9} {'seconds':>8}  result"]
        for name, tally in self.tallies.items():
            result = "does not hold" if tally.failure else "holds" if tally.examples else "was not reached"
            lines.append(f"{name:<12} {tally.examples:>9} {tally.seconds:>8.0f}  {result}")
        for name, tally in self.tallies.items():
            if tally.failure:
                lines += ["", f"== {name}", tally.failure, f"Run it again: {command.format(name=name)}"]
        return "\n".join(lines)


def _told(error: BaseException) -> str:
    lines = "".join(traceback.format_exception(error, limit=-6)).rstrip().splitlines()
    return "\n".join(_cut(line) for line in lines)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}… ({len(text)} characters)"


def show(text: str) -> None:
    """Write a line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
