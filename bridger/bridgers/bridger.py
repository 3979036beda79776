"""The Bridger of one stage, and the stack of all stages.

Shapes: B batch, C channels, H W map size, L tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from bridger.bridgers.config import BridgerConfig
from bridger.bridgers.interactor import make_interactor
from bridger.bridgers.zoom import make_zooms, target_size


class Carry(NamedTuple):
    """What one stage hands to the next.

    Attributes:
        vision: (B, H' W', D), on the common map size H' x W' of all stages.
        text: (B, L, D).
    """

    vision: Tensor
    text: Tensor


class Bridger(nn.Module):
    """The trainable module of one stage: zoom in, interact, zoom out.

    The paper's equations (section 3.2) for stage i, with F_v and F_t the towers' states:

        zoom in     V_i = ZL_in(F_v)                          `vision_in`
                    T_i = Linear(F_t)                         `text_in`
        interact    v_i = ITA(v_{i-1} + V_i, t_{i-1} + T_i)   `interactor.vision`
                    t_i = ITA(t_{i-1} + T_i, v_{i-1} + V_i)   `interactor.text`
        zoom out    F_v <- F_v + ZL_out(v_i)                  `vision_out`
                    F_t <- F_t + Linear(t_i)                  `text_out`

    (v_{i-1}, t_{i-1}) is the `Carry`; the first stage has none. The caller adds the residuals,
    so that towers keep their own containers. Options that the paper does not have:

    - `carry="input"` carries the interactor's input in place of its output, and `carry_norm`
      puts LayerNorms, `vision_norm` and `text_norm`, after the sums: both as released;
    - `pre_norm`: zooming out reads ZL_out(LN(v_i)) and Linear(LN(t_i)), as in pre-norm
      Transformers; what is carried is not normed;
    - `mask_padding`: padded tokens are never read and get a residual of zero;
    - `direction="to_vision"`: F_t is the finished text at every stage, and nothing is added to it.
      There is no `text_out`, and no more of `interactor.text` than reaches some map.

    Args:
        config: options, the same for all stages.
        vision_width: C of the tower's map.
        vision_stride: pixels per cell of that map.
        text_width: C of the tower's tokens.
        stage: 0-based stage; the norms of the carry exist from the second stage on.
        num_stages: number of stages.
    """

    def __init__(
        self,
        config: BridgerConfig,
        vision_width: int,
        vision_stride: int,
        text_width: int,
        stage: int,
        num_stages: int,
    ) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.config = config
        self.vision_width, self.text_width = vision_width, text_width
        last = stage == num_stages - 1
        self.vision_in, self.vision_out = make_zooms(config, vision_width, vision_stride, last)
        self.text_in = nn.Linear(text_width, dim)
        has_norms = config.carry_norm and config.carry != "none" and stage > 0
        self.vision_norm = nn.LayerNorm(dim) if has_norms else nn.Identity()
        self.text_norm = nn.LayerNorm(dim) if has_norms else nn.Identity()
        both = config.direction == "both"
        followed = not last or (config.share and num_stages > 1)
        self.interactor = make_interactor(config, both or (config.carry == "output" and followed))
        self.vision_out_norm = nn.LayerNorm(dim) if config.pre_norm else nn.Identity()
        self.text_out_norm = nn.LayerNorm(dim) if config.pre_norm and both else nn.Identity()
        self.text_out = nn.Linear(dim, text_width) if both else None
        if config.init == "released":
            self.apply(_initialise_as_released)
        elif self.text_out is not None:
            nn.init.zeros_(self.text_out.weight)
            nn.init.zeros_(self.text_out.bias)

    def forward(
        self,
        vision: Tensor,
        tokens: Tensor,
        token_mask: Tensor,
        carry: Carry | None,
        image_size: tuple[int, int],
    ) -> tuple[Tensor, Tensor | None, Carry]:
        """Compute the residuals of this stage.

        Args:
            vision: the vision tower's map (B, C, H, W).
            tokens: the text tower's tokens (B, L, C).
            token_mask: (B, L) bool, true at real tokens, at least one per row.
            carry: what the previous stage returned; None at the first stage.
            image_size: height and width of the input picture in pixels.

        Returns:
            The residual of the map (B, C, H, W) and of the tokens (B, L, C), each in its state's
            dtype, and the carry for the next stage. Tokens that are not changed have None.

        Raises:
            ValueError: shapes do not fit each other or this Bridger's widths.
        """
        self._check(vision, tokens, token_mask)
        padding = rearrange(~token_mask, "b l -> b l 1") if self.config.mask_padding else None
        size = target_size(image_size, self.config.zoom_stride)
        dtype = self.text_in.weight.dtype

        # Zoom in. Whatever a tower leaves at padded tokens is gone from here on, gradients too.
        v = self.vision_in(vision.to(dtype), size)
        height, width = v.shape[-2:]  # of `size`; symbols that the compiler need not divide
        v = rearrange(v, "b d h w -> b (h w) d")
        t = self.text_in(_clear(tokens.to(dtype), padding))

        # Interact.
        if carry is not None and self.config.carry != "none":
            v = self.vision_norm(v + carry.vision)
            t = self.text_norm(t + carry.text)
        v_in, t_in = v, t
        v, t = self.interactor(v, t, token_mask if self.config.mask_padding else None)
        new_carry = Carry(v_in, t_in) if self.config.carry == "input" else Carry(v, t)

        # Zoom out.
        v, t = self.vision_out_norm(v), self.text_out_norm(t)
        v = rearrange(v, "b (h w) d -> b d h w", h=height, w=width)
        v = self.vision_out(v, (vision.shape[-2], vision.shape[-1]))
        if self.text_out is None:
            return v.to(vision.dtype), None, new_carry
        t = _clear(self.text_out(t), padding)
        return v.to(vision.dtype), t.to(tokens.dtype), new_carry

    def _check(self, vision: Tensor, tokens: Tensor, token_mask: Tensor) -> None:
        batch = len(vision)
        if vision.ndim != 4 or vision.shape[1] != self.vision_width:
            raise ValueError(
                f"expected a vision map (B, {self.vision_width}, H, W), found {_shape(vision)}"
            )
        if tokens.ndim != 3 or tokens.shape[::2] != (batch, self.text_width):
            raise ValueError(
                f"expected text tokens ({batch}, L, {self.text_width}) beside a vision map of "
                f"batch {batch}, found {_shape(tokens)}"
            )
        if token_mask.dtype != torch.bool or token_mask.shape != tokens.shape[:2]:
            raise ValueError(
                f"expected a bool token_mask {_shape(tokens)[:2]}, "
                f"found {token_mask.dtype} {_shape(token_mask)}"
            )


class BridgerStack(nn.Module):
    """The Bridgers of all stages; with `config.share` they are one and the same.

    Args:
        config: options, the same for all stages.
        vision_widths: C of the vision tower's map at each stage.
        vision_strides: pixels per cell of these maps.
        text_widths: C of the text tower's tokens at each stage.

    Raises:
        ValueError: there is no stage, the sequences differ in length, a number is not positive,
            or stages cannot share because they differ.

    Example:
        >>> stack = BridgerStack(BridgerConfig(), [768] * 3, [16] * 3, [512] * 3)
        >>> len(stack)
        3
    """

    def __init__(
        self,
        config: BridgerConfig,
        vision_widths: Sequence[int],
        vision_strides: Sequence[int],
        text_widths: Sequence[int],
    ) -> None:
        super().__init__()
        stages = {
            "vision widths": list(vision_widths),
            "vision strides": list(vision_strides),
            "text widths": list(text_widths),
        }
        _check_stages(stages, config.share)
        self.config = config
        self.num_stages = len(vision_widths)
        # A shared Bridger is the last stage's, since that one has the norms of the carry.
        first = self.num_stages - 1 if config.share else 0
        self.stages = nn.ModuleList(
            Bridger(
                config,
                vision_widths[stage],
                vision_strides[stage],
                text_widths[stage],
                stage,
                self.num_stages,
            )
            for stage in range(first, self.num_stages)
        )

    def __len__(self) -> int:
        return self.num_stages

    def forward(
        self,
        stage: int,
        vision: Tensor,
        tokens: Tensor,
        token_mask: Tensor,
        carry: Carry | None,
        image_size: tuple[int, int],
    ) -> tuple[Tensor, Tensor | None, Carry]:
        """Run the Bridger of a stage.

        Args:
            stage: its number, from 0.
            vision: as in `Bridger.forward`, as are all that follow.
            tokens: of the text.
            token_mask: of the text.
            carry: from the stage before.
            image_size: of the pictures.

        Raises:
            ValueError: there is no such stage, or shapes do not fit.
        """
        result: tuple[Tensor, Tensor | None, Carry] = self.at(stage)(
            vision, tokens, token_mask, carry, image_size
        )
        return result

    def at(self, stage: int) -> nn.Module:
        """Return the Bridger of a 0-based stage; ValueError where there is no such stage.

        Args:
            stage: its number, from 0.
        """
        if not 0 <= stage < self.num_stages:
            raise ValueError(f"expected a stage from 0 to {self.num_stages - 1}, found {stage}")
        return self.stages[0 if self.config.share else stage]


def _check_stages(stages: dict[str, list[int]], share: bool) -> None:
    lengths = {name: len(values) for name, values in stages.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"expected one number per stage and at least one stage, found {lengths}")
    for name, values in stages.items():
        if min(values) < 1:
            raise ValueError(f"{name} must be positive, found {values}")
        if share and len(set(values)) != 1:
            raise ValueError(
                f"share=True needs the same {name} at every stage, found {values}: "
                f"choose stages of one width and stride, or set share=False"
            )


def _initialise_as_released(module: nn.Module) -> None:
    """Draw as the released code (cdc6d8e, model/bridger.py, `initialize_parameters`).

    Attention's in_proj, BatchNorm and LayerNorm keep torch's start, as they do there.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _clear(x: Tensor, padding: Tensor | None) -> Tensor:
    return x if padding is None else x.masked_fill(padding, 0)


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)
