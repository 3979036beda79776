"""Running examples as a user does, in a folder of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(
    name: str,
    *args: str,
    folder: Path,
    launcher: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a script and return what it printed; it must end well.

    Args:
        name: of the script, below examples/.
        *args: its arguments.
        folder: where it runs, and leaves what it makes.
        launcher: what stands between Python and the script, such as ("-m", "torch....").
        env: its environment; None: this process's.
    """
    done = subprocess.run(
        [sys.executable, *launcher, str(EXAMPLES / name), *args],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
