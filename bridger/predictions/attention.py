"""Where Bridgers looked while a picture was answered about, and how it looks.

Shapes: L tokens, H' x W' cells of the map on which Bridgers work, h x w the picture's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bridger.config import did_you_mean

if TYPE_CHECKING:
    from PIL import Image

    from bridger.pictures import ImageLike
    from bridger.warp import Placement

Weights = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StageAttention:
    """Where the Bridger of one stage looked, averaged over its heads.

    Attributes:
        stage: its number, from 0.
        text_to_picture: (L, H', W'), how much each token read of every cell, 1 in sum for each
            token. None where this Bridger's tokens read no cell, as the last one's where nothing
            is written to the text.
        picture_to_text: (H', W', L), how much each cell read of every token, 1 in sum for each
            cell. None where its cells read no token.
    """

    stage: int
    text_to_picture: Weights | None
    picture_to_text: Weights | None


@dataclass(frozen=True)
class Attention:
    """Where the Bridgers looked for one sentence about one picture.

    Attributes:
        tokens: (L) as the tokenizer writes them, start and end among them. Padding is left out
            where it is masked, and kept where Bridgers read it (`mask_padding=False`).
        stages: those with a Bridger, in their order.
        placement: where the picture lies in the towers' input.
        cell: side of a cell in pixels of the input.
    """

    tokens: tuple[str, ...]
    stages: tuple[StageAttention, ...]
    placement: Placement
    cell: int

    def find(self, word: str | int) -> list[int]:
        """Return the numbers of the tokens that write a word: the first time that it occurs.

        Args:
            word: of the sentence, or several that follow one another; or the number of a token.

        Raises:
            IndexError: there is no token of that number.
            ValueError: the tokens do not write that word.
        """
        if isinstance(word, int):
            if not -len(self.tokens) <= word < len(self.tokens):
                raise IndexError(f"there are {len(self.tokens)} tokens, and none of number {word}")
            return [word % len(self.tokens)]
        wanted, parts = "".join(word.lower().split()), [plain(token) for token in self.tokens]
        for first in range(len(parts)):
            for end in range(first + 1, len(parts) + 1):
                if wanted and "".join(parts[first:end]).lower() == wanted:
                    return [number for number in range(first, end) if parts[number]]
        raise ValueError(f"no tokens write {word!r}: {did_you_mean(word, parts)}")

    def at(self, stage: int | None = None) -> StageAttention:
        """Return a stage whose tokens read the picture.

        Args:
            stage: its number, from 0; None: the last that there is.

        Raises:
            ValueError: there is none.
        """
        reading = {one.stage: one for one in self.stages if one.text_to_picture is not None}
        if not reading:
            raise ValueError("these Bridgers' tokens do not read the picture at any stage")
        number = max(reading) if stage is None else stage
        if number not in reading:
            raise ValueError(
                f"no token reads the picture at stage {stage}; tokens do at {sorted(reading)}"
            )
        return reading[number]

    def heat(self, word: str | int, stage: int | None = None) -> Weights:
        """Return how much a word read of each place in the picture, (h, w).

        Args:
            word: as in `find`; of several tokens the mean is taken.
            stage: as in `at`.

        Returns:
            Multiples of what it would be if the word read all cells alike: 1 everywhere then.
        """
        import torch
        from torch.nn.functional import interpolate

        weights = self.at(stage).text_to_picture
        assert weights is not None  # `at` returns no other
        cells = torch.from_numpy(weights[self.find(word)].mean(axis=0))
        (rows, columns), (height, width) = cells.shape, self.placement.input_size
        size = (rows * self.cell, columns * self.cell)  # the last cells may reach over the edge
        whole = interpolate(cells[None, None] * cells.numel(), size, mode="bilinear")
        inside = whole[0, :, :height, :width]
        heat: Weights = self.placement.out_of_input(inside, cubic=False)[0].numpy()
        return heat


def plain(token: str) -> str:
    """Return what a token writes, without its tokenizer's marks of where words begin and end.

    Args:
        token: of a BPE, WordPiece or SentencePiece tokenizer.
    """
    return token.removesuffix("</w>").removeprefix("##").lstrip("\u0120\u2581")


@dataclass(frozen=True)
class WithAttention:
    """A result that holds where Bridgers looked, if it was asked for.

    Attributes:
        attention: of each sentence; empty unless `predict(..., return_attention=True)` was asked.
    """

    attention: tuple[Attention, ...] = field(default=(), kw_only=True, compare=False)

    def attention_overlay(
        self,
        image: ImageLike,
        word: str | int,
        *,
        expression: int = 0,
        stage: int | None = None,
        least_side: int = 512,
    ) -> Image.Image:
        """Draw as heat over the picture where a word looked.

        What the word read no more of than of all else has no colour.

        Args:
            image: the picture that this was predicted for.
            word: as in `Attention.find`.
            expression: number of the sentence.
            stage: number of the stage, from 0; None: the last at which tokens read the picture.
            least_side: pictures whose longer side is smaller are enlarged to it.

        Raises:
            ValueError: attention was not asked for, there is no such sentence, word or stage, or
                the picture has another size.
        """
        from bridger.predictions.heat import draw_heat

        return draw_heat(self._attention(expression), image, word, stage, least_side)

    def attention_sheet(
        self, image: ImageLike, *, expression: int = 0, least_side: int = 160
    ) -> Image.Image:
        """Draw the heat of every token at every stage: a row for a stage, a column for a token.

        All of them share the scale of colours that stands below.

        Args:
            image: the picture that this was predicted for.
            expression: number of the sentence.
            least_side: longer side of each of the small pictures, at least.

        Raises:
            ValueError: as of `attention_overlay`.
        """
        from bridger.predictions.heat import draw_sheet

        return draw_sheet(self._attention(expression), image, least_side)

    def _attention(self, expression: int) -> Attention:
        if not self.attention:
            raise ValueError(
                "where Bridgers looked was not kept: ask with predict(..., return_attention=True)"
            )
        if not 0 <= expression < len(self.attention):
            raise ValueError(
                f"there is no sentence of number {expression}: {len(self.attention)} were asked"
            )
        return self.attention[expression]


def token_names(tokens: Sequence[str]) -> list[str]:
    """Return what tokens write, for people; a token of nothing but marks as it is.

    Args:
        tokens: of `Attention`.
    """
    return [plain(token) or token for token in tokens]
