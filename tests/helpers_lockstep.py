"""Small towers, a plain interleaved loop over the same blocks, and a fresh Python for scripts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bridger.lockstep import StageHooks, run_lockstep

WIDTH = 16
STAGES = (1, 2, 3)  # of 4 blocks
Wrap = Callable[..., Tensor]


class Block(nn.Module):
    """A pre-norm Transformer block on (B, L, C); `inner` wraps its forward (transformers)."""

    def __init__(self, width: int = WIDTH, heads: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )
        self.inner: Wrap | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self._compute(x) if self.inner is None else self.inner(self._compute, x)

    def _compute(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Tower(nn.Module):
    """Stem, blocks, final norm; `outer` wraps each call of a block, as open_clip does."""

    def __init__(self, depth: int = 4, width: int = WIDTH, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width, dropout=dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.outer: Wrap | None = None

    def call(self, block: nn.Module, x: Tensor) -> Tensor:
        result: Tensor = block(x) if self.outer is None else self.outer(block, x)
        return result

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = self.call(block, x)
        result: Tensor = self.norm(x)
        return result


class Bridge(nn.Module):
    """Mixes both states, in its own dtype, and hands back the towers'."""

    def __init__(self, width: int = WIDTH, dropout: float = 0.0) -> None:
        super().__init__()
        self.to_vision, self.to_text = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, vision: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        from_text = self.dropout(self.to_vision(text.float().mean(1, keepdim=True)))
        from_vision = self.dropout(self.to_text(vision.float().mean(1, keepdim=True)))
        return vision + from_text.to(vision.dtype), text + from_vision.to(text.dtype)


class Pair(nn.Module):
    """Two towers with their Bridgers, run in lockstep or by a plain loop."""

    def __init__(self, dropout: float = 0.0, stages: tuple[int, ...] = STAGES) -> None:
        super().__init__()
        self.vision, self.text = Tower(dropout=dropout), Tower(dropout=dropout)
        self.bridges = nn.ModuleList(Bridge(dropout=dropout) for _ in stages)
        self.stages = stages
        self.hooks = hooks_on(self.vision, "vision", stages), hooks_on(self.text, "text", stages)

    def bridge(self, stage: int, vision: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = self.bridges[stage](vision, text)
        return result

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        vision, text = self.hooks
        return run_lockstep(
            (vision, lambda: self.vision(x)), (text, lambda: self.text(y)), self.bridge
        )

    def interleaved(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The same by hand: no hooks answer, no threads run."""
        done = 0
        for stage, block in enumerate((*self.stages, len(self.vision.blocks) - 1)):
            x = self._advance(self.vision, x, done, block + 1)
            y = self._advance(self.text, y, done, block + 1)
            if stage < len(self.stages):
                x, y = self.bridge(stage, x, y)
            done = block + 1
        return self.vision.norm(x), self.text.norm(y)

    def _advance(self, tower: Tower, x: Tensor, start: int, end: int) -> Tensor:
        if start == 0:
            x = tower.stem(x)
        for block in tower.blocks[start:end]:
            x = tower.call(block, x)
        return x


def hooks_on(tower: Tower, kind: str, stages: tuple[int, ...] = STAGES) -> StageHooks:
    return StageHooks([tower.blocks[i] for i in stages], [f"blocks.{i}" for i in stages], kind)


def inputs(batch: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 5, WIDTH), torch.randn(batch, 3, WIDTH)


def use_checkpoints(pair: Pair, where: str) -> None:
    """where: "none", "calls" (hooks fire inside the region), "forwards" (outside), ..."""

    def wrap(function: Callable[..., Any], x: Tensor) -> Any:
        return checkpoint(function, x, use_reentrant=where == "reentrant calls")

    for tower in (pair.vision, pair.text):
        tower.outer = wrap if where in ("calls", "reentrant calls") else None
        for block in tower.blocks:
            block.inner = wrap if where == "forwards" else None


def results_and_gradients(
    pair: Pair, forward: Callable[..., tuple[Tensor, Tensor]], autocast: bool = False
) -> list[Tensor | None]:
    """Outputs, and the gradients of inputs and of all parameters, from a fixed seed."""
    torch.manual_seed(1)
    x, y = (tensor.requires_grad_() for tensor in inputs())
    pair.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        vision, text = forward(x, y)
    (vision.float().square().mean() + text.float().pow(3).mean()).backward()
    gradients = [p.grad if p.grad is None else p.grad.clone() for p in (x, y, *pair.parameters())]
    return [vision.detach(), text.detach(), *gradients]


def same(left: list[Tensor | None], right: list[Tensor | None]) -> bool:
    """Equality to the last bit."""
    return len(left) == len(right) and all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(left, right, strict=True)
    )


def workers() -> int:
    return sum(thread.name == "bridger-tower" for thread in threading.enumerate())


@contextmanager
def no_more_workers() -> Iterator[None]:
    before = workers()
    yield
    assert workers() == before


def run_python(script: str, timeout: float = 300) -> str:
    """Runs a script in a fresh interpreter, which must end well and in time."""
    # A shell's background jobs, and so their children, begin with Ctrl-C ignored.
    script = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{script}"
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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
