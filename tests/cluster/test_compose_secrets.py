"""The secrets of a deployment are random, created once, kept, and readable only by the services that need them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import URL, Connection, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError

from scripts.compose_secrets import SECRETS, change_database_password, make_secrets
from tests.cluster.compose_file import FILE, Service, read_services
from tests.cluster.translation import Translation
from tests.databases.postgres import Postgres

VARIABLES = ("AIRFLOW_ADMIN_PASSWORD", *(secret.variable for secret in SECRETS))
PUBLISHED = {name: f"local-use-only-{name}" for name in VARIABLES[1:]}
KEY = "X5xVcoGFTS01tuTtRCYoqDtZw7IbJGfSTPWU7uoiYy4="


@cache
def _service(env_file: frozenset[tuple[str, str]]) -> Service:
    return read_services(variables=dict(env_file))["secrets-init"]


class Deployment:
    """The volumes of a deployment, and the container that fills them, run as in the Compose file."""

    def __init__(self, folder: Path) -> None:
        self.secrets, self.auth = folder / "secrets", folder / "auth"
        for volume in (self.secrets, self.auth):
            volume.mkdir(parents=True)

    def start(self, env_file: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        service = _service(frozenset((env_file or {}).items()))
        folders = {
            "/opt/provider": FILE.parent,
            "/opt/airflow/secrets": self.secrets,
            "/opt/airflow/auth": self.auth,
        }
        translation = Translation(service, {}, folders)
        _, *command = translation.command()
        # With a umask that would let everybody read the files.
        return subprocess.run(
            [sys.executable, *command],
            env={"PATH": os.defpath, **translation.environment()},
            capture_output=True,
            text=True,
            check=False,
            umask=0,
        )

    def values(self) -> dict[str, str]:
        files = [*self.secrets.iterdir(), *self.auth.iterdir()]
        return {file.name: file.read_text() for file in files}

    def admin_password(self) -> str:
        return str(json.loads((self.auth / "passwords.json").read_bytes())["admin"])


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path / "one")


def test_two_deployments_have_no_secret_in_common(deployment: Deployment, tmp_path: Path) -> None:
    other = Deployment(tmp_path / "other")
    for each in (deployment, other):
        started = each.start()
        assert started.returncode == 0, started.stderr
    first, second = deployment.values(), other.values()
    assert first.keys() == second.keys()
    assert not [name for name in first if first[name] == second[name]]
    assert len({*first.values()}) == len(first)
    assert all(len(first[secret.file]) >= 44 for secret in SECRETS)
    assert len(deployment.admin_password()) >= 20
    Fernet(first["fernet_key"])


def test_a_second_start_keeps_the_secrets(deployment: Deployment) -> None:
    deployment.start()
    before = deployment.values()
    deployment.start()
    assert deployment.values() == before


def test_only_airflow_and_services_that_need_a_password_can_read_the_secrets(deployment: Deployment) -> None:
    deployment.start()
    deployment.start()
    modes = {
        file.name: stat.S_IMODE(file.stat().st_mode)
        for file in (*deployment.secrets.iterdir(), *deployment.auth.iterdir())
    }
    shared = {"postgres_password", "redis_password", "redis.conf"}
    assert modes == {name: 0o640 if name in shared else 0o600 for name in modes}
    assert stat.S_IMODE(deployment.secrets.stat().st_mode) == 0o750
    services = read_services()
    in_the_group = {name for name, service in services.items() if service.raw.get("group_add") == ["0"]}
    assert in_the_group == {"postgres", "redis"}
    writers = {
        name
        for name, service in services.items()
        if [mount for mount in service.mounts if mount.source == "secrets" and not mount.read_only]
    }
    assert writers == {"secrets-init", "airflow-init"}
    assert not [mount for mount in services["sandbox"].mounts if mount.source in ("secrets", "auth")]


def test_no_secret_is_shown(deployment: Deployment) -> None:
    started = deployment.start({"POSTGRES_PASSWORD": "mine4711", "AIRFLOW_ADMIN_PASSWORD": "mine4712"})
    output = started.stdout + started.stderr
    values = [*(deployment.values()[secret.file] for secret in SECRETS), deployment.admin_password()]
    assert "passwords.json" in output
    assert not [value for value in values if value in output]


def test_secrets_of_the_env_file_take_precedence_and_are_kept_without_it(deployment: Deployment) -> None:
    deployment.start()
    mine = {name: f"mine{number}" for number, name in enumerate(VARIABLES)} | {"AIRFLOW_FERNET_KEY": KEY}
    mine["AIRFLOW_JWT_SECRET"] *= 20
    deployment.start(mine)
    for _ in range(2):
        kept = deployment.values()
        assert {secret.variable: kept[secret.file] for secret in SECRETS} == {
            name: mine[name] for name in VARIABLES[1:]
        }
        assert deployment.admin_password() == mine["AIRFLOW_ADMIN_PASSWORD"]
        assert mine["REDIS_PASSWORD"] in kept["redis.conf"]
        assert mine["REDIS_PASSWORD"] in kept["broker_url"]
        assert mine["POSTGRES_PASSWORD"] in kept["sql_alchemy_conn"]
        deployment.start()


def test_secrets_that_earlier_versions_published_are_replaced(deployment: Deployment) -> None:
    (deployment.auth / "passwords.json").write_text('{"admin": "admin", "ann": "hers"}')
    started = deployment.start(PUBLISHED)
    assert started.returncode == 0, started.stderr
    assert "local-use-only" not in str(deployment.values())
    assert all(f"{name} in .env is a published default of earlier versions" in started.stdout for name in PUBLISHED)
    assert deployment.admin_password() != "admin"
    assert json.loads(deployment.values()["passwords.json"])["ann"] == "hers"


def test_a_guessable_admin_password_in_the_env_file_gives_a_warning(deployment: Deployment) -> None:
    started = deployment.start({"AIRFLOW_ADMIN_PASSWORD": "admin"})
    assert deployment.admin_password() == "admin"
    assert "Set another one in .env" in started.stdout


@pytest.mark.parametrize("password", ["a/b@c:d%e?f#g h", "pässwörter", "quote\"back\\slash'", "$HOME ${x}"])
def test_any_printable_password_can_be_read_from_the_urls(
    deployment: Deployment, password: str, tmp_path: Path
) -> None:
    variables = {"POSTGRES_PASSWORD": password, "REDIS_PASSWORD": password}
    make_secrets(deployment.secrets, variables, postgres="postgres:5432", redis="redis:6379")
    for name in ("sql_alchemy_conn", "result_backend", "broker_url"):
        read = urlsplit(deployment.values()[name])
        assert unquote(read.password or "") == password
        assert read.hostname in ("postgres", "redis")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("AIRFLOW_FERNET_KEY", "tooshort4711"), ("AIRFLOW_JWT_SECRET", "tooshort4711"), ("REDIS_PASSWORD", "a4711\rb")],
)
def test_a_secret_that_cannot_be_used_is_refused_without_being_shown(
    deployment: Deployment, variable: str, value: str
) -> None:
    with pytest.raises(ValueError, match=variable) as refused:
        make_secrets(deployment.secrets, {variable: value}, postgres="postgres:5432", redis="redis:6379")
    assert "4711" not in str(refused.value)


def test_a_folder_that_cannot_be_written_is_reported_in_one_line(deployment: Deployment) -> None:
    deployment.secrets.rmdir()
    started = deployment.start()
    assert started.returncode == 1
    assert started.stderr.startswith("The secrets could not be created: ")
    assert started.stderr.count("\n") == 1


class TestDatabase:
    """PostgreSQL keeps the password of its volume, so a new password must be set in the database."""

    @pytest.fixture(scope="class")
    def administrator(self) -> Iterator[Connection]:
        with (
            Postgres() as postgres,
            create_engine(postgres.url, isolation_level="AUTOCOMMIT").connect() as connection,
        ):
            connection.execute(text("CREATE DATABASE airflow"))
            yield connection

    @pytest.mark.parametrize("earlier", ["local-use-only", "my own of before"], ids=["published", "own"])
    def test_a_database_of_an_earlier_version_gets_the_new_password(
        self, administrator: Connection, deployment: Deployment, earlier: str
    ) -> None:
        address = self._set_password(administrator, earlier)
        if not earlier.startswith("local"):
            deployment.start({"POSTGRES_PASSWORD": earlier})
        deployment.start({"POSTGRES_PASSWORD": "changed once"})
        deployment.start({"POSTGRES_PASSWORD": "changed twice"})
        for _ in range(2):
            change_database_password(deployment.secrets, address)
            self._connect(address, "changed twice")
            with pytest.raises(OperationalError, match="password authentication failed"):
                self._connect(address, earlier)
        assert "postgres_password.previous" not in deployment.values()

    def test_a_database_with_an_unknown_password_is_reported_with_the_next_step(
        self, administrator: Connection, deployment: Deployment
    ) -> None:
        address = self._set_password(administrator, "forgotten4711")
        deployment.start()
        with pytest.raises(
            ValueError, match=r"Set POSTGRES_PASSWORD in \.env to the one that its volume was created with"
        ):
            change_database_password(deployment.secrets, address)

    def test_a_change_that_the_database_refuses_does_not_show_the_password(
        self, administrator: Connection, deployment: Deployment
    ) -> None:
        address = self._set_password(administrator, "local-use-only")
        deployment.start({"POSTGRES_PASSWORD": "s3cr3t of its own"})
        administrator.execute(text("ALTER ROLE airflow SET default_transaction_read_only = on"))
        try:
            with pytest.raises(DBAPIError, match="read-only transaction") as caught:
                change_database_password(deployment.secrets, address)
        finally:
            administrator.execute(text("ALTER ROLE airflow RESET default_transaction_read_only"))
        assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))

    def _set_password(self, administrator: Connection, password: str) -> str:
        """Set the password with which the server's volume was created, and return the server's address."""
        administrator.execute(text("ALTER ROLE airflow PASSWORD :password"), {"password": password})
        url = administrator.engine.url
        return f"{url.host}:{url.port}"

    def _connect(self, address: str, password: str) -> None:
        host, _, port = address.partition(":")
        url = URL.create("postgresql+psycopg2", "airflow", password, host, int(port), "airflow")
        create_engine(url, poolclass=NullPool).connect().close()
