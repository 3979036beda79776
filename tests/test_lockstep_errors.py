"""Whatever goes wrong in a tower, in the bridge or in the order of stages."""

from __future__ import annotations

import gc
import traceback
import weakref
from typing import Any

import pytest
import torch
from helpers_lockstep import (
    ERRORS,
    Boom,
    Pair,
    Tower,
    hooks_on,
    inputs,
    no_more_workers,
    raising,
    use_checkpoints,
)
from torch import Tensor, nn

from bridger.lockstep import StageError, StageHooks, run_lockstep

SLOW = pytest.mark.slow

pytestmark = pytest.mark.usefixtures("next_forward_is_right")


# Errors from towers, from the bridge, from stages.


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


@pytest.mark.slow
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
