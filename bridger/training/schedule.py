"""The order in which a run sees pictures and expressions, fixed before its first step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from bridger.data import ReferringDataset, Sample
from bridger.data.augment import check_augmentations, draw_transform


class Shuffled:
    """An endless list of numbers below `count`: each once in every epoch, in an order of its own.

    Args:
        count: how many.
        seed: of the orders.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._order: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))

    def __getitem__(self, index: int) -> int:
        """Return one of them; it depends on the seed and its place alone."""
        epoch, place = divmod(index, self.count)
        if self._order[0] != epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.count)
            self._order = (epoch, order)
        return int(self._order[1][place])


class Schedule(Dataset[list[Sample]]):
    """What a run of `length` items sees, item by item.

    Item k depends on (seed, k) alone, so that a resumed run, which skips the first items, goes
    on as the uninterrupted one. Every picture (with `expressions` = 1: every ref) is seen once
    before one is seen again, each time with other words.

    Args:
        dataset: the split.
        length: items of the run: steps times batch size.
        expressions: expressions of each item; fewer where a picture has fewer.
        seed: of the order and the draws.
        augment: names of `bridger.data.augment.AUGMENTATIONS`. What is done to an item's picture
            holds for all of its expressions, and an item has the same ones without.

    Raises:
        ValueError: an augmentation is unknown.
    """

    def __init__(
        self,
        dataset: ReferringDataset,
        length: int,
        expressions: int,
        seed: int,
        augment: Sequence[str] = (),
    ) -> None:
        self.dataset, self.length = dataset, length
        self.expressions, self.seed = expressions, seed
        self.augment = check_augmentations(augment)
        single = [[index] for index in range(len(dataset))]
        self.groups = single if expressions == 1 else dataset.pictures()
        self._shuffled = Shuffled(len(self.groups), seed)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> list[Sample]:
        """Return an item's refs, all of one picture, each with the one sentence to train on.

        They share a `transform`, and the sentences are those for the picture that it makes.
        """
        if not 0 <= index < self.length:
            raise IndexError(f"the run has {self.length} items, there is no item {index}")
        samples = [self.dataset[ref] for ref in self.groups[self._shuffled[index]]]
        words = random.Random(f"{self.seed}/{index}")
        # Different objects of a picture teach more than two sentences about one of them.
        first = [(sample, words.choice(sample.sentences)) for sample in samples]
        words.shuffle(first)
        taken = {(sample.ref_id, said) for sample, said in first}
        others = [
            (s, said) for s in samples for said in s.sentences if (s.ref_id, said) not in taken
        ]
        words.shuffle(others)
        chosen = [*first, *others][: self.expressions]
        dice = random.Random(f"{self.seed}/{index}/augment")
        transform, sentences = draw_transform(self.augment, [said for _, said in chosen], dice)
        return [
            replace(sample, sentences=(said,), transform=transform)
            for (sample, _), said in zip(chosen, sentences, strict=True)
        ]
