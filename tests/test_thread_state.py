"""Each piece of thread-local state reaches the towers, and private names of torch still exist."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers_lockstep import Pair, inputs, results_and_gradients, same, use_checkpoints
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from bridger import _thread_state
from bridger._thread_state import ThreadState, refuse_what_threads_cannot_see
from bridger.lockstep import StageHooks, run_lockstep


def in_worker(function: Callable[[], Any]) -> Any:
    """What `function` gives in a tower, called from here."""
    block = nn.Identity()
    vision, text = (StageHooks([block], ["block"], tower) for tower in ("vision", "text"))

    def tower() -> Any:
        assert threading.current_thread().name == "bridger-tower"
        result = function()
        block(0)
        return result

    seen, _ = run_lockstep((vision, tower), (text, tower), lambda stage, v, t: (v, t))
    vision.remove()
    text.remove()
    return seen


class Functions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.entered = 0
        self.seen: list[Any] = []

    def __enter__(self) -> Any:
        self.entered += 1
        return super().__enter__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.entered = 0
        self.seen: list[Any] = []

    def __enter__(self) -> Any:
        self.entered += 1
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [False, True])
def test_grad_mode(mode: bool) -> None:
    with torch.set_grad_enabled(mode):
        assert in_worker(torch.is_grad_enabled) is mode


@pytest.mark.parametrize("mode", [False, True])
def test_inference_mode(mode: bool) -> None:
    with torch.inference_mode(mode):
        seen = in_worker(lambda: (torch.is_inference_mode_enabled(), torch.ones(1).is_inference()))
        assert seen == (mode, mode)
        assert in_worker(torch.is_grad_enabled) is not mode


def test_grad_mode_inside_inference_mode() -> None:
    with torch.inference_mode(), torch.enable_grad():
        assert in_worker(torch.is_grad_enabled)


def autocast_seen() -> Any:
    linear = nn.Linear(2, 2)
    return linear(torch.ones(1, 2)).dtype, torch.is_autocast_cache_enabled()


def test_autocast() -> None:
    assert in_worker(autocast_seen) == (torch.float32, True)
    with torch.autocast("cpu", torch.float16, cache_enabled=False):
        assert in_worker(autocast_seen) == (torch.float16, False)
        with torch.autocast("cpu", enabled=False):
            assert in_worker(autocast_seen)[0] is torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert in_worker(autocast_seen) == (torch.bfloat16, True)
    assert in_worker(autocast_seen) == (torch.float32, True)


def test_autocast_dtype_alone() -> None:
    before = torch.get_autocast_dtype("cpu")
    torch.set_autocast_dtype("cpu", torch.float16)
    try:
        assert in_worker(lambda: torch.get_autocast_dtype("cpu")) is torch.float16
    finally:
        torch.set_autocast_dtype("cpu", before)
    assert in_worker(lambda: torch.get_autocast_dtype("cpu")) is before


def test_autocast_covers_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert _thread_state._autocast_devices() == ("cpu", "cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    assert _thread_state._autocast_devices() == ("cpu",)


def test_default_device() -> None:
    with torch.device("meta"):
        assert in_worker(lambda: torch.ones(1).device.type) == "meta"
        assert in_worker(lambda: torch.get_default_device().type) == "meta"
    assert torch.utils._device.CURRENT_DEVICE is None  # nothing of it outlives the caller's `with`
    assert in_worker(lambda: torch.ones(1).device.type) == "cpu"
    torch.set_default_device("meta")
    try:
        assert in_worker(lambda: torch.ones(1).device.type) == "meta"
    finally:
        torch.set_default_device(None)
        # torch 2.8 leaves a None there, which its own get_default_device stumbles over.
        vars(torch._GLOBAL_DEVICE_CONTEXT).pop("device_context", None)
    assert torch.ones(1).device.type == "cpu"


def test_function_modes() -> None:
    outer, inner = Functions(), Functions()
    with outer, inner:
        seen = in_worker(lambda: (torch.ones(1), _get_current_function_mode_stack()))[1]
    assert seen == [outer, inner]
    assert torch.ones in inner.seen and torch.ones in outer.seen
    assert outer.entered == inner.entered == 1
    assert in_worker(_get_current_function_mode_stack) == []


def test_dispatch_modes() -> None:
    outer, inner = Dispatched(), Dispatched()
    with outer, inner:
        seen = in_worker(lambda: (torch.ones(1), _get_current_dispatch_mode_stack()))[1]
    assert seen == [outer, inner]
    assert torch.ops.aten.ones.default in outer.seen and outer.seen == inner.seen
    assert outer.entered == inner.entered == 1
    assert in_worker(_get_current_dispatch_mode_stack) == []


def test_fake_tensor_mode() -> None:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode() as mode, Dispatched():
        made, stack = in_worker(lambda: (torch.ones(1), _get_current_dispatch_mode_stack()))
    assert isinstance(made, FakeTensor) and mode in stack
    assert in_worker(_get_current_dispatch_mode_stack) == []


def test_flop_counter() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    pair, (x, y) = Pair(), inputs()
    with FlopCounterMode(display=False) as plain:
        pair.interleaved(x, y)
    with FlopCounterMode(display=False) as threaded:
        pair(x, y)
    assert threaded.get_total_flops() == plain.get_total_flops() > 0


def test_saved_tensor_hooks() -> None:
    pair = Pair()
    packed: list[torch.Tensor] = []

    def count(forward: Callable[..., Any]) -> tuple[int, list[torch.Tensor | None]]:
        packed.clear()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: packed.append(t) or t.clone(), lambda t: t
        ):
            results = results_and_gradients(pair, forward)
        return len(packed), results

    plain, expected = count(pair.interleaved)
    threaded, results = count(pair)
    assert threaded == plain > 0
    assert same(results, expected)
    pair(*inputs())
    assert len(packed) == threaded  # no hook stays in the workers


def test_of_nested_saved_tensor_hooks_the_inner_pair_counts() -> None:
    outer: list[Any] = []
    inner: list[Any] = []
    weight = torch.ones(2, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: outer.append(t) or t, lambda t: t):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: inner.append(t) or t, lambda t: t):
            in_worker(lambda: weight * weight)
        plain = weight * weight
    assert inner and len(outer) == 2  # from the plain product: the caller's stack is whole
    assert plain.requires_grad


def test_save_on_cpu() -> None:
    pair = Pair()
    expected = results_and_gradients(pair, pair.interleaved)
    with torch.autograd.graph.save_on_cpu():
        assert same(results_and_gradients(pair, pair), expected)


def test_selective_checkpointing_around_the_whole_forward() -> None:
    from functools import partial

    from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

    pair = Pair()
    expected = results_and_gradients(pair, pair.interleaved)
    context = partial(create_selective_checkpoint_contexts, [torch.ops.aten.mm.default])

    def forward(x: torch.Tensor, y: torch.Tensor) -> Any:
        return checkpoint(pair, x, y, use_reentrant=False, context_fn=context)

    assert same(results_and_gradients(pair, forward), expected)


@pytest.mark.parametrize(
    ("reentrant", "inner"), [(False, "none"), (False, "calls"), (False, "forwards"), (True, "none")]
)
def test_checkpoint_around_the_whole_forward(reentrant: bool, inner: str) -> None:
    from torch.utils.checkpoint import checkpoint

    pair = Pair(dropout=0.3)
    use_checkpoints(pair, inner)
    expected = results_and_gradients(pair, pair.interleaved)

    def forward(x: torch.Tensor, y: torch.Tensor) -> Any:
        return checkpoint(pair, x, y, use_reentrant=reentrant)

    assert same(results_and_gradients(pair, forward), expected)


def test_contextvars() -> None:
    variable = contextvars.ContextVar("variable", default=0)
    token = variable.set(7)
    try:
        assert in_worker(variable.get) == 7
    finally:
        variable.reset(token)
    assert in_worker(variable.get) == 0


def test_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            assert in_worker(torch.get_num_threads) == count
            assert in_worker(lambda: torch.ones(64, 64) @ torch.ones(64, 64)).shape == (64, 64)
    finally:
        torch.set_num_threads(before)


def test_cuda_device_and_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which calls are made: this runs without a GPU."""
    calls: list[Any] = []

    class Entered:
        def __init__(self, *what: Any) -> None:
            self.what = what

        def __enter__(self) -> None:
            calls.append(("in", *self.what))

        def __exit__(self, *_: Any) -> None:
            calls.append(("out", *self.what))

    class Stream:
        device = torch.device("cuda", 1)

    stream = Stream()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "device", lambda d: Entered("device", d))
    monkeypatch.setattr(torch.cuda, "stream", lambda s: Entered("stream", s))
    ThreadState.capture().run(lambda: calls.append("run"))
    device, inner = ("device", stream.device), ("stream", stream)
    assert calls == [("in", *device), ("in", *inner), "run", ("out", *inner), ("out", *device)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_stream_on_a_gpu() -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        assert in_worker(torch.cuda.current_stream) == stream
        assert in_worker(torch.cuda.current_device) == torch.cuda.current_device()


def test_process_wide_state_is_seen() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert in_worker(lambda: torch.ones(1).dtype) is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(in_worker(lambda: torch.rand(2)), expected)


def test_states_opened_in_a_tower_stay_there() -> None:
    block = nn.Identity()
    vision, text = (StageHooks([block], ["block"], tower) for tower in ("vision", "text"))

    def noisy() -> Any:
        with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
            return block(0)

    def look() -> Any:
        return torch.ones(1).device.type, torch.is_autocast_enabled("cpu")

    seen = []

    def quiet() -> Any:
        seen.append(look())
        return block(0)

    def bridge(stage: int, v: Any, t: Any) -> Any:
        seen.append(look())
        return v, t

    run_lockstep((vision, noisy), (text, quiet), bridge)
    assert seen == [("cpu", False)] * 2


def test_functorch_is_refused() -> None:
    refuse_what_threads_cannot_see()
    pair, (x, y) = Pair(), inputs()
    weights = dict(pair.named_parameters())

    def loss(params: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(pair, params, (x, y))[0].sum()

    with pytest.raises(RuntimeError, match=r"torch\.func transform .*loss\.backward"):
        torch.func.grad(loss)(weights, x)
    with pytest.raises(RuntimeError, match=r"torch\.func transform"):
        torch.func.vmap(lambda x: pair(x, y)[0])(x[:, None])
    assert torch.equal(loss(weights, x), pair(x, y)[0].sum())  # functional_call alone works


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_jit_trace_is_refused() -> None:
    pair = Pair()
    with pytest.raises(RuntimeError, match=r"inside torch\.jit\.trace"):
        torch.jit.trace(pair, inputs(), check_trace=False)


@pytest.mark.parametrize("strict", [False, True])
def test_export_is_refused(strict: bool) -> None:
    pair = Pair()
    with pytest.raises(RuntimeError, match="runs its two towers in threads"):
        torch.export.export(pair, inputs(), strict=strict)


@pytest.mark.parametrize("count", [1000, 3_000_000])  # as far as a long training comes in minutes
def test_the_count_of_autograd_nodes_can_be_raised_and_orders_backward(count: int) -> None:
    found: list[int] = []

    def work() -> None:
        _thread_state.count_up_to(count)
        found.append(_thread_state.autograd_count())
        node = (torch.ones(1, requires_grad=True) * 2).grad_fn
        assert node is not None
        found.append(node._sequence_nr())
        _thread_state.count_up_to(10)
        found.append(_thread_state.autograd_count())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [count, count, count + 1]
