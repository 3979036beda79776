"""What a run tells people while it goes on."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from bridger.training.remaining import Remaining

PARTS = ("loss", "best", "judging", "left")
"""What stands behind the bar, in this order."""
LEFT_OUT = ("best", "loss", "left")
"""Which of them are left out, one after the other, where the line is longer than the terminal."""
LEAST_BAR = len("100%|##| / [1:00:00]")


class Progress(TrainerCallback):  # type: ignore[misc]
    """A bar on a terminal; elsewhere a line for each log. Both go to stderr.

    Args:
        clock: tells seconds.

    Attributes:
        headline: name of the figure that is told while a split is judged.
        judged: what the figures of an evaluation are of, in words.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.headline, self.judged = "mIoU", "validation"
        self.bar: Any = None
        self.remaining = Remaining(clock)
        self._judged = 0  # the step of the last evaluation
        self._best: float | None = None
        self._shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar where there is a terminal to draw it on."""
        self.remaining.begin()
        self._judged, self._best = state.global_step, state.best_metric
        if state.is_world_process_zero and sys.stderr.isatty():
            # tqdm's own estimate knows nothing of evaluations.
            layout = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                bar_format=layout,
                dynamic_ncols=True,
                disable=False,
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        self.remaining.step()
        if self.bar is not None:
            self._show(left=self._left(args, state))
            self.bar.update(state.global_step - self.bar.n)

    @contextmanager
    def evaluating(self, args: Any, state: Any) -> Iterator[None]:
        """Time an evaluation."""
        with self.remaining.evaluation():
            yield
        self._judged = state.global_step
        self._show(judging="")

    def judging(self, done: int, total: int, so_far: float | None = None) -> None:
        """Show on the bar how far an evaluation is, and the headline of what is done."""
        if self.bar is not None:
            # nan: some figures take all pictures.
            told = "" if so_far is None or math.isnan(so_far) else _figure(self.headline, so_far)
            figure = told and f", {self.headline} so far {told}"
            self._show(judging=f"judging {done}/{total}{figure}")

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any
    ) -> None:
        """Say what the Trainer logs, without its bookkeeping."""
        if not state.is_world_process_zero:
            return
        judged = any(name.startswith("eval_") for name in logs)
        of_interest = ("eval_loss", *(f"eval_{name}" for name in self._figures(args)))
        names = of_interest if judged else ("loss",)
        shown = {n.removeprefix("eval_"): logs[n] for n in dict.fromkeys(names) if n in logs}
        if not shown:
            return
        figures = ", ".join(f"{name} {_figure(name, value)}" for name, value in shown.items())
        if judged:
            figures = f"{self.judged}: {figures}{self._compare(args, logs)}"
        left = "" if judged else self._left(args, state)  # that evaluation has not ended yet
        if self.bar is None:
            line = f"step {state.global_step}/{state.max_steps}: {figures}"
            print(f"{line} ({left})" if left else line, file=sys.stderr, flush=True)
        elif judged:
            self.bar.write(f"step {state.global_step}: {figures}", file=sys.stderr)
        else:
            self._show(loss=figures, left=left)

    def _figures(self, args: Any) -> tuple[str, ...]:
        """Return the names of the figures that are told of an evaluation."""
        beside = ("oIoU",) if self.headline == "mIoU" else ()
        return self.headline, *beside, _chooses(args)

    def _compare(self, args: Any, logs: dict[str, float]) -> str:
        """Keep the best value of the figure that chooses; say it where this is not the one."""
        name = _chooses(args)
        if (value := logs.get(f"eval_{name}")) is None:
            return ""
        better = max if args.greater_is_better else min
        self._best = value if self._best is None else better(value, self._best)
        best = _figure(name, self._best)
        self._show(best=f"{name} {_figure(name, value)} (best {best})")
        return f" (best so far: {name} {best})" if value != self._best else ""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar, and say which step is kept."""
        self.close()
        if state.is_world_process_zero and state.best_global_step is not None:
            name = _chooses(args)
            best = _figure(name, state.best_metric)
            print(f"kept step {state.best_global_step}: {name} {best}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close the bar; a second call does nothing."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _show(self, **parts: str) -> None:
        """Change parts of what stands behind the bar; of a narrow terminal the first ones go."""
        self._shown |= parts
        if self.bar is None:
            return
        shown = {part: text for part in PARTS if (text := self._shown.get(part))}
        columns = self.bar.format_dict["ncols"] or math.inf
        room = columns - LEAST_BAR - 2 * len(str(self.bar.total))
        for part in LEFT_OUT:
            if sum(len(text) + 2 for text in shown.values()) > room:
                shown.pop(part, None)
        self.bar.set_postfix_str(", ".join(shown.values()))

    def _left(self, args: Any, state: Any) -> str:
        steps = state.max_steps - state.global_step
        return self.remaining.text(steps, evaluations_left(args, state, self._judged))


def evaluations_left(args: Any, state: Any, judged: int) -> int:
    """Return how many evaluations follow that of step `judged`, the last step's included."""
    if args.eval_strategy == "no" or judged >= state.max_steps:
        return 0
    last: int = state.max_steps
    every: float = (
        last / state.num_train_epochs if args.eval_strategy == "epoch" else state.eval_steps
    )
    return math.ceil(last / every) - int(judged // every)


def _chooses(args: Any) -> str:
    """Return the name of the figure by which the best checkpoint is chosen, if any."""
    return str(args.metric_for_best_model or "").removeprefix("eval_")


def _figure(name: str, value: float) -> str:
    return f"{value:.4f}" if name == "loss" else f"{100 * value:.2f} %"
