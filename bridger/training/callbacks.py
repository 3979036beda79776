"""What happens around the Trainer's steps: Ctrl-C that saves, evaluations, the best checkpoint."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
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
    steps (`between_steps`, an evaluation) the first one acts at once; a resumed run makes up for
    what was broken off.

    Several processes stop after the same step, whichever of them was told, and leave an
    evaluation after the same round of batches, where they `break_off` together.
    """

    def __init__(self) -> None:
        self.requested = False
        self.between_steps = False
        self.may_save = False  # whether the KeyboardInterrupt came where a checkpoint is whole
        self._since = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Handle SIGINT inside, where that is this thread's business."""
        self.requested = self.between_steps = self.may_save = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            self.requested = False

    def _on_signal(self, signum: int, frame: Any) -> None:
        together, now = distributed.is_running(), time.monotonic()
        if self.requested and together and now - self._since < ONE_KEYSTROKE:
            return
        if self.requested:
            raise KeyboardInterrupt
        self.requested, self._since = True, now
        if self.between_steps and not together:
            self.may_save = True
            raise KeyboardInterrupt
        if distributed.is_main():
            what = "in this evaluation" if self.between_steps else "after this step"
            print(f"\nstopping {what} (Ctrl-C again: at once, unsaved)", file=sys.stderr)

    def agreed(self, device: torch.device) -> bool:
        """Whether some process was told to stop; all must ask together, and all know then."""
        self.requested = distributed.any_of(self.requested, device)
        return self.requested

    def break_off(self, device: torch.device) -> None:
        """Leave an evaluation that several processes share; each must call it as often.

        A launcher kills processes that go on for long after its Ctrl-C (torchrun after 30 s).

        Raises:
            KeyboardInterrupt: some process was told to stop.
        """
        if self.between_steps and distributed.is_running() and self.agreed(device):
            self.may_save = True
            raise KeyboardInterrupt

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Stop and save where Ctrl-C was pressed."""
        self._stop_if_requested(args, control)
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Leave out the evaluation that ends an epoch."""
        if self.requested:
            control.should_evaluate = False
        return control

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Do as after a step where several processes did not break off."""
        if distributed.is_running():
            self._stop_if_requested(args, control)
        return control

    def _stop_if_requested(self, args: Any, control: Any) -> None:
        if self.agreed(args.device):
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
        """Evaluate the last step, wherever it falls; the last epoch's end is evaluated anyway."""
        if state.global_step >= state.max_steps and args.eval_strategy == "steps":
            control.should_evaluate = True
        return control


class MissedEvaluation(TrainerCallback):  # type: ignore[misc]
    """Evaluates the step that a run was interrupted at, before the resumed run goes on.

    Args:
        make_up: evaluates what the model is now, and finds out whether it is the best.
    """

    def __init__(self, make_up: Callable[[], None]) -> None:
        self.make_up = make_up

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate where the undisturbed run has done so at this step."""
        if _is_due(args, state):
            self.make_up()


def _is_due(args: Any, state: Any) -> bool:
    """Whether the step that a run has come to is one that it evaluates."""
    step = state.global_step
    if step == 0 or args.eval_strategy == "no":
        return False
    now, every = (state.epoch, 1) if args.eval_strategy == "epoch" else (step, state.eval_steps)
    on_time: bool = now % every == 0 and now >= (args.eval_delay or 0)
    return on_time or step >= state.max_steps
