"""The distributed test from its first task to its table."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scripts.progress import Progress
from tests.chaos.evidence import whole_images
from tests.chaos.judge import Evidence
from tests.chaos.tables import table
from tests.cluster import disturbances, judge
from tests.cluster.api import AirflowApi
from tests.cluster.composition import Composition
from tests.cluster.disturbances import Disturbances
from tests.cluster.evidence import Books, last_try
from tests.cluster.metadata import Metadata, Place, TaskRow, states
from tests.cluster.polls import ConnectionWatch, Poll, overlaps
from tests.cluster.workload import DRAW, SENSE, TIMEOUT_SECONDS, Workload, prompt_of, submit
from tests.integration.standalone import wait_for

_OVER = frozenset({"success", "failed", "upstream_failed", "skipped", "removed"})
_UNKNOWN = "QwenImageSubmissionUnknownError"
_KNOWN_SECONDS = 90.0
_END_SECONDS = 1500.0
_LOOK_SECONDS = 2.0
_MEMORY_SECONDS = 20.0
# A terminal's line is drawn over; a log gets a line each time.
_NEWS_SECONDS = 2.0 if sys.stdout.isatty() else 20.0


@dataclass
class Scene:
    """What the distributed test works with.

    Attributes:
        composition: The running services.
        metadata: Airflow's database.
        books: The sandbox's books.
        watch: Who has which connection to the sandbox.
        disturbances: What is done to the services.
        workload: What they have to do.
        progress: Where to say how far it is.
    """

    composition: Composition
    metadata: Metadata
    books: Books
    watch: ConnectionWatch
    disturbances: Disturbances
    workload: Workload
    progress: Progress
    _runs: dict[str, str] = field(default_factory=dict)
    _clears: Counter[Place] = field(default_factory=Counter)
    _peaks: dict[str, int] = field(default_factory=dict)
    _api: AirflowApi = field(init=False)

    def begin(self) -> None:
        """Submit what the sensors wait for, and trigger the DAGs."""
        self.books.remember_everything()
        environment = self.composition.environment("airflow-worker")
        key = json.loads(environment["AIRFLOW_CONN_QWENIMAGE_DEFAULT"])["password"]
        server = self.composition.containers["airflow-apiserver"][0]
        self._api = AirflowApi(
            self.composition.url("airflow-apiserver", 8080),
            "admin",
            self.composition.admin_password(),
        )
        with self.progress.step("Waiting for the DAGs to be known"):
            wait_for(f"DAGs in {server.name}", self._are_known, _KNOWN_SECONDS)
        waits = submit(self.books.url, key, [f"Wait {number}" for number in range(self.workload.waits)])
        slow = submit(self.books.url, key, [f"Wait in vain {number} [slow]" for number in range(self.workload.in_vain)])
        self._runs[SENSE] = self._api.trigger(SENSE, {"waits": waits, "slow": slow})
        self._runs[DRAW] = self._api.trigger(DRAW)

    def follow_to_the_end(self) -> None:
        """Wait until every task is over, and all of the disturbances are."""
        self._follow("Disturbing the services")

    def clear_what_stopped(self) -> None:
        """Clear the tasks that stopped because a submission may be paid, as their users would."""
        rows = self.metadata.tasks()
        stopped = [row for row in rows.values() if row.state == "failed" and _UNKNOWN in self._last_try(row)]
        if not stopped:
            return
        wait_for("the end of the DAG run", lambda: self._api.run_state(DRAW, self._runs[DRAW]) != "running", 60)
        self._api.clear(DRAW, self._runs[DRAW], "draw", [row.place[2] for row in stopped])
        self._clears.update(row.place for row in stopped)
        self._follow(f"Drawing {len(stopped)} that had stopped to ask")

    def report(self, kills: int) -> tuple[str, list[str]]:
        """Return the tables, and what is not as promised.

        Args:
            kills: How often each container had to be killed.
        """
        self.books.collect()
        rows = self.metadata.tasks()
        images, waits = self._images(rows), states(rows, SENSE, "wait")
        in_vain = [self._ended(row) for place, row in rows.items() if place[:2] == (SENSE, "wait_in_vain")]
        polled_twice = overlaps(self._polls())
        limits = {service.name: service.memory for service in self.composition.services.values()}
        met: dict[str, list[int]] = {}
        for service in disturbances.KILLED:
            for container in self.composition.containers[service]:
                met[container.name] = []
            for deed in self.disturbances.of(service):
                met[deed.container].append(deed.held)
        complaints = [
            *self.disturbances.complaints,
            *judge.complaints_of_images(images),
            *judge.complaints_of_waits(waits, self.workload.waits),
            *judge.complaints_of_deadlines(in_vain, TIMEOUT_SECONDS),
            *judge.complaints_of_polls(polled_twice),
            *judge.complaints_of_memory(self._peaks, limits),
            *judge.complaints_of_kills(met, kills),
            *judge.complaints_of_ends(
                {each.name: each.ends for each in self.composition.all_containers()},
                disturbances.WORKER,
                [(deed.over - deed.away, deed.over) for deed in self.disturbances.of(disturbances.REDIS)],
            ),
            *(f"{each.name} has ended" for each in self.composition.all_containers() if each.exit_code() is not None),
        ]
        if len(in_vain) != self.workload.in_vain:
            complaints.append(f"{self.workload.in_vain} waits had to time out, and {len(in_vain)} were there")
        return self._tables(images, waits, in_vain, polled_twice, met), complaints

    def _follow(self, title: str) -> None:
        deadline = time.monotonic() + _END_SECONDS
        news = memory = 0.0
        with self.progress.step(title):
            while True:
                for container in self.composition.all_containers():
                    container.start_if_it_ended()
                rows = self.metadata.tasks()
                mapped = [row for place, row in rows.items() if place[2] >= 0]
                done = sum(row.state in _OVER for row in mapped)
                is_done = done == len(mapped) == self.workload.tasks
                counted = Counter(str(row.state) for row in mapped)
                if time.monotonic() >= news or is_done:
                    shown = ", ".join(f"{number} {state}" for state, number in counted.most_common(5))
                    self.progress.update(f"{title}: {len(self.disturbances.deeds)} so far; {shown}")
                    news = time.monotonic() + _NEWS_SECONDS
                if time.monotonic() >= memory:
                    self._measure_memory()
                    memory = time.monotonic() + _MEMORY_SECONDS
                if is_done and self.disturbances.are_done():
                    return
                assert time.monotonic() < deadline, f"waited {_END_SECONDS:.0f} s in vain: {dict(counted)}"
                time.sleep(_LOOK_SECONDS)

    def _are_known(self) -> bool:
        errors = self._api.import_errors()
        assert not errors, f"Airflow cannot import a DAG file:\n{errors[0]}"
        return self._api.dag_ids() >= {DRAW, SENSE}

    def _measure_memory(self) -> None:
        for name, containers in self.composition.containers.items():
            for container in containers:
                self._peaks[name] = max(self._peaks.get(name, 0), container.memory())

    def _last_try(self, row: TaskRow) -> str:
        return last_try(self.composition.volume("logs"), row.run_id, row.place)

    def _images(self, rows: Mapping[Place, TaskRow]) -> list[Evidence]:
        ids, stored = self.books.accepted_ids(), whole_images(self.composition.volume("images"))
        found = []
        for number in range(self.workload.images):
            place, prompt = (DRAW, "draw", number), prompt_of(number)
            row = rows.get(place)
            found.append(
                Evidence(
                    name=f"draw[{number}]",
                    state=row.state if row else None,
                    accepted=len(ids[prompt]),
                    result_is_whole=stored.get(prompt) in ids[prompt],
                    last_try_unknown=row is not None and row.state == "failed" and _UNKNOWN in self._last_try(row),
                    clears=self._clears[place],
                )
            )
        return found

    def _ended(self, row: TaskRow) -> judge.Ended:
        seconds = (row.end_date - row.start_date).total_seconds() if row.start_date and row.end_date else -1.0
        return judge.Ended(
            name=f"wait_in_vain[{row.place[2]}]",
            state=row.state,
            seconds=seconds,
            says_timeout="AirflowSensorTimeout" in self._last_try(row),
        )

    def _polls(self) -> dict[str, list[Poll]]:
        polls: dict[str, list[Poll]] = defaultdict(list)
        for read in self.books.status_reads():
            owner = self.watch.owner(read["client_port"], read["time"])
            if owner is not None and owner.startswith(disturbances.TRIGGERER):
                polls[read["task_id"]].append((owner, read["time"]))
        return polls

    def _tables(
        self,
        images: Sequence[Evidence],
        waits: Mapping[str | None, int],
        in_vain: Sequence[judge.Ended],
        polled_twice: Mapping[str, float],
        met: Mapping[str, Sequence[int]],
    ) -> str:
        done = [
            (f"{name} killed", len(held), f"{sum(held)} {_HELD[name.rsplit('-', 1)[0]]}") for name, held in met.items()
        ]
        freezes = self.disturbances.freezes()
        frozen = f"{sum(deed.away for deed in freezes):.0f} s, {sum(deed.held for deed in freezes)} waits"
        done.append(("triggerers frozen, thought dead, back", len(freezes), frozen))
        for service, title in ((disturbances.REDIS, "redis restarted"), (disturbances.SANDBOX, "sandbox gone")):
            deeds = self.disturbances.of(service)
            done.append((title, len(deeds), f"{sum(deed.away for deed in deeds):.0f} s away"))
        restarts = sum(len(each.ends) for each in self.composition.all_containers())
        done.append(("ended by itself, started again", restarts, "as the Compose file says"))
        unknown = sum(image.clears for image in images)
        late = [wait.seconds - TIMEOUT_SECONDS for wait in in_vain]
        reads = self.books.status_reads()
        known = sum(self.watch.owner(read["client_port"], read["time"]) is not None for read in reads)
        longest = max(polled_twice.values(), default=0.0)
        stored = sum(image.verdict == "stored" for image in images)
        came = [
            ("images stored, whole", f"{stored} of {len(images)}"),
            ("paid twice without consent", str(sum(image.paid_twice for image in images))),
            ("stopped to ask, cleared, then stored", str(unknown)),
            ("image tasks accepted for them", str(sum(image.accepted for image in images))),
            ("waits that succeeded", f"{waits.get('success', 0)} of {self.workload.waits}"),
            ("waits that timed out", f"{sum(wait.says_timeout for wait in in_vain)} of {self.workload.in_vain}"),
            ("seconds after their deadline", f"{min(late, default=0):.0f} to {max(late, default=0):.0f}"),
            ("status reads, of a known process", f"{len(reads)}, {known}"),
            ("waits polled by two triggerers at once", f"{len(polled_twice)}, longest {longest:.0f} s"),
        ]
        memory = [
            (name, f"{peak / 2**20:.0f} MiB", f"{self.composition.services[name].memory / 2**20:.0f} MiB")
            for name, peak in sorted(self._peaks.items())
            if peak
        ]
        return "\n\n".join(
            (
                table(("what was done", "times", "what it met"), done),
                table(("what came of it", ""), came),
                table(("memory of a container", "most", "allowed"), memory),
            )
        )


_HELD = {
    disturbances.WORKER: "running tasks",
    disturbances.TRIGGERER: "waits",
    disturbances.SCHEDULER: "unfinished tasks",
}
