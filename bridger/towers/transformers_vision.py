"""What the vision models of transformers share: bases, for which a family declares its parts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from bridger.towers.base import child_at, is_a, pair, unwrap
from bridger.towers.dense import DenseProjection, NormProjection
from bridger.towers.transformers import (
    LIBRARY,
    call_plainly,
    core_of,
    core_path,
    name_of,
    part_of,
)
from bridger.towers.vision import TokenVisionTower, VisionTower

POSITIONS = (
    "position_embeddings",
    "position_embedding",
    "position_embedding.weight",
    "relative_position_bias_table",
)
"""How names of parameters end that hold positions, absolute or relative."""

HOME = "vision_model"
"""The child that holds a vision model, besides the one that `base_model_prefix` names."""


class TransformersVision(VisionTower):
    """A vision model of transformers, alone or within a model with a task's head.

    Names of parts differ between versions of the library: of several paths below the encoder,
    the first that the model has is taken.

    Attributes:
        classes: classes that are the family's model.
        refused: classes that look alike but give no map, each with the reason and the way out.
        blocks_at: where its blocks lie, in a list.
        norms_at: where its final norm lies; a model without one is dense as its last block is.
        pools: what stands for the picture where the model does not pool by itself: the "first"
            token of its normed last state, as its classifier reads it, or the "mean" of all.
    """

    library = LIBRARY
    classes: ClassVar[tuple[str, ...]]
    refused: ClassVar[Mapping[str, str]] = {}
    blocks_at: ClassVar[tuple[str, ...]]
    norms_at: ClassVar[tuple[str, ...]] = ()
    pools: str = "mean"

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether it is one of the family's classes, or a model with a head on one of them."""
        return core_of(module, (*cls.classes, *cls.refused), HOME) is not None

    def __init__(self, given: nn.Module) -> None:
        """Find the model, its encoder and its name; families read the rest.

        Raises:
            ValueError: the model's states are no maps, or a part lies where no known version of
                the library has it.
        """
        whole = unwrap(given)
        core: Any = core_of(whole, (*self.classes, *self.refused), HOME)
        for name, reason in self.refused.items():
            if is_a(core, LIBRARY, name):
                raise ValueError(f"{type(whole).__name__} of {LIBRARY} gives no map: {reason}")
        self.module = core
        self._path = core_path(core, "vision_model")
        self.name = name_of(core) or name_of(whole)
        # Not every class of a family takes the option, and not in every version.
        names = inspect.signature(type(self._encoder(core)).forward).parameters
        self._interpolates = "interpolate_pos_encoding" in names

    def _encoder(self, module: Any) -> Any:
        """Return the encoder proper in `module`, or in a view of it."""
        return module.vision_model if self._path else module

    def _layers(self) -> list[Any]:
        """Return the blocks."""
        return list(part_of(self._encoder(self.module), self.blocks_at, self.label()))

    @property
    def norm_path(self) -> str | None:
        """Where the final norm lies below `module`, or None where there is none."""
        encoder = self._encoder(self.module)
        for path in self.norms_at:
            norm = child_at(encoder, path)
            if norm is not None and not isinstance(norm, nn.Identity):
                return f"{self._path}{path}"
        return None

    def position_names(self) -> tuple[str, ...]:
        """Return the names of all tables, of absolute and of relative positions."""
        names = (name for name, _ in self._encoder(self.module).named_parameters())
        return tuple(f"{self._path}{name}" for name in names if name.endswith(POSITIONS))

    def run(self, module: Any, pixel_values: Tensor) -> Any:
        """Call the model in its own dtype, and let it resize its positions by itself.

        At the native size they are left alone, which also suits tables that are no squares.
        """
        size = (pixel_values.shape[2], pixel_values.shape[3])
        inputs: dict[str, Any] = {"pixel_values": pixel_values.to(self._dtype(module))}
        if self._interpolates and size != self.image_size:
            inputs["interpolate_pos_encoding"] = True
        return call_plainly(module, **inputs)

    def _dtype(self, module: Any) -> Any:
        return next(p.dtype for p in module.parameters() if p.is_floating_point())

    def pooled(self, result: Any) -> Tensor:
        """Return what the model calls `pooler_output`, or what `pools` says in its stead."""
        pooled: Tensor | None = getattr(result, "pooler_output", None)
        if pooled is None:
            pooled = self.pool(result.last_hidden_state)
        return pooled.flatten(1)

    def pool(self, last: Tensor) -> Tensor:
        """Pool the model's last state (B, L, C) to (B, C)."""
        return last[:, 0] if self.pools == "first" else last.mean(dim=1)

    def _dense_projection(self) -> DenseProjection | None:
        norm = self.norm_path
        if norm is None:
            return None
        return NormProjection(self.module, norm, None, self.blocks[-1].width)


class TransformersTokens(TransformersVision, TokenVisionTower):
    """A plain ViT of transformers: all blocks alike, patches behind the class tokens.

    Attributes:
        class_tokens: before the patches, besides the registers that the config counts.
    """

    class_tokens: ClassVar[int] = 1

    def __init__(self, given: nn.Module) -> None:
        """Read the ViT, whose patches must be square; see `TransformersVision`."""
        super().__init__(given)
        config = self._encoder(self.module).config
        height, width = pair(config.patch_size)
        if height != width:
            raise ValueError(f"{self.label()} must have square patches, found {height} x {width}")
        self.patch, self.image_size = height, pair(config.image_size)
        self.prefix = self.class_tokens + getattr(config, "num_register_tokens", 0)
        layers, channels = self._layers(), config.hidden_size
        self.blocks = self._name_blocks(
            given, layers, [channels] * len(layers), [self.patch] * len(layers)
        )
        self.pooled_width = self._pooled_width(channels)
        self.joint_width = None

    def _pooled_width(self, channels: int) -> int:
        dense = child_at(self._encoder(self.module), "pooler.dense")
        return channels if dense is None else int(dense.out_features)

    def pool(self, last: Tensor) -> Tensor:
        """Pool the first token, or the mean of the patches; see `TransformersVision`."""
        return last[:, 0] if self.pools == "first" else last[:, self.prefix :].mean(dim=1)
