"""What happens around the Trainer's steps: Ctrl-C that saves, the best checkpoint."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from bridger.training import distributed

ONE_KEYSTROKE = 2.0
"""Seconds: a launcher hands its Ctrl-C on, so that processes may get it twice."""


class Interruption(TrainerCallback):  # type: ignore[misc]
    """The first Ctrl-C ends training after the step at hand, with a checkpoint.

    A checkpoint in the middle of a step would lack a part of it, and resuming would not equal
    the run that nobody interrupted. A second Ctrl-C does not wait, and saves nothing. Between
    steps (`between_steps`, an evaluation) the first one acts at once.

    Several processes stop after the same step, whichever of them was told. Since none may leave
    the others waiting, they end an evaluation first.
    """

    def __init__(self) -> None:
        self.requested = False
        self.between_steps = False
        self._since = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Handle SIGINT inside, where that is this thread's business."""
        self.requested = self.between_steps = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _on_signal(self, signum: int, frame: Any) -> None:
        together, now = distributed.is_running(), time.monotonic()
        if self.requested and together and now - self._since < ONE_KEYSTROKE:
            return
        if self.requested or (self.between_steps and not together):
            raise KeyboardInterrupt
        self.requested, self._since = True, now
        if distributed.is_main():
            what = "evaluation" if self.between_steps else "step"
            print(f"\nstopping after this {what} (Ctrl-C again: at once, unsaved)", file=sys.stderr)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Stop and save where Ctrl-C was pressed."""
        self._stop_if_requested(args, control)
        return control

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Do the same after an evaluation, which several processes end first."""
        if distributed.is_running():
            self._stop_if_requested(args, control)
        return control

    def _stop_if_requested(self, args: Any, control: Any) -> None:
        self.requested = distributed.any_of(self.requested, args.device)
        if self.requested:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False


class OwnChance(TrainerCallback):  # type: ignore[misc]
    """Lets each process of several drop out units of its own; the Trainer seeds all alike."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seed by the process's number; a checkpoint's random numbers come later."""
        if distributed.is_running():
            torch.manual_seed(args.seed + distributed.rank())


class BestCheckpoint(TrainerCallback):  # type: ignore[misc]
    """Lets the last step be the best one, and finds the best checkpoint of a run that was moved."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look for the best checkpoint in this run's own folder, by its step."""
        if state.best_global_step is not None:
            folder = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            state.best_model_checkpoint = str(folder) if folder.is_dir() else None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Evaluate the last step, wherever it falls."""
        if state.global_step >= state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True
        return control
