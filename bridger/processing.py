"""Pictures and words in, masks out: what stands between a user and the tensors of a model."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bridger._files import staging
from bridger.known_towers import known_inputs
from bridger.pictures import ImageLike, read_picture
from bridger.predictions import Prediction
from bridger.warp import Placement
from bridger.words import find_words, load_words

__all__ = ["ImageLike", "Placement", "Prediction", "Processor"]

FILE = "processor.json"


class Processor:
    """Turns pictures and words into tensors, and probabilities into masks of a picture's size.

    A picture is fitted into the towers' input size with the mean colour around it (see
    `bridger.warp`), then normalised.

    Args:
        image_size: H = W, or (H, W), of the towers' input.
        mean: of the three channels, from 0 to 1.
        std: of the three channels.
        tokenizer: of transformers or of open_clip.
        max_length: most tokens of a sentence, start and end included.

    Raises:
        ValueError: a size, a mean or a standard deviation that cannot be.
        TypeError: a tokenizer of another kind, a length that is no whole number.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        tokenizer: Any,
        max_length: int,
    ) -> None:
        sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(sides) != 2 or not all(type(s) is int and s > 0 for s in sides):
            raise ValueError(f"image_size must be a positive int or (H, W), found {image_size!r}")
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3 or not all(math.isfinite(v) for v in values):
                raise ValueError(f"{name} must hold three numbers, found {tuple(values)}")
        if not all(0 <= v <= 1 for v in mean) or min(std) <= 0:
            raise ValueError(f"mean lies in 0 to 1 and std above 0; found {mean} and {std}")
        if type(max_length) is not int:
            raise TypeError(f"max_length must be a whole number of tokens, found {max_length!r}")
        if max_length < 3:
            raise ValueError(f"max_length leaves no room for a word: found {max_length}, least 3")
        self.image_size: tuple[int, int] = (sides[0], sides[1])
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.words, self.max_length = find_words(tokenizer), max_length

    # Pictures.

    def fit(self, image: ImageLike) -> tuple[Tensor, Placement]:
        """Fit a picture into the input as bytes (3, H, W), before normalising.

        Caches hold these; `normalize` makes pixel values of them.

        Args:
            image: see `bridger.pictures.read_picture`.

        Returns:
            The bytes, and where the picture lies in them.
        """
        picture = read_picture(image)
        placement = Placement.fit((picture.shape[1], picture.shape[2]), self.image_size)
        border = (255 * torch.tensor(self.mean)).round_()  # OpenCV has it in bytes too
        warped = placement.into_input(picture, border)
        return warped.round_().clamp_(0, 255).to(torch.uint8), placement

    def normalize(self, fitted: Tensor) -> Tensor:
        """Turn bytes into pixel values of the same shape, float32.

        Args:
            fitted: (3, H, W) or (B, 3, H, W), as `fit` returns.
        """
        mean, std = (
            torch.tensor(v, device=fitted.device)[:, None, None] for v in (self.mean, self.std)
        )
        return (fitted.to(torch.float32) / 255).sub_(mean).div_(std)

    def image(self, image: ImageLike) -> tuple[Tensor, Placement]:
        """Turn a picture of any kind, mode and size into pixel values (3, H, W).

        Args:
            image: see `bridger.pictures.read_picture`.

        Returns:
            The pixel values, and where the picture lies in them.

        Raises:
            FileNotFoundError, ValueError, TypeError: see `bridger.pictures.read_picture`.
        """
        fitted, placement = self.fit(image)
        return self.normalize(fitted), placement

    def images(self, images: Sequence[ImageLike]) -> tuple[Tensor, list[Placement]]:
        """Turn B pictures into pixel values (B, 3, H, W) and their placements.

        Args:
            images: of any kind that `image` takes.
        """
        if len(images) == 0:
            raise ValueError("expected at least one picture, found none")
        pixels, placements = zip(*map(self.image, images), strict=True)
        return torch.stack(pixels), list(placements)

    # Words.

    def text(self, sentences: str | Sequence[str]) -> dict[str, Tensor]:
        """Turn N sentences into `input_ids` and `attention_mask` (bool), both (N, L).

        A sentence above `max_length` is cut, with a UserWarning that says by how much.

        Args:
            sentences: one, or several.

        Raises:
            ValueError: a sentence is empty or holds no word.
            TypeError: a sentence is no string.
        """
        sentences = [sentences] if isinstance(sentences, str) else list(sentences)
        return self.words(sentences, self.max_length)

    # Masks.

    def target(self, mask: npt.NDArray[Any] | Tensor, placement: Placement) -> Tensor:
        """Turn a picture's mask into the soft target (H, W), 0 to 1, that training compares with.

        Args:
            mask: (h, w); integers and bool are object where they are not 0, floats are soft.
            placement: of the mask's picture.

        Raises:
            ValueError: the mask has another size than the picture.
        """
        mask = torch.as_tensor(mask).cpu()
        if tuple(mask.shape) != placement.size:
            raise ValueError(
                f"the mask has shape {tuple(mask.shape)}, its picture is {placement.size} (h, w)"
            )
        if not mask.is_floating_point():
            mask = mask != 0
        soft = placement.into_input(mask.to(torch.float32)[None], torch.zeros(1), cubic=False)[0]
        return (255 * soft).round_() / 255  # as a warped picture of the mask would hold it

    def restore(self, probabilities: Tensor, placement: Placement) -> npt.NDArray[np.float32]:
        """Bring a head's probabilities (N, h', w') to the picture's size: (N, h, w), 0 to 1.

        First bicubic to the input's size with the corners aligned, then the letterbox undone,
        as the reference implementation evaluates.

        Args:
            probabilities: of N expressions of one picture.
            placement: of the picture.
        """
        if probabilities.ndim != 3:
            raise ValueError(
                f"expected probabilities (N, h, w) of one picture, found "
                f"{tuple(probabilities.shape)}"
            )
        whole = nn.functional.interpolate(
            probabilities.detach().to("cpu", torch.float32).unsqueeze(0),
            self.image_size,
            mode="bicubic",
            align_corners=True,
        )
        restored: npt.NDArray[np.float32] = placement.out_of_input(whole[0]).clamp_(0, 1).numpy()
        return restored

    # Saving, loading, and guessing.

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved of the picture's side."""
        return {
            "image_size": list(self.image_size),
            "mean": list(self.mean),
            "std": list(self.std),
            "max_length": self.max_length,
        }

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `processor.json` and, where the tokenizer is saved whole, the folder `tokenizer`.

        Files take the place of older ones when all are written.

        Args:
            folder: made where there is none.

        Raises:
            ValueError: the tokenizer cannot be saved.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with staging(folder) as fresh:
            words = {"kind": self.words.kind, "options": self.words.save(fresh)}
            text = json.dumps({**self.to_dict(), "tokenizer": words}, indent=2)
            (fresh / FILE).write_text(text + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Processor:
        """Read what `save` wrote.

        Args:
            folder: an adapter's, for instance.

        Raises:
            FileNotFoundError: there is no processor in the folder.
            ValueError: its file is broken or does not hold what it should.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no processor: expected {path}")
        try:
            values = json.loads(path.read_text())
            words = values.pop("tokenizer")
            kind, options = words["kind"], words["options"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not what Processor.save writes: {error!r}") from error
        expected = {"image_size", "mean", "std", "max_length"}
        if set(values) != expected:
            raise ValueError(f"{path} must hold {sorted(expected)}, found {sorted(values)}")
        return cls(tokenizer=load_words(Path(folder), kind, options), **values)

    @staticmethod
    def infer(vision_module: nn.Module, text_module: nn.Module) -> Processor | None:
        """Return the processor that two towers were trained with, where it can be known.

        Known are open_clip's models that came from its factory and read CLIP's vocabulary,
        towers of transformers with a name or path, and the embedded pair.

        Args:
            vision_module: the vision tower.
            text_module: the text tower.

        Returns:
            The processor, or None: then `predict` says what to pass.
        """
        known = known_inputs(vision_module, text_module)
        if known is None:
            return None
        try:
            return Processor(*known[0], *known[1])
        except ValueError:  # a model's own description of itself that cannot be
            return None
