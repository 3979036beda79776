"""Towers of open_clip: its ViT and CLIP ResNet, and the text Transformer in both of its homes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bridger.towers.base import bare, is_a, pair, unwrap
from bridger.towers.dense import (
    DenseProjection,
    NormProjection,
    QueryPoolValues,
    SpatialAttentionPool,
)
from bridger.towers.registry import register_tower
from bridger.towers.text import (
    TextTower,
    fill_up,
    siglip_mask,
    siglip_pad_id,
    through_first,
    through_highest,
)
from bridger.towers.views import resize_positions, square_grid, tensor_at, view_with
from bridger.towers.vision import MapVisionTower, TokenVisionTower

WHOLE = ("CLIP", "CustomTextCLIP", "CoCa")
"""Classes of open_clip that hold a vision tower as `visual`."""


def visual_of(module: nn.Module) -> Any:
    """Return the vision tower of a whole model, or the module itself."""
    return module.visual if is_a(module, "open_clip", *WHOLE) else module


def _first(result: Any) -> Tensor:
    """Return the pooled feature of a tower built with or without `output_tokens`."""
    pooled: Tensor = result[0] if isinstance(result, tuple) else result
    return pooled


def _blocks_of(transformer: Any, what: str) -> nn.ModuleList:
    if not getattr(transformer, "batch_first", True):
        raise ValueError(f"{what} runs with batch_first=False, which is not supported")
    blocks: nn.ModuleList = transformer.resblocks
    return blocks


@register_tower("vision")
class OpenClipViT(TokenVisionTower):
    """open_clip's `VisionTransformer`, alone or as the `visual` of a whole model."""

    library = "open_clip"
    family = "VisionTransformer"
    prefix = 1

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether it is the ViT, or a whole model that holds one."""
        return is_a(visual_of(module), "open_clip", "VisionTransformer")

    def __init__(self, given: nn.Module) -> None:
        """Read the ViT; with pool_type 'none' it has no pooled feature."""
        visual = visual_of(unwrap(given))
        _refuse_vit(visual)
        self.module = visual
        self.patch = visual.patch_size[0]
        self.image_size = pair(visual.image_size)
        width: int = bare(visual.conv1).out_channels
        blocks = _blocks_of(visual.transformer, self.label())
        self.blocks = self._name_blocks(
            given, list(blocks), [width] * len(blocks), [self.patch] * len(blocks)
        )
        self.joint_width = None if visual.proj is None else visual.proj.shape[1]
        self.pooled_width = self.joint_width or int(visual.ln_post.normalized_shape[0])
        if visual.pool_type == "none":
            self.pooled_width = None

    def position_names(self) -> tuple[str, ...]:
        """Return the name of the table."""
        return ("positional_embedding",)

    def fit_positions(self, name: str, table: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Resize all rows but the class token's to the picture's grid."""
        grid: Any = self.module.grid_size
        return resize_positions(table, (grid[0], grid[1]), self.map_grid(image_size), self.prefix)

    def run(self, module: Any, pixel_values: Tensor) -> Any:
        """Call the ViT, in the dtype of its patch convolution."""
        dropout = module.patch_dropout
        if dropout.training and getattr(dropout, "prob", 0) > 0:
            raise RuntimeError(
                f"{self.label()} drops patches in train mode, which leaves no map: "
                "call eval() on the tower, or build it with patch_dropout=0"
            )
        return module(pixel_values.to(module.conv1.weight.dtype))

    def pooled(self, result: Any) -> Tensor | None:
        """Return the tower's own result: class token, patches' mean or first query, projected."""
        return None if self.pooled_width is None else _first(result)

    def _dense_projection(self) -> DenseProjection:
        visual: Any = self.module
        projection = None if self.joint_width is None else "proj"
        width = self.joint_width or int(visual.ln_post.normalized_shape[0])
        if visual.attn_pool is not None:
            return QueryPoolValues(visual, "attn_pool", "ln_post", projection, width)
        return NormProjection(visual, "ln_post", projection, width)


def _refuse_vit(visual: Any) -> None:
    label = OpenClipViT.label()
    if getattr(visual, "attn_pool_contrastive", None) is not None:
        raise ValueError(
            f"{label} with attentional_pool={visual.attn_pool_type!r} is not supported: open_clip "
            "marks these two pools as untested, and its own forward fails where widths differ"
        )
    if visual.patch_size[0] != visual.patch_size[1]:
        raise ValueError(f"{label} must have square patches, found {visual.patch_size}")
    rows, (height, width) = len(visual.positional_embedding), visual.grid_size
    if rows != 1 + height * width:
        raise ValueError(
            f"{label} has {rows} position rows for a grid of {height} x {width} and a class "
            "token: set grid_size and image_size when you resize its positions"
        )


@register_tower("vision")
class OpenClipResNet(MapVisionTower):
    """open_clip's `ModifiedResNet`: four stages, then a pool by attention."""

    library = "open_clip"
    family = "ModifiedResNet"

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether it is the ResNet, or a whole model that holds one."""
        return is_a(visual_of(module), "open_clip", "ModifiedResNet")

    def __init__(self, given: nn.Module) -> None:
        """Read the ResNet, whose attention pool must be in place."""
        visual = visual_of(unwrap(given))
        if not is_a(visual.attnpool, "open_clip", "AttentionPool2d"):
            raise ValueError(
                f"{self.label()} needs its own AttentionPool2d as attnpool, "
                f"found {type(visual.attnpool).__name__}"
            )
        self.module = visual
        self.image_size = pair(visual.image_size)
        stages = [visual.layer1, visual.layer2, visual.layer3, visual.layer4]
        widths = [stage[-1].bn3.num_features for stage in stages]
        self.blocks = self._name_blocks(given, stages, widths, [4, 8, 16, 32])
        self.joint_width = self.pooled_width = visual.attnpool.c_proj.out_features

    def position_names(self) -> tuple[str, ...]:
        """Return the name of the attention pool's table."""
        return ("attnpool.positional_embedding",)

    def map_grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the last map's size: the first convolution rounds up, the pools round down."""
        height, width = ((side + 1) // 2 // 16 for side in image_size)
        return height, width

    def fit_positions(self, name: str, table: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Resize all rows but the mean token's to the last map."""
        native = square_grid(len(table) - 1, f"{self.label()}'s position table")
        return resize_positions(table, native, self.map_grid(image_size), prefix=1)

    def run(self, module: Any, pixel_values: Tensor) -> Any:
        """Call the ResNet, in the dtype of its first convolution."""
        return module(pixel_values.to(module.conv1.weight.dtype))

    def pooled(self, result: Any) -> Tensor:
        """Return the tower's own result: the attention pool's."""
        return _first(result)

    def dense_projection(self, connect: bool = False) -> SpatialAttentionPool:
        """Return the attention pool made spatial; see `VisionTower.dense_projection`."""
        return SpatialAttentionPool(self.module, "attnpool", connect)


@register_tower("text")
class OpenClipText(TextTower):
    """open_clip's text Transformer: built into `CLIP`, or a `TextTransformer` of its own.

    Causal towers run on L rows of their table and mask for texts of L tokens. Towers without a
    causal mask, and those that pool the last position, saw every text padded to one length in
    training: they get ids padded to that length, and no mask.

    Attributes:
        pad_id: what fills texts up to the trained length. The library does not record it; this
            is what its own tokenizers use, and may be set to something else.
    """

    library = "open_clip"
    family = "TextTransformer"
    pad_id: int

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether it is a `TextTransformer`, or a whole model with this kind of text tower."""
        return is_a(text_of(module), "open_clip", "CLIP", "TextTransformer")

    def __init__(self, given: nn.Module) -> None:
        """Read the Transformer, which must pool."""
        text = text_of(unwrap(given))
        self.module = text
        # The same attributes carry a prefix where the Transformer is built into `CLIP`.
        self._built_in = is_a(text, "open_clip", "CLIP")
        self.pool_type: str = text.text_pool_type if self._built_in else text.pool_type
        # open_clip knows pooling at an id of its own since 3.0 only
        self.eos_id: Any = getattr(text, "text_eos_id" if self._built_in else "eos_id", None)
        self._refuse(text)
        blocks = _blocks_of(text.transformer, self.label())
        self.token_width = text.positional_embedding.shape[1]
        self.blocks = self._name_blocks(
            given, list(blocks), [self.token_width] * len(blocks), [None] * len(blocks)
        )
        projection = text.text_projection
        if projection is None:
            self.sentence_width = self.token_width
        elif isinstance(projection, nn.Module):
            self.sentence_width = int(projection.out_features)  # type: ignore[arg-type]
        else:
            self.sentence_width = projection.shape[1]
        self.max_length = len(text.positional_embedding)
        self.vocab_size = bare(text.token_embedding).num_embeddings
        self.causal = text.attn_mask is not None
        self.fixed_length = not self.causal or self.pool_type == "last"
        self.pad_id = self._guess_pad_id(text)

    def _refuse(self, text: Any) -> None:
        if self.pool_type == "none":
            raise ValueError(f"{self.label()} with pool_type='none' has no sentence feature")

    def _guess_pad_id(self, text: Any) -> int:
        # SigLIP's towers pool the last position through a Linear
        if self.pool_type == "last" and isinstance(text.text_projection, nn.Module):
            return siglip_pad_id(self.vocab_size)
        return int(getattr(text, "pad_id", 0))

    def position_names(self) -> tuple[str, ...]:
        """Return the name of the table."""
        return ("positional_embedding",)

    def default_mask(self, input_ids: Tensor) -> Tensor:
        """Return the mask by the tower's own way to find the end of a text."""
        if self.pool_type == "argmax":
            return through_highest(input_ids)
        if self.pool_type == "eos":
            return through_first(input_ids == self.eos_id, f"end-of-text id {self.eos_id}")
        return siglip_mask(input_ids, self.pad_id)

    def pad(self, input_ids: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pad to the trained length where the tower was trained so."""
        if not self.fixed_length:
            return input_ids, token_mask
        return fill_up(input_ids, token_mask, self.max_length, self.pad_id)

    def call(self, input_ids: Tensor, token_mask: Tensor, tensors: Mapping[str, Tensor]) -> Any:
        """Run the tower, on the first L rows of its table; see `TextTower.call`."""
        self._check_tensors(tensors)
        length, standing_in = input_ids.shape[1], dict(tensors)
        if length < self.max_length:
            name = "positional_embedding"
            table = tensors[name] if name in tensors else tensor_at(self.module, name)
            standing_in[name] = table[:length]
            if self.causal:
                standing_in["attn_mask"] = tensor_at(self.module, "attn_mask")[:length, :length]
        module: Any = view_with(self.module, standing_in)
        return module.encode_text(input_ids) if self._built_in else module(input_ids)

    def tokens(self, last_state: Tensor, result: Any, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return `ln_final` of the last state; see `TextTower.tokens`."""
        module: Any = view_with(self.module, tensors)
        normed: Tensor = module.ln_final(last_state)
        return normed

    def sentence(self, tokens: Tensor, input_ids: Tensor, result: Any) -> Tensor:
        """Return the tower's own result: the token that it pools, projected."""
        return _first(result)


def text_of(module: nn.Module) -> Any:
    """Return the text tower of a whole model, or the module itself."""
    return module.text if is_a(module, "open_clip", "CustomTextCLIP", "CoCa") else module
