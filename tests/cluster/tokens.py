"""Try to read a connection from the API server with a task token that is signed with a given secret."""

from __future__ import annotations

import uuid

import requests
from airflow.api_fastapi.auth.tokens import JWTGenerator
from airflow.configuration import conf

# The former default of docker-compose.yaml, and a guess.
WRONG_SECRETS = ("local-use-only-jwt-secret-0123456789abcdef0123456789abcdef0123456789", "0" * 64)


def connection_status(url: str, secret: str) -> int:
    """Return the HTTP status with which the API server at `url` answers a token signed with `secret`."""
    audience = conf.get_mandatory_list_value("execution_api", "jwt_audience")[0]
    generator = JWTGenerator(secret_key=secret, audience=audience, valid_for=600)
    token = generator.generate({"sub": str(uuid.uuid4())})
    address = f"{url}/execution/connections/qwenimage_default"
    return requests.get(address, headers={"Authorization": f"Bearer {token}"}, timeout=60).status_code
