"""Kill and restart the database of the books at random moments, while tasks write into it."""

from __future__ import annotations

import random
import threading
from types import TracebackType
from typing import Self

from tests.databases.server import Database

_UP_SECONDS = (6.0, 20.0)
_DOWN_SECONDS = (0.2, 4.0)


class Outages:
    """Outages of a database, from `__enter__` to `stop` or `__exit__`, after which it runs.

    Args:
        database: The database.
        seed: The seed of the moments.

    Attributes:
        made: How many outages there were.
    """

    def __init__(self, database: Database, *, seed: int) -> None:
        self.made = 0
        self._database = database
        self._random = random.Random(seed)
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def stop(self) -> None:
        """Make no more outages.

        Raises:
            AssertionError: If there was none, or the database could not be killed or started.
        """
        self._end()
        if self._error is not None:
            raise AssertionError(f"the database of the books could not be restarted: {self._error}") from self._error
        assert self.made, "the database of the books was never killed: there was too little to do"

    def _end(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopped.wait(self._random.uniform(*_UP_SECONDS)):
                self._database.kill()
                self.made += 1
                self._stopped.wait(self._random.uniform(*_DOWN_SECONDS))
                self._database.start()
        except Exception as error:  # noqa: BLE001  raised by the thread that waits for the end
            self._error = error
