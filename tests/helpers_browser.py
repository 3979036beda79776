"""A real page in a real browser: `bridger demo` as a process, Chromium without a screen."""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--no-sandbox",  # which root needs
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SECONDS = 60.0
"""Most that anything may take on a machine that is busy with other things."""

LOCAL = ("127.0.0.1", "localhost")


class Server:
    """`bridger demo` as a process of its own.

    Args:
        *argv: its arguments, beside a free port and --no-open.

    Attributes:
        address: of the page.
        process: the process.
        said: what it has written so far, line by line.
    """

    def __init__(self, *argv: str) -> None:
        command = [sys.executable, "-m", "bridger", "demo", "--port", "0", "--no-open", *argv]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            # A shell's background jobs ignore Ctrl-C, and what they start does, too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self.said: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.address = self._wait_for_address()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            self._lines.put(line)
        self._lines.put(None)

    def _wait_for_address(self) -> str:
        while (line := self._lines.get(timeout=SECONDS)) is not None:
            if found := re.search(r"http://\S+", line):
                return found.group()
        raise RuntimeError(f"the page did not open: {''.join(self.said)}")

    def end(self, how: int = signal.SIGINT) -> int:
        """End it as Ctrl-C does; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()


@contextmanager
def served(*argv: str) -> Iterator[Server]:
    """Serve the page while the block runs."""
    server = Server(*argv)
    try:
        yield server
    finally:
        server.end()


class Visitor:
    """A page of the browser that remembers what went wrong and whom it asked.

    Attributes:
        page: playwright's.
        complaints: errors in the console, and uncaught ones.
        foreign: addresses of other machines that were asked for.
    """

    def __init__(self, browser: Any, address: str, width: int = 1280, height: int = 900) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.page.set_default_timeout(1000 * SECONDS)
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._watch)
        self.page.goto(address)
        self.page.locator("#ask").wait_for()

    def _hear(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def _watch(self, request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.hostname not in LOCAL:
            self.foreign.append(request.url)


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the system's Chromium; skip the test where playwright or a browser is missing."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is installed: looked for {', '.join(BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()
