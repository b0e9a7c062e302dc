"""Kills and restarts what the cluster is made of, at moments drawn from a seed, while there is work to do."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from tests.cluster.composition import Composition
from tests.cluster.containers import Container
from tests.cluster.metadata import Metadata
from tests.integration.standalone import wait_for

WORKER, TRIGGERER, SCHEDULER = "airflow-worker", "airflow-triggerer", "airflow-scheduler"
KILLED = (WORKER, TRIGGERER, SCHEDULER)
REDIS, SANDBOX = "redis", "sandbox"

_AWAY_SECONDS = (0.5, 3.0)
_REDIS_SECONDS = 2.0
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Deed:
    """Something that was done to a container.

    Attributes:
        service: Its service.
        container: Its name.
        held: What it held at that moment: running tasks, waits, or tasks to bring to their end.
        away: The seconds until it was started again, or went on.
        over: When that was, on the monotonic clock.
        was_frozen: Whether it was only held for so long, instead of ended.
    """

    service: str
    container: str
    held: int
    away: float
    was_frozen: bool = False
    over: float = field(default_factory=time.monotonic)


@dataclass
class Disturbances:
    """Two threads: one kills Airflow's processes in turn, one takes Redis and the sandbox away and freezes triggerers.

    Args:
        composition: What runs.
        metadata: Its database.
        seed: What moments are drawn from.
        kills: How often each container of `KILLED` is killed.
        pause: Seconds between two kills, on average.
        redis_restarts: How often Redis is restarted.
        sandbox_seconds: How long the sandbox is away.
        frozen_seconds: How long each triggerer is held: long enough to be thought dead, and to come back to waits that
            another one has taken over.
        before_sandbox: Called just before it goes, while it still answers.
    """

    composition: Composition
    metadata: Metadata
    seed: int
    kills: int
    pause: float
    redis_restarts: int
    sandbox_seconds: float
    frozen_seconds: float
    before_sandbox: Callable[[], None]
    deeds: list[Deed] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    # One is not killed while it is frozen.
    _triggerers: threading.Lock = field(default_factory=threading.Lock)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Begin."""
        for run in (self._kill_airflow, self._take_services_away):
            thread = threading.Thread(target=self._guard, args=(run,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def are_done(self) -> bool:
        """Whether all of it has been done."""
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Do no more, and wait for what is under way."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def of(self, service: str) -> list[Deed]:
        """Return how the containers of a service were ended."""
        return [deed for deed in self.deeds if deed.service == service and not deed.was_frozen]

    def freezes(self) -> list[Deed]:
        """Return how triggerers were held."""
        return [deed for deed in self.deeds if deed.was_frozen]

    def _guard(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Exception as error:  # noqa: BLE001  it is told in the thread that waits for the end
            self.complaints.append(f"a disturbance could not be made: {type(error).__name__}: {error}")

    def _kill_airflow(self) -> None:
        draw = random.Random(self.seed)
        for service, container in self._turns(draw):
            if self._stopped.wait(self.pause * draw.uniform(0.5, 1.5)):
                return
            with self._triggerers if service == TRIGGERER else contextlib.nullcontext():
                # A process that has only just begun would be killed for nothing.
                wait_for(f"a running {container.name}", partial(self._is_at_work, container), _START_SECONDS)
                held = self._held(service, container)
                container.kill()
                self._start_again(service, container, held, draw.uniform(*_AWAY_SECONDS))

    def _turns(self, draw: random.Random) -> Iterator[tuple[str, Container]]:
        containers = [(service, each) for service in KILLED for each in self.composition.containers[service]]
        for _ in range(self.kills):
            yield from draw.sample(containers, len(containers))

    def _take_services_away(self) -> None:
        draw = random.Random(-self.seed)
        length = self.kills * self.pause * sum(len(self.composition.containers[service]) for service in KILLED)
        away = self.sandbox_seconds
        plan = [REDIS] * self.redis_restarts + [TRIGGERER] * len(self.composition.containers[TRIGGERER])
        draw.shuffle(plan)
        plan.insert(len(plan) // 2, SANDBOX)
        triggerers = iter(self.composition.containers[TRIGGERER])
        pause = max(1.0, (length - away) / (len(plan) + 1) - self.frozen_seconds / 2)
        for service in plan:
            if self._stopped.wait(pause * draw.uniform(0.6, 1.0)):
                return
            if service == TRIGGERER:
                self._freeze(next(triggerers))
                continue
            (container,) = self.composition.containers[service]
            if service == SANDBOX:
                self.before_sandbox()
                container.kill()
                self._start_again(service, container, 0, away)
            else:
                container.stop()
                self._start_again(service, container, 0, _REDIS_SECONDS)

    def _freeze(self, container: Container) -> None:
        with self._triggerers:
            wait_for(f"a running {container.name}", partial(self._is_at_work, container), _START_SECONDS)
            held = self._held(TRIGGERER, container)
            with container.frozen():
                time.sleep(self.frozen_seconds)
        self.deeds.append(Deed(TRIGGERER, container.name, held, self.frozen_seconds, was_frozen=True))

    def _start_again(self, service: str, container: Container, held: int, away: float) -> None:
        time.sleep(away)
        container.start()
        self.deeds.append(Deed(service, container.name, held, away))

    def _is_at_work(self, container: Container) -> bool:
        return container.exit_code() is None and container.runs_for() > _settling(container.name)

    def _held(self, service: str, container: Container) -> int:
        if service == WORKER:
            return self.metadata.running_on(container.name)
        if service == TRIGGERER:
            return self.metadata.held_by(container.name)
        return self.metadata.unfinished()


def _settling(name: str) -> float:
    """Return how many seconds a container needs until it does its work."""
    return 15.0 if name.startswith((WORKER, TRIGGERER)) else 10.0
