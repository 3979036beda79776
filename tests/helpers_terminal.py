"""Commands on a terminal that remembers what it showed, and in pipes."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

BRIDGER = [sys.executable, "-m", "bridger"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "PYTHONWARNINGS": "default"}
MOST_SECONDS = 300
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b.")


@dataclass
class Shown:
    """What a command left on a terminal.

    Attributes:
        code: its exit code.
        raw: all that it wrote, as the terminal got it.
        lines: what can be read in the end, scrolled lines included.
        most_redrawn: how often the line that was drawn over most often was begun.
    """

    code: int
    raw: str
    lines: list[str]
    most_redrawn: int

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@dataclass
class Screen:
    """A terminal of so many columns, which wraps lines and goes back to a line's start."""

    columns: int
    lines: list[list[str]] = field(default_factory=lambda: [[]])
    column: int = 0
    redrawn: dict[int, int] = field(default_factory=dict)

    def write(self, text: str) -> None:
        row = len(self.lines) - 1
        for character in _CONTROL.sub("", text):
            if character == "\n":
                self.lines.append([])
                row, self.column = row + 1, 0
            elif character == "\r":
                self.redrawn[row] = self.redrawn.get(row, 0) + 1
                self.column = 0
            else:
                if self.column == self.columns:
                    self.lines.append([])
                    row, self.column = row + 1, 0
                line = self.lines[row]
                line[self.column : self.column + 1] = character
                self.column += 1


def on_terminal(
    arguments: Sequence[object],
    folder: Path,
    *,
    columns: int = 80,
    interrupt_at: str | None = None,
    environment: dict[str, str] | None = None,
) -> Shown:
    """Run `bridger` on a terminal of its own, as the shell does.

    Args:
        arguments: of the command line.
        folder: to run in.
        columns: of the terminal.
        interrupt_at: when this has been written, Ctrl-C is pressed once: the terminal sends SIGINT
            to the group of processes in the foreground.
        environment: changes to it.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        # A shell lets what it runs in the background ignore Ctrl-C, which children would inherit.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.chdir(folder)
        words = [*BRIDGER, *map(str, arguments)]
        os.execvpe(words[0], words, {**ENVIRONMENT, **(environment or {})})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    written = b""
    until = time.monotonic() + MOST_SECONDS
    while True:
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            break
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        written += part
        if interrupt_at is not None and interrupt_at.encode() in written:
            os.write(terminal, b"\x03")
            interrupt_at = None
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    raw = written.decode(errors="replace")
    screen = Screen(columns)
    screen.write(raw)
    lines = ["".join(line).rstrip() for line in screen.lines]
    return Shown(code, raw, lines, max(screen.redrawn.values(), default=0))


def in_pipe(
    arguments: Sequence[object],
    folder: Path,
    *,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `bridger` with its output caught."""
    return subprocess.run(
        [*BRIDGER, *map(str, arguments)],
        cwd=folder,
        env={**ENVIRONMENT, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
        check=False,
    )
