"""Kill, restart and freeze containers at random moments drawn from a seed, while the cluster works."""

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

_DOWN_SECONDS = (0.5, 3.0)
_REDIS_SECONDS = 2.0
_START_SECONDS = 300.0


@dataclass(frozen=True)
class Disturbance:
    """One disturbance of a container.

    Attributes:
        affected: The number of running tasks (worker), waits (triggerer) or unfinished tasks (scheduler).
        down_seconds: The seconds until the container was restarted or resumed.
        over: The time of the restart or resume, on the monotonic clock.
        was_frozen: Whether the container was frozen, not ended.
    """

    service: str
    container: str
    affected: int
    down_seconds: float
    was_frozen: bool = False
    over: float = field(default_factory=time.monotonic)


@dataclass
class Disturbances:
    """Two threads: one kills Airflow's containers in turn, one restarts Redis and the sandbox and freezes triggerers.

    Args:
        seed: The seed of the moments.
        kills: How often each container of `KILLED` is killed.
        pause: Seconds between two kills, on average.
        redis_restarts: How often Redis is restarted.
        sandbox_seconds: How long the sandbox is down.
        frozen_seconds: How long each triggerer is frozen: long enough for another one to take over its waits.
        before_sandbox: Called just before the sandbox is killed.
        after_sandbox: Called just after the sandbox is restarted.
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
    after_sandbox: Callable[[], None]
    made: list[Disturbance] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    # Held to kill or freeze a triggerer, so that none is killed while it is frozen.
    _triggerers: threading.Lock = field(default_factory=threading.Lock)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Start both threads."""
        for run in (self._kill_airflow, self._restart_services_and_freeze):
            thread = threading.Thread(target=self._guard, args=(run,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def are_done(self) -> bool:
        """Whether all disturbances have been made."""
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Make no more disturbances, and wait for the current ones."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def ends_of(self, service: str) -> list[Disturbance]:
        """Return the disturbances that ended a container of a service."""
        return [each for each in self.made if each.service == service and not each.was_frozen]

    def freezes(self) -> list[Disturbance]:
        """Return the disturbances that froze a triggerer."""
        return [each for each in self.made if each.was_frozen]

    def _guard(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Exception as error:  # noqa: BLE001  reported by the thread that waits for the end
            self.complaints.append(f"a disturbance failed: {type(error).__name__}: {error}")

    def _kill_airflow(self) -> None:
        draw = random.Random(self.seed)
        for service, container in self._turns(draw):
            if self._stopped.wait(self.pause * draw.uniform(0.5, 1.5)):
                return
            with self._triggerers if service == TRIGGERER else contextlib.nullcontext():
                # Killing a container that has just started would affect nothing.
                wait_for(f"a running {container.name}", partial(self._is_working, container), _START_SECONDS)
                affected = self._affected(service, container)
                container.kill()
                self._restart_after(service, container, affected, draw.uniform(*_DOWN_SECONDS))

    def _turns(self, draw: random.Random) -> Iterator[tuple[str, Container]]:
        containers = [(service, each) for service in KILLED for each in self.composition.containers[service]]
        for _ in range(self.kills):
            yield from draw.sample(containers, len(containers))

    def _restart_services_and_freeze(self) -> None:
        draw = random.Random(-self.seed)
        length = self.kills * self.pause * sum(len(self.composition.containers[service]) for service in KILLED)
        down_seconds = self.sandbox_seconds
        plan = [REDIS] * self.redis_restarts + [TRIGGERER] * len(self.composition.containers[TRIGGERER])
        draw.shuffle(plan)
        plan.insert(len(plan) // 2, SANDBOX)
        triggerers = iter(self.composition.containers[TRIGGERER])
        pause = max(1.0, (length - down_seconds) / (len(plan) + 1) - self.frozen_seconds / 2)
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
                self._restart_after(service, container, 0, down_seconds)
                self.after_sandbox()
            else:
                container.stop()
                self._restart_after(service, container, 0, _REDIS_SECONDS)

    def _freeze(self, container: Container) -> None:
        with self._triggerers:
            wait_for(f"a running {container.name}", partial(self._is_working, container), _START_SECONDS)
            affected = self._affected(TRIGGERER, container)
            with container.frozen():
                time.sleep(self.frozen_seconds)
        self.made.append(Disturbance(TRIGGERER, container.name, affected, self.frozen_seconds, was_frozen=True))

    def _restart_after(self, service: str, container: Container, affected: int, down_seconds: float) -> None:
        time.sleep(down_seconds)
        container.start()
        self.made.append(Disturbance(service, container.name, affected, down_seconds))

    def _is_working(self, container: Container) -> bool:
        return container.exit_code() is None and container.runs_for() > _startup_seconds(container.name)

    def _affected(self, service: str, container: Container) -> int:
        if service == WORKER:
            return self.metadata.running_on(container.name)
        if service == TRIGGERER:
            return self.metadata.held_by(container.name)
        return self.metadata.unfinished()


def _startup_seconds(name: str) -> float:
    """Return how many seconds a container needs after its start until it works."""
    return 15.0 if name.startswith((WORKER, TRIGGERER)) else 10.0
