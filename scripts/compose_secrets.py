"""Creates the secrets of docker-compose.yaml once and stores them in a volume, in files with an owner and a mode.

It runs in containers of that file: `make` before any other service starts, `database` before Airflow first connects.
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
# Defaults of earlier versions of the file. They are public, so they count as not set.
PUBLISHED = "local-use-only"
PUBLISHED_ADMIN_PASSWORD = "admin"  # noqa: S105  published, as its name says

# For Airflow's user; for its group too, which the containers of PostgreSQL and Redis belong to.
_FOR_AIRFLOW, _FOR_GROUP = 0o600, 0o640
_FOLDER_MODE = 0o750
_FERNET_BYTES = 32
# The minimum length of a key for HS512, with which Airflow signs.
_JWT_CHARACTERS = 64
_FAILED = 1


@dataclass(frozen=True)
class Secret:
    """A secret of a deployment.

    Args:
        variable: The variable in .env that sets it.
        file: The name of the file that stores it.
        make: Creates a new value.
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
    parser.add_argument("--folder", type=Path, required=True, help="the folder of the secrets")
    parser.add_argument("--postgres", required=True, metavar="HOST:PORT")
    parser.add_argument("--redis", metavar="HOST:PORT")
    parser.add_argument("--passwords", type=Path, help="the password file of Airflow's simple auth manager")
    options = parser.parse_args()
    try:
        if options.command == "make":
            make_secrets(options.folder, os.environ, postgres=options.postgres, redis=options.redis)
            make_admin_password(options.passwords, os.environ.get(ADMIN_VARIABLE, ""))
        else:
            change_database_password(options.folder, options.postgres)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"The secrets could not be created: {error}\n")
        return _FAILED
    return 0


def make_secrets(folder: Path, variables: Mapping[str, str], *, postgres: str, redis: str) -> None:
    """Write every secret, and the URLs and settings that contain one.

    A value in `variables` takes precedence over a stored one. Without either, a new one is created.

    Args:
        folder: The folder of the secrets.
        variables: The settings of the .env file, by name.
        postgres: Host and port, as ``host:port``.
        redis: Host and port, as ``host:port``.

    Raises:
        ValueError: If a variable is not valid; the message names it without its value.
        OSError: If the folder cannot be written to.
    """
    given = {secret.file: _given(secret.variable, variables) for secret in SECRETS}
    _check_fernet_key(given[FERNET.file])
    if given[JWT.file] and len(given[JWT.file]) < _JWT_CHARACTERS:
        raise ValueError(
            f"{JWT.variable} has fewer than {_JWT_CHARACTERS} characters, which Airflow rejects. Set a longer one."
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
    """Write the password of the user admin into the password file of Airflow's simple auth manager.

    Raises:
        ValueError: If the file exists but is not a password file.
        OSError: If it cannot be written.
    """
    try:
        passwords = json.loads(file.read_bytes() or b"{}") if file.exists() else {}
    except ValueError:
        passwords = None
    if not isinstance(passwords, dict):
        raise ValueError(
            f"{file} is not a JSON object of users and passwords. Remove it, then start again: a new one is created."
        )
    kept = passwords.get(ADMIN)
    if given == PUBLISHED_ADMIN_PASSWORD:
        _say(f"{ADMIN_VARIABLE} is {given!r}, which is easy to guess. Set another one in .env.")
    if not given:
        is_good = isinstance(kept, str) and kept not in ("", PUBLISHED_ADMIN_PASSWORD)
        given = str(kept) if is_good else secrets.token_urlsafe(16)
    _write(file, json.dumps(passwords | {ADMIN: given}) + "\n", _FOR_AIRFLOW)
    _say(f"The password of the user {ADMIN!r} is in {file}.")


def change_database_password(folder: Path, postgres: str) -> None:
    """Change PostgreSQL's password to the stored one if its volume was created with an earlier one.

    Raises:
        ValueError: If PostgreSQL accepts no known password; the message says what to do.
        OSError: If the folder cannot be read.
    """
    import sqlalchemy  # Slow to import, and `make` does not need it.

    host, _, port = postgres.rpartition(":")
    password, previous = (folder / POSTGRES.file).read_text(), _previous(folder)
    candidates = [password, *([previous.read_text()] if previous.exists() else []), PUBLISHED]
    for candidate in candidates:
        url = sqlalchemy.URL.create("postgresql+psycopg2", USER, candidate, host, int(port), DATABASE)
        try:
            # Errors must not show the password that a statement sets.
            engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, hide_parameters=True)
            with engine.begin() as connection:
                if candidate != password:
                    # psycopg2 inserts the parameter on the client side: ALTER ROLE takes none.
                    statement = sqlalchemy.text(f"ALTER ROLE {USER} PASSWORD :password")
                    connection.execute(statement, {"password": password})
                    _say("PostgreSQL's password was changed to the current one.")
        except sqlalchemy.exc.OperationalError as error:
            # Other failures do not depend on the password.
            if "password authentication failed" not in str(error.orig):
                raise ValueError(f"PostgreSQL cannot be reached: {error.orig}") from None
            continue
        previous.unlink(missing_ok=True)
        return
    raise ValueError(
        "PostgreSQL accepts neither the current password nor an earlier one. Set POSTGRES_PASSWORD in .env to the one "
        "that its volume was created with, or change it in the database: docker compose exec postgres "
        "psql --username airflow --command \"ALTER ROLE airflow PASSWORD '…'\""
    )


def _given(variable: str, variables: Mapping[str, str]) -> str:
    value = variables.get(variable, "")
    if value.startswith(PUBLISHED):
        _say(f"{variable} in .env is a published default of earlier versions and is ignored. Remove it from .env.")
        return ""
    if not value.isprintable():
        raise ValueError(f"{variable} contains unprintable characters. Set another one in .env.")
    return value


def _check_fernet_key(keys: str) -> None:
    # To rotate its key, Airflow takes the new key and, after commas, the earlier ones.
    for key in keys.split(",") if keys else ():
        try:
            is_key = len(base64.urlsafe_b64decode(key.strip())) == _FERNET_BYTES
        except (binascii.Error, ValueError):
            is_key = False
        if not is_key:
            raise ValueError(
                f"{FERNET.variable} is not a Fernet key (32 bytes in URL-safe Base64). Leave it empty in .env, so that "
                "one is created, or see .env.example for the command that creates one."
            )


def _keep(folder: Path, secret: Secret, given: str) -> str:
    """Store a secret and return its value."""
    file = folder / secret.file
    kept = file.read_text() if file.exists() else ""
    value = given or kept or secret.make()
    if secret is POSTGRES and kept and kept != value and not _previous(folder).exists():
        _write(_previous(folder), kept, _FOR_AIRFLOW)
    _write(file, value, secret.mode)
    return value


def _previous(folder: Path) -> Path:
    """Return the file with the password that the database has until it gets the new one."""
    return folder / f"{POSTGRES.file}.previous"


def _write(file: Path, text: str, mode: int) -> None:
    """Replace a file atomically: others may be reading it."""
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
