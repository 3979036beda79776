"""What torch keeps per thread, and how a worker takes it over from its caller.

Every name of torch's that is private and that the lockstep needs stands in this file and nowhere
else. `tests/test_thread_state.py` has one test for each piece of state: it fails when a torch
release renames or moves it. Nothing here is guarded by `hasattr`, because state that is silently
not carried gives wrong numbers instead of an error.

Process-wide state (default dtype, deterministic mode, anomaly mode, `sdpa_kernel`, random
generators) needs nothing: workers see it, and since one thread runs at a time they draw random
numbers in a fixed order. torch's profiler is per thread and starts only where it was opened: pass
it an `experimental_config` with `profile_all_threads=True` to see what the towers do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import repeat
from typing import Any, TypeVar

import torch
from torch import overrides
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _python_dispatch

T = TypeVar("T")
SavedTensorHooks = tuple[Callable[[torch.Tensor], Any], Callable[[Any], torch.Tensor]]


@dataclass(frozen=True)
class ThreadState:
    """The thread-local state of the thread that called `capture`."""

    inference: bool
    grad: bool
    autocast: tuple[tuple[str, bool, torch.dtype, bool], ...]  # device, enabled, dtype, cache
    saved_tensor_hooks: SavedTensorHooks | None
    function_modes: tuple[Any, ...]  # bottom of the stack first; the default device is one of them
    dispatch_modes: tuple[Any, ...]  # bottom of the stack first
    num_threads: int
    cuda_stream: Any  # torch.cuda.Stream of the current device; None before CUDA is initialized

    @classmethod
    def capture(cls) -> ThreadState:
        """Reads the calling thread's state and changes nothing in it."""
        return cls(
            inference=torch.is_inference_mode_enabled(),
            grad=torch.is_grad_enabled(),
            autocast=tuple(_autocast(device) for device in _autocast_devices()),
            # Of nested pairs torch applies the innermost alone, so the top of the stack is all
            # that a worker needs, and the caller's stack need not be taken apart to read it.
            saved_tensor_hooks=torch._C._autograd._top_saved_tensors_default_hooks(True),
            function_modes=tuple(overrides._get_current_function_mode_stack()),  # type: ignore[no-untyped-call]
            dispatch_modes=tuple(_python_dispatch._get_current_dispatch_mode_stack()),
            num_threads=torch.get_num_threads(),
            cuda_stream=_cuda_stream(),
        )

    def run(self, function: Callable[[], T]) -> T:
        """Calls `function` in the present thread under this state, then restores the thread's own.

        Only the number of threads stays: it is compared anew in every run, since setting it
        later in the caller does not reach a thread that has computed before.
        """
        if torch.get_num_threads() != self.num_threads:
            torch.set_num_threads(self.num_threads)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(self.inference))  # first: it sets grad mode
            stack.enter_context(torch.set_grad_enabled(self.grad))
            if self.cuda_stream is not None:
                stack.enter_context(torch.cuda.device(self.cuda_stream.device))
                stack.enter_context(torch.cuda.stream(self.cuda_stream))
            for wanted in self.autocast:
                if wanted != _autocast(wanted[0]):
                    device, enabled, dtype, cache = wanted
                    stack.enter_context(
                        torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=cache)
                    )
            if self.saved_tensor_hooks is not None:
                stack.enter_context(saved_tensors_hooks(*self.saved_tensor_hooks))
            self._push_modes(stack)
            return function()

    def _push_modes(self, stack: ExitStack) -> None:
        """Pushes the modes themselves: they are entered already, in the caller.

        `with mode:` would run their `__enter__` again, which overwrites what they remember for
        their `__exit__`. It broke selective checkpointing, and a default device would outlive its
        `with torch.device(...)` in the caller.
        """
        for mode in self.function_modes:
            overrides._push_mode(mode)  # type: ignore[no-untyped-call]
            stack.callback(overrides._pop_mode)
        for mode in self.dispatch_modes:
            _python_dispatch._push_mode(mode)
            stack.callback(_python_dispatch._pop_mode, getattr(mode, "_mode_key", None))


def _cuda_stream() -> Any:
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    return torch.cuda.current_stream()


def _autocast_devices() -> tuple[str, ...]:
    accelerator = torch.accelerator.current_accelerator()
    return ("cpu",) if accelerator is None else ("cpu", accelerator.type)


def _autocast(device: str) -> tuple[str, bool, torch.dtype, bool]:
    return (
        device,
        torch.is_autocast_enabled(device),
        torch.get_autocast_dtype(device),
        torch.is_autocast_cache_enabled(),
    )


# One number per autograd node, counted in every thread on its own. Backward runs the ready node
# with the highest number first, so numbers decide in which order gradients of a tensor with several
# users are added up, and thus their last bit.
MOST_TO_COUNT = 1 << 27  # about 20 seconds' worth; see `count_up_to`


def autograd_count() -> int:
    """Returns how many autograd nodes the calling thread has counted."""
    return torch._C._autograd._get_sequence_nr()


def count_up_to(count: int) -> None:
    """Lets the calling thread's count of autograd nodes reach `count`, if it is behind.

    torch has no setter, but every node counts, and one that only ever raises is made in an eighth
    of a microsecond. A new thread in a process that has trained for hours is so far behind that it
    stays so: its gradients are right all the same, but for the order of a few additions.
    """
    behind = count - autograd_count()
    if 0 < behind <= MOST_TO_COUNT and torch.is_grad_enabled():
        make = torch._C._functions.DelayedError
        deque(map(make, repeat("", behind), repeat(1)), 0)  # makes them, keeps none


def refuse_what_threads_cannot_see() -> None:
    """Raises where a transform or trace of the calling thread would silently miss the workers.

    Raises:
        RuntimeError: Inside torch.func transforms, `torch.jit.trace` or `torch.export`.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        reason = "a torch.func transform (grad, vmap, jvp, ...)"
        advice = "use autograd (loss.backward(), torch.autograd.grad) and batches instead"
    elif torch.compiler.is_exporting():
        reason, advice = "torch.export", "export the blocks, the Bridgers or the head one by one"
    elif torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        reason, advice = "torch.jit.trace", "trace the blocks, the Bridgers or the head one by one"
    else:
        return
    raise RuntimeError(
        f"A bridged forward was called inside {reason}. It runs its two towers in threads of their "
        f"own, which {reason} does not see, so that results would be wrong: {advice}."
    )


def operations_are_watched() -> bool:
    """Whether a dispatch mode sees every operation: fake tensors, recordings, counters."""
    return bool(_python_dispatch._get_current_dispatch_mode_stack())
