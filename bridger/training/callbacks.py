"""What happens around the Trainer's steps: progress that behaves in a pipe, Ctrl-C that saves."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback


class Progress(TrainerCallback):  # type: ignore[misc]
    """A bar on a terminal; elsewhere a line for each log. Both go to stderr."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.started, self.first_step = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar where there is a terminal to draw it on."""
        self.started, self.first_step = time.monotonic(), state.global_step
        if state.is_world_process_zero and sys.stderr.isatty():
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any
    ) -> None:
        """Say what the Trainer logs, without its bookkeeping."""
        if not state.is_world_process_zero:
            return
        shown = {
            name.removeprefix("eval_"): value
            for name, value in logs.items()
            if name in ("loss", "eval_loss", "eval_mIoU", "eval_oIoU")
        }
        if not shown:
            return
        judged = any(name.startswith("eval_") for name in logs)
        which = "validation, first sentences: " if judged else ""
        figures = which + ", ".join(f"{name} {_figure(name, shown[name])}" for name in shown)
        if self.bar is None:
            print(
                f"step {state.global_step}/{state.max_steps}: {figures}{self._left(state)}",
                file=sys.stderr,
                flush=True,
            )
        elif which:
            self.bar.write(f"step {state.global_step}: {figures}", file=sys.stderr)
        else:
            self.bar.set_postfix_str(figures)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar, and say which step is kept."""
        self.close()
        if state.is_world_process_zero and state.best_global_step is not None:
            best = _figure("mIoU", state.best_metric)
            print(f"kept step {state.best_global_step}: mIoU {best}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close the bar; a second call does nothing."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _left(self, state: Any) -> str:
        done = state.global_step - self.first_step
        if done < 1 or state.global_step >= state.max_steps:
            return ""
        each = (time.monotonic() - self.started) / done
        return f" ({each * (state.max_steps - state.global_step):.0f} s left)"


def _figure(name: str, value: float) -> str:
    return f"{value:.4f}" if name == "loss" else f"{100 * value:.2f} %"


class Interruption(TrainerCallback):  # type: ignore[misc]
    """The first Ctrl-C ends training after the step at hand, with a checkpoint.

    A checkpoint in the middle of a step would lack a part of it, and resuming would not equal
    the run that nobody interrupted. A second Ctrl-C does not wait, and saves nothing. Between
    steps (`between_steps`, an evaluation) the first one acts at once.

    Also lets the last step be evaluated, so that it can be the best one.
    """

    def __init__(self) -> None:
        self.requested = False
        self.between_steps = False

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
        if self.requested or self.between_steps:
            raise KeyboardInterrupt
        self.requested = True
        print("\nstopping after this step (Ctrl-C again: at once, unsaved)", file=sys.stderr)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Stop and save where Ctrl-C was pressed; evaluate the last step."""
        if self.requested:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
        elif state.global_step >= state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True
        return control
