"""Which checkpoints of a run are whole.

The Trainer writes `trainer_state.json` last, after the adapter, the optimiser and every process's
random numbers (`BridgerTrainer` waits for those), and deletes older checkpoints only then. So a
checkpoint is whole where that file can be read; one without it was being written when its run
was killed.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

STATE_FILE = "trainer_state.json"


def newest_whole(folder: Path) -> Path | None:
    """Return the last checkpoint in a folder from which a run can go on, if there is one."""
    whole = [path for path in _checkpoints(folder) if is_whole(path)]
    return whole[-1] if whole else None


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    try:
        return isinstance(json.loads((checkpoint / STATE_FILE).read_text()), dict)
    except (OSError, ValueError):
        return False


def remove_unfinished(folder: Path) -> None:
    """Remove the checkpoints in a folder that were not written to their end."""
    for path in _checkpoints(folder):
        if not is_whole(path):
            shutil.rmtree(path, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    """The folders that hold checkpoints or parts of them, by their steps."""
    if not folder.is_dir():
        return []
    named = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.iterdir()]
    found = [(int(match[1]), path) for match, path in named if match and path.is_dir()]
    return [path for _, path in sorted(found)]
