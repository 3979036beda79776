"""Lockstep against a plain interleaved loop, and everything that can go wrong on the way."""

from __future__ import annotations

import copy
import gc
import pickle
import signal
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_lockstep import (
    STAGES,
    Pair,
    Tower,
    hooks_on,
    inputs,
    no_more_workers,
    results_and_gradients,
    run_python,
    same,
    use_checkpoints,
    workers,
)
from torch import Tensor, nn

from bridger.lockstep import StageError, StageHooks, run_lockstep

SLOW = pytest.mark.slow


@pytest.fixture
def pair() -> Pair:
    return Pair()


@pytest.fixture(autouse=True)
def next_forward_is_right(pair: Pair) -> Iterator[None]:
    """After each test, whatever went wrong in it, the same model and workers still work."""
    yield
    use_checkpoints(pair, "none")
    x, y = inputs()
    if not any(hooks.removed for hooks in pair.hooks):
        assert same(list(pair(x, y)), list(pair.interleaved(x, y)))


# Equality.


@pytest.mark.parametrize("autocast", [False, True], ids=["f32", "bf16"])
@pytest.mark.parametrize("checkpoints", ["none", "calls", "forwards"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
def test_equals_a_plain_loop(
    autocast: bool, checkpoints: str, dropout: float, frozen: bool
) -> None:
    pair = Pair(dropout=dropout)
    use_checkpoints(pair, checkpoints)
    pair.vision.requires_grad_(not frozen)
    pair.text.requires_grad_(not frozen)
    expected = results_and_gradients(pair, pair.interleaved, autocast)
    assert same(results_and_gradients(pair, pair, autocast), expected)
    assert sum(gradient is not None for gradient in expected[2:]) > 12  # not vacuous


def test_one_frozen_tower_equals_a_plain_loop(pair: Pair) -> None:
    pair.text.requires_grad_(False)
    use_checkpoints(pair, "calls")
    assert same(results_and_gradients(pair, pair), results_and_gradients(pair, pair.interleaved))


def test_reentrant_checkpoints_of_forward_are_right(pair: Pair) -> None:
    """Hooks lie outside the region: transformers' own layers do it so."""
    from torch.utils.checkpoint import checkpoint

    expected = results_and_gradients(pair, pair.interleaved)
    for tower in (pair.vision, pair.text):
        for block in tower.blocks:
            block.inner = lambda function, x: checkpoint(function, x, use_reentrant=True)
    assert same(results_and_gradients(pair, pair), expected)
    for tower in (pair.vision, pair.text):
        for block in tower.blocks:
            block.inner = None


def test_selective_checkpointing_in_blocks(pair: Pair) -> None:
    from functools import partial

    from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

    expected = results_and_gradients(pair, pair.interleaved)
    context = partial(create_selective_checkpoint_contexts, [torch.ops.aten.addmm.default])
    pair.vision.outer = lambda block, x: checkpoint(
        block, x, use_reentrant=False, context_fn=context
    )
    assert same(results_and_gradients(pair, pair), expected)


def test_gradients_of_a_tensor_used_by_all_three_are_added_in_the_same_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Backward goes by the number of each node, which torch counts in every thread on its own."""
    from bridger import _engine

    pair, shared = Pair(), torch.randn(16, requires_grad=True)
    plain = pair.bridge
    pair.bridge = lambda stage, v, t: plain(stage, v * shared, t * shared)  # type: ignore[method-assign]
    for tower in (pair.vision, pair.text):
        for block in tower.blocks:
            block.register_forward_pre_hook(lambda module, args: (args[0] * shared,))

    def gradient(forward: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
        torch.manual_seed(1)
        vision, text = forward(*inputs())
        (found,) = torch.autograd.grad(vision.square().mean() + text.pow(3).mean(), shared)
        return found

    expected = gradient(pair.interleaved)
    monkeypatch.setattr(_engine, "_idle", type(_engine._idle)())  # fresh workers count from 0
    assert torch.equal(gradient(pair), expected)
    assert torch.equal(gradient(pair), expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(pair: Pair, mode: Callable[[], Any]) -> None:
    x, y = inputs()
    with mode():
        assert same(list(pair(x, y)), list(pair.interleaved(x, y)))


def test_states_may_be_anything_and_grow() -> None:
    """Tuples as in older libraries, and a batch that grows from B to B*N at a stage."""

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            return x + 1, "kept"

    def run(layers: list[Layer], x: Tensor) -> Tensor:
        for layer in layers:
            x, word = layer(x)
            assert word == "kept"
        return x

    layers = [Layer() for _ in range(3)]
    vision = StageHooks(layers[:2], ["0", "1"], "vision")
    text = StageHooks(layers[:2], ["0", "1"], "text")

    def bridge(stage: int, v: Any, t: Any) -> Any:
        return ((v[0].repeat_interleave(2, 0), v[1]) if stage == 0 else v), t

    image, words = run_lockstep(
        (vision, lambda: run(layers, torch.zeros(2, 1))),
        (text, lambda: run(layers, torch.zeros(4, 1))),
        bridge,
    )
    assert torch.equal(image, torch.full((4, 1), 3.0)) and torch.equal(image, words)


def test_one_thread_at_a_time_and_the_order_of_a_loop(pair: Pair) -> None:
    seen = []
    for tower, name in ((pair.vision, "v"), (pair.text, "t")):
        for i, block in enumerate(tower.blocks):
            block.register_forward_pre_hook(lambda *_, what=f"{name}{i}": seen.append(what))
    bridge = pair.bridge
    pair.bridge = lambda stage, v, t: (seen.append(stage), bridge(stage, v, t))[1]  # type: ignore[method-assign]
    x, y = inputs()
    pair(x, y)
    threaded = list(seen)
    seen.clear()
    pair.interleaved(x, y)
    assert threaded == seen == ["v0", "v1", "t0", "t1", 0, "v2", "t2", 1, "v3", "t3", 2]


def test_bridge_runs_in_the_caller_and_towers_in_workers(pair: Pair) -> None:
    names: list[str] = []
    pair.vision.blocks[0].register_forward_pre_hook(
        lambda *_: names.append(threading.current_thread().name)
    )
    pair.bridges[0].register_forward_pre_hook(
        lambda *_: names.append(threading.current_thread().name)
    )
    pair(*inputs())
    assert names == ["bridger-tower", threading.current_thread().name]


# Hooks outside of their own run.


def test_towers_called_alone_are_untouched(pair: Pair) -> None:
    x, _ = inputs()
    expected = copy.deepcopy(pair.vision)(x)
    assert torch.equal(pair.vision(x), expected)
    pair(x, x)
    assert torch.equal(pair.vision(x), expected)


def test_a_tower_called_alone_inside_a_run_passes_through(pair: Pair) -> None:
    """In the caller, and in the other tower's own thread."""
    x, y = inputs()
    alone = pair.vision(x)
    seen = []
    plain = pair.bridge
    pair.bridge = lambda stage, v, t: (seen.append(pair.vision(x)), plain(stage, v, t))[1]  # type: ignore[method-assign]
    pair.text.blocks[2].register_forward_hook(lambda *_: seen.append(pair.vision(x)) or None)
    pair(x, y)
    assert len(seen) == 4 and all(torch.equal(alone, other) for other in seen)


def test_two_attachments_do_not_disturb_each_other(pair: Pair) -> None:
    vision, text = hooks_on(pair.vision, "vision", (0, 2)), hooks_on(pair.text, "text", (1, 3))
    x, y = inputs()
    expected = pair.interleaved(x, y)
    stages = []

    def bridge(stage: int, v: Any, t: Any) -> Any:
        stages.append(stage)
        return v, t

    alone = run_lockstep((vision, lambda: pair.vision(x)), (text, lambda: pair.text(y)), bridge)
    assert stages == [0, 1] and same(list(alone), [pair.vision(x), pair.text(y)])
    assert same(list(pair(x, y)), list(expected))
    vision.remove()
    text.remove()
    assert same(list(pair(x, y)), list(expected))


def test_hooks_of_others_see_the_old_or_the_new_output() -> None:
    tower = Tower()
    seen: dict[str, Tensor] = {}
    tower.blocks[1].register_forward_hook(lambda m, a, out: seen.update(before=out))
    pair = Pair()
    pair.vision, pair.hooks = tower, (hooks_on(tower, "vision"), pair.hooks[1])
    tower.blocks[1].register_forward_hook(lambda m, a, out: seen.update(after=out))
    handed: list[Tensor] = []
    plain = pair.bridge

    def bridge(stage: int, v: Tensor, t: Tensor) -> Any:
        answers = plain(stage, v, t)
        handed.extend((v, answers[0]) if stage == 0 else ())
        return answers

    pair.bridge = bridge  # type: ignore[method-assign]
    pair(*inputs())
    assert seen["before"] is handed[0] and seen["after"] is handed[1]


def test_remove_leaves_nothing() -> None:
    tower = Tower()
    before = [dict(block.__dict__) for block in tower.blocks]
    hooks = hooks_on(tower, "vision")
    assert not hooks.removed
    hooks.remove()
    hooks.remove()
    assert hooks.removed
    for block, old in zip(tower.blocks, before, strict=True):
        assert list(block.__dict__) == list(old) and not block._forward_hooks
    pair = Pair()
    with pytest.raises(RuntimeError, match="hooks on the vision tower were removed: attach"):
        run_lockstep((hooks, lambda: 0), (pair.hooks[1], lambda: 0), pair.bridge)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda t: pickle.loads(pickle.dumps(t))]
)
def test_a_copied_tower_has_dead_hooks(pair: Pair, copied: Callable[[Any], Any]) -> None:
    x, y = inputs()
    pair(x, y)  # with workers and thread-locals alive
    other = copied(pair.vision)
    assert torch.equal(other(x), pair.vision(x))
    if copied is not copy.copy:
        with pytest.raises(StageError, match="ended before stage 0"):
            run_lockstep(
                (pair.hooks[0], lambda: other(x)),
                (pair.hooks[1], lambda: pair.text(y)),
                pair.bridge,
            )


def test_a_shallow_view_of_a_tower_keeps_live_hooks(pair: Pair) -> None:
    x, y = inputs()
    view = copy.copy(pair.vision)
    view._modules = dict(view._modules)
    result = run_lockstep(
        (pair.hooks[0], lambda: view(x)), (pair.hooks[1], lambda: pair.text(y)), pair.bridge
    )
    assert same(list(result), list(pair(x, y)))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_a_copied_pair_works_on_its_own(pair: Pair, copied: Callable[[Pair], Pair]) -> None:
    x, y = inputs()
    expected = pair(x, y)
    other = copied(pair)
    assert other.hooks[0] is not pair.hooks[0]
    assert same(list(other(x, y)), list(expected))
    other.hooks[0].remove()
    assert copied(other).hooks[0].removed
    assert same(list(pair(x, y)), list(expected))


# Errors from towers, from the bridge, from stages.


class Boom(Exception):
    pass


ERRORS = [Boom, StopIteration, SystemExit, GeneratorExit, KeyboardInterrupt, RuntimeError]


@contextmanager
def raising(module: nn.Module, error: BaseException) -> Iterator[None]:
    def a_frame_of_the_tower(*_: Any) -> None:
        raise error

    handle = module.register_forward_pre_hook(a_frame_of_the_tower)
    yield
    handle.remove()


def check_error(pair: Pair, module: nn.Module, error: BaseException) -> None:
    x, y = inputs()
    alive = [weakref.ref(x), weakref.ref(y)]
    gc.collect()
    gc.disable()
    try:
        with raising(module, error), no_more_workers():
            try:
                pair(x, y)
            except BaseException as caught:
                assert caught is error
                names = [frame.name for frame in traceback.extract_tb(caught.__traceback__)]
                assert "a_frame_of_the_tower" in names and "run_lockstep" in names
                assert caught.__context__ is None and caught.__cause__ is None
            else:
                pytest.fail("nothing was raised")
        error.__traceback__ = None
        del x, y, module
        assert [ref() for ref in alive] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("tower", ["vision", "text"])
@pytest.mark.parametrize("block", range(4))
def test_an_error_in_a_block(pair: Pair, tower: str, block: int) -> None:
    pair(*inputs())
    check_error(pair, getattr(pair, tower).blocks[block], Boom("here"))


@pytest.mark.parametrize("stage", range(3))
def test_an_error_in_the_bridge(pair: Pair, stage: int) -> None:
    pair(*inputs())
    check_error(pair, pair.bridges[stage], Boom("here"))


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("where", ["vision", "text", "bridge"])
def test_every_kind_of_error(pair: Pair, kind: type[BaseException], where: str) -> None:
    pair(*inputs())
    modules = {
        "vision": pair.vision.blocks[2], "text": pair.text.blocks[2], "bridge": pair.bridges[1],
    }  # fmt: skip
    check_error(pair, modules[where], kind("here"))


def test_a_tower_that_catches_exceptions_is_unwound(pair: Pair) -> None:
    caught = []

    def stubborn(block: nn.Module, x: Tensor) -> Tensor:
        try:
            return block(x)
        except Exception as error:
            caught.append(error)
            raise

    pair.vision.outer = stubborn
    check_error(pair, pair.text.blocks[2], Boom("here"))
    assert not caught


def test_a_tower_that_swallows_everything_is_unwound(pair: Pair) -> None:
    def swallowing(block: nn.Module, x: Tensor) -> Tensor:
        try:
            return block(x)
        except BaseException:
            return x

    pair.vision.outer = swallowing
    check_error(pair, pair.bridges[0], Boom("here"))


def test_finally_clauses_of_a_paused_tower_run(pair: Pair) -> None:
    left = []

    def careful(block: nn.Module, x: Tensor) -> Tensor:
        try:
            return block(x)
        finally:
            left.append(block)

    pair.vision.outer = careful
    check_error(pair, pair.bridges[0], Boom("here"))
    assert left == [pair.vision.blocks[0], pair.vision.blocks[1]]


def run_order(pair: Pair, tower: str, order: list[int]) -> None:
    """A bridged forward in which one tower runs its blocks in this order."""
    x, y = inputs()

    def forward(module: Tower, x: Tensor, mine: bool) -> Tensor:
        for i in order if mine else range(4):
            x = module.blocks[i](x)
        return x

    (vision, text), (v, t) = pair.hooks, (pair.vision, pair.text)
    with no_more_workers():
        run_lockstep(
            (vision, lambda: forward(v, x, tower == "vision")),
            (text, lambda: forward(t, y, tower == "text")),
            pair.bridge,
        )


@pytest.mark.parametrize("tower", ["vision", "text"])
@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([], r"ended before stage 0 \(blocks.1\).*called 0"),
        ([0, 1, 2], r"ended before stage 2 \(blocks.3\).*3 stage blocks.*called 2"),
        ([0, 1, 3], r"reached stage 2 \(blocks.3\) too early: expected stage 1 \(blocks.2\) next"),
        ([1, 1, 2, 3], r"ran stage 0 \(blocks.1\) again: expected stage 1 \(blocks.2\) next"),
        ([1, 2, 3, 3], r"ran stage 2 \(blocks.3\) again: expected its end next.*run once"),
        ([2, 1, 3], r"reached stage 1 .* too early: expected stage 0 .*in the order in which"),
        ([1, 3, 2], r"reached stage 2 .* too early: expected stage 1"),
    ],
)
def test_stages_out_of_order(pair: Pair, tower: str, order: list[int], message: str) -> None:
    pair(*inputs())
    with pytest.raises(StageError, match=f"The {tower} tower {message}"):
        run_order(pair, tower, order)


def test_both_orders_that_are_right_pass(pair: Pair) -> None:
    run_order(pair, "vision", [1, 2, 3])
    run_order(pair, "text", [0, 0, 1, 2, 3])  # a block that is no stage may run as it likes


def test_gradients_off_inside(pair: Pair) -> None:
    use_checkpoints(pair, "reentrant calls")
    x, y = inputs()
    with pytest.raises(StageError, match=r"vision tower runs stage 0 .*use_reentrant=False"):
        pair(x.requires_grad_(), y)
    with torch.no_grad():
        pair(x, y)  # no gradients wanted: nothing can be lost

    pair.vision.outer = None

    def without(block: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            return block(x)

    pair.text.outer = without
    with pytest.raises(StageError, match=r"text tower runs stage 0 .*under torch\.no_grad"):
        pair(x, y)


def test_blocks_are_checked() -> None:
    block, other = nn.Identity(), nn.Identity()
    with pytest.raises(ValueError, match=r"0 \(a\), 2 \(c\) are one and the same .*ALBERT"):
        StageHooks([block, other, block], ["a", "b", "c"], "text")
    with pytest.raises(ValueError, match="found 1 blocks and 2 names"):
        StageHooks([block], ["a", "b"], "text")
    with pytest.raises(ValueError, match="at least one stage"):
        StageHooks([], [], "text")
    assert not block._forward_hooks


def test_towers_with_other_numbers_of_stages(pair: Pair) -> None:
    short = hooks_on(pair.text, "text", (1, 2))
    with pytest.raises(ValueError, match=r"found 3 \(vision\) and 2 \(text\)"):
        run_lockstep((pair.hooks[0], lambda: 0), (short, lambda: 0), pair.bridge)


@pytest.mark.parametrize("answers", [None, (1,), (None, 2), [1, 2, 3], 5])
def test_what_the_bridge_returns_is_checked(pair: Pair, answers: Any) -> None:
    x, y = inputs()
    with no_more_workers(), pytest.raises(TypeError, match="bridge of stage 0 must return a pair"):
        pair(x, y)
        pair.bridge, plain = (lambda *_: answers), pair.bridge  # type: ignore[method-assign]
        try:
            pair(x, y)
        finally:
            pair.bridge = plain  # type: ignore[method-assign]


# Many callers, nesting.


def test_eight_callers_at_once(pair: Pair) -> None:
    batches = [inputs() for _ in range(8)]
    expected = [pair.interleaved(*batch) for batch in batches]
    wrong: list[Any] = []

    def call(i: int) -> None:
        try:
            for _ in range(5):
                if not same(list(pair(*batches[i])), list(expected[i])):
                    wrong.append(i)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not wrong and not any(thread.is_alive() for thread in threads)
    assert workers() <= 20


def test_a_bridge_that_calls_bridged_models(pair: Pair) -> None:
    other = Pair()
    x, y = inputs()
    inner = [list(other(x, y)), list(pair(x, y))]
    plain = pair.bridge

    def bridge(stage: int, v: Tensor, t: Tensor) -> Any:
        pair.bridge = plain  # type: ignore[method-assign]
        assert same(list(other(x, y)), inner[0]) and same(list(pair(x, y)), inner[1])
        pair.bridge = bridge  # type: ignore[method-assign]
        return plain(stage, v, t)

    pair.bridge = bridge  # type: ignore[method-assign]
    outer = list(pair(x, y))
    pair.bridge = plain  # type: ignore[method-assign]
    assert same(outer, inner[1])


class Nested(nn.Module):
    """A tower with a whole bridged model as its second block."""

    def __init__(self, inner: Pair) -> None:
        super().__init__()
        self.inner = inner
        self.blocks = nn.ModuleList([nn.Identity(), nn.Linear(16, 16)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(self.blocks[0](x), x)[0]
        return self.blocks[1](x)


def test_a_bridged_model_inside_a_tower(pair: Pair) -> None:
    nested, text = Nested(pair), Tower()
    x, y = inputs()
    v = StageHooks([nested.blocks[0], nested.inner.vision.norm], ["a", "b"], "vision")
    t = hooks_on(text, "text", (0, 1))
    with pytest.raises(StageError, match="ended before stage 1"):  # it runs in the inner worker
        run_lockstep((v, lambda: nested(x)), (t, lambda: text(y)), lambda s, a, b: (a, b))
    v.remove()
    v = StageHooks(list(nested.blocks), ["a", "b"], "vision")
    got = run_lockstep((v, lambda: nested(x)), (t, lambda: text(y)), lambda s, a, b: (a, b))
    assert same(list(got), [nested(x), text(y)])
    with raising(pair.bridges[1], Boom("inner")), no_more_workers(), pytest.raises(Boom):
        run_lockstep((v, lambda: nested(x)), (t, lambda: text(y)), lambda s, a, b: (a, b))


def test_one_module_as_both_towers(pair: Pair) -> None:
    other = Pair()
    other.text = other.vision
    other.hooks = hooks_on(other.vision, "vision"), hooks_on(other.vision, "text")
    x, y = inputs()
    assert same(list(other(x, y)), list(other.interleaved(x, y)))


def test_asyncio(pair: Pair) -> None:
    import asyncio

    x, y = inputs()
    expected = list(pair(x, y))

    async def main() -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(pair, x, y) for _ in range(4)))

    assert all(same(list(got), expected) for got in asyncio.run(main()))


# References and threads.


def test_300_forwards_leave_nothing(pair: Pair) -> None:
    pair(*inputs())
    gc.collect()
    gc.disable()
    try:
        with no_more_workers():
            for i in range(300):
                x, y = inputs()
                x.requires_grad_(i % 2 == 0)
                out = pair(x, y)
                if i % 2 == 0:
                    sum(o.sum() for o in out).backward()
                alive = [weakref.ref(t) for t in (x, y, *out)]
                del x, y, out
                assert all(ref() is None for ref in alive)
    finally:
        gc.enable()


def test_block_outputs_do_not_outlive_their_stage(pair: Pair) -> None:
    outputs: list[weakref.ref[Tensor]] = []
    plain = pair.bridge

    def bridge(stage: int, v: Tensor, t: Tensor) -> Any:
        assert all(ref() is None for ref in outputs)
        outputs.extend((weakref.ref(v), weakref.ref(t)))
        return plain(stage, v, t)

    pair.bridge = bridge  # type: ignore[method-assign]
    with torch.no_grad():
        pair(*inputs())
    pair.bridge = plain  # type: ignore[method-assign]
    assert len(outputs) == 2 * len(STAGES)


def test_a_model_dies_with_its_last_reference() -> None:
    other = Pair()
    other(*inputs())
    alive = weakref.ref(other)
    del other
    gc.collect()
    assert alive() is None


# Interrupts. Signals reach the main thread alone, so these run in an interpreter of their own.


class Interrupt:
    """A trace function that raises KeyboardInterrupt before the n-th bytecode of lockstep's."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self, frame: Any, event: str, arg: Any) -> Any:
        if Path(frame.f_code.co_filename).name not in ("lockstep.py", "_engine.py"):
            return None
        frame.f_trace_opcodes = True
        return self.local

    def local(self, frame: Any, event: str, arg: Any) -> Any:
        self.left -= event == "opcode"
        if self.left == 0:
            raise KeyboardInterrupt
        return self.local


def test_an_interrupt_anywhere_in_the_caller(pair: Pair) -> None:
    x, y = inputs()
    expected = list(pair(x, y))
    before, tracing, struck = workers(), sys.gettrace(), 0
    for n in range(1, 100_000, 3):
        interrupt = Interrupt(n)
        try:
            sys.settrace(interrupt)
            pair(x, y)
        except KeyboardInterrupt:
            struck += 1
        finally:
            sys.settrace(tracing)
        if interrupt.left > 0:
            break  # past the end
        if n % 30 == 1:
            assert same(list(pair(x, y)), expected)
    assert struck > 100 and same(list(pair(x, y)), expected)
    # A worker that got a run whose caller was struck at once may still be on its way back when the
    # next forward starts, which then starts another. More than a spare pair is a lost worker.
    assert workers() <= before + 2


def test_an_interrupt_while_the_caller_waits() -> None:
    run_python("""
import os, signal, threading, time, torch
from helpers_lockstep import Pair, inputs, same, workers
pair, (x, y) = Pair(), inputs()
expected = list(pair(x, y))
left = []
def slow(*_):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)  # held back
    time.sleep(0.2)
    left.append("segment")
handle = pair.vision.blocks[2].register_forward_pre_hook(slow)
try:
    pair(x, y)
except KeyboardInterrupt:
    assert left == ["segment"]  # raised only when the worker had handed back its turn
else:
    raise SystemExit("not interrupted")
handle.remove()
assert workers() == 2 and same(list(pair(x, y)), expected) and workers() == 2

# An error in the bridge, and Ctrl-C while it unwinds: the interrupt is not lost.
def bridge(*_):
    raise ValueError("first")
plain, pair.bridge = pair.bridge, bridge
def careful(block, x):
    try:
        return block(x)
    except BaseException:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        raise
pair.vision.outer = careful
try:
    pair(x, y)
except KeyboardInterrupt as error:
    assert isinstance(error.__context__, ValueError)
else:
    raise SystemExit("not interrupted")
pair.bridge, pair.vision.outer = plain, None
assert same(list(pair(x, y)), expected) and workers() == 2
""")


@SLOW
def test_a_storm_of_interrupts() -> None:
    out = run_python("""
import random, signal, threading, time
from helpers_lockstep import Pair, inputs, same, workers
pair, (x, y) = Pair(), inputs()
expected = list(pair(x, y))
armed = False  # interrupts that strike this script rather than the forward are let go
def interrupt(*_):
    if armed:
        raise KeyboardInterrupt
signal.signal(signal.SIGINT, interrupt)
main, stop = threading.main_thread().ident, time.monotonic() + 4
def storm():
    while time.monotonic() < stop - 0.3:
        time.sleep(random.random() * 0.01)
        signal.pthread_kill(main, signal.SIGINT)
threading.Thread(target=storm, daemon=True).start()
complete = wrong = interrupts = 0
while time.monotonic() < stop:
    try:
        armed = True
        got = pair(x, y)
        armed = False
    except KeyboardInterrupt:
        armed = False
        interrupts += 1
    else:
        wrong += not same(list(got), expected)
        complete += 1
assert same(list(pair(x, y)), expected)
print(complete, wrong, interrupts, workers())
""")
    complete, wrong, interrupts, threads = map(int, out.split())
    assert complete > 20 and interrupts > 50 and wrong == 0 and threads <= 4


# Fork, exit.


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no fork here")
def test_fork() -> None:
    """Idle workers, in the middle of a forward, and from a DataLoader's worker."""
    run_python("""
import os, signal, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import torch
torch.set_num_threads(1)
from helpers_lockstep import Pair, inputs, same
pair, (x, y) = Pair(), inputs()
expected = list(pair(x, y))

def fork(in_child):
    child = os.fork()
    if child == 0:
        signal.alarm(200)
        try:
            ok = in_child()
        except BaseException as error:
            print(repr(error), flush=True)
            ok = False
        os._exit(0 if ok else 1)
    return os.waitpid(child, 0)[1]

right = lambda: same(list(pair(x, y)), expected)
assert fork(right) == 0
statuses = []
plain = pair.bridge
def bridge(stage, v, t):
    pair.bridge = plain
    statuses.append(fork(right))
    return plain(stage, v, t)
pair.bridge = bridge
assert right() and statuses == [0, 0, 0]

# In a tower.
handle = pair.vision.blocks[2].register_forward_pre_hook(lambda *_: statuses.append(fork(alone)))
alone = lambda: (handle.remove(), right())[1]
assert right() and statuses == [0, 0, 0, 0]
handle.remove()

# A child that goes on with its parent's forward gets an error and does not hang.
parent, failed = os.getpid(), []
def go_on(stage, v, t):
    child = os.fork() if stage == 1 else 1
    if child == 0:
        signal.alarm(200)
    elif stage == 1:
        failed.append(os.waitpid(child, 0)[1])
    return plain(stage, v, t)
pair.bridge = go_on
try:
    ok = right()
except RuntimeError as error:
    pair.bridge = plain
    os._exit(0 if os.getpid() != parent and "forked" in str(error) and right() else 1)
assert os.getpid() == parent and ok and failed == [0]
pair.bridge = plain

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return pair(x, y)[0].detach()
loader = torch.utils.data.DataLoader(Data(), batch_size=None, num_workers=2, timeout=200,
                                     multiprocessing_context="fork")
assert all(torch.equal(got, expected[0]) for got in loader)
assert right()
""")


ENDINGS = {
    "idle workers": "",
    "exit": "raise SystemExit(0)",
    "atexit": "import atexit; atexit.register(lambda: print(pair(x, y)[0].sum()))",
    "exit from the bridge": "pair.bridge = lambda *_: sys.exit(0); pair(x, y)",
    "paused workers": """
reached = threading.Event()
pair.bridge = lambda *_: (reached.set(), threading.Event().wait())
threading.Thread(target=pair, args=(x, y), daemon=True).start()
reached.wait()
""",
}


@SLOW
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_interpreter_ends(ending: str) -> None:
    out = run_python(f"""
import sys, threading
from helpers_lockstep import Pair, inputs
pair, (x, y) = Pair(), inputs()
pair(x, y)
{ENDINGS[ending]}
""")
    assert ("tensor" in out) == (ending == "atexit")


def test_a_forward_at_shutdown_raises(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sys.is_finalizing", lambda: True)
        with pytest.raises(RuntimeError, match="while the interpreter shuts down"):
            pair(*inputs())


@SLOW
def test_a_forward_in_del_at_shutdown_does_not_hang() -> None:
    run_python("""
from helpers_lockstep import Pair, inputs
class Late:
    def __init__(self):
        self.pair, self.inputs = Pair(), inputs()
        self.pair(*self.inputs)
    def __del__(self):
        self.pair(*self.inputs)
import builtins
builtins.late = Late()  # dies in finalization
""")


# The compiler.


def test_import_does_not_load_the_compiler() -> None:
    run_python("""
import sys, torch
before = "torch._dynamo" in sys.modules
import bridger.lockstep
assert ("torch._dynamo" in sys.modules) == before
""")


@pytest.mark.parametrize(
    "what", ["blocks", *(pytest.param(w, marks=SLOW) for w in ("forwards", "towers", "model"))]
)
def test_torch_compile(what: str) -> None:
    import torch._dynamo
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    pair, (x, _) = Pair(), inputs()
    expected = results_and_gradients(pair, pair.interleaved)
    alone = pair.vision(x)
    model: Callable[..., Any] = pair
    towers = (pair.vision, pair.text)
    if what == "towers":
        for tower in towers:
            tower.compile(backend="aot_eager")
    elif what == "model":
        model = torch.compile(pair, backend="aot_eager")
    for block in [block for tower in towers for block in tower.blocks]:
        if what == "blocks":
            block.compile(backend="aot_eager")
        elif what == "forwards":
            block.forward = torch.compile(block.forward, backend="aot_eager")
    # By default compiled code does not notice whether a block has hooks: see the next test.
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=what != "towers"):
        results = results_and_gradients(pair, model)
    for got, want in zip(results, expected, strict=True):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(pair.vision(x), alone)
    if what in ("blocks", "forwards"):
        assert not counters["graph_break"] and counters["stats"]["unique_graphs"] < 8


@SLOW
def test_a_compiled_tower_that_forgets_its_hooks_is_an_error() -> None:
    torch.compiler.reset()
    pair, (x, y) = Pair(), inputs()
    expected = pair.interleaved(x, y)
    pair.vision.compile(backend="aot_eager")
    try:
        torch.testing.assert_close(pair(x, y), expected)
    except StageError as error:
        assert "compile its blocks" in str(error)
    torch.compiler.reset()
    pair.vision._compiled_call_impl = None


# transformers' own towers.


@SLOW
@pytest.mark.parametrize("checkpointing", [False, True])
def test_transformers_clip(checkpointing: bool) -> None:
    transformers = pytest.importorskip("transformers")
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2)
    vision = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(image_size=32, patch_size=8, **small)
    )
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(vocab_size=50, max_position_embeddings=8, **small)
    )
    if checkpointing:
        for model in (vision, text):
            model.train()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # its newer name came with 5.x
                model.gradient_checkpointing_enable({"use_reentrant": False})
    layers = [
        next(m for n, m in tower.named_modules() if n.endswith("encoder.layers"))
        for tower in (vision, text)
    ]
    hooks = [
        StageHooks([blocks[i] for i in STAGES], [f"layers.{i}" for i in STAGES], name)
        for blocks, name in zip(layers, ("vision", "text"), strict=True)
    ]
    bridges = nn.ModuleList(nn.Linear(16, 16) for _ in STAGES)
    pixels, ids = torch.randn(2, 3, 32, 32), torch.randint(0, 50, (2, 8))

    def mix(stage: int, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return v + bridges[stage](t.mean(1, keepdim=True)), t + bridges[stage](v[:, :1])

    def by_recording() -> tuple[Tensor, Tensor]:
        """Without lockstep: each round takes the other tower's states from the round before."""
        states: dict[tuple[int, int], Tensor] = {}

        def hook(side: int, stage: int, known: int, out: Tensor) -> Tensor | None:
            if stage == known:
                states[side, stage] = out
            if stage >= known:
                return None
            return mix(stage, *((out, states[1, stage]) if side == 0 else (states[0, stage], out)))[
                side
            ]

        for known in range(len(STAGES) + 1):
            results = []
            for side, (blocks, run) in enumerate(zip(layers, runs, strict=True)):
                handles = [
                    blocks[i].register_forward_hook(
                        lambda m, a, out, what=(side, stage, known): hook(*what, out)
                    )
                    for stage, i in enumerate(STAGES)
                ]
                results.append(run())
                for handle in handles:
                    handle.remove()
        return results[0], results[1]

    runs = [
        lambda: vision(pixel_values=pixels).last_hidden_state,
        lambda: text(input_ids=ids).last_hidden_state,
    ]

    def gradients(results: tuple[Tensor, Tensor]) -> list[Tensor | None]:
        modules = nn.ModuleList([vision, text, bridges])
        modules.zero_grad()
        (results[0].square().mean() + results[1].pow(3).mean()).backward()
        return [None if p.grad is None else p.grad.clone() for p in modules.parameters()]

    got = run_lockstep((hooks[0], runs[0]), (hooks[1], runs[1]), mix)
    got_gradients = gradients(got)
    want = by_recording()
    assert same(list(got), list(want))
    for mine, theirs in zip(got_gradients, gradients(want), strict=True):
        torch.testing.assert_close(mine, theirs)
