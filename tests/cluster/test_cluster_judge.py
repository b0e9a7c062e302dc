"""The judge of the distributed test finds what is wrong: a test that could not fail would show nothing."""

from __future__ import annotations

import pytest

from tests.chaos.judge import Evidence
from tests.cluster import judge
from tests.cluster.judge import Ended
from tests.cluster.polls import overlaps

STORED = Evidence(name="draw[0]", state="success", accepted=1, result_is_whole=True)


def wait(*, state: str | None = "failed", seconds: float = 151.0, says_timeout: bool = True) -> Ended:
    return Ended("wait[0]", state, seconds, says_timeout)


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (STORED, ""),
        (Evidence(name="d", state="success", accepted=2, result_is_whole=True, clears=1), ""),
        (Evidence(name="d", state="success", accepted=2, result_is_whole=True), "paid twice"),
        (Evidence(name="d", state="failed", accepted=1, result_is_whole=False), "not stored"),
        (Evidence(name="d", state="success", accepted=1, result_is_whole=False), "not stored"),
        (Evidence(name="d", state=None, accepted=0, result_is_whole=False), "not stored"),
        (Evidence(name="d", state="failed", accepted=1, result_is_whole=False, last_try_unknown=True), "not stored"),
    ],
)
def test_an_image_must_be_stored_and_paid_once_for_each_consent(image: Evidence, told: str) -> None:
    complaints = judge.complaints_of_images([image])
    assert len(complaints) == bool(told)
    assert told in "".join(complaints)


@pytest.mark.parametrize(
    ("states", "right"), [({"success": 90}, True), ({"success": 89, "failed": 1}, False), ({"success": 89}, False)]
)
def test_no_wait_may_be_lost(states: dict[str | None, int], right: bool) -> None:
    assert (judge.complaints_of_waits(states, 90) == []) == right


@pytest.mark.parametrize(
    ("ended", "right"),
    [
        (wait(), True),
        (wait(seconds=269), True),
        (wait(seconds=271), False),
        (wait(seconds=100), False),
        (wait(state="success"), False),
        (wait(state="deferred"), False),
        (wait(says_timeout=False), False),
    ],
)
def test_a_wait_in_vain_must_end_at_its_deadline_and_say_so(ended: Ended, right: bool) -> None:
    assert (judge.complaints_of_deadlines([ended], 150) == []) == right


def test_two_triggerers_may_not_poll_one_wait_for_long() -> None:
    def every_ten(owner: str, begin: int, end: int) -> list[tuple[str, float]]:
        return [(owner, float(moment)) for moment in range(begin, end + 1, 10)]

    found = overlaps(
        {
            "moved": every_ten("a", 0, 40) + every_ten("b", 41, 91),
            "moved and back": every_ten("a", 0, 40) + every_ten("b", 41, 71) + every_ten("a", 72, 102),
            "moment": every_ten("a", 0, 40) + every_ten("b", 35, 95),
            "long": every_ten("a", 0, 60) + every_ten("b", 25, 95),
            "one": [("a", 1.0)],
        }
    )
    assert found == {"moment": 5.0, "long": 35.0}
    (complaint,) = judge.complaints_of_polls(found)
    assert "long was polled by two triggerers for 35 s" in complaint


def test_memory_beyond_the_limit_of_a_container_is_told() -> None:
    limits = {"redis": 256 * 2**20, "postgres": 2**30}
    assert judge.complaints_of_memory({"redis": 2**20, "postgres": 2**29}, limits) == []
    assert "redis took 257 MiB" in judge.complaints_of_memory({"redis": 257 * 2**20}, limits)[0]


def test_every_container_must_have_been_killed_while_it_held_something() -> None:
    assert judge.complaints_of_kills({"w-1": [3, 0, 1, 0, 2]}, 5) == []
    assert "w-1 was killed 4 times, not 5" in judge.complaints_of_kills({"w-1": [3, 0, 1, 0]}, 5)[0]
    assert "w-1 held nothing" in judge.complaints_of_kills({"w-1": [0] * 5}, 5)[0]
    assert judge.complaints_of_kills({"w-1": [0]}, 1) == []


def test_only_a_worker_without_its_broker_may_end_by_itself() -> None:
    def complaints(name: str, *moments: float) -> list[str]:
        return judge.complaints_of_ends({name: moments}, "worker", [(100.0, 102.0)])

    assert complaints("worker-1") == []
    assert complaints("worker-1", 101.0, 110.0) == []
    assert complaints("worker-1", 99.0) == complaints("worker-1", 163.0) == ["worker-1 has ended by itself"]
    assert complaints("triggerer-1", 101.0) == ["triggerer-1 has ended by itself"]
