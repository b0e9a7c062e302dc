"""The command line of the sandbox: ``python -m airflow_provider_qwenimage.sandbox``."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from typing import Any

from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.sandbox.access import CONTROL_HEADERS
from airflow_provider_qwenimage.sandbox.faults import BEHAVIOURS, ScriptItem
from airflow_provider_qwenimage.sandbox.settings import Kind, SandboxSettings

DEFAULT_PORT = 8512
EXIT_STOPPED = 0
EXIT_REFUSED = 2

_BEHAVIOURS = "\n".join(
    textwrap.fill(f"{route}: {', '.join(names)}", 100, initial_indent="  ", subsequent_indent="    ")
    for route, names in BEHAVIOURS.items()
)
_EPILOG = f"""\
magic words in a prompt:
  [policy]  fails with a content policy violation and costs --failed-credits
  [fail]    fails with a general message and costs --failed-credits
  [slow]    takes ten times as long

behaviours for --script and POST /sandbox/script:
{_BEHAVIOURS}

The behaviour can be changed while the sandbox runs: see GET http://127.0.0.1:{DEFAULT_PORT}/sandbox.
Ctrl-C or SIGTERM stops the sandbox with exit code {EXIT_STOPPED}. If it cannot start, the exit code is {EXIT_REFUSED}.
"""

_BANNER = """\
Sandbox for the Qwen-Image-2512 API
  URL      {url}
  API key  {api_key}

Point Airflow at it:
  export AIRFLOW_CONN_QWENIMAGE_DEFAULT='{connection}'

Inject faults while it runs (GET {url}/sandbox lists all requests):
  curl {options} -X PATCH {url}/sandbox/settings -d '{{"server_error_share": 0.2}}'
  curl {options} -X POST {url}/sandbox/script -d '{{"route": "status", "behaviours": [["rate_limit", 2], "ok"]}}'
  curl {insecure}{url}/sandbox/books

Ctrl-C stops it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sandbox until SIGINT or SIGTERM.

    Args:
        arguments: The command-line arguments; None reads them from ``sys.argv``.

    Returns:
        The exit code: 0 after a signal, 2 if the sandbox could not start.
    """
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    scripts: list[tuple[str, list[ScriptItem]]] = options.pop("script")
    stopped = threading.Event()
    try:
        sandbox = Sandbox(**options)
        for route, items in scripts:
            sandbox.script(route, *items)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        sandbox.start()
    except (ValueError, OSError, ImportError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        sys.stderr.write(f"{parser.prog}: error: {reason}\n")
        return EXIT_REFUSED
    insecure = "--insecure " if options["ssl_certfile"] else ""
    headers = " ".join(f"-H '{name}: {value}'" for name, value in CONTROL_HEADERS.items())
    try:
        _print(
            _BANNER.format(
                url=sandbox.url,
                api_key=sandbox.api_key,
                connection=sandbox.connection_json,
                options=f"{insecure}{headers}",
                insecure=insecure,
            )
        )
        stopped.wait()
    finally:
        sandbox.stop()
    _print("Stopped.")
    return EXIT_STOPPED


def _print(text: str) -> None:
    # The parent process may have closed the pipe already; the sandbox keeps running without it.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_qwenimage.sandbox",
        usage="%(prog)s [options]",
        description="A local stand-in for the Qwen-Image-2512 API, to test DAGs offline and for free.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    server.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help=f"the API's port; 0 picks a free one (default: {DEFAULT_PORT})"
    )
    server.add_argument(
        "--cdn-port",
        type=int,
        default=0,
        metavar="PORT",
        help="the port of the image URLs, which have their own origin as with a real CDN; 0 picks a free one; "
        "the value of --port serves them from the API's origin (default: 0)",
    )
    server.add_argument(
        "--cdn-url", metavar="URL", help="the base of the image URLs, if clients reach them at another address"
    )
    server.add_argument("--ssl-certfile", metavar="FILE", help="a PEM certificate; turns on https")
    server.add_argument("--ssl-keyfile", metavar="FILE", help="the certificate's PEM key, if it is in another file")
    server.add_argument(
        "--control-host",
        action="append",
        default=[],
        dest="control_hosts",
        metavar="NAME",
        help="a domain name that requests to /sandbox may use, in addition to IP addresses and names without a dot; "
        "can be repeated",
    )
    server.add_argument(
        "--state-file", metavar="FILE", help="keeps tasks and charges across restarts; without it, they are lost"
    )
    server.add_argument(
        "--replay",
        metavar="FILE",
        help="answers as the API did in a recording of `airflow qwenimage doctor --draw --record FILE`",
    )
    server.add_argument(
        "--replay-speed",
        type=float,
        default=1.0,
        metavar="NUMBER",
        help="how many times as fast as recorded the tasks of --replay proceed (default: 1)",
    )
    server.add_argument(
        "--script",
        action="append",
        default=[],
        type=_read_script,
        metavar="SCRIPT",
        help="how the next requests of a route behave: ROUTE=BEHAVIOUR[*TIMES][,…], such as "
        "status=server_error*2,rate_limit; can be repeated",
    )
    behaviour = parser.add_argument_group("behaviour", "All of these can be changed while the sandbox runs.")
    for setting in fields(SandboxSettings):
        kind: Kind = setting.metadata["kind"]
        behaviour.add_argument(
            f"--{setting.name.replace('_', '-')}",
            type=_option_type(setting.name, kind),
            default=setting.default,
            metavar=kind.metavar,
            help=f"{setting.metadata['help']}; {kind.allowed} (default: {_default_text(setting.default)})",
        )
    return parser


def _option_type(name: str, kind: Kind) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        wrong = argparse.ArgumentTypeError(f"{name} is {text!r}; it must be {kind.allowed}.")
        try:
            value = kind.from_text(text)
        except ValueError:
            raise wrong from None
        if not kind.accepts(value):
            raise wrong
        return value

    return read


def _read_script(text: str) -> tuple[str, list[ScriptItem]]:
    route, _, behaviours = text.partition("=")
    items: list[ScriptItem] = []
    for behaviour in behaviours.split(","):
        name, star, times = behaviour.strip().partition("*")
        if star and not (times.isascii() and times.isdigit()):
            raise argparse.ArgumentTypeError(
                f"the number of times is {times!r}; write ROUTE=BEHAVIOUR[*TIMES][,…], such as status=hang*2."
            )
        items.append((name, int(times)) if star else name)
    return route, items


def _default_text(default: object) -> str:
    if default is None or default is MISSING:
        return "none"
    return ",".join(default) if isinstance(default, tuple) else str(default)


if __name__ == "__main__":
    sys.exit(main())
