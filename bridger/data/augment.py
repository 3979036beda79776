"""Random changes of a training picture, its masks and its words that leave them true together.

Shapes: N masks of one picture, H W the processor's image size.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from bridger.config import did_you_mean
from bridger.data.augment_words import holds_under_colour, holds_under_crop, mirror_words

AUGMENTATIONS = ("flip", "colour", "crop")
PROBABILITY = 0.5  # of each, where the words allow it
SMALLEST = 0.5  # least side of a crop, as a share of the picture's
STRENGTH = 0.3  # brightness, contrast and saturation change by up to this share
HUE = 0.02  # and hues by up to this share of a turn
LUMA = (0.299, 0.587, 0.114)  # how bright red, green and blue look (ITU-R BT.601)


@dataclass(frozen=True)
class Colour:
    """Factors of brightness, contrast and saturation, 1 for no change, and a turn of all hues.

    Attributes:
        brightness, contrast, saturation: from 0.
        hue: share of a whole turn.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0

    def __call__(self, pixels: Tensor) -> Tensor:
        """Change bytes (3, H, W)."""
        grey = torch.tensor(LUMA).expand(3, 3)
        saturate = self.saturation * torch.eye(3) + (1 - self.saturation) * grey
        matrix = self.brightness * self.contrast * saturate @ _hue_turn(self.hue)
        changed = torch.einsum("dc,chw->dhw", matrix, pixels.float())
        if self.contrast != 1:  # away from the mean grey
            mean = torch.einsum("c,chw->hw", torch.tensor(LUMA), pixels.float()).mean()
            changed += self.brightness * (1 - self.contrast) * mean
        return changed.round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Crop:
    """A part of the picture, enlarged to the whole; it holds all that is meant.

    The box itself is found when the masks are known.

    Attributes:
        scale: sides of the part as a share of the picture's; more where an object needs it.
        down, across: where it lies, 0 to 1, of the places at which nothing meant is cut.
    """

    scale: float
    down: float
    across: float

    def box(self, meant: Tensor) -> tuple[slice, slice]:
        """Return rows and columns of the part.

        Args:
            meant: (H, W) bool, what has to stay whole.
        """
        rows, columns = (meant.any(dim=dim).nonzero()[:, 0].tolist() for dim in (1, 0))
        scale = self.scale
        for inside, length in ((rows, meant.shape[0]), (columns, meant.shape[1])):
            if inside:
                scale = max(scale, (inside[-1] + 1 - inside[0]) / length)
        return (
            _part(rows, meant.shape[0], scale, self.down),
            _part(columns, meant.shape[1], scale, self.across),
        )


@dataclass(frozen=True)
class Transform:
    """What is done to a picture and its masks.

    Attributes:
        flip: mirror, left to right.
        colour: change the picture's colours.
        crop: show a part.
    """

    flip: bool = False
    colour: Colour | None = None
    crop: Crop | None = None

    def __call__(self, pixels: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Change a picture and the masks of all that is meant in it.

        Args:
            pixels: (3, H, W) bytes, as `Processor.fit` gives them.
            masks: (N, H, W) bytes, soft from 0 to 255.

        Returns:
            Both in the same shapes and types; what was given is left as it is.
        """
        if self.crop is not None:
            box = (slice(None), *self.crop.box((masks > 0).any(dim=0)))
            pixels = _enlarged(pixels[box], pixels.shape[-2:], "bicubic")
            masks = _enlarged(masks[box], masks.shape[-2:], "bilinear")
        if self.flip:
            pixels, masks = pixels.flip(-1), masks.flip(-1)
        if self.colour is not None:
            pixels = self.colour(pixels)
        return pixels, masks


def check_augmentations(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names as a tuple.

    Raises:
        ValueError: a name is unknown.
    """
    for name in names:
        if name not in AUGMENTATIONS:
            raise ValueError(
                f"no augmentation is called {name!r}: {did_you_mean(name, list(AUGMENTATIONS))}"
            )
    return tuple(names)


def draw_transform(
    names: Sequence[str], sentences: Sequence[str], rng: random.Random
) -> tuple[Transform | None, list[str]]:
    """Draw one change of a picture that all of its sentences stay true for.

    Args:
        names: of `AUGMENTATIONS`; each takes part with probability `PROBABILITY` where no
            sentence forbids it.
        sentences: English expressions for the same picture; `augment_words` says what they forbid.
        rng: every call takes the same numbers from it, whatever the names.

    Returns:
        The change, None for none, and the sentences, with left and right exchanged in a flip.
    """
    flips, colours, crops = (rng.random() < PROBABILITY for _ in AUGMENTATIONS)
    factors = [rng.uniform(1 - STRENGTH, 1 + STRENGTH) for _ in range(3)]
    hue = rng.uniform(-HUE, HUE)
    crop = Crop(rng.uniform(SMALLEST, 1), rng.random(), rng.random())
    said = list(sentences)
    # Places are named alike before and after a flip: the order does not matter to the words.
    crops = crops and "crop" in names and all(map(holds_under_crop, said))
    colours = colours and "colour" in names and all(map(holds_under_colour, said))
    mirrored = [mirror_words(sentence) for sentence in said]
    flips = flips and "flip" in names and None not in mirrored
    if flips:
        said = [sentence for sentence in mirrored if sentence is not None]
    if not (flips or colours or crops):
        return None, said
    colour = Colour(factors[0], factors[1], factors[2], hue) if colours else None
    return Transform(flips, colour, crop if crops else None), said


def _hue_turn(share: float) -> Tensor:
    """The matrix that turns colours about the grey axis: a third of a turn makes red green."""
    angle = 2 * math.pi * share
    third, across = (1 - math.cos(angle)) / 3, math.sin(angle) / math.sqrt(3)
    turn = torch.full((3, 3), third) + math.cos(angle) * torch.eye(3)
    return turn + across * torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])


def _part(inside: list[int], length: int, scale: float, place: float) -> slice:
    """A part of `length` that holds the indices `inside`, which may be none."""
    size = min(length, math.ceil(scale * length))
    first = max(0, inside[-1] + 1 - size) if inside else 0
    last = min(inside[0], length - size) if inside else length - size
    start = first + round(place * (last - first))
    return slice(start, start + size)


def _enlarged(stack: Tensor, size: torch.Size, mode: str) -> Tensor:
    rows = F.interpolate(
        rearrange(stack, "c h w -> 1 c h w").float(), tuple(size), mode=mode, align_corners=False
    )
    return rearrange(rows, "1 c h w -> c h w").round_().clamp_(0, 255).to(torch.uint8)
