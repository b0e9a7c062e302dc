"""The table of ``make bench-wait``: what each contestant's waits cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.measured_waits import Measured
from benchmarks.sandbox_process import Counts
from benchmarks.tables import table
from benchmarks.waits import BARE_LOOP, CONTESTANTS

EXPLANATION = """\
Each contestant ran in a process of its own, one after another, against a sandbox process of its own. The waits began
spread over the first half of the warm-up, which is not measured.
  CPU ratio     CPU for each poll over that of the bare loop with the same waits and transport
  CPU/poll      user and system time of the process in the measured time, over the polls that ended in it
  memory/wait   growth of the process from before the first wait to the end, over the waits
  late p50 p99  from the moment that a poll was due (the end of the sleep before it, as it was asked for) until its
                answer had been read and looked at (the next sleep of the same asyncio task); a poll that was due and
                had no answer at the end counts with its lateness so far, and as unfinished
  connections   opened from the first wait to the end, as the server counted them, and the most open at once
  failed        answers other than HTTP 200, and waits that ended although no image task did
  busy          the share of a core that the contestant used, the sandbox, and everybody else on this machine: a
                contestant or a sandbox near 100 % is at its end, and with much else running nothing here counts"""


@dataclass(frozen=True)
class Setting:
    """What all contestants of a comparison have in common.

    Attributes:
        transport: ``plain`` or ``tls``.
        waits: How many waits there are in the event loop.
    """

    transport: str
    waits: int


@dataclass(frozen=True)
class Outcome:
    """What came out for one contestant.

    Attributes:
        measured: What its own process measured.
        warm_up: What the sandbox counted until the warm-up was over.
        counts: What the sandbox counted in the measured time.
        seconds: How long that was.
    """

    measured: Measured
    warm_up: Counts
    counts: Counts
    seconds: float

    @property
    def cpu_per_poll(self) -> float:
        """CPU seconds for each poll; NaN if there were none."""
        return self.measured.cpu_seconds / self.measured.polls if self.measured.polls else float("nan")

    @property
    def own_busy(self) -> float:
        """The share of a core that the contestant used."""
        return self.measured.cpu_seconds / self.seconds

    @property
    def others_busy(self) -> float:
        """The share of a core that neither the contestant nor the sandbox used."""
        return max(0.0, self.measured.machine_cpu_seconds / self.seconds - self.own_busy - self.counts.busy)

    @property
    def failed(self) -> int:
        """How many answers and waits were not as they should be."""
        return self.warm_up.not_ok + self.counts.not_ok + self.measured.ended


_BUSY: Sequence[Callable[[Outcome], float]] = (
    lambda outcome: outcome.own_busy,
    lambda outcome: outcome.counts.busy,
    lambda outcome: outcome.others_busy,
)

_HEADINGS = (
    "waits",
    "transport",
    "contestant",
    "CPU ratio",
    "CPU/poll",
    "memory/wait",
    "late p50",
    "late p99",
    "polls",
    "unfinished",
    "connections",
    "most open",
    "failed",
    "busy",
)


def wait_table(outcomes: Mapping[tuple[Setting, str], Sequence[Outcome]]) -> str:
    """Return the table.

    Args:
        outcomes: Those of each round, by what was common to all and the contestant.
    """
    return table(_HEADINGS, _rows(outcomes), labels=3)


def summary(outcome: Outcome) -> str:
    """Return one outcome as a line."""
    cells = _cells([outcome], outcome.cpu_per_poll)
    return "  ".join(f"{name} {cell}" for name, cell in zip(_HEADINGS[4:], cells, strict=True))


def _rows(outcomes: Mapping[tuple[Setting, str], Sequence[Outcome]]) -> Iterator[list[str]]:
    for (setting, contestant), rounds in outcomes.items():
        bare = outcomes.get((setting, BARE_LOOP))
        cpu = median(outcome.cpu_per_poll for outcome in rounds)
        ratio = cpu / median(outcome.cpu_per_poll for outcome in bare) if bare else float("nan")
        yield [
            f"{setting.waits:,}",
            setting.transport,
            CONTESTANTS[contestant].title,
            _or_dash(f"{ratio:.2f}"),
            *_cells(rounds, cpu),
        ]


def _cells(rounds: Sequence[Outcome], cpu: float) -> list[str]:
    def middle(value: Callable[[Outcome], float]) -> float:
        return float(median(map(value, rounds)))

    return [
        _or_dash(f"{cpu * 1e6:,.0f} µs"),
        f"{middle(lambda each: each.measured.bytes_per_wait) / 1024:,.1f} KiB",
        f"{middle(lambda each: each.measured.late_p50) * 1000:,.1f} ms",
        f"{middle(lambda each: each.measured.late_p99) * 1000:,.1f} ms",
        f"{middle(lambda each: each.measured.polls):,.0f}",
        f"{middle(lambda each: each.measured.unfinished):,.0f}",
        f"{middle(lambda each: each.warm_up.connections + each.counts.connections):,.0f}",
        f"{middle(lambda each: max(each.warm_up.most_open, each.counts.most_open)):,.0f}",
        f"{max(each.failed for each in rounds):,.0f}",
        " / ".join(f"{middle(share) * 100:.0f}" for share in _BUSY) + " %",
    ]


def _or_dash(text: str) -> str:
    return "-" if text.startswith("nan") else text
