"""Where Bridgers looked while a picture was answered about, and how it looks.

Shapes: L tokens, H' x W' cells of the map on which Bridgers work, h x w the picture's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from bridger.config import did_you_mean

if TYPE_CHECKING:
    from PIL import Image

    from bridger.pictures import ImageLike
    from bridger.warp import Placement

Weights = npt.NDArray[np.float32]
Direction = Literal["text_to_picture", "picture_to_text"]


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

    def stages_with(self, direction: Direction) -> list[int]:
        """Return the numbers of the stages that have attention in a direction.

        Args:
            direction: who reads whom, a field of `StageAttention`.

        Raises:
            ValueError: there is no such direction.
        """
        known = list(get_args(Direction))
        if direction not in known:
            raise ValueError(
                f"direction={direction!r} is unknown: {did_you_mean(direction, known)}"
            )
        return [one.stage for one in self.stages if getattr(one, direction) is not None]

    def heat(
        self, word: str | int, stage: int | None = None, direction: Direction = "text_to_picture"
    ) -> Weights:
        """Return how much a word and each place in the picture have to do with each other, (h, w).

        Args:
            word: as in `find`; of several tokens the mean is taken.
            stage: its number, from 0; None: the last that has attention in this direction.
            direction: "text_to_picture": how much the word read of each place;
                "picture_to_text": how much each place read of the word.

        Returns:
            Multiples of what it would be if all was read alike: 1 everywhere then.

        Raises:
            ValueError: there is no attention in this direction at this stage.
        """
        import torch
        from torch.nn.functional import interpolate

        weights = self._weights(stage, direction)
        if direction == "text_to_picture":
            even = weights * weights[0].size
        else:
            even = np.moveaxis(weights, -1, 0) * len(self.tokens)
        cells = torch.from_numpy(even[self.find(word)].mean(axis=0))
        (rows, columns), (height, width) = cells.shape, self.placement.input_size
        size = (rows * self.cell, columns * self.cell)  # the last cells may reach over the edge
        inside = interpolate(cells[None, None], size, mode="bilinear")[0, :, :height, :width]
        heat: Weights = self.placement.out_of_input(inside, cubic=False)[0].numpy()
        return heat

    def _weights(self, stage: int | None, direction: Direction) -> Weights:
        known = self.stages_with(direction)
        found = max(known, default=None) if stage is None else stage
        if found is None or found not in known:
            raise ValueError(
                f"there is no attention from {direction.replace('_', ' ')}"
                f"{'' if stage is None else f' at stage {stage}'}: these Bridgers have it at "
                f"{f'stages {known}' if known else 'none'}"
            )
        weights: Weights = next(getattr(o, direction) for o in self.stages if o.stage == found)
        return weights


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
        direction: Direction = "text_to_picture",
        least_side: int = 512,
    ) -> Image.Image:
        """Draw as heat over the picture where a word looked, or what looked at it.

        Where that is no more than if all was read alike, the picture stays grey.

        Args:
            image: the picture that this was predicted for.
            word: as in `Attention.find`.
            expression: number of the sentence.
            stage: number of the stage, from 0; None: the last that there is.
            direction: as in `Attention.heat`.
            least_side: pictures whose longer side is smaller are enlarged to it.

        Raises:
            ValueError: attention was not asked for, there is no such sentence, word or stage, or
                the picture has another size.
        """
        from bridger.predictions.heat import draw_heat

        attention = self._attention(expression)
        return draw_heat(attention, image, word, stage, direction, least_side)

    def attention_sheet(
        self, image: ImageLike, *, expression: int = 0, least_side: int = 160
    ) -> Image.Image:
        """Draw the heat of every token, in both directions, at every stage: a column for a token.

        Args:
            image: the picture that this was predicted for.
            expression: number of the sentence.
            least_side: longer side of each of the small pictures.

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
