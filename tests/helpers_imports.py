"""Import every module of bridger and show every verb's help, without a network or a warning.

    python -W error tests/helpers_imports.py

A script of its own, since a hook on Python's audit events stays until the process ends. Any attempt
to find or reach another machine ends it; with `-W error`, so does any warning.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import pkgutil
import sys

ASKING = {
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyaddr",
    "socket.gethostbyname",
    "socket.sendto",
    "urllib.Request",
}


def refuse_to_ask(event: str, arguments: tuple[object, ...]) -> None:
    if event in ASKING:
        # Libraries catch what is an Exception, and would go on without.
        raise SystemExit(f"network: {event}{arguments[1:]}")


def import_everything() -> int:
    """Import all modules; return how many."""
    import bridger

    names = [m.name for m in pkgutil.walk_packages(bridger.__path__, "bridger.", onerror=fail)]
    for name in names:
        importlib.import_module(name)
    return len(names)


def fail(name: str) -> None:
    raise ImportError(f"{name} cannot be imported")


def show_help() -> int:
    """Ask the command and each of its verbs for help; return how many were asked."""
    from bridger.cli.main import VERBS, main

    for verb in (None, *VERBS):
        words = ["--help"] if verb is None else [verb, "--help"]
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            main(words)
        if "usage: bridger" not in shown.getvalue():
            raise SystemExit(f"bridger {' '.join(words)} shows no help")
    return 1 + len(VERBS)


if __name__ == "__main__":
    sys.addaudithook(refuse_to_ask)
    print(f"{import_everything()} modules, {show_help()} helps, no warning, no network")
