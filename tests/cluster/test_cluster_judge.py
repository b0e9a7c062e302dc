"""The judge of the distributed test reports everything that is wrong."""

from __future__ import annotations

import pytest

from tests.chaos.judge import Evidence
from tests.cluster import judge
from tests.cluster.judge import EndedWait
from tests.cluster.polls import overlaps

STORED = Evidence(name="draw[0]", state="success", accepted=1, result_is_whole=True)


def wait(*, state: str | None = "failed", seconds: float = 151.0, reports_timeout: bool = True) -> EndedWait:
    return EndedWait("wait[0]", state, seconds, reports_timeout)


@pytest.mark.parametrize(
    ("image", "complaint"),
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
def test_an_image_must_be_stored_and_paid_once_unless_it_was_cleared(image: Evidence, complaint: str) -> None:
    complaints = judge.complaints_of_images([image])
    assert len(complaints) == bool(complaint)
    assert complaint in "".join(complaints)


@pytest.mark.parametrize(
    ("states", "right"), [({"success": 90}, True), ({"success": 89, "failed": 1}, False), ({"success": 89}, False)]
)
def test_every_wait_must_succeed(states: dict[str | None, int], right: bool) -> None:
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
        (wait(reports_timeout=False), False),
    ],
)
def test_a_wait_that_takes_too_long_must_fail_with_a_timeout_at_its_deadline(ended: EndedWait, right: bool) -> None:
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


def test_memory_above_the_limit_of_a_container_gives_a_complaint() -> None:
    limits = {"redis": 256 * 2**20, "postgres": 2**30}
    assert judge.complaints_of_memory({"redis": 2**20, "postgres": 2**29}, limits) == []
    assert "redis used 257 MiB" in judge.complaints_of_memory({"redis": 257 * 2**20}, limits)[0]


def test_every_container_must_be_killed_while_it_has_something_to_do() -> None:
    assert judge.complaints_of_kills({"w-1": [3, 0, 1, 0, 2]}, 5) == []
    assert "w-1 was killed 4 times, not 5" in judge.complaints_of_kills({"w-1": [3, 0, 1, 0]}, 5)[0]
    assert "w-1 had nothing to do" in judge.complaints_of_kills({"w-1": [0] * 5}, 5)[0]
    assert judge.complaints_of_kills({"w-1": [0]}, 1) == []


def test_only_a_worker_without_its_broker_may_end_by_itself() -> None:
    def complaints(name: str, *moments: float) -> list[str]:
        return judge.complaints_of_ends({name: moments}, "worker", [(100.0, 102.0)])

    assert complaints("worker-1") == []
    assert complaints("worker-1", 101.0, 110.0) == []
    assert complaints("worker-1", 99.0) == complaints("worker-1", 163.0) == ["worker-1 ended by itself"]
    assert complaints("triggerer-1", 101.0) == ["triggerer-1 ended by itself"]
