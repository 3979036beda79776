"""Lockstep against a plain interleaved loop, and hooks outside of their own run."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers_lockstep import (
    Pair,
    Tower,
    hooks_on,
    inputs,
    results_and_gradients,
    same,
    use_checkpoints,
)
from torch import Tensor, nn

from bridger.lockstep import StageError, StageHooks, run_lockstep

SLOW = pytest.mark.slow

pytestmark = pytest.mark.usefixtures("next_forward_is_right")


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
