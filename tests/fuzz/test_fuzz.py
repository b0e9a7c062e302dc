"""The fuzzing divides its time between targets, finds failing examples, reports how to repeat them, and stores them."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.fuzz.junk import KEY, spellings
from tests.fuzz.running import Fuzzing
from tests.fuzz.storable import check_message, check_no_key, check_storable, check_text
from tests.fuzz.targets import TARGETS, Target

ROOT = Path(__file__).resolve().parents[2]


def prepared(check: Callable[[Any], None]) -> Callable[[], AbstractContextManager[Callable[[Any], None]]]:
    @contextlib.contextmanager
    def prepare() -> Iterator[Callable[[Any], None]]:
        yield check

    return prepare


def clock_in_steps(seconds: float) -> Callable[[], float]:
    """Return a clock that moves on with each call, and so with each example."""
    calls = itertools.count()
    return lambda: next(calls) * seconds


def refuse_large(number: int) -> None:
    assert number < 1000, "too large"


SOUND = Target("numbers", st.integers, prepared(lambda _: None))
BROKEN = Target("numbers", st.integers, prepared(refuse_large))


def test_the_time_is_kept_and_divided_between_targets(tmp_path: Path) -> None:
    messages: list[str] = []
    clock = clock_in_steps(0.1)
    # An example of this target takes as long as ten of the other.
    slow = Target("numbers", st.integers, prepared(lambda _: [clock() for _ in range(9)]))
    fuzzing = Fuzzing({"one": SOUND, "slow": slow}, 60.0, tmp_path, messages.append, clock)
    assert fuzzing.run()
    # The last turn ends when the time is over.
    assert 45 < sum(tally.seconds for tally in fuzzing.tallies.values()) < 62
    assert min(tally.seconds for tally in fuzzing.tallies.values()) > 20
    assert fuzzing.tallies["one"].examples > 3 * fuzzing.tallies["slow"].examples > 30
    assert all(" of 60 s, " in line and line.endswith("examples") for line in messages)
    assert {line.split(", ")[1].split(":")[0] for line in messages} == {"one", "slow"}
    assert "passed" in fuzzing.report("make fuzz")


def test_the_smallest_failing_example_is_reported_and_ends_only_its_own_target(tmp_path: Path) -> None:
    fuzzing = Fuzzing({"broken": BROKEN, "sound": SOUND}, 30.0, tmp_path, clock=clock_in_steps(0.02))
    assert not fuzzing.run()
    report = fuzzing.report('make fuzz ARGS="--target {name}"')
    assert "Example: 1000\n" in report
    assert "AssertionError: too large" in report
    assert 'Run it again: make fuzz ARGS="--target broken"' in report
    assert fuzzing.tallies["sound"].failure is None
    assert fuzzing.tallies["sound"].examples > fuzzing.tallies["broken"].examples


def test_a_failing_example_is_tried_first_in_the_next_run(tmp_path: Path) -> None:
    assert not Fuzzing({"broken": BROKEN}, 100.0, tmp_path, clock=clock_in_steps(0.02)).run()
    tried: list[int] = []
    again = Target("numbers", st.integers, prepared(tried.append))
    Fuzzing({"broken": again, "other": SOUND}, 0.5, tmp_path, clock=clock_in_steps(0.02)).run()
    assert tried[0] == 1000


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "gallery" else ()) for name in TARGETS]
)
def test_a_target_checks_examples_without_an_error_of_its_own(name: str, tmp_path: Path) -> None:
    """This tests the target only; failing examples are found by `make fuzz`."""
    fuzzing = Fuzzing({name: TARGETS[name]}, 0.5, tmp_path, clock=clock_in_steps(0.02))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.fuzz.running._SHRINK_SECONDS", 0.0)
        fuzzing.run()
    assert fuzzing.tallies[name].examples > 0
    for mistake in ("TypeError", "AttributeError", "NameError", "ImportError"):
        assert f"\n{mistake}" not in (fuzzing.tallies[name].failure or "")


@pytest.mark.parametrize(
    "value",
    ["a \ud83d", {"\udc00": 1}, ["a\0"], 2**63, {"a": [float("nan")]}, float("inf"), {1: 2}, {"a": object()}, "x" * 200]
    + [f"…{spelling}…" for spelling in spellings(KEY)],
    ids=range(9 + len(spellings(KEY))),
)
def test_a_value_that_cannot_be_stored_is_detected(value: Any) -> None:
    with pytest.raises(AssertionError):
        check_storable(value, 100 if value == "x" * 200 else 10_000)


def test_a_value_that_can_be_stored_passes() -> None:
    check_storable({"a": [1, -(2**62), 2.5, None, True, "ä 🦊", {"b": []}]}, 1000)
    check_text("An error: what to do.")


def test_the_key_is_detected_in_the_cause_of_an_error() -> None:
    error = ValueError("the answer is not JSON")
    error.__cause__ = RuntimeError({"Authorization": f"Bearer {KEY}"})
    with pytest.raises(AssertionError, match="the key is in"):
        check_message(error)
    check_no_key("sk-another")


def test_the_command_line_lists_the_targets_and_refuses_wrong_values() -> None:
    command = [sys.executable, "-m", "tests.fuzz"]
    helped = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(name in helped for name in TARGETS)
    refused = subprocess.run([*command, "--seconds", "nan"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "a number above 0" in refused.stderr
