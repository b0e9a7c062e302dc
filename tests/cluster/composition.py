"""Start the services of docker-compose.yaml as native processes: with its commands, variables, health checks and order.

Two things need a container engine and are left out: images are not built, and memory is measured, not limited. The
services run this environment's Airflow and the installed programs of PostgreSQL and Redis, with a folder per volume.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Self

from scripts.local_airflow import CannotGoOnError
from tests.cluster.compose_file import FILE, Service, read_services
from tests.cluster.containers import Container
from tests.cluster.translation import LOCALHOST, Translation
from tests.databases import postgres
from tests.databases.server import unprivileged_user
from tests.integration.standalone import wait_for
from tests.ports import free_ports

_ROOT = FILE.parent
_AIRFLOW_IMAGE = "airflow-provider-qwenimage:"
_CONNECTION = "AIRFLOW_CONN_QWENIMAGE_DEFAULT"
_IN_CONTAINER = "/opt/airflow"
_PROVIDER = "/opt/provider"
_HEALTHY_SECONDS = 300.0
_END_SECONDS = 180.0
_LOG_PORTS = ("AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT", "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT")


class Composition:
    """The containers of a Compose file, from `__enter__` to `__exit__`, in a temporary folder.

    Args:
        variables: The contents of an .env file.
        overrides: Additional environment variables for every container of Airflow's image.
        extra: The extra of the connection to the sandbox.
        replaced: Folders to mount instead of those of the checkout, by their path in the container.
        on_progress: Called with a text for each service that is started or waited for.

    Raises:
        CannotGoOnError: If a program that a service needs is missing; the message names the package to install.
    """

    def __init__(
        self,
        variables: Mapping[str, str] | None = None,
        *,
        overrides: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
        replaced: Mapping[str, Path] | None = None,
        file: Path = FILE,
        on_progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.services = read_services(file, variables)
        self._overrides = dict(overrides or {})
        self._extra = dict(extra or {})
        self._replaced = dict(replaced or {})
        self._on_progress = on_progress
        self._postgres = postgres.find_programs()
        self._search = os.pathsep.join([str(Path(sys.executable).parent), str(self._postgres), os.environ["PATH"]])
        self._check_programs()
        self.folder = Path()
        self.containers: dict[str, list[Container]] = {}
        self._addresses: dict[tuple[str, int], int] = {}

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="qwenimage-compose-"))
        # PostgreSQL runs as another user and must reach its data folder.
        self.folder.chmod(0o711)
        ports = [(service.name, port) for service in self.services.values() for port in service.ports]
        self._addresses = dict(zip(ports, free_ports(len(ports)), strict=True))
        try:
            for service in self.services.values():
                numbers = range(1, service.replicas + 1)
                self.containers[service.name] = [self._container(service, number) for number in numbers]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # Killed, not stopped, because nothing of them is kept.
        for containers in reversed(self.containers.values()):
            for container in containers:
                container.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start every service in the order of the file, once its dependencies meet their conditions.

        Raises:
            AssertionError: If a container ends with an error, or does not become healthy.
        """
        started: set[str] = set()
        while waiting := [service for service in self.services.values() if service.name not in started]:
            ready = [service for service in waiting if started >= set(service.conditions)]
            assert ready, f"these services wait for one another: {', '.join(service.name for service in waiting)}"
            for service in ready:
                for other, condition in service.conditions.items():
                    self._wait(other, condition)
                self._on_progress(f"Starting {service.name}")
                for container in self.containers[service.name]:
                    container.start()
                started.add(service.name)
        self.wait_until_healthy()

    def wait_until_healthy(self, *names: str) -> None:
        """Wait until the named services are healthy, or without names all that have a health check.

        Raises:
            AssertionError: If a container ends, or does not become healthy in time.
        """
        waiting = [
            container
            for name, containers in self.containers.items()
            if self.services[name].health and (not names or name in names)
            for container in containers
        ]
        self._on_progress(f"Waiting for {', '.join(container.name for container in waiting)}")

        def are_healthy() -> bool:
            # In parallel, because most checks start an Airflow process.
            with ThreadPoolExecutor() as pool:
                checked = list(zip(waiting, pool.map(_is_healthy, waiting), strict=True))
            waiting[:] = [container for container, is_healthy in checked if not is_healthy]
            return not waiting

        try:
            wait_for("health", are_healthy, _HEALTHY_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}: {', '.join(container.name for container in waiting)}") from error

    def url(self, service: str, port: int) -> str:
        """Return the URL at which a service listens on this machine."""
        return f"http://{LOCALHOST}:{self._addresses[service, port]}"

    def volume(self, name: str) -> Path:
        """Return the folder of a volume."""
        return self.folder / "volumes" / name

    def secret(self, name: str) -> str:
        """Return a secret of this deployment by the name of its file."""
        return (self.volume("secrets") / name).read_text()

    def admin_password(self) -> str:
        """Return the password of Airflow's user admin."""
        return str(json.loads((self.volume("auth") / "passwords.json").read_bytes())["admin"])

    def environment(self, service: str) -> Mapping[str, str]:
        """Return the environment of a service's first container."""
        return self.containers[service][0].environment

    def owner_of(self, session: int) -> str | None:
        """Return the container, and which of its starts, that a session id belongs to, or None."""
        for containers in self.containers.values():
            for container in containers:
                if session in container.sessions:
                    return f"{container.name}, start {container.sessions.index(session) + 1}"
        return None

    def long_running(self) -> list[Container]:
        """Return every container that must keep running: those with a health check."""
        return [
            container
            for name, containers in self.containers.items()
            if self.services[name].health
            for container in containers
        ]

    def _wait(self, name: str, condition: str) -> None:
        for container in self.containers[name]:
            if condition == "service_completed_successfully":
                wait_for(f"the end of {container.name}", partial(_has_ended, container), _END_SECONDS)
                code = container.exit_code()
                assert code == 0, f"{container.name} ended with exit code {code}:\n{container.last_output()}"
            elif condition == "service_healthy":
                assert container.health, f"{name} has no health check, so nothing can wait for its health"
                wait_for(f"a healthy {container.name}", partial(_is_healthy, container), _HEALTHY_SECONDS)

    def _container(self, service: Service, number: int) -> Container:
        name = f"{service.name}-{number}"
        own = self.folder / "containers" / name
        own.mkdir(parents=True)
        folders = {mount.target: self._folder(mount.source, mount.target) for mount in service.mounts}
        if service.image.startswith(_AIRFLOW_IMAGE):
            folders |= {_IN_CONTAINER: own, _PROVIDER: _ROOT}
        translation = Translation(service, self._addresses, folders)
        environment = {
            "HOME": str(own),
            "HOSTNAME": name,
            "LANG": "C.UTF-8",
            "PATH": self._search,
            **translation.environment(),
        }
        command, identity, prepare = translation.command(), {}, None
        if service.image.startswith(_AIRFLOW_IMAGE):
            environment |= self._airflow_environment(own) | self._overrides
            if _CONNECTION in environment:
                connection = json.loads(environment[_CONNECTION])
                environment[_CONNECTION] = json.dumps(connection | {"extra": self._extra})
        elif service.image.startswith("postgres:"):
            identity = unprivileged_user(*postgres.USERS) if os.geteuid() == 0 else {}
            data = folders["/var/lib/postgresql/data"]
            # Prepared at the first start, because another service creates the password before it.
            prepare = partial(self._initialize, data, environment, identity)
            # The data is removed at the end, so it need not survive a power cut.
            command += ["-D", str(data), "-c", "fsync=off", "-c", "full_page_writes=off"]
            command += ["-c", f"listen_addresses={LOCALHOST}", "-c", "unix_socket_directories="]
        elif service.image.startswith("redis:"):
            command += ["--bind", LOCALHOST]
        return Container(name, command, environment, own, translation.health(), identity, prepare)

    def _folder(self, source: str, target: str) -> Path:
        if target in self._replaced:
            return self._replaced[target]
        if source.startswith("."):
            return (_ROOT / source).resolve(strict=True)
        folder = self.folder / "volumes" / source
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _initialize(self, data: Path, environment: Mapping[str, str], identity: Mapping[str, Any]) -> None:
        """Do what PostgreSQL's image does with an empty volume: create the configured user and database."""
        data.parent.chmod(0o711)
        password = Path(environment["POSTGRES_PASSWORD_FILE"]).read_text()
        postgres.initialize(self._postgres, data, environment["POSTGRES_USER"], password, identity)
        subprocess.run(
            ["postgres", "--single", "-D", str(data), "postgres"],
            input=f'CREATE DATABASE "{environment["POSTGRES_DB"]}"\n',
            text=True,
            cwd=data.parent,
            env=dict(environment),
            check=True,
            capture_output=True,
            timeout=_END_SECONDS,
            **identity,
        )

    def _airflow_environment(self, own: Path) -> dict[str, str]:
        """Return the variables that replace Airflow's image and a separate network for each container."""
        return {
            "AIRFLOW_HOME": str(own),
            "AIRFLOW__CORE__HOSTNAME_CALLABLE": "tests.cluster.hostname.of_container",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "PYTHONPATH": str(_ROOT),
            **{name: str(port) for name, port in zip(_LOG_PORTS, free_ports(len(_LOG_PORTS)), strict=True)},
        }

    def _check_programs(self) -> None:
        needed = {"redis-server": "redis-server", "redis-cli": "redis-tools", "curl": "curl"}
        missing = sorted(package for program, package in needed.items() if not shutil.which(program))
        if missing:
            raise CannotGoOnError(
                "This runs the services of docker-compose.yaml as native processes, and some of their programs are not "
                f"installed. Install them (Debian and Ubuntu: apt-get install {' '.join(missing)}), then run this "
                "again."
            )


def _has_ended(container: Container) -> bool:
    return container.exit_code() is not None


def _is_healthy(container: Container) -> bool:
    code = container.exit_code()
    assert code is None, f"{container.name} ended with exit code {code}:\n{container.last_output()}"
    return container.is_healthy()
