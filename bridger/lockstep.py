"""Two forwards, one step at a time: towers meet at every stage and exchange their states.

The towers' own `forward` methods run unchanged. A forward hook on each stage's block pauses its
tower and hands over the block's output; the tower goes on with the state it is given in return.

Notes

*Turns.* Each tower of each forward runs in a thread of its own (`_engine.py`). Strictly one of
three runs at a time, vision, text or the caller, so results are deterministic.

*Nothing is computed in a hook.* Under activation checkpointing a block's hook can fire inside the
checkpointed region, and tensors saved there would be taken for the block's own. So the hook only
hands over, and the caller's thread runs `bridge`. When backward recomputes a block, its hook fires
in a thread that runs no tower and passes through.

*Interrupts.* Whatever is raised, by a tower, by `bridge` or by Ctrl-C in the caller while it waits:
first the running tower gives back its turn, then both are unwound, then the caller gets it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from bridger._engine import Engine, Paused, Returned, current_engine
from bridger._thread_state import ThreadState, refuse_what_threads_cannot_see
from bridger.tap import WHY_UNTRACED, call_untraced, unhook

V = TypeVar("V")
T = TypeVar("T")
R = TypeVar("R")


class StageError(RuntimeError):
    """A tower did not pass each of its stages once, in order, with the caller's grad mode."""


class StageHooks:
    """Forward hooks on one tower's stage blocks, for one attachment.

    They answer only to a `run_lockstep` that was given this object; in all other calls of the
    blocks they pass through. Copying or pickling this object hooks the copied blocks anew, while
    hooks that a copied block carries are dead.

    Args:
        blocks: The block of each stage, in stage order.
        names: The blocks' names, for messages.
        tower: "vision" or "text", for messages.

    Raises:
        ValueError: No blocks, as many names as blocks missing, or one block at two stages.
    """

    def __init__(self, blocks: Sequence[nn.Module], names: Sequence[str], tower: str) -> None:
        _check_blocks(blocks, names, tower)
        _hide_from_compiler()
        self.names = tuple(names)
        self.tower = tower
        self._blocks = tuple(blocks)
        self._key = object()
        self._handles = [
            block.register_forward_hook(_StageHook(self._key, stage))
            for stage, block in enumerate(blocks)
        ]

    @property
    def removed(self) -> bool:
        """Whether `remove` was called."""
        return not self._handles

    def remove(self) -> None:
        """Takes the hooks off the blocks. May be called again."""
        for block, handle in zip(self._blocks, self._handles, strict=False):  # none the next time
            unhook(block, handle)
        self._handles = []

    def __reduce__(self) -> tuple[Any, ...]:
        return _hook_again, (self._blocks, self.names, self.tower, self.removed)


@dataclass
class Finished(Generic[R]):
    """A text tower that has run before: `bridge` gets its result at every stage.

    What `bridge` answers for it is dropped.
    """

    result: R
    answer: Any = None

    def reach(self, stage: int) -> R:
        """Returns the result."""
        return self.result

    def finish(self) -> R:
        """Returns the result."""
        return self.result

    def unwind(self) -> None:
        """Does nothing: it has ended."""


def run_lockstep(
    vision: tuple[StageHooks, Callable[[], V]],
    text: tuple[StageHooks, Callable[[], T]] | Finished[T],
    bridge: Callable[[int, Any, Any], tuple[Any, Any]],
) -> tuple[V, T]:
    """Runs both callables, exchanging states at every stage.

    In the order that a plain loop has: vision up to stage 0, text up to stage 0, `bridge(0, ...)`,
    vision up to stage 1, ..., vision to its end, text to its end.

    Args:
        vision: The hooks on the vision tower, and a callable that runs its forward.
        text: The same for the text tower, with as many stages, unless it has `Finished`.
        bridge: Called in the caller's thread with (stage, output of the vision block, output of
            the text block), whatever these are; returns what the blocks shall give instead.

    Returns:
        What the two callables returned.

    Raises:
        StageError: A tower ended early, skipped, repeated or swapped a stage, or ran a stage
            without gradients although the caller has them on.
        RuntimeError: Inside torch.func transforms, tracing or export, at interpreter shutdown.
        BaseException: What a tower or `bridge` raised, with its own frames in the traceback.
    """
    result: tuple[V, T] = _entry(vision, text, bridge)
    return result


def _lockstep(
    vision: tuple[StageHooks, Callable[[], V]],
    text: tuple[StageHooks, Callable[[], T]] | Finished[T],
    bridge: Callable[[int, Any, Any], tuple[Any, Any]],
) -> tuple[V, T]:
    _check_run(vision[0], None if isinstance(text, Finished) else text[0])
    state = ThreadState.capture()
    vision_run = _TowerRun(*vision, state)
    text_run = text if isinstance(text, Finished) else _TowerRun(*text, state)
    failure: BaseException | None = None
    try:
        result = _exchange(vision_run, text_run, bridge)
    except BaseException as error:
        failure = error
    # Nothing is called between there and here: CPython (3.11 and later) takes interrupts at calls.
    while True:
        try:
            vision_run.unwind()
            text_run.unwind()
            break
        except BaseException as error:  # an interrupt: held back until nothing is left waiting
            if failure is None or isinstance(failure, Exception):
                error.__context__ = failure
                failure = error
    try:
        if failure is not None:
            raise failure
        return result
    finally:
        del failure  # it knows this frame: without this they would keep each other alive


def _exchange(
    vision: _TowerRun[V],
    text: _TowerRun[T] | Finished[T],
    bridge: Callable[[int, Any, Any], tuple[Any, Any]],
) -> tuple[V, T]:
    for stage in range(len(vision.hooks.names)):
        vision_output = vision.reach(stage)
        text_output = text.reach(stage)
        answers = bridge(stage, vision_output, text_output)
        _check_answers(answers, stage)
        vision.answer, text.answer = answers
        del vision_output, text_output, answers  # the towers decide how long states live
    return vision.finish(), text.finish()


class _TowerRun(Generic[R]):
    """One tower's part in one forward: drives its engine and checks what comes of it."""

    def __init__(self, hooks: StageHooks, function: Callable[[], R], state: ThreadState) -> None:
        self.hooks = hooks
        self.answer: Any = None
        self._grad = state.grad
        self._engine = Engine(hooks._key, function, state)

    def reach(self, stage: int) -> Any:
        """Runs the tower up to its pause at `stage` and returns the block's output."""
        event = self._advance(stage)
        if isinstance(event, Returned):
            raise StageError(_ended_early(self.hooks, stage))
        if event.stage != stage:
            raise StageError(_out_of_order(self.hooks, event.stage, stage))
        if self._grad and not event.grad:
            raise StageError(_gradients_off(self.hooks, stage))
        return event.output

    def finish(self) -> R:
        """Runs the tower to its end and returns its result."""
        stages = len(self.hooks.names)
        event = self._advance(stages)
        if isinstance(event, Paused):
            raise StageError(_out_of_order(self.hooks, event.stage, stages))
        return event.result

    def unwind(self) -> None:
        self._engine.unwind()

    def _advance(self, stage: int) -> Paused | Returned[R]:
        if stage == 0:
            return self._engine.start()
        answer, self.answer = self.answer, None
        return self._engine.resume(answer)


class _StageHook:
    """Pauses the tower at one stage's block, when that tower runs in this thread for its owner."""

    def __init__(self, key: object | None = None, stage: int = -1) -> None:
        self._key = key
        self._stage = stage

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        engine = current_engine()
        if engine is None or engine.key is not self._key:
            return None
        return engine.pause(self._stage, output)

    def __reduce__(self) -> tuple[Any, ...]:
        return _StageHook, ()  # a copy belongs to nobody and passes through


def _hook_again(
    blocks: Sequence[nn.Module], names: Sequence[str], tower: str, removed: bool
) -> StageHooks:
    hooks = StageHooks(blocks, names, tower)
    if removed:
        hooks.remove()
    return hooks


_entry: Callable[..., Any] = _lockstep


def _hide_from_compiler() -> None:
    """Makes compiled blocks and models call hooks and lockstep as they are, untraced."""
    global _entry
    call_untraced(_StageHook)
    if _entry is _lockstep:
        disable: Any = torch.compiler.disable
        _entry = disable(_lockstep, reason=WHY_UNTRACED)


# Checks and messages.


def _check_blocks(blocks: Sequence[nn.Module], names: Sequence[str], tower: str) -> None:
    if not blocks or len(blocks) != len(names):
        raise ValueError(
            f"The {tower} tower needs a block and a name for each stage and at least one stage, "
            f"found {len(blocks)} blocks and {len(names)} names."
        )
    count = Counter(map(id, blocks))
    shared = [f"{i} ({names[i]})" for i, block in enumerate(blocks) if count[id(block)] > 1]
    if shared:
        raise ValueError(
            f"Each stage of the {tower} tower needs a block of its own, but stages "
            f"{', '.join(shared)} are one and the same module among them (layers that share their "
            "weights, as in ALBERT?). Its hook could not tell the stages apart: choose blocks that "
            "run once in each forward."
        )


def _check_run(vision: StageHooks, text: StageHooks | None) -> None:
    if sys.is_finalizing():
        raise RuntimeError(
            "A bridged forward was called while the interpreter shuts down, when threads no longer "
            "run. Call it before the program ends, not in __del__."
        )
    refuse_what_threads_cannot_see()
    for hooks in (vision, text):
        if hooks is not None and hooks.removed:
            raise RuntimeError(
                f"The hooks on the {hooks.tower} tower were removed: attach to the towers anew."
            )
    if text is not None and len(vision.names) != len(text.names):
        raise ValueError(
            "Both towers must have the same number of stages, found "
            f"{len(vision.names)} ({vision.tower}) and {len(text.names)} ({text.tower})."
        )


def _check_answers(answers: Any, stage: int) -> None:
    pair = isinstance(answers, tuple | list) and len(answers) == 2
    if not pair or any(answer is None for answer in answers):
        found = [type(a).__name__ for a in answers] if pair else type(answers).__name__
        raise TypeError(
            f"The bridge of stage {stage} must return a pair, what the vision block and what the "
            f"text block shall give; found {found}. To change nothing return the two outputs."
        )


def _stage(hooks: StageHooks, stage: int) -> str:
    if stage == len(hooks.names):
        return "its end"
    return f"stage {stage} ({hooks.names[stage]})"


def _ended_early(hooks: StageHooks, expected: int) -> str:
    return (
        f"The {hooks.tower} tower ended before {_stage(hooks, expected)}: each of its "
        f"{len(hooks.names)} stage blocks must be called once in every forward, found that it "
        f"called {expected}. Choose blocks that every forward runs (no layer dropout, no early "
        "exit). If the block was replaced after attaching, or runs in a thread or replica of the "
        "tower's own, attach to what really runs. If torch.compile was given the whole tower, "
        "which may take a hooked block for one without hooks, compile its blocks one by one, or "
        "set torch._dynamo.config.skip_nnmodule_hook_guards = False first."
    )


def _out_of_order(hooks: StageHooks, found: int, expected: int) -> str:
    if found < expected:
        what = f"ran {_stage(hooks, found)} again"
        advice = "Choose blocks that run once in each forward."
    else:
        what = f"reached {_stage(hooks, found)} too early"
        advice = (
            "It skipped a stage (layer dropout?) or runs its blocks in another order: list the "
            "stages in the order in which the forward runs them."
        )
    return f"The {hooks.tower} tower {what}: expected {_stage(hooks, expected)} next. {advice}"


def _gradients_off(hooks: StageHooks, stage: int) -> str:
    return (
        f"The {hooks.tower} tower runs {_stage(hooks, stage)} with gradients off, although they "
        "are on where the bridged forward was called, so Bridgers would get no gradients. With "
        "activation checkpointing use use_reentrant=False (transformers: "
        'gradient_checkpointing_kwargs={"use_reentrant": False}); if the tower runs its blocks '
        "under torch.no_grad() by itself, take that out, or call the bridged forward under "
        "torch.no_grad() too."
    )
