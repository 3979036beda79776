"""What the tasks have in common that learn from referring expressions."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from bridger.data import ReferringDataset
from bridger.data.augment import AUGMENTATIONS
from bridger.data.catalog import PUBLISHED, open_split, open_splits, pictures_of, the_only
from bridger.data.folder import OWN
from bridger.tasks.base import Report, Result, Root, Task
from bridger.training.schedule import Schedule

if TYPE_CHECKING:
    from bridger.model import BridgedModel
    from bridger.processing import Processor
    from bridger.training.recipes import Recipe


class ReferringTask(Task):
    """A task on referring expressions; a head answers each of them."""

    datasets = (*PUBLISHED, OWN)
    judged = "validation, first sentences"
    augmentations: ClassVar[tuple[str, ...]] = AUGMENTATIONS

    def names(self, root: Root, asked: Sequence[str] = ()) -> list[str | None]:
        """Return the names of the data sets that were asked for, or the only one there."""
        return [*asked] or [the_only(root)]

    def splits(self, root: Root, dataset: str | None = None) -> list[str]:
        """Return the names of the splits; errors as of `bridger.data.open_splits`."""
        return list(pictures_of(root, dataset or the_only(root))[1])

    def open(self, root: Root, split: str, dataset: str | None = None) -> ReferringDataset:
        """Open a split; see `bridger.data.open_split`."""
        return open_split(root, split, dataset)

    def open_several(
        self, root: Root, splits: Sequence[str], dataset: str | None = None
    ) -> list[ReferringDataset]:
        """Open splits; see `bridger.data.open_splits`."""
        return list(open_splits(root, splits, dataset).values())

    def size(self, data: ReferringDataset) -> str:
        """Return the number of refs."""
        return f"{len(data)} refs"

    def judged_size(self, data: ReferringDataset) -> str:
        """Return the number of first sentences."""
        return f"{len(data)} first sentences"

    def check_words(self, processor: Processor, data: ReferringDataset) -> None:
        """Refuse sentences of which the tokenizer knows nothing."""
        for sample in (data[index] for index in range(len(data))):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of long ones, which are cut
                    processor.text(sample.sentences)
            except ValueError as error:
                raise ValueError(
                    f"ref {sample.ref_id} of {data!r}: {error}; leave it out, or choose towers "
                    f"that read such words"
                ) from error

    def items(self, recipe: Recipe, data: ReferringDataset) -> int:
        """Return the number of refs, or of pictures where each has several expressions."""
        return len(data) if recipe.expressions == 1 else len(data.pictures())

    def schedule(self, recipe: Recipe, data: ReferringDataset, length: int) -> Schedule:
        """Return the order of refs and sentences."""
        return Schedule(data, length, recipe.expressions, recipe.seed, recipe.augment)

    @abstractmethod
    def evaluate(
        self,
        model: BridgedModel,
        data: ReferringDataset,
        head: str,
        *,
        report: Report | None = None,
        batch_size: int = 32,
        first_sentence: bool = False,
    ) -> Result:
        """Judge every sentence, or the first of every ref."""

    def validate(
        self,
        model: BridgedModel,
        data: ReferringDataset,
        head: str,
        *,
        report: Report | None = None,
    ) -> Result:
        """Judge the first sentence of every ref, as the reference chooses its checkpoint."""
        return self.evaluate(model, data, head, report=report, first_sentence=True)
