"""Bottleneck adapters inside the towers' blocks: the rival that Bridgers are compared with.

One small net for each block, with D the way into a narrow width and U the way out, which starts at
zero:

- "after" (sequential): y = b(x) + U relu(D b(x)), as of Houlsby et al. (ICML 2019), at the single
  place that Pfeiffer et al. (EACL 2021) keep: behind the block;
- "beside" (parallel): y = b(x) + U relu(D x), as of He et al. (ICLR 2022).

A bottleneck is a child of its block, or of a module inside it where the block runs whatever
children it has. A hook that looks it up in the block which it is called with adds its output. So a
view of the tower, in which an adapter's copies stand in for its tensors, runs the adapter's
numbers, and a plain call those of the tower, which change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bridger.config import Config, check_known, check_whole
from bridger.tower_peft import trial_inputs
from bridger.towers import TextTower, VisionTower, find_text_tower, find_vision_tower
from bridger.towers.base import Block, Tower, state_of, with_state
from bridger.towers.trial import Firing, given_state, home_of, watch

Place = Literal["after", "beside"]
NAME = "bottleneck_adapter"
"""Of the child; some models have a `bottleneck` of their own."""


@dataclass(frozen=True)
class BottleneckConfig(Config):
    """Which bottleneck adapters there are.

    Attributes:
        width: of the state between D and U.
        place: "after" or "beside" the blocks.
        towers: the sides that have them.

    Raises:
        ValueError: a width or a name that cannot be.
    """

    width: int = 16
    place: Place = "after"
    towers: tuple[str, ...] = ("vision", "text")

    def __post_init__(self) -> None:
        check_whole("width", self.width)
        check_known("place", self.place, get_args(Place))
        if not self.towers:
            raise ValueError("towers must name a side, 'vision' or 'text', got none")
        for side in self.towers:
            check_known("towers", side, ("vision", "text"))

    @property
    def trainable(self) -> tuple[str, ...]:
        """The patterns of `attach_bridgers(trainable=...)` that mean them."""
        return tuple(f"{side}.*.{NAME}.*" for side in self.towers)


class BottleneckAdapter(nn.Module):
    """U relu(D x), for states with channels last, or maps (B, C, H, W).

    Args:
        in_width: channels of what the block is given.
        out_width: channels of its state.
        config: says the rest.
        is_map: whether these are maps (B, C, H, W).
    """

    def __init__(self, in_width: int, out_width: int, config: BottleneckConfig, is_map: bool):
        super().__init__()
        self.config, self.is_map = config, is_map
        from_width = out_width if config.place == "after" else in_width
        self.down = _linear(from_width, config.width, is_map)
        self.up = _linear(config.width, out_width, is_map)
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)

    def forward(self, given: Tensor, state: Tensor) -> Tensor:
        """Return what is added to a block's state.

        Args:
            given: what the block was given.
            state: what it made of that.
        """
        narrow = F.relu(self.down(state if self.config.place == "after" else given))
        if self.is_map:  # a block may shrink its map
            narrow = F.adaptive_avg_pool2d(narrow, (state.shape[-2], state.shape[-1]))
        added: Tensor = self.up(narrow)
        return added


class Bottlenecks:
    """The bottleneck adapters in a pair of towers.

    Attributes:
        config: which there are.
    """

    def __init__(self, config: BottleneckConfig) -> None:
        self.config = config
        self._placed: list[tuple[nn.Module, RemovableHandle]] = []

    def _place(self, block: nn.Module, home: str, adapter: BottleneckAdapter) -> None:
        holder = block.get_submodule(home)
        holder.add_module(NAME, adapter)
        path = _joined(home, NAME)
        handle = block.register_forward_hook(partial(_add, path), with_kwargs=True)
        self._placed.append((holder, handle))

    def remove(self) -> None:
        """Take them out of the towers again; a second call does nothing."""
        while self._placed:
            holder, handle = self._placed.pop()
            handle.remove()
            delattr(holder, NAME)


def insert_bottlenecks(
    vision_model: nn.Module | VisionTower,
    text_model: nn.Module | TextTower,
    config: BottleneckConfig | None = None,
) -> Bottlenecks:
    """Put bottleneck adapters into the blocks of two towers, before these are attached.

    They change nothing as they are. An encoder that is attached with
    `trainable=config.trainable` trains copies of them, and saves these with the adapter, which
    loading puts into plain towers again.

    Args:
        vision_model: as for `attach_bridgers`, like `text_model`.
        text_model: the text encoder.
        config: which there shall be.

    Returns:
        What takes them out again. Encoders that are attached to the towers must be detached first.

    Raises:
        TypeError: a block's state is neither a map nor tokens, or no module in it can have one.
        ValueError: the towers hold some already, or a block's sizes do not allow them.

    Example:
        >>> vision, text, _ = bridger.load_tiny_clip()
        >>> config = BottleneckConfig(width=8)
        >>> bottlenecks = insert_bottlenecks(vision, text, config)
        >>> encoder = attach_bridgers(vision, text, config=None, trainable=config.trainable)
    """
    config = config or BottleneckConfig()
    vision, text = find_vision_tower(vision_model), find_text_tower(text_model)
    if find_bottlenecks(vision, text) is not None:
        raise ValueError("the towers hold bottleneck adapters already: take these out first")
    pixels, ids, mask = trial_inputs(vision, text)
    sides: dict[str, tuple[Tower, Callable[[], Any]]] = {
        "vision": (vision, lambda: vision.call(pixels, {})),
        "text": (text, lambda: text.call(ids, mask, {})),
    }
    fitting = [
        (block.module, home, _fitting(config, side, block, fired), home_of(tower.module))
        for side, (tower, run) in sides.items()
        if side in config.towers
        for block, fired, home in _try(tower, run)
    ]
    bottlenecks = Bottlenecks(config)
    for block, home, adapter, like in fitting:
        bottlenecks._place(block, home, adapter.to(like.device, like.dtype))
    return bottlenecks


def find_bottlenecks(vision: Tower, text: Tower) -> BottleneckConfig | None:
    """Return which bottleneck adapters are in two towers, or None where there are none."""
    for tower in (vision, text):
        for block in tower.blocks:
            for module in block.module.modules():
                if isinstance(module, BottleneckAdapter):
                    return module.config
    return None


def put_back_bottlenecks(
    vision: VisionTower, text: TextTower, saved: Mapping[str, Any] | None
) -> list[Bottlenecks]:
    """Put a saved adapter's bottleneck adapters into its towers, with fresh numbers.

    Args:
        vision: the vision tower.
        text: the text tower.
        saved: their config; None: the adapter has none.

    Returns:
        What takes them out again: nothing where the towers hold such ones already.

    Raises:
        ValueError: the towers hold others.
    """
    config = None if saved is None else BottleneckConfig.from_dict(saved)
    found = find_bottlenecks(vision, text)
    if config is None or config == found:
        return []
    if found is not None:
        raise ValueError(f"the adapter needs {config} in the towers, and these hold {found}")
    return [insert_bottlenecks(vision, text, config)]


def owns_some(names: Iterable[str]) -> bool:
    """Whether there are bottleneck adapters' among the names of an adapter's tower tensors."""
    return any(f"/{NAME}/" in name for name in names)


def _add(
    path: str, block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> Any:
    """Add a bottleneck's output to its block's, in a view as in the block itself."""
    adapter, state = block.get_submodule(path), state_of(output)
    return with_state(output, state + adapter(given_state(args, kwargs), state))


def _try(tower: Tower, run: Callable[[], Any]) -> list[tuple[Block, Firing, str]]:
    """Return by one forward what every block is given and returns, and where its adapter can be.

    That is a path below the block, as `_home` finds it.
    """
    homes: dict[nn.Module, str] = {}

    def look(block: nn.Module, fired: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        homes[block] = _home(fired, args, kwargs)

    handles = [
        block.module.register_forward_hook(partial(look, block.module), with_kwargs=True)
        for block in tower.blocks
    ]
    try:
        firings = {firing.module: firing for firing in watch(tower.module, run).firings}
    finally:
        for handle in handles:
            handle.remove()
    return [(block, firings[block.module], homes[block.module]) for block in tower.blocks]


def _home(block: nn.Module, args: Any, kwargs: Any) -> str:
    """Return the path of the first module in which one more child changes nothing of what runs.

    Sequences and others run all their children, and would run the adapter too.

    Raises:
        TypeError: there is none.
    """

    def run() -> list[nn.Module]:
        trace = watch(block, lambda: block.forward(*args, **kwargs))
        return [firing.module for firing in trace.firings]

    def runs_alike_with_one_in(path: str) -> bool:
        holder = block.get_submodule(path)
        holder.add_module(NAME, nn.Identity())
        try:
            return run() == plain
        except Exception:  # whatever a block does that cannot use the child
            return False
        finally:
            delattr(holder, NAME)

    plain = run()
    for path in _paths(block):
        if runs_alike_with_one_in(path):
            return path
    raise TypeError(
        f"a block of class {type(block).__name__} has no place for a bottleneck adapter: one more "
        "child changes what it runs, wherever it is put"
    )


def _paths(module: nn.Module, path: str = "") -> Iterator[str]:
    """Yield the paths of a module and of all inside it, last children first."""
    yield path
    for name, child in reversed([*module.named_children()]):
        yield from _paths(child, _joined(path, name))


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _fitting(config: BottleneckConfig, side: str, block: Block, fired: Firing) -> BottleneckAdapter:
    """Return a fresh adapter for a block that was given and made such states."""
    name, width = block.name, block.width
    given, state = fired.given, fired.state
    if given is None or state is None or state.ndim not in (3, 4) or given.ndim != state.ndim:
        raise TypeError(
            f"block {name!r} of the {side} tower makes {_shape(state)} of {_shape(given)}: "
            "bottleneck adapters take maps (B, C, H, W), and states with channels last"
        )
    is_map = state.ndim == 4 and state.shape[1] == width
    channels, cells = (1, slice(2, None)) if is_map else (-1, slice(None, -1))
    sizes = list(zip(given.shape[cells], state.shape[cells], strict=True))
    fits = all(g >= s for g, s in sizes) if is_map else all(g == s for g, s in sizes)
    if config.place == "beside" and not fits:
        raise ValueError(
            f"block {name!r} of the {side} tower turns {_shape(given)} into {_shape(state)}, which "
            "a bottleneck adapter beside it cannot follow: it keeps sizes, or shrinks maps "
            "(B, C, H, W). Use place='after'"
        )
    return BottleneckAdapter(given.shape[channels], width, config, is_map)


def _linear(in_width: int, out_width: int, is_map: bool) -> nn.Linear | nn.Conv2d:
    return nn.Conv2d(in_width, out_width, 1) if is_map else nn.Linear(in_width, out_width)


def _shape(state: Tensor | None) -> str:
    return "nothing" if state is None else str(tuple(state.shape))
