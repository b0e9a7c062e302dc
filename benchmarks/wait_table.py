"""The table of ``make bench-wait``: the cost of each contestant's waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.measured_waits import Measured
from benchmarks.sandbox_process import Counts
from benchmarks.tables import table
from benchmarks.waits import BARE_LOOP, CONTESTANTS

EXPLANATION = """\
The contestants ran one after the other, each in its own process and with its own sandbox process. The waits started
evenly during the first half of the warm-up, which is not measured.
  CPU ratio     CPU/poll relative to the bare loop with the same waits and transport
  CPU/poll      user and system time of the process during the measurement, per poll that ended in it
  memory/wait   growth of the process from before the first wait to the end, per wait
  late p50 p99  time from when a poll was due (the end of the requested sleep before it) until its answer had been read
                and evaluated (the next sleep of the same asyncio task); a poll that was due but had no answer at the
                end is included with its lateness so far, and counted as unfinished
  connections   connections opened from the first wait to the end, as counted by the server; most open: at once
  failed        answers other than HTTP 200, and waits that ended although their image task did not
  busy          share of a core used by the contestant, the sandbox and all other processes: a contestant or sandbox
                near 100 % is saturated, and a high third number makes the results unreliable"""


@dataclass(frozen=True)
class Setting:
    """A setting in which all contestants are measured.

    Attributes:
        transport: ``plain`` or ``tls``.
        waits: The number of waits in the event loop.
    """

    transport: str
    waits: int


@dataclass(frozen=True)
class Outcome:
    """The outcome for one contestant.

    Attributes:
        measured: The result of the contestant's process.
        warm_up: The sandbox's counts of the warm-up.
        counts: The sandbox's counts of the measurement.
        seconds: The length of the measurement.
    """

    measured: Measured
    warm_up: Counts
    counts: Counts
    seconds: float

    @property
    def cpu_per_poll(self) -> float:
        """CPU seconds per poll, or NaN without polls."""
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
        """The number of failed answers and waits."""
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
    """Return the table of the outcomes of each round, by setting and contestant."""
    return table(_HEADINGS, _rows(outcomes), labels=3)


def summary(outcome: Outcome) -> str:
    """Return an outcome in one line."""
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
