"""What a Bridger looks like: one frozen dataclass, and the presets by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from bridger.config import Config, check_whole, did_you_mean

Direction = Literal["both", "to_vision", "to_text"]
CrossSource = Literal["attended", "input"]
Carried = Literal["output", "input", "none"]
Zooming = Literal["strided", "pointwise", "convolution", "transposed"]
ZoomParts = Literal["plain", "norm", "norm_relu"]
Start = Literal["zero", "released"]


@dataclass(frozen=True)
class BridgerConfig(Config):
    """Options of all Bridgers of one encoder. The defaults are the paper's Bridger (section 3.2).

    Every option is checked when the config is made, so a mistake shows before any tower is
    touched.

    Attributes:
        hidden_dim: D, the width in which the two modalities meet.
        num_heads: attention heads; must divide `hidden_dim`.
        direction: "both" changes both towers (the paper). "to_vision" leaves the text as it is:
            the text tower runs to its end first, and every stage reads its finished tokens
            (DETRIS). Between stages Bridgers update a text state of their own, as ever. "to_text"
            is the mirror: texts read pictures, and the vision tower runs as if it were alone.
        skip: 0-based stages that are read but not bridged: their maps reach the head as the tower
            made them, there is no Bridger, and the carry passes over them. So Bridgers take other
            places while the head reads the same maps.
        interactor: a registered interactor: "attention" (the paper's), "gate" (the released
            code's for ViT).
        cross_source: what cross-attention reads of the other modality: its self-attended state
            (the paper) or the interactor's input (the released code). "attention" only.
        self_attention: whether each modality attends to itself first. "attention" only.
        ffn_dim: inner width of the feed-forward net; None is twice `hidden_dim`, 0 leaves it out.
            "attention" only.
        dropout: probability, on attention weights and on every branch. "attention" only.
        pre_norm: LayerNorms stand before attention, feed-forward net ("attention" only) and
            zooming out, and sums are not normed, in place of after every sum as in the paper. At
            a high learning rate the paper's order lets Bridgers shrink to a constant
            (docs/results.md).
        carry: what a stage adds to its input from the stage before: that interactor's output
            (the paper), its input (the released code), or nothing.
        carry_norm: a LayerNorm per modality after that sum.
        zoom_stride: pixels per cell of the maps that Bridgers work on.
        zoom: "strided" has kernel = stride = the ratio of the two strides; "pointwise" is a 1x1
            convolution and a bilinear resize in its place; "convolution" is strided where a map
            shrinks and pointwise where it grows, "transposed" the reverse.
        zoom_in: what follows the way in's convolution: nothing, BatchNorm, BatchNorm and ReLU.
        zoom_out: the same for the way out.
        reverse_last_zoom: the last stage's 1x1 zoom layers swap their kinds, as in the released
            code for ViT (a transposed 1x1 convolution stores its weight transposed).
        share: one Bridger for all stages.
        mask_padding: attention does not read padded tokens, and these get no residual.
        init: "zero" starts from residuals that are exactly zero, "released" from the released
            code's distributions.

    Raises:
        ValueError: an option has an unknown value, or two do not fit together.
    """

    hidden_dim: int = 64
    num_heads: int = 8
    direction: Direction = "both"
    skip: tuple[int, ...] = ()
    interactor: str = "attention"
    cross_source: CrossSource = "attended"
    self_attention: bool = True
    ffn_dim: int | None = None
    dropout: float = 0.1
    pre_norm: bool = False
    carry: Carried = "output"
    carry_norm: bool = False
    zoom_stride: int = 16
    zoom: Zooming = "strided"
    zoom_in: ZoomParts = "plain"
    zoom_out: ZoomParts = "plain"
    reverse_last_zoom: bool = False
    share: bool = False
    mask_padding: bool = True
    init: Start = "zero"

    @classmethod
    def preset(cls, name: str, **changes: Any) -> BridgerConfig:
        """Return a preset, with some options changed.

        Args:
            name: "paper", or the released code's "etris_vit" and "etris_resnet".
            **changes: options that shall differ from the preset.

        Raises:
            ValueError: the preset or an option is unknown, or options do not fit together.

        Example:
            >>> BridgerConfig.preset("etris_vit", hidden_dim=128).num_heads
            8
        """
        if name not in _PRESETS:
            raise ValueError(
                f"there is no Bridger preset {name!r}: {did_you_mean(str(name), list(_PRESETS))}"
            )
        return cls.from_dict({**_PRESETS[name], **changes})

    @property
    def ffn_width(self) -> int:
        """The feed-forward net's inner width, with None resolved."""
        return 2 * self.hidden_dim if self.ffn_dim is None else self.ffn_dim

    def __post_init__(self) -> None:
        for name in ("hidden_dim", "num_heads", "zoom_stride"):
            _check_positive(name, getattr(self, name))
        if self.ffn_dim is not None:
            check_whole("ffn_dim", self.ffn_dim, least=0)
        _check_skip(self.skip)
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, not {getattr(self, name)!r}")
        for name, kind in _CHOICES.items():
            _check_choice(name, getattr(self, name), list(get_args(kind)))
        _check_choice("interactor", self.interactor, _interactors())
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, (int, float)):
            raise ValueError(f"dropout must be a number, not {self.dropout!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout}")
        if self.hidden_dim % self.num_heads:
            divisors = [n for n in range(1, self.hidden_dim + 1) if self.hidden_dim % n == 0]
            raise ValueError(
                f"num_heads={self.num_heads} does not divide hidden_dim={self.hidden_dim}: "
                f"choose one of {divisors}"
            )
        if self.share and self.reverse_last_zoom:
            raise ValueError(
                "share=True needs the same zoom layers in every stage: set reverse_last_zoom=False"
            )


_SWITCHES = (
    "self_attention",
    "pre_norm",
    "carry_norm",
    "reverse_last_zoom",
    "share",
    "mask_padding",
)
_CHOICES = {
    "direction": Direction,
    "cross_source": CrossSource,
    "carry": Carried,
    "zoom": Zooming,
    "zoom_in": ZoomParts,
    "zoom_out": ZoomParts,
    "init": Start,
}

# The released code: github.com/kkakkkka/ETRIS at cdc6d8e, model/bridger.py.
_RELEASED: dict[str, Any] = {
    "carry": "input",
    "carry_norm": True,
    "cross_source": "input",
    "mask_padding": False,
    "init": "released",
}
_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "etris_vit": {
        **_RELEASED,
        "interactor": "gate",
        "zoom_in": "norm_relu",
        "zoom_out": "norm_relu",
        "reverse_last_zoom": True,
    },
    "etris_resnet": {**_RELEASED, "num_heads": 4, "ffn_dim": 128},
}


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, not {value!r}")


def _check_skip(skip: Any) -> None:
    numbers = isinstance(skip, tuple) and all(
        isinstance(stage, int) and not isinstance(stage, bool) and stage >= 0 for stage in skip
    )
    if not numbers or len(set(skip)) < len(skip):
        raise ValueError(
            f"skip must be a tuple of different stages, counted from 0, as (0, 2), not {skip!r}"
        )


def _check_choice(name: str, value: Any, known: list[str]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r} is unknown: {did_you_mean(str(value), known)}")


def _interactors() -> list[str]:
    # Interactors are built from a config, so their module imports this one first.
    from bridger.bridgers.interactor import interactor_names

    return interactor_names()
