"""Processes that kill themselves at chosen places of a run."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from bridger.training import BridgerTrainer


def die_at(place: str, trainer: BridgerTrainer) -> None:
    """Let the process kill itself, so that nothing can prevent or follow it.

    Args:
        place: "step 5": in the middle of that step. "adapter", "optimizer", "state": while the
            checkpoint of step 4 is written; there is that file of it as the last one, the latter
            two only half. "deleting": while step 6 deletes the checkpoint of step 2.
        trainer: the run.
    """
    if place.startswith("step "):
        trainer.add_callback(_DieInStep(int(place.removeprefix("step "))))
    elif place in ("adapter", "optimizer"):
        save = trainer._save_optimizer_and_scheduler

        def save_in_part(folder: str) -> None:
            if trainer.state.global_step == 4:
                if place == "optimizer":
                    save(folder)
                    _halve(Path(folder, "optimizer.pt"))
                die()
            save(folder)

        trainer._save_optimizer_and_scheduler = save_in_part
    elif place == "state":
        write = TrainerState.save_to_json

        def write_half(state: TrainerState, path: str) -> None:
            write(state, path)
            if state.global_step == 4:
                _halve(Path(path))
                die()

        TrainerState.save_to_json = write_half
    else:
        delete = shutil.rmtree

        def delete_half(folder: Any, *args: Any, **kwargs: Any) -> None:
            if Path(folder).name == "checkpoint-2":
                Path(folder, "optimizer.pt").unlink()
                die()
            delete(folder, *args, **kwargs)

        shutil.rmtree = delete_half


class _DieInStep(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            die()


def _halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
