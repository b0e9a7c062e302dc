"""The empty database of the tests' Airflow is created once, and a broken one is created again."""

from __future__ import annotations

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from airflow_provider_qwenimage.testing.database_template import copy_template


class Database:
    """Creates a database as Airflow does, and counts how often."""

    def __init__(self) -> None:
        self.created = 0

    def __call__(self, file: Path) -> None:
        self.created += 1
        # Long enough for others to ask for it too.
        time.sleep(0.2)
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("CREATE TABLE alembic_version (version_num)")
            connection.execute("INSERT INTO alembic_version VALUES ('7')")
            connection.execute(
                "CREATE TABLE dag AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
                "WHERE i < 5000) SELECT i FROM n"
            )
            connection.commit()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "airflow-provider-qwenimage"


def _template(cache: Path) -> Path:
    (template,) = cache.glob("airflow-*.db")
    return template


def _rows(database: Path) -> int:
    with closing(sqlite3.connect(database)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM dag").fetchone()
    return int(count)


def test_processes_that_need_it_at_once_create_it_once(cache: Path, tmp_path: Path) -> None:
    create = Database()
    copies = [tmp_path / f"{number}.db" for number in range(4)]
    with ThreadPoolExecutor(len(copies)) as pool:
        for done in [pool.submit(copy_template, copy, tmp_path / "own", create) for copy in copies]:
            done.result()
    assert create.created == 1
    assert [_rows(copy) for copy in copies] == [5000] * 4
    assert not (tmp_path / "own").exists()
    assert {file.suffix for file in cache.iterdir()} == {".db", ".lock"}


@pytest.mark.parametrize("damage", ["emptied", "cut short", "not migrated", "not a database"])
def test_a_broken_one_is_created_again(damage: str, cache: Path, tmp_path: Path) -> None:
    create = Database()
    copy_template(tmp_path / "first.db", tmp_path / "own", create)
    template = _template(cache)
    if damage == "emptied":
        template.write_bytes(b"")
    elif damage == "cut short":
        template.write_bytes(template.read_bytes()[: template.stat().st_size // 2])
    elif damage == "not migrated":
        with closing(sqlite3.connect(template)) as connection:
            connection.execute("DELETE FROM alembic_version")
            connection.commit()
    else:
        template.write_text("no database" * 1000)
    copy_template(tmp_path / "second.db", tmp_path / "own", create)
    assert create.created == 2
    assert _rows(tmp_path / "second.db") == 5000


def test_one_that_a_killed_process_left_unfinished_is_not_used(cache: Path, tmp_path: Path) -> None:
    create = Database()

    def killed(file: Path) -> None:
        create(file)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_template(tmp_path / "first.db", tmp_path / "own", killed)
    assert list(cache.glob("airflow-*.db")) == []
    copy_template(tmp_path / "second.db", tmp_path / "own", create)
    assert create.created == 2
    assert list(cache.glob("*.new")) == []


@pytest.mark.parametrize("obstacle", ["a file", "no home"])
def test_without_a_cache_each_process_creates_its_own(
    obstacle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if obstacle == "a file":
        (tmp_path / "cache").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    else:
        # A relative path is not valid there.
        monkeypatch.setenv("XDG_CACHE_HOME", "cache")
        monkeypatch.setenv("HOME", str(tmp_path / "no" / "home"))
        (tmp_path / "no").write_text("")
    create = Database()
    for name in ("first.db", "second.db"):
        copy_template(tmp_path / name, tmp_path / "own", create)
    assert create.created == 1
    assert _rows(tmp_path / "second.db") == 5000


def test_another_airflow_or_provider_has_another_one(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_qwenimage.testing import database_template

    create = Database()
    copy_template(tmp_path / "first.db", tmp_path / "own", create)
    monkeypatch.setattr(database_template, "__version__", "99.0")
    database_template._name.cache_clear()
    try:
        copy_template(tmp_path / "second.db", tmp_path / "own", create)
    finally:
        monkeypatch.undo()
        database_template._name.cache_clear()
    assert create.created == 2
    assert len(list(cache.glob("airflow-*.db"))) == 2
