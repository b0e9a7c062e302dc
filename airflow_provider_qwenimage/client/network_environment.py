"""Reads certificate authorities and proxies from this machine's environment, for both clients."""

from __future__ import annotations

import contextlib
import functools
import os
import ssl
from pathlib import Path
from urllib.parse import unquote, urlsplit

from airflow_provider_qwenimage.exceptions import QwenImageConnectionError

# Only the first that is set counts; the last two are OpenSSL's own.
_AUTHORITY_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")

# All that requests reads for an http(s) URL.
_PROXY_VARIABLES = tuple(
    form(f"{name}_proxy") for name in ("http", "https", "all", "no") for form in (str.lower, str.upper)
)


def tls_context(verify: bool | str) -> ssl.SSLContext:  # noqa: FBT001  the connection's field
    """Return the TLS context that checks certificates.

    Args:
        verify: True for the authorities that ``REQUESTS_CA_BUNDLE``, ``CURL_CA_BUNDLE``, ``SSL_CERT_FILE`` or
            ``SSL_CERT_DIR`` names, otherwise this machine's and those of certifi; the path of a file of authorities
            (PEM), which takes precedence; or False to check nothing.

    Raises:
        ValueError: If `verify` is not the path of a file of authorities.
        QwenImageConnectionError: If a variable does not name such a file.
    """
    if isinstance(verify, str):
        return _of_connection(verify)
    variable = next(filter(os.environ.get, _AUTHORITY_VARIABLES), None) if verify else None
    if variable is not None:
        context = _of_variable(variable, os.environ[variable])
    else:
        from requests.utils import DEFAULT_CA_BUNDLE_PATH

        context = ssl.create_default_context()
        context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


def _of_connection(path: str) -> ssl.SSLContext:
    if not Path(path).is_file():
        raise ValueError(
            f"The connection has verify = {path!r} in its extra, but this machine has no such file; it must be true, "
            "false or the path of a file of certificate authorities (PEM) that exists on every worker and triggerer."
        )
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:
        raise ValueError(
            f"The connection has verify = {path!r} in its extra, but that file holds no certificates "
            f"({_reason(error)}); it must be a file of certificate authorities in PEM form."
        ) from None


def _of_variable(variable: str, path: str) -> ssl.SSLContext:
    try:
        if Path(path).is_dir():
            return ssl.create_default_context(capath=path)
        return ssl.create_default_context(cafile=path)
    except (OSError, ValueError) as error:
        reason = _reason(error)
    # Outside of the handler, so that the error has no context.
    raise _unusable(
        f"the environment variable {variable} names {path!r}, which is not a file of certificate authorities "
        f"({reason}); correct the variable, or unset it"
    )


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__


def proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for a URL, with its scheme, or None to go without one.

    Args:
        url: The URL of a request. ``NO_PROXY`` is applied as in requests: names, addresses and networks.

    Raises:
        QwenImageConnectionError: If the variable does not hold the URL of a proxy.
    """
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    return _proxy_of(origin, tuple(map(os.environ.get, _PROXY_VARIABLES)))


# A batch asks for each of its images, and reading the whole environment takes as long as reading a status.
@functools.lru_cache(maxsize=256)
def _proxy_of(origin: str, _: tuple[str | None, ...]) -> str | None:
    from requests.utils import get_environ_proxies, select_proxy

    proxy = select_proxy(origin, get_environ_proxies(origin))
    if not proxy:
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    if not _is_proxy_url(proxy):
        raise _unusable(
            f"the environment variable {proxy_variable(origin)} does not contain the URL of a proxy, such as "
            "http://proxy.example:3128; correct the variable, or unset it"
        )
    parts = urlsplit(proxy)
    if parts.username and parts.password is None:
        # requests does not send a user without a password, such as a token.
        proxy = parts._replace(netloc=parts.netloc.replace("@", ":@", 1)).geturl()
    return proxy


def _is_proxy_url(proxy: str) -> bool:
    if any(character.isspace() or not character.isprintable() for character in proxy):
        return False
    try:
        parts = urlsplit(proxy)
        has_port = parts.port is None or parts.port > 0
    except ValueError:
        return False
    return bool(parts.hostname) and has_port and parts.scheme.lower() in ("http", "https", *_SOCKS)


def http_proxy_for(url: str) -> str | None:
    """Return the proxy as `proxy_for` does, for a client without SOCKS.

    Raises:
        QwenImageConnectionError: If the variable does not name an HTTP proxy.
    """
    proxy = proxy_for(url)
    if proxy is not None and urlsplit(proxy).scheme.lower() in _SOCKS:
        raise _unusable(
            f"the environment variable {proxy_variable(url)} names a SOCKS proxy, which triggers and batches cannot "
            "use; set it to an HTTP proxy, or name the API's host in NO_PROXY"
        )
    return proxy


_SOCKS = ("socks4", "socks4a", "socks5", "socks5h")


def proxy_variable(url: str) -> str:
    """Return the name of the environment variable that sets the proxy of a URL."""
    scheme = urlsplit(url).scheme.lower()
    names = (f"{scheme}_proxy", f"{scheme}_proxy".upper(), "all_proxy", "ALL_PROXY")
    return next(filter(os.environ.get, names), names[1])


def proxy_passwords() -> set[str]:
    """Return the passwords of proxies in the environment, as written there and as sent."""
    found: set[str] = set()
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        for value in filter(None, map(os.environ.get, (name, name.upper()))):
            with contextlib.suppress(ValueError):
                password = urlsplit(value if "://" in value else f"http://{value}").password or ""
                found |= {password, unquote(password)}
    return found - {""}


def _unusable(reason: str) -> QwenImageConnectionError:
    error = QwenImageConnectionError(f"Nothing was sent: {reason}.")
    error.reason = reason
    return error
