"""Airflow's API server, with the plugin, at a port of this machine, on the database of the tests."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn

from tests.events import wait_until

AUTH_MANAGER = "tests.gallery.auth_manager.DagsInTheirNames"


class Server:
    """The API server.

    Args:
        url: Where it is.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, user: str | None = "*", **arguments: Any) -> requests.Response:
        """Request a page as a user who may read the DAGs in the user's name, or without a login."""
        headers = dict(arguments.pop("headers", {}))
        if user is not None:
            headers["Authorization"] = f"Bearer {token(user)}"
        return requests.get(f"{self.url}{path}", headers=headers, timeout=100, allow_redirects=False, **arguments)

    def raw(self, target: str, user: str = "*", method: str = "GET") -> bytes:
        """Send an exact request line, which a client library would normalize, and return the whole response."""
        host, port = self.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=100) as connection:
            connection.sendall(
                f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token(user)}\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            return b"".join(iter(lambda: connection.recv(65536), b""))


def token(user: str, role: str = "viewer") -> str:
    """Return the token of a logged-in user."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    manager: Any = get_auth_manager()
    return str(manager.generate_jwt(SimpleAuthManagerUser(username=user, role=role)))


@contextmanager
def serving(airflow_home: Path) -> Iterator[Server]:
    """Serve until the block ends."""
    from airflow.api_fastapi.app import create_app, purge_cached_app

    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as bound:
        patch.setenv("AIRFLOW__CORE__AUTH_MANAGER", AUTH_MANAGER)
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", str(airflow_home / "passwords.json"))
        patch.setenv("AIRFLOW__QWENIMAGE__THUMBNAILS_FOLDER", str(airflow_home / "thumbnails"))
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "a secret of the tests, as long as it has to be: " + 20 * "x")
        server = uvicorn.Server(uvicorn.Config(create_app(apps="core"), log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        wait_until(lambda: server.started or not thread.is_alive(), "the start of the API server", seconds=250)
        assert server.started, "the API server did not start"
        try:
            yield Server(f"http://127.0.0.1:{bound.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join(20)
            purge_cached_app()
