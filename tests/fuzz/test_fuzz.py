"""The fuzzing itself: it divides its budget, finds what is wrong, says how to see it again, and remembers it."""

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


def at_each_look(seconds: float) -> Callable[[], float]:
    """Return a clock that moves on when it is looked at, which happens once for each example, and not else."""
    looks = itertools.count()
    return lambda: next(looks) * seconds


def refuse_large(number: int) -> None:
    assert number < 1000, "too large"


SOUND = Target("numbers", st.integers, prepared(lambda _: None))
BROKEN = Target("numbers", st.integers, prepared(refuse_large))


def test_the_budget_is_kept_and_divided(tmp_path: Path) -> None:
    said: list[str] = []
    clock = at_each_look(0.1)
    # As long as ten others.
    slow = Target("numbers", st.integers, prepared(lambda _: [clock() for _ in range(9)]))
    fuzzing = Fuzzing({"one": SOUND, "slow": slow}, 60.0, tmp_path, said.append, clock)
    assert fuzzing.run()
    # A turn that has begun ends with the budget, whatever it was to take.
    assert 45 < sum(tally.seconds for tally in fuzzing.tallies.values()) < 62
    assert min(tally.seconds for tally in fuzzing.tallies.values()) > 20
    assert fuzzing.tallies["one"].examples > 3 * fuzzing.tallies["slow"].examples > 30
    assert all(" of 60 s, " in line and line.endswith("examples") for line in said)
    assert {line.split(", ")[1].split(":")[0] for line in said} == {"one", "slow"}
    assert "holds" in fuzzing.report("make fuzz")


def test_what_does_not_hold_is_shown_at_its_smallest_and_ends_only_its_own_target(tmp_path: Path) -> None:
    fuzzing = Fuzzing({"broken": BROKEN, "sound": SOUND}, 30.0, tmp_path, clock=at_each_look(0.02))
    assert not fuzzing.run()
    report = fuzzing.report('make fuzz ARGS="--target {name}"')
    assert "Example: 1000\n" in report
    assert "AssertionError: too large" in report
    assert 'Run it again: make fuzz ARGS="--target broken"' in report
    assert fuzzing.tallies["sound"].failure is None
    assert fuzzing.tallies["sound"].examples > fuzzing.tallies["broken"].examples


def test_what_did_not_hold_is_tried_first_the_next_time(tmp_path: Path) -> None:
    assert not Fuzzing({"broken": BROKEN}, 100.0, tmp_path, clock=at_each_look(0.02)).run()
    tried: list[int] = []
    again = Target("numbers", st.integers, prepared(tried.append))
    Fuzzing({"broken": again, "other": SOUND}, 0.5, tmp_path, clock=at_each_look(0.02)).run()
    assert tried[0] == 1000


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "gallery" else ()) for name in TARGETS]
)
def test_a_target_makes_examples_of_its_own_that_are_no_error_of_the_fuzzing(name: str, tmp_path: Path) -> None:
    """Only that its parts fit together; what it finds is for `make fuzz` to say."""
    fuzzing = Fuzzing({name: TARGETS[name]}, 0.5, tmp_path, clock=at_each_look(0.02))
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
def test_what_cannot_be_stored_is_noticed(value: Any) -> None:
    with pytest.raises(AssertionError):
        check_storable(value, 100 if value == "x" * 200 else 10_000)


def test_what_can_be_stored_passes() -> None:
    check_storable({"a": [1, -(2**62), 2.5, None, True, "ä 🦊", {"b": []}]}, 1000)
    check_text("An error: what to do.")


def test_the_key_is_noticed_in_whatever_an_error_came_from() -> None:
    error = ValueError("the answer is not JSON")
    error.__cause__ = RuntimeError({"Authorization": f"Bearer {KEY}"})
    with pytest.raises(AssertionError, match="the key is in"):
        check_message(error)
    check_no_key("sk-another")


def test_the_command_says_what_it_takes() -> None:
    command = [sys.executable, "-m", "tests.fuzz"]
    helped = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(name in helped for name in TARGETS)
    refused = subprocess.run([*command, "--seconds", "nan"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "a number above 0" in refused.stderr
