"""Many callers, nested models, references, and interrupts of the caller."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_lockstep import (
    STAGES,
    Boom,
    Pair,
    Tower,
    hooks_on,
    inputs,
    no_more_workers,
    raising,
    run_python,
    same,
    workers,
)
from torch import Tensor, nn

from bridger.lockstep import StageError, StageHooks, run_lockstep

SLOW = pytest.mark.slow

pytestmark = pytest.mark.usefixtures("next_forward_is_right")


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
    sys._getframe().f_trace_opcodes = True  # 3.12 heeds it only where settrace comes after
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_interrupt_at_any_call_is_raised() -> None:
    out = run_python("""
import sys
from itertools import count
from helpers_lockstep import Pair, inputs, same, workers
pair, (x, y) = Pair(), inputs()
expected = list(pair(x, y))
for call in count():
    left, struck = call, None
    def strike(frame, event, _):
        global left, struck
        if event == "call" and struck is None:
            left -= 1
            if left < 0:
                struck = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise KeyboardInterrupt
    try:
        sys.setprofile(strike)
        pair(x, y)
    except KeyboardInterrupt:
        pass
    else:
        sys.setprofile(None)
        assert struck is None, struck
        break
    finally:
        sys.setprofile(None)
    assert same(list(pair(x, y)), expected) and workers() <= 4
print(call)
""")
    assert int(out) > 100


@SLOW
def test_a_storm_of_interrupts() -> None:
    out = run_python("""
import random, signal, threading, time
from helpers_lockstep import Pair, inputs, same, workers
pair, (x, y) = Pair(), inputs()
expected = list(pair(x, y))
armed = struck = False  # interrupts that strike this script, not the forward, are let go
def interrupt(*_):
    global struck
    if armed:
        struck = True
        raise KeyboardInterrupt
signal.signal(signal.SIGINT, interrupt)
main, over, start = threading.main_thread().ident, threading.Event(), time.monotonic()
def storm():
    while not over.is_set():
        time.sleep(random.random() * 0.01)
        signal.pthread_kill(main, signal.SIGINT)
threading.Thread(target=storm, daemon=True).start()
complete = wrong = lost = interrupts = 0
def enough():
    seconds = time.monotonic() - start
    return seconds > 4 and complete > 20 and interrupts > 50 or seconds > 100  # a busy machine
while not enough():
    struck = False
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
        lost += struck
over.set()
assert same(list(pair(x, y)), expected)
print(complete, wrong, lost, interrupts, workers())
""")
    complete, wrong, lost, interrupts, threads = map(int, out.split())
    assert complete > 20 and interrupts > 50 and wrong == lost == 0 and threads <= 4
