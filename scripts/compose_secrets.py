"""Makes the secrets of docker-compose.yaml once and keeps them in a volume, in files for those alone who need them.

It runs in the file's own containers: `make` before anything else starts, `database` before Airflow first connects.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

USER = "airflow"
DATABASE = "airflow"
ADMIN = "admin"
# What the file had as defaults in earlier versions: everybody can look these up, so they count as not set.
PUBLISHED = "local-use-only"
PUBLISHED_ADMIN_PASSWORD = "admin"  # noqa: S105  published, as its name says

# Airflow's user, and its group as well, which the containers of PostgreSQL and Redis are in.
_FOR_AIRFLOW, _FOR_GROUP = 0o600, 0o640
_FOLDER_MODE = 0o750
_FERNET_BYTES = 32
# What HS512, by which Airflow signs, asks of a key.
_JWT_CHARACTERS = 64
_FAILED = 1


@dataclass(frozen=True)
class Secret:
    """A secret that a deployment has once.

    Args:
        variable: The variable of the .env file that sets it.
        file: The name of the file that keeps it.
        mode: The file's mode.
        make: Makes a new one.
    """

    variable: str
    file: str
    mode: int
    make: Callable[[], str]


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(os.urandom(_FERNET_BYTES)).decode()


POSTGRES = Secret("POSTGRES_PASSWORD", "postgres_password", _FOR_GROUP, lambda: secrets.token_hex(32))
REDIS = Secret("REDIS_PASSWORD", "redis_password", _FOR_GROUP, lambda: secrets.token_hex(32))
FERNET = Secret("AIRFLOW_FERNET_KEY", "fernet_key", _FOR_AIRFLOW, _fernet_key)
JWT = Secret("AIRFLOW_JWT_SECRET", "jwt_secret", _FOR_AIRFLOW, lambda: secrets.token_hex(64))
API = Secret("AIRFLOW_API_SECRET_KEY", "api_secret_key", _FOR_AIRFLOW, lambda: secrets.token_hex(32))
SECRETS = (POSTGRES, REDIS, FERNET, JWT, API)
ADMIN_VARIABLE = "AIRFLOW_ADMIN_PASSWORD"


def main() -> int:
    """Run a command, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("make", "database"))
    parser.add_argument("--folder", type=Path, required=True, help="where the secrets are kept")
    parser.add_argument("--postgres", required=True, metavar="HOST:PORT")
    parser.add_argument("--redis", metavar="HOST:PORT")
    parser.add_argument("--passwords", type=Path, help="the passwords of Airflow's simple auth manager")
    options = parser.parse_args()
    try:
        if options.command == "make":
            make_secrets(options.folder, os.environ, postgres=options.postgres, redis=options.redis)
            make_admin_password(options.passwords, os.environ.get(ADMIN_VARIABLE, ""))
        else:
            change_database_password(options.folder, options.postgres)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"The secrets could not be made: {error}\n")
        return _FAILED
    return 0


def make_secrets(folder: Path, variables: Mapping[str, str], *, postgres: str, redis: str) -> None:
    """Write every secret, and the URLs and settings that contain one.

    A value in `variables` takes precedence, then what the folder keeps, then a new one is made.

    Args:
        folder: Where they are kept.
        variables: What an .env file sets, by the names of the variables.
        postgres: Host and port of PostgreSQL.
        redis: Host and port of Redis.

    Raises:
        ValueError: If a variable cannot be used; the message names it, without its value.
        OSError: If the folder cannot be written to.
    """
    given = {secret.file: _given(secret.variable, variables) for secret in SECRETS}
    _check_fernet_key(given[FERNET.file])
    if given[JWT.file] and len(given[JWT.file]) < _JWT_CHARACTERS:
        raise ValueError(
            f"{JWT.variable} is shorter than {_JWT_CHARACTERS} characters, which Airflow refuses. Set more."
        )
    folder.chmod(_FOLDER_MODE)
    values = {secret.file: _keep(folder, secret, given[secret.file]) for secret in SECRETS}
    at_postgres = f"postgresql+psycopg2://{USER}:{quote(values[POSTGRES.file], safe='')}@{postgres}/{DATABASE}"
    _write(folder / "sql_alchemy_conn", at_postgres, _FOR_AIRFLOW)
    _write(folder / "result_backend", f"db+{at_postgres}", _FOR_AIRFLOW)
    _write(folder / "broker_url", f"redis://:{quote(values[REDIS.file], safe='')}@{redis}/0", _FOR_AIRFLOW)
    quoted = values[REDIS.file].replace("\\", "\\\\").replace('"', '\\"')
    _write(folder / "redis.conf", f'requirepass "{quoted}"\n', _FOR_GROUP)


def make_admin_password(file: Path, given: str) -> None:
    """Write the password of the user admin into the file of Airflow's simple auth manager.

    Raises:
        ValueError: If the file is not one of passwords.
        OSError: If it cannot be written.
    """
    try:
        passwords = json.loads(file.read_bytes() or b"{}") if file.exists() else {}
    except ValueError:
        passwords = None
    if not isinstance(passwords, dict):
        raise ValueError(f"{file} is not a JSON object of users and passwords. Remove it, and a new one is made.")
    kept = passwords.get(ADMIN)
    if given == PUBLISHED_ADMIN_PASSWORD:
        _say(f"{ADMIN_VARIABLE} is {given!r}, which everybody tries first. Set another one in .env.")
    if not given:
        is_good = isinstance(kept, str) and kept not in ("", PUBLISHED_ADMIN_PASSWORD)
        given = str(kept) if is_good else secrets.token_urlsafe(16)
    _write(file, json.dumps(passwords | {ADMIN: given}) + "\n", _FOR_AIRFLOW)
    _say(f"The password of the user {ADMIN!r} is in {file}.")


def change_database_password(folder: Path, postgres: str) -> None:
    """Give PostgreSQL the password that is kept, where its volume was made with an earlier one.

    Raises:
        ValueError: If it accepts no password that is known here; the message says what to do.
        OSError: If the folder cannot be read.
    """
    import sqlalchemy  # The container that makes the secrets has no database to talk to.

    host, _, port = postgres.rpartition(":")
    password, previous = (folder / POSTGRES.file).read_text(), _previous(folder)
    candidates = [password, *([previous.read_text()] if previous.exists() else []), PUBLISHED]
    for candidate in candidates:
        url = sqlalchemy.URL.create("postgresql+psycopg2", USER, candidate, host, int(port), DATABASE)
        try:
            # No error shows the password that a statement sets.
            engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, hide_parameters=True)
            with engine.begin() as connection:
                if candidate != password:
                    # psycopg2 fills it in itself, which such a statement needs.
                    statement = sqlalchemy.text(f"ALTER ROLE {USER} PASSWORD :password")
                    connection.execute(statement, {"password": password})
                    _say("PostgreSQL's password is now the present one.")
        except sqlalchemy.exc.OperationalError as error:
            # Any other failure is the same with each password.
            if "password authentication failed" not in str(error.orig):
                raise ValueError(f"PostgreSQL cannot be reached: {error.orig}") from None
            continue
        previous.unlink(missing_ok=True)
        return
    raise ValueError(
        "PostgreSQL accepts neither the present password nor an earlier one. Set POSTGRES_PASSWORD in .env to the one "
        "that its volume was made with, or change it there: docker compose exec postgres psql --username airflow "
        "--command \"ALTER ROLE airflow PASSWORD '…'\""
    )


def _given(variable: str, variables: Mapping[str, str]) -> str:
    value = variables.get(variable, "")
    if value.startswith(PUBLISHED):
        _say(f"{variable} in .env is a value that earlier versions published. It is not used; remove it from .env.")
        return ""
    if not value.isprintable():
        raise ValueError(f"{variable} contains characters that cannot be printed. Set another one in .env.")
    return value


def _check_fernet_key(keys: str) -> None:
    # A new key, and after a comma the earlier ones, is how Airflow changes its key.
    for key in keys.split(",") if keys else ():
        try:
            is_key = len(base64.urlsafe_b64decode(key.strip())) == _FERNET_BYTES
        except (binascii.Error, ValueError):
            is_key = False
        if not is_key:
            raise ValueError(
                f"{FERNET.variable} is not a Fernet key, which is 32 bytes in URL-safe Base64. Leave it empty in .env, "
                "and one is made, or see .env.example for how to make one."
            )


def _keep(folder: Path, secret: Secret, given: str) -> str:
    """Return the value of a secret after writing it down."""
    file = folder / secret.file
    kept = file.read_text() if file.exists() else ""
    value = given or kept or secret.make()
    if secret is POSTGRES and kept and kept != value and not _previous(folder).exists():
        _write(_previous(folder), kept, _FOR_AIRFLOW)
    _write(file, value, secret.mode)
    return value


def _previous(folder: Path) -> Path:
    """Return the file with the password that the database still has after the present one was changed."""
    return folder / f"{POSTGRES.file}.previous"


def _write(file: Path, text: str, mode: int) -> None:
    """Replace a file as a whole: others may be reading it."""
    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    new.replace(file)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
