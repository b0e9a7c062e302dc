"""The distributed test, from its first task to its report."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scripts.progress import Progress
from tests.chaos.books_evidence import gather_books
from tests.chaos.books_judge import BooksEvidence
from tests.chaos.cluster import OVER, UNKNOWN, InstanceKey
from tests.chaos.evidence import whole_images
from tests.chaos.judge import Evidence
from tests.chaos.outages import Outages
from tests.chaos.settling import settle_books
from tests.chaos.tables import table
from tests.cluster import disturbances, judge
from tests.cluster.api import AirflowApi
from tests.cluster.composition import Composition
from tests.cluster.disturbances import Disturbances
from tests.cluster.evidence import Books, last_try
from tests.cluster.metadata import Metadata, TaskRow, states
from tests.cluster.polls import ConnectionWatch, Poll, overlaps
from tests.cluster.workload import CONN_ID, DRAWING, SENSE, TIMEOUT_SECONDS, Workload, prompt_of, submit
from tests.databases.server import Database
from tests.integration.standalone import wait_for

_LOAD_SECONDS = 90.0
_END_SECONDS = 1500.0
_PAUSE_SECONDS = 2.0
_MEMORY_SECONDS = 20.0
# A terminal's line is overwritten; a log gets a new line each time.
_UPDATE_SECONDS = 2.0 if sys.stdout.isatty() else 20.0


@dataclass
class Scene:
    """The running services of the distributed test, their workload and their disturbances.

    Attributes:
        composition: The running services.
        metadata: Airflow's database.
        watch: The owners of the connections to the sandbox.
        database: The database of the books of the connection to the sandbox.
        outages: Its outages.
    """

    composition: Composition
    metadata: Metadata
    books: Books
    watch: ConnectionWatch
    disturbances: Disturbances
    database: Database
    outages: Outages
    workload: Workload
    progress: Progress
    _runs: dict[str, str] = field(default_factory=dict)
    _clears: Counter[InstanceKey] = field(default_factory=Counter)
    _peaks: dict[str, int] = field(default_factory=dict)
    _api: AirflowApi = field(init=False)

    def start(self) -> None:
        """Submit the images that the sensors wait for, and trigger the DAGs."""
        self.books.configure_sandbox()
        environment = self.composition.environment("airflow-worker")
        key = json.loads(environment["AIRFLOW_CONN_QWENIMAGE_DEFAULT"])["password"]
        server = self.composition.containers["airflow-apiserver"][0]
        self._api = AirflowApi(
            self.composition.url("airflow-apiserver", 8080),
            "admin",
            self.composition.admin_password(),
        )
        with self.progress.step("Waiting for Airflow to load the DAGs"):
            wait_for(f"DAGs in {server.name}", self._are_dags_loaded, _LOAD_SECONDS)
        waits = submit(self.books.url, key, [f"Wait {number}" for number in range(self.workload.waits)])
        slow = submit(
            self.books.url, key, [f"Wait too long {number} [slow]" for number in range(self.workload.too_slow)]
        )
        self._runs[SENSE] = self._api.trigger(SENSE, {"waits": waits, "slow": slow})
        for dag_id in DRAWING:
            self._runs[dag_id] = self._api.trigger(dag_id)

    def run_to_end(self) -> None:
        """Wait until every task is finished and every disturbance has been made."""
        self._wait_for_end("Disturbing the services")

    def clear_unknown(self) -> None:
        """Clear the tasks that stopped because a submission may be paid, as a user does."""
        rows = self.metadata.tasks()
        stopped = [row for row in rows.values() if row.state == "failed" and UNKNOWN in self._last_try(row)]
        if not stopped:
            return
        for dag_id in DRAWING:
            wait_for("the end of the DAG run", functools.partial(self._is_over, dag_id), 60)
            if numbers := [row.key[2] for row in stopped if row.key[0] == dag_id]:
                self._api.clear(dag_id, self._runs[dag_id], "draw", numbers)
        self._clears.update(row.key for row in stopped)
        self._wait_for_end(f"Clearing {len(stopped)} tasks that stopped as unknown")

    def settle_books(self) -> BooksEvidence:
        """End the outages, settle the books, and return what they say and should say."""
        with self.progress.step("Settling the books"):
            self.outages.stop()
            self.books.answer_every_read()
            images = self.composition.volume("images")
            settle_books(self.composition.environment("airflow-worker"), [CONN_ID], [images])
            self.books.collect()
            # What another program has submitted is not in the books.
            charged = self.books.charged({prompt_of(number) for number in range(self.workload.images)})
            return gather_books(self.database.url, {CONN_ID: charged}, images)

    def report(self, kills: int) -> tuple[str, list[str]]:
        """Return the tables, and everything that is wrong.

        Args:
            kills: The required number of kills of each container.
        """
        settled = self.settle_books()
        rows = self.metadata.tasks()
        images, waits = self._images(rows), states(rows, SENSE, "wait")
        too_slow = [self._ended(row) for key, row in rows.items() if key[:2] == (SENSE, "wait_too_long")]
        ids = self.books.accepted_ids()
        # Two tasks may wait for the same image task, in two triggerers.
        shared = {image_task_id for number in range(self.workload.shared) for image_task_id in ids[prompt_of(number)]}
        polled_twice = overlaps({key: polls for key, polls in self._polls().items() if key not in shared})
        limits = {service.name: service.memory for service in self.composition.services.values()}
        affected: dict[str, list[int]] = {}
        for service in disturbances.KILLED:
            for container in self.composition.containers[service]:
                affected[container.name] = []
            for each in self.disturbances.ends_of(service):
                affected[each.container].append(each.affected)
        complaints = [
            *self.disturbances.complaints,
            *judge.complaints_of_images(images),
            *settled.complaints(),
            *judge.complaints_of_waits(waits, self.workload.waits),
            *judge.complaints_of_deadlines(too_slow, TIMEOUT_SECONDS),
            *judge.complaints_of_polls(polled_twice),
            *judge.complaints_of_memory(self._peaks, limits),
            *judge.complaints_of_kills(affected, kills),
            *judge.complaints_of_ends(
                {each.name: each.ends for each in self.composition.long_running()},
                disturbances.WORKER,
                [(each.over - each.down_seconds, each.over) for each in self.disturbances.ends_of(disturbances.REDIS)],
            ),
            *(
                f"{each.name} is not running"
                for each in self.composition.long_running()
                if each.exit_code() is not None
            ),
        ]
        if len(too_slow) != self.workload.too_slow:
            complaints.append(f"{self.workload.too_slow} waits should time out, but there are {len(too_slow)}")
        books = table(("books", "number"), [("outages of their database", self.outages.made), *settled.cells()])
        return f"{self._tables(images, waits, too_slow, polled_twice, affected)}\n\n{books}", complaints

    def _wait_for_end(self, title: str) -> None:
        deadline = time.monotonic() + _END_SECONDS
        next_update = next_measurement = 0.0
        with self.progress.step(title):
            while True:
                for container in self.composition.long_running():
                    container.restart_if_ended()
                rows = self.metadata.tasks()
                mapped = [row for key, row in rows.items() if key[2] >= 0]
                done = sum(row.state in OVER for row in mapped)
                is_done = done == len(mapped) == self.workload.tasks
                counted = Counter(str(row.state) for row in mapped)
                if time.monotonic() >= next_update or is_done:
                    shown = ", ".join(f"{number} {state}" for state, number in counted.most_common(5))
                    self.progress.update(f"{title}: {len(self.disturbances.made)} disturbances; {shown}")
                    next_update = time.monotonic() + _UPDATE_SECONDS
                if time.monotonic() >= next_measurement:
                    self._measure_memory()
                    next_measurement = time.monotonic() + _MEMORY_SECONDS
                if is_done and self.disturbances.are_done():
                    return
                assert time.monotonic() < deadline, f"not finished after {_END_SECONDS:.0f} s: {dict(counted)}"
                time.sleep(_PAUSE_SECONDS)

    def _is_over(self, dag_id: str) -> bool:
        return self._api.run_state(dag_id, self._runs[dag_id]) != "running"

    def _are_dags_loaded(self) -> bool:
        errors = self._api.import_errors()
        assert not errors, f"Airflow cannot import a DAG file:\n{errors[0]}"
        return self._api.dag_ids() >= {*DRAWING, SENSE}

    def _measure_memory(self) -> None:
        for name, containers in self.composition.containers.items():
            for container in containers:
                self._peaks[name] = max(self._peaks.get(name, 0), container.memory())

    def _last_try(self, row: TaskRow) -> str:
        return last_try(self.composition.volume("logs"), row.run_id, row.key)

    def _images(self, rows: Mapping[InstanceKey, TaskRow]) -> list[Evidence]:
        ids, stored = self.books.accepted_ids(), whole_images(self.composition.volume("images"))
        found = []
        for number in range(self.workload.images):
            prompt, keys = prompt_of(number), [(dag_id, "draw", number) for dag_id in DRAWING]
            drawn = [rows.get(key) for key in keys[: 2 if number < self.workload.shared else 1]]
            found.append(
                Evidence(
                    name=f"draw[{number}]",
                    state=next(
                        (row.state if row else None for row in drawn if row is None or row.state != "success"),
                        "success",
                    ),
                    accepted=len(ids[prompt]),
                    result_is_whole=stored.get(prompt) in ids[prompt],
                    last_try_unknown=any(
                        row is not None and row.state == "failed" and UNKNOWN in self._last_try(row) for row in drawn
                    ),
                    # Two tasks that share an image are cleared together, which is one consent.
                    clears=max(self._clears[key] for key in keys),
                )
            )
        return found

    def _ended(self, row: TaskRow) -> judge.EndedWait:
        seconds = (row.end_date - row.start_date).total_seconds() if row.start_date and row.end_date else -1.0
        return judge.EndedWait(
            name=f"wait_too_long[{row.key[2]}]",
            state=row.state,
            seconds=seconds,
            reports_timeout="AirflowSensorTimeout" in self._last_try(row),
        )

    def _polls(self) -> dict[str, list[Poll]]:
        polls: dict[str, list[Poll]] = defaultdict(list)
        for read in self.books.status_reads():
            owner = self.watch.owner(read["client_port"], read["time"])
            # The sandbox does not look at the id of a read that it refuses.
            if read["task_id"] is not None and owner is not None and owner.startswith(disturbances.TRIGGERER):
                polls[read["task_id"]].append((owner, read["time"]))
        return polls

    def _tables(
        self,
        images: Sequence[Evidence],
        waits: Mapping[str | None, int],
        too_slow: Sequence[judge.EndedWait],
        polled_twice: Mapping[str, float],
        affected: Mapping[str, Sequence[int]],
    ) -> str:
        done = [
            (f"{name} killed", len(numbers), f"{sum(numbers)} {_AFFECTED[name.rsplit('-', 1)[0]]}")
            for name, numbers in affected.items()
        ]
        freezes = self.disturbances.freezes()
        frozen = f"{sum(each.down_seconds for each in freezes):.0f} s, {sum(each.affected for each in freezes)} waits"
        done.append(("triggerers frozen until taken over", len(freezes), frozen))
        for service, title in ((disturbances.REDIS, "redis restarted"), (disturbances.SANDBOX, "sandbox restarted")):
            made = self.disturbances.ends_of(service)
            done.append((title, len(made), f"{sum(each.down_seconds for each in made):.0f} s down"))
        restarts = sum(len(each.ends) for each in self.composition.long_running())
        done.append(("ended by itself and was restarted", restarts, ""))
        unknown = sum(image.clears for image in images)
        late = [wait.seconds - TIMEOUT_SECONDS for wait in too_slow]
        reads = self.books.status_reads()
        known = sum(self.watch.owner(read["client_port"], read["time"]) is not None for read in reads)
        longest = max(polled_twice.values(), default=0.0)
        stored = sum(image.verdict == "stored" for image in images)
        results = [
            ("images stored", f"{stored} of {len(images)}"),
            ("images that two DAG runs drew at once", str(self.workload.shared)),
            ("images paid twice without consent", str(sum(image.paid_twice for image in images))),
            ("images stopped as unknown, then cleared", str(unknown)),
            ("submissions accepted for the images", str(sum(image.accepted for image in images))),
            ("waits that succeeded", f"{waits.get('success', 0)} of {self.workload.waits}"),
            ("waits that timed out", f"{sum(wait.reports_timeout for wait in too_slow)} of {self.workload.too_slow}"),
            ("  seconds after their deadline", f"{min(late, default=0):.0f} to {max(late, default=0):.0f}"),
            ("polls", f"{len(reads)}"),
            ("  by a process that is known", f"{known}"),
            ("waits polled by two triggerers at once", f"{len(polled_twice)}, longest {longest:.0f} s"),
        ]
        memory = [
            (name, f"{peak / 2**20:.0f} MiB", f"{self.composition.services[name].memory / 2**20:.0f} MiB")
            for name, peak in sorted(self._peaks.items())
            if peak
        ]
        return "\n\n".join(
            (
                table(("disturbance", "times", "affected"), done),
                table(("result", ""), results),
                table(("memory of a container", "peak", "limit"), memory),
            )
        )


_AFFECTED = {
    disturbances.WORKER: "running tasks",
    disturbances.TRIGGERER: "waits",
    disturbances.SCHEDULER: "unfinished tasks",
}
