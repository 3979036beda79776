"""What the library asks of a vision tower, and what most vision families share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from bridger.towers.base import Block, Tower, shown, state_of, with_state
from bridger.towers.dense import DenseProjection
from bridger.towers.views import tensor_at, view_with


class VisionTower(Tower):
    """A vision encoder.

    Attributes:
        image_size: native (H, W) in pixels, or None where any size is native.
        joint_width: width of the space shared with text, or None where there is none.
        pooled_width: width of the tower's own pooled feature, or None where it has none.
    """

    image_size: tuple[int, int] | None
    joint_width: int | None
    pooled_width: int | None

    def describe(self) -> dict[str, Any]:
        """Return the tower's identity; see `Tower.describe`."""
        strides = [block.stride for block in self.blocks]
        return {**super().describe(), "strides": strides, "joint_width": self.joint_width}

    def check_input(self, pixel_values: Tensor) -> None:
        """Raise a ValueError unless these are pictures (B, 3, H, W) of a usable size.

        Args:
            pixel_values: what a user passed.
        """
        if not isinstance(pixel_values, Tensor) or pixel_values.ndim != 4:
            shape = getattr(pixel_values, "shape", type(pixel_values).__name__)
            raise ValueError(f"pixel_values must be (B, 3, H, W), found {shown(shape)}")
        if pixel_values.shape[0] == 0 or pixel_values.shape[1] != 3:
            raise ValueError(
                "pixel_values must be (B, 3, H, W) with at least one picture of three channels, "
                f"found {shown(pixel_values.shape)}"
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values must be floating-point, found {pixel_values.dtype}: "
                "scale and normalise the pictures first (the Processor does)"
            )
        height, width = pixel_values.shape[-2:]
        if min(self.map_grid((height, width))) < 1:
            raise ValueError(
                f"pictures of {height} x {width} pixels are too small for {self.label()}: "
                f"its coarsest map has one cell per {self.blocks[-1].stride} pixels"
            )

    @abstractmethod
    def map_grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the last block's map size (h, w) for pictures of that size.

        Args:
            image_size: (H, W) in pixels.
        """

    def fit_positions(self, name: str, table: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Return a position table for another picture size.

        Called for each of `position_names()`. Returning the table itself leaves it to the tower.

        Args:
            name: of the table, below `module`.
            table: the tower's own, or the adapter's.
            image_size: (H, W) in pixels.
        """
        return table

    def call(self, pixel_values: Tensor, tensors: Mapping[str, Tensor]) -> Any:
        """Run the tower's own forward, with `tensors` standing in and positions resized.

        Args:
            pixel_values: (B, 3, H, W); cast to the dtype that the tower takes.
            tensors: adapter-owned tensors in the tower's own shapes, by name below `module`.

        Returns:
            What the tower returns. With nothing to replace, `module` itself is called.
        """
        self._check_tensors(tensors)
        height, width = pixel_values.shape[-2:]
        standing_in = dict(tensors)
        for name in self.position_names():
            table = tensors[name] if name in tensors else tensor_at(self.module, name)
            fitted = self.fit_positions(name, table, (height, width))
            if fitted is not table:
                standing_in[name] = fitted
        return self.run(view_with(self.module, standing_in), pixel_values)

    @abstractmethod
    def run(self, module: Any, pixel_values: Tensor) -> Any:
        """Call the module, or a view of it, in the family's way.

        Args:
            module: the tower's, or a view of it.
            pixel_values: (B, 3, H, W).
        """

    @abstractmethod
    def read_map(self, block: int, output: Any, image_size: tuple[int, int]) -> Tensor:
        """Return a block's state as a map (B, C, H, W), row-major, without class tokens.

        Args:
            block: index into `blocks`.
            output: what the block returned.
            image_size: (H, W) in pixels.
        """

    @abstractmethod
    def write_map(self, block: int, output: Any, new_map: Tensor) -> Any:
        """Return a block's output with another map, in the same container and dtype.

        Args:
            block: index into `blocks`.
            output: what the block returned, for B images.
            new_map: (B, C, H, W) or (B*N, C, H, W), image by image: what the map does not hold
                (class tokens) is then repeated for each of an image's N expressions.

        Returns:
            A new output; the given one is not written to.
        """

    @abstractmethod
    def pooled(self, result: Any) -> Tensor | None:
        """Return the tower's own pooled image feature (B, `pooled_width`) from `call`'s result.

        Args:
            result: what `call` returned.
        """

    def dense_projection(self, connect: bool = False) -> DenseProjection | None:
        """Return a new module that makes the last map dense, or None where there is no recipe.

        Args:
            connect: add the released ETRIS code's residual (CLIP ResNets only).
        """
        if connect:
            raise ValueError(
                f"the residual `connect` exists for CLIP ResNets only, not for {self.label()}"
            )
        return self._dense_projection()

    def _dense_projection(self) -> DenseProjection | None:
        return None


class TokenVisionTower(VisionTower):
    """A vision encoder whose states are tokens (B, prefix + h*w, C): any plain ViT.

    The grid is image size // patch: pixels beyond the last whole patch are dropped by such
    towers, so the map covers the picture's top left h*patch x w*patch pixels.

    Attributes:
        patch: pixels per patch, in both directions.
        prefix: class and register tokens before the patches.
    """

    patch: int
    prefix: int

    def map_grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the grid of whole patches.

        Args:
            image_size: (H, W) in pixels.
        """
        return image_size[0] // self.patch, image_size[1] // self.patch

    def block_grid(self, block: int, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return a block's grid, which is the last one's unless blocks merge tokens.

        Args:
            block: index into `blocks`.
            image_size: (H, W) in pixels.
        """
        return self.map_grid(image_size)

    def read_map(self, block: int, output: Any, image_size: tuple[int, int]) -> Tensor:
        """Return the patches as a map; see `VisionTower.read_map`."""
        state, (height, width) = state_of(output), self.block_grid(block, image_size)
        if state.ndim != 3 or state.shape[1] != self.prefix + height * width:
            raise RuntimeError(
                f"block {self.blocks[block].name!r} of {self.label()} returned a state of shape "
                f"{tuple(state.shape)}; for pictures of {image_size[0]} x {image_size[1]} pixels "
                f"{self.prefix} + {height}*{width} tokens were expected. Is patch dropout on?"
            )
        return rearrange(state[:, self.prefix :], "b (h w) c -> b c h w", h=height)

    def write_map(self, block: int, output: Any, new_map: Tensor) -> Any:
        """Return the output with other patches; see `VisionTower.write_map`."""
        state = state_of(output)
        repeats = _repeats(self.blocks[block], state.shape[0], new_map.shape[0])
        patches = rearrange(new_map.to(state.dtype), "b c h w -> b (h w) c")
        if patches.shape[1:] != (state.shape[1] - self.prefix, state.shape[2]):
            raise ValueError(
                f"block {self.blocks[block].name!r} holds {state.shape[1] - self.prefix} patches "
                f"of {state.shape[2]} channels, found a map {tuple(new_map.shape)}"
            )
        kept = state[:, : self.prefix].repeat_interleave(repeats, dim=0)
        written = torch.cat([kept, patches], dim=1)
        # Some ViTs without prefix tokens keep their patch convolution's memory order, channels
        # outermost, through all blocks; in another order sums may differ in the last bit.
        if state.stride(1) < state.stride(2):
            written = written.mT.contiguous().mT
        return with_state(output, written)


class MapVisionTower(VisionTower):
    """A vision encoder whose states are maps (B, C, H, W): a CNN."""

    def read_map(self, block: int, output: Any, image_size: tuple[int, int]) -> Tensor:
        """Return the state; see `VisionTower.read_map`."""
        state = state_of(output)
        width = self.blocks[block].width
        if state.ndim != 4 or state.shape[1] != width:
            raise RuntimeError(
                f"block {self.blocks[block].name!r} of {self.label()} returned a state of shape "
                f"{tuple(state.shape)}; a map (B, C, H, W) of {width} channels was expected, so "
                "this block cannot be bridged"
            )
        return state

    def write_map(self, block: int, output: Any, new_map: Tensor) -> Any:
        """Return the output with another map; see `VisionTower.write_map`."""
        state = state_of(output)
        _repeats(self.blocks[block], state.shape[0], new_map.shape[0])
        if new_map.shape[1:] != state.shape[1:]:
            raise ValueError(
                f"block {self.blocks[block].name!r} holds maps (C, H, W) = "
                f"{tuple(state.shape[1:])}, found {tuple(new_map.shape[1:])}"
            )
        written = new_map.to(state.dtype)
        # In another memory order sums may differ in the last bit.
        if state.is_contiguous(memory_format=torch.channels_last) and not state.is_contiguous():
            written = written.contiguous(memory_format=torch.channels_last)
        return _with_rows(output, written)


class ChannelsLastMapVisionTower(MapVisionTower):
    """A vision encoder whose states are maps (B, H, W, C): Swin Transformers."""

    def read_map(self, block: int, output: Any, image_size: tuple[int, int]) -> Tensor:
        """Return the state, channels first; see `VisionTower.read_map`."""
        return super().read_map(block, state_of(output).movedim(-1, 1), image_size)

    def write_map(self, block: int, output: Any, new_map: Tensor) -> Any:
        """Return the output with another map, channels last; see `VisionTower.write_map`."""
        written: Tensor = super().write_map(block, state_of(output).movedim(-1, 1), new_map)
        return _with_rows(output, written.movedim(1, -1).contiguous())


def grid_of(image_size: tuple[int, int], stride: int, rounds_up: bool = True) -> tuple[int, int]:
    """Return the map size (h, w) of a picture (H, W), rounded where the stride does not divide."""
    extra = stride - 1 if rounds_up else 0
    return (image_size[0] + extra) // stride, (image_size[1] + extra) // stride


def _repeats(block: Block, old: int, new: int) -> int:
    repeats, rest = divmod(new, old)
    if rest or not repeats:
        raise ValueError(
            f"block {block.name!r} ran on {old} images, so a new map must have a multiple of "
            f"{old} rows, found {new}"
        )
    return repeats


def _with_rows(output: Any, state: Tensor) -> Any:
    """Return an output with another state, and what else it holds of each image as often.

    A block may hand class tokens on beside its map (timm's PiT).
    """
    written = with_state(output, state)
    old = state_of(output).shape[0]
    if not isinstance(written, tuple) or state.shape[0] == old:
        return written
    return (
        state,
        *(
            other.repeat_interleave(state.shape[0] // old, dim=0)
            if isinstance(other, Tensor) and other.ndim and other.shape[0] == old
            else other
            for other in written[1:]
        ),
    )
