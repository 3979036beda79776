"""The Bridger of one stage, and the stack of all stages.

Shapes: B batch, C channels, H W map size, L tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from bridger.bridgers.attention_maps import is_recording
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
      There is no `text_out`, and no more of `interactor.text` than reaches some map;
    - `direction="to_text"`: the mirror. Nothing is added to F_v, there is no `vision_out`, and no
      more of `interactor.vision` than reaches some text.

    Args:
        config: options, the same for all stages.
        vision_width: C of the tower's map.
        vision_stride: pixels per cell of that map.
        text_width: C of the tower's tokens.
        stage: its place, from 0, among the stages that have a Bridger; the norms of the carry
            exist from the second one on.
        num_stages: number of these stages.
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
        to_vision, to_text = config.direction != "to_text", config.direction != "to_vision"
        self.vision_in, vision_out = make_zooms(config, vision_width, vision_stride, last)
        self.vision_out = vision_out if to_vision else None
        self.text_in = nn.Linear(text_width, dim)
        has_norms = config.carry_norm and config.carry != "none" and stage > 0
        self.vision_norm = nn.LayerNorm(dim) if has_norms else nn.Identity()
        self.text_norm = nn.LayerNorm(dim) if has_norms else nn.Identity()
        carried = config.carry == "output" and (not last or (config.share and num_stages > 1))
        self.interactor = make_interactor(config, to_text or carried, to_vision or carried)
        norms = config.pre_norm
        self.vision_out_norm = nn.LayerNorm(dim) if norms and to_vision else nn.Identity()
        self.text_out_norm = nn.LayerNorm(dim) if norms and to_text else nn.Identity()
        self.text_out = nn.Linear(dim, text_width) if to_text else None
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
    ) -> tuple[Tensor | None, Tensor | None, Carry]:
        """Compute the residuals of this stage.

        Args:
            vision: the vision tower's map (B, C, H, W).
            tokens: the text tower's tokens (B, L, C).
            token_mask: (B, L) bool, true at real tokens, at least one per row.
            carry: what the previous stage returned; None at the first stage.
            image_size: height and width of the input picture in pixels.

        Returns:
            The residual of the map (B, C, H, W) and of the tokens (B, L, C), each in its state's
            dtype, and the carry for the next stage. A state that is not changed has None.

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
        read = token_mask if self.config.mask_padding else None
        v, t = self.interactor(v, t, read, (height, width))
        new_carry = Carry(v_in, t_in) if self.config.carry == "input" else Carry(v, t)

        # Zoom out.
        to_vision = to_text = None
        if self.vision_out is not None:
            v = rearrange(self.vision_out_norm(v), "b (h w) d -> b d h w", h=height, w=width)
            v = self.vision_out(v, (vision.shape[-2], vision.shape[-1]))
            to_vision = v.to(vision.dtype)
        if self.text_out is not None:
            t = self.text_out(self.text_out_norm(t))
            to_text = _clear(t, padding).to(tokens.dtype)
        return to_vision, to_text, new_carry

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

    Stages of `config.skip` have none; the others' are numbered in `stages` without gaps.

    Args:
        config: options, the same for all stages.
        vision_widths: C of the vision tower's map at each stage.
        vision_strides: pixels per cell of these maps.
        text_widths: C of the text tower's tokens at each stage.

    Raises:
        ValueError: there is no stage, the sequences differ in length, a number is not positive,
            `config.skip` names a stage that is not there or leaves none to bridge, or stages
            cannot share because they differ.

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
        _check_stages(stages)
        self.config = config
        self.num_stages = len(vision_widths)
        bridged = _bridged(config.skip, self.num_stages)
        if config.share:
            _check_alike(stages, bridged)
        self._places = {stage: 0 if config.share else place for place, stage in enumerate(bridged)}
        # A shared Bridger is the last stage's, since that one has the norms of the carry.
        first = len(bridged) - 1 if config.share else 0
        self.stages = nn.ModuleList(
            Bridger(
                config,
                vision_widths[stage],
                vision_strides[stage],
                text_widths[stage],
                place,
                len(bridged),
            )
            for place, stage in list(enumerate(bridged))[first:]
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
    ) -> tuple[Tensor | None, Tensor | None, Carry | None]:
        """Run the Bridger of a stage; where there is none, nothing changes.

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
        bridger = self.at(stage)
        if bridger is None:
            return None, None, carry
        if bridger._compiled_call_impl is not None:
            keep_sides(vision)
        # Compiled code does not tell where it looks.
        run: Callable[..., Any] = bridger._call_impl if is_recording() else bridger
        result: tuple[Tensor | None, Tensor | None, Carry] = run(
            vision, tokens, token_mask, carry, image_size
        )
        return result

    def at(self, stage: int) -> nn.Module | None:
        """Return the Bridger of a 0-based stage, None where `config.skip` leaves it out.

        Args:
            stage: its number, from 0.

        Raises:
            ValueError: there is no such stage.
        """
        if not 0 <= stage < self.num_stages:
            raise ValueError(f"expected a stage from 0 to {self.num_stages - 1}, found {stage}")
        place = self._places.get(stage)
        return None if place is None else self.stages[place]


def keep_sides(*maps: Tensor) -> None:
    """Let the compiler make code of its own for each size of maps (B, C, H, W).

    With symbols for the sides, which torch.compile takes from the second size on, inductor fails.
    """
    for each in maps:
        torch._dynamo.mark_static(each, [2, 3])


def _bridged(skip: tuple[int, ...], num_stages: int) -> list[int]:
    """Return the stages that have a Bridger."""
    if beyond := [stage for stage in skip if stage >= num_stages]:
        raise ValueError(
            f"skip={skip} names stages that are not there, {beyond}: there are {num_stages}, "
            f"0 to {num_stages - 1}"
        )
    bridged = [stage for stage in range(num_stages) if stage not in skip]
    if not bridged:
        raise ValueError(
            f"skip={skip} leaves none of the {num_stages} stages to bridge: to read the stages "
            "without Bridgers set config=None (in a recipe, bridgers: null)"
        )
    return bridged


def _check_stages(stages: dict[str, list[int]]) -> None:
    lengths = {name: len(values) for name, values in stages.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"expected one number per stage and at least one stage, found {lengths}")
    for name, values in stages.items():
        if min(values) < 1:
            raise ValueError(f"{name} must be positive, found {values}")


def _check_alike(stages: dict[str, list[int]], bridged: list[int]) -> None:
    for name, values in stages.items():
        found = [values[stage] for stage in bridged]
        if len(set(found)) != 1:
            raise ValueError(
                f"share=True needs the same {name} at every stage, found {found}: "
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
