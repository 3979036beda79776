"""Vision towers of no known family: read off a trial forward, or as the user describes them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from einops import rearrange
from torch import Tensor, nn

from bridger.towers.base import pair, state_of, unwrap, with_state
from bridger.towers.discovery import find_blocks
from bridger.towers.trial import Firing, UnreadableTowerError, hinted, home_of, pooled_in, watch
from bridger.towers.vision import MapVisionTower, TokenVisionTower, VisionTower, grid_of
from bridger.towers.vision_layout import (
    MAPS,
    TOKENS,
    MisreadError,
    Read,
    Said,
    could_be_state,
    read_states,
    trial_pictures,
)

FREE = ((64, 96), (56, 84), (224, 320))
"""Sizes tried first, for patches of 8, 16 and 32 pixels, then 14: what takes one takes any."""

NATIVE = (224, 32, 64, 128, 96, 48, 112, 160, 192, 256, 336, 384, 448, 512)
"""Sides of square pictures, tried where no other size passes and the module names none."""

MISREADINGS = 5
"""Sizes at which a tower may run without being understood, before more are not tried."""


def generic_vision(
    module: nn.Module,
    *,
    blocks: str | Sequence[str] | None = None,
    layout: str | None = None,
    prefix: int | None = None,
    patch: int | None = None,
    image_size: int | Sequence[int] | None = None,
) -> VisionTower:
    """Describe a vision encoder that no family knows, for `attach_bridgers` to take in its place.

    What is not said is read off a trial forward, which leaves no trace on the module.

    Args:
        module: an encoder whose `forward` takes pictures (B, 3, H, W) first.
        blocks: the name of a module whose children are the blocks, or the blocks' names, in the
            order in which they run.
        layout: of the blocks' states: "b c h w" or "b h w c" for maps, "b l c" or "l b c" for
            tokens, which are `prefix` others and then the patches, row by row.
        prefix: class and register tokens before the patches. Saying so also says that the
            patches are in order; else that is tried.
        patch: pixels per patch, in both directions.
        image_size: the one size (H, W), or H = W, that the encoder takes. By default several
            are tried; an encoder that takes a picture that is not square may get any size.

    Returns:
        A tower without a space shared with text.

    Raises:
        TypeError: the module takes no pictures, or nothing in it looks like blocks.
        ValueError: something is ambiguous or does not hold; the message says which argument
            decides.
    """
    if layout is not None and layout not in (*TOKENS, *MAPS):
        raise ValueError(f"layout must be one of {[*MAPS, *TOKENS]}, found {layout!r}")
    inner = unwrap(module)
    said = Said(layout, prefix, patch)
    errors: dict[tuple[int, int], Exception] = {}
    for size, free in sizes_to_try(inner, image_size):
        pictures = trial_pictures(inner, size)
        try:
            trace = watch(inner, functools.partial(inner, pictures))
        except Exception as error:  # whatever an unknown module raises at a size it cannot take
            errors[size] = error
            continue
        found = find_blocks(inner, trace, could_be_state, blocks)
        try:
            read = read_states(inner, trace, found, size, said)
        except MisreadError as error:
            # A tower that resizes pictures by itself is understood at its own size only.
            errors[size] = error
            if sum(isinstance(e, MisreadError) for e in errors.values()) == MISREADINGS:
                break
            continue
        tower = (GenericTokens if read.layout in TOKENS else GenericMaps)(module)
        tower.describe_as(found, read, None if free else size, pooled_in(trace.result))
        return tower
    raise _refusal(inner, errors)


def takes_pictures(module: nn.Module) -> bool:
    """Whether the module runs on pictures of some usual size."""
    for size, _ in sizes_to_try(module, None):
        try:
            watch(module, functools.partial(module, trial_pictures(module, size)))
        except Exception:  # see generic_vision
            continue
        return True
    return False


class _Unknown(VisionTower):
    """What generic towers share: the module is called as it is, and describes nothing itself.

    A second base class reads and writes states of one layout.

    Attributes:
        expects: that layout.
        layout: of the blocks' states.
        block_names: below the module that peft may have wrapped.
    """

    library = "generic"
    family = "vision"
    expects: ClassVar[str]
    layout: str
    block_names: list[str]

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Any module may be tried; this class stands in no registry."""
        return True

    def __init__(self, given: nn.Module) -> None:
        """Hold the module; what it is like is said by `describe_as`."""
        self.module = unwrap(given)
        self.joint_width = None

    def describe_as(
        self,
        blocks: Sequence[Firing],
        read: Read,
        image_size: tuple[int, int] | None,
        pooled: Tensor | None,
    ) -> None:
        """Set what a trial forward found."""
        channel = read.layout.split().index("c")
        self.layout, self.image_size = read.layout, image_size
        self.block_names = [block.name for block in blocks]
        self.blocks = self._name_blocks(
            self.given,
            [block.module for block in blocks],
            [block.shape[channel] for block in blocks],
            read.strides,
        )
        self.pooled_width = None if pooled is None else pooled.shape[1]

    def describe(self) -> dict[str, Any]:
        """Return the tower's identity and all that `generic_vision` must be told to repeat it."""
        return {
            **super().describe(),
            "class": type(self.module).__name__,
            "blocks": self.block_names,
            "layout": self.layout,
            "prefix": None,
            "patch": None,
            "image_size": self.image_size and list(self.image_size),
        }

    def position_names(self) -> tuple[str, ...]:
        """Return nothing: which tensors hold positions is not known."""
        return ()

    def check_input(self, pixel_values: Tensor) -> None:
        """Also refuse other sizes where the tower is known to take one; see `VisionTower`."""
        super().check_input(pixel_values)
        if self.image_size is not None and pixel_values.shape[-2:] != self.image_size:
            height, width = self.image_size
            raise ValueError(
                f"{type(self.module).__name__} is known to take pictures of {height} x {width} "
                f"pixels, found {pixel_values.shape[-2]} x {pixel_values.shape[-1]}. If it takes "
                "those too, attach generic_vision(module, image_size=...)"
            )

    def run(self, module: Any, pixel_values: Tensor) -> Any:
        """Call the module, in the dtype of its first floating-point parameter."""
        return module(pixel_values.to(home_of(module).dtype))

    def pooled(self, result: Any) -> Tensor | None:
        """Return the first feature (B, D) in the module's result, or None."""
        return None if self.pooled_width is None else pooled_in(result)

    def read_map(self, block: int, output: Any, image_size: tuple[int, int]) -> Tensor:
        """Return the state as the other base class reads it, in the layout that it expects."""
        turned = self._turned(output, f"{self.layout} -> {self.expects}")
        return super().read_map(block, turned, image_size)  # type: ignore[safe-super]

    def write_map(self, block: int, output: Any, new_map: Tensor) -> Any:
        """Return the output with another map, back in the tower's own layout."""
        turned = self._turned(output, f"{self.layout} -> {self.expects}")
        written = super().write_map(block, turned, new_map)  # type: ignore[safe-super]
        return self._turned(written, f"{self.expects} -> {self.layout}")

    def _turned(self, output: Any, pattern: str) -> Any:
        """Return a block's output with its state in another layout."""
        return with_state(output, rearrange(state_of(output), pattern))


class GenericTokens(_Unknown, TokenVisionTower):
    """An unknown encoder with states (B, prefix + h*w, C) or (prefix + h*w, B, C)."""

    expects = TOKENS[0]

    def describe_as(
        self,
        blocks: Sequence[Firing],
        read: Read,
        image_size: tuple[int, int] | None,
        pooled: Tensor | None,
    ) -> None:
        """Set what a trial forward found."""
        super().describe_as(blocks, read, image_size, pooled)
        self.prefix, self.patch = read.prefix, read.patch

    def describe(self) -> dict[str, Any]:
        """Return the tower's identity; see `_Unknown.describe`."""
        return {**super().describe(), "prefix": self.prefix, "patch": self.patch}


class GenericMaps(_Unknown, MapVisionTower):
    """An unknown encoder with states (B, C, H, W) or (B, H, W, C)."""

    expects = MAPS[0]

    def map_grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the last map's size; encoders that round down have a row or column less."""
        return grid_of(image_size, self.blocks[-1].stride or 1)


def sizes_to_try(
    module: nn.Module, image_size: int | Sequence[int] | None
) -> Iterator[tuple[tuple[int, int], bool]]:
    """Yield sizes (H, W) to try, each with whether a tower that takes it is free to take others.

    Args:
        module: the tower, which may name its size.
        image_size: the one size to try, or None.
    """
    if image_size is not None:
        yield pair(image_size), False
        return
    yield from ((size, True) for size in FREE)
    configs = hinted(module, "pretrained_cfg", "default_cfg")  # timm's
    named = [c["input_size"][1:] for c in configs if isinstance(c, Mapping) and "input_size" in c]
    hints = [
        pair(hint)
        for hint in [*hinted(module, "image_size", "img_size", "input_size"), *named]
        if isinstance(hint, int) or (isinstance(hint, (tuple, list)) and len(hint) == 2)
    ]
    yield from ((size, False) for size in dict.fromkeys([*hints, *((n, n) for n in NATIVE)]))


def _refusal(module: nn.Module, errors: Mapping[tuple[int, int], Exception]) -> Exception:
    """Return what to raise where no size led to a tower: what was misread, or what was raised."""
    kind = type(module).__name__
    misread = [(size, e) for size, e in errors.items() if isinstance(e, MisreadError)]
    if misread:
        size, error = misread[0]
        return ValueError(f"{kind} cannot be read with pictures of {size[0]} x {size[1]}: {error}")
    telling = sorted(errors, key=lambda size: size in FREE)  # a size that the module names first
    shown = [f"{type(errors[size]).__name__}: {str(errors[size])[:150]}" for size in telling]
    return UnreadableTowerError(
        f"{kind} ran on pictures (B, 3, H, W) of none of the sizes {list(errors)} "
        f"({'; '.join(list(dict.fromkeys(shown))[:3])}). Pass the image "
        "encoder alone, with `image_size` if it takes one size only: "
        "attach_bridgers(generic_vision(encoder, image_size=...), text)"
    )
