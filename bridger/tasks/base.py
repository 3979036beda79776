"""What a task is: a head's data, batches and figures.

A task has the registered name of its head. Adding a head to the command line is adding a file to
this folder; nothing else needs to know of it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch.utils.data import Dataset

if TYPE_CHECKING:
    from PIL import Image

    from bridger.model import BridgedModel
    from bridger.processing import Processor
    from bridger.training.recipes import Recipe

Report = Callable[[int, int, float], None]
"""Called with how much is judged, of how much, and the headline so far."""

Root = str | os.PathLike[str]


class Result(Protocol):
    """What judging a split gives; figures are shares from 0 to 1."""

    @property
    def name(self) -> str:
        """Name of the data set."""

    @property
    def split(self) -> str:
        """Name of the split."""

    @property
    def headline(self) -> str:
        """Name of the metric that is told where only one is."""

    def metrics(self) -> dict[str, float]:
        """Return every metric by its name."""

    def figures(self) -> dict[str, float]:
        """Return what a Trainer reports: the metrics, and "loss" where it is known."""


class Task(ABC):
    """One task.

    Attributes:
        name: the registered name of its head.
        metrics: what `Recipe.metric` may name, the usual one first.
        recipe: name of the recipe in the package that is taken where none is named.
        datasets: what `Recipe.datasets` may name; empty where a folder holds one data set.
        augmentations: what `Recipe.augment` may name.
        judged: what the figures that choose a checkpoint are of, in words.
        takes_shots: whether `Recipe.shots` has a meaning.
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    recipe: ClassVar[str]
    datasets: ClassVar[tuple[str, ...]] = ()
    augmentations: ClassVar[tuple[str, ...]] = ()
    judged: ClassVar[str] = "validation"
    takes_shots: ClassVar[bool] = False

    # Data.

    def names(self, root: Root, asked: Sequence[str] = ()) -> list[str | None]:
        """Return the names of the data sets to open: those asked for, or the only one there.

        Of a task whose folders hold one data set, that is [None].

        Args:
            root: the folder.
            asked: names of data sets; none: the only one that is there.

        Raises:
            FileNotFoundError: the folder holds no data of this task; what was expected is said.
            ValueError: there are several, and none was asked for.
        """
        self.splits(root)
        return [None]

    @abstractmethod
    def splits(self, root: Root, dataset: str | None = None) -> list[str]:
        """Return the names of the splits of a data set in a folder.

        Args:
            root: the folder.
            dataset: its name, where the folder holds several.

        Raises:
            FileNotFoundError: the folder holds no data of this task; what was expected is said.
        """

    @abstractmethod
    def open(self, root: Root, split: str, dataset: str | None = None) -> Any:
        """Open a split.

        Args:
            root: the folder.
            split: its name.
            dataset: its name, where the folder holds several.

        Raises:
            FileNotFoundError, ValueError: it is not there, or its files are broken.
        """

    def open_several(
        self, root: Root, splits: Sequence[str], dataset: str | None = None
    ) -> list[Any]:
        """Open splits, where a task can, by reading large files once; errors as of `open`.

        Args:
            root: the folder.
            splits: their names.
            dataset: as for `open`.
        """
        return [self.open(root, split, dataset) for split in splits]

    @abstractmethod
    def size(self, data: Any) -> str:
        """Return how much a split holds, in words.

        Args:
            data: what `open` returned.
        """

    def judged_size(self, data: Any) -> str:
        """Return how much of a split chooses a checkpoint, in words.

        Args:
            data: what `open` returned.
        """
        return self.size(data)

    # Training.

    def usual_metric(self, options: Mapping[str, Any]) -> str:
        """Return the metric of a recipe that names none.

        Args:
            options: of the head. Where they are not whole yet and decide, the metric is empty.
        """
        return self.metrics[0]

    def head_options(self, data: Any) -> dict[str, Any]:
        """Return the options of the head that the training data decide, such as its classes.

        Options that a recipe has already go before them.

        Args:
            data: the training split.
        """
        return {}

    def check(self, recipe: Recipe, data: Any, validation: Any) -> None:
        """Refuse, before anything is loaded, what the data cannot give.

        Args:
            recipe: with the head's options whole.
            data: the training split.
            validation: the split that chooses the adapter, or None.

        Raises:
            ValueError: the recipe and the data do not fit together.
        """
        return

    @abstractmethod
    def check_words(self, processor: Processor, data: Any) -> None:
        """Refuse words of which the tokenizer knows nothing, before one of them ends the run.

        Args:
            processor: of the model.
            data: whose words are read.

        Raises:
            ValueError: there are such words.
        """

    @abstractmethod
    def items(self, recipe: Recipe, data: Any) -> int:
        """Return how many items an epoch has.

        Args:
            recipe: of the run.
            data: the training split.
        """

    @abstractmethod
    def schedule(self, recipe: Recipe, data: Any, length: int) -> Dataset[Any]:
        """Return what a run of `length` items sees, item by item, fixed by the recipe's seed.

        Args:
            recipe: of the run.
            data: the training split.
            length: items of the whole run.
        """

    @abstractmethod
    def collator(
        self, recipe: Recipe, model: BridgedModel, head: str, data: Any, cache: int
    ) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """Return what makes a batch of items: the arguments of `BridgedModel.forward`.

        Args:
            recipe: of the run.
            model: that is trained.
            head: name of its head.
            data: the training split.
            cache: bytes of fitted pictures that are kept in memory.
        """

    # Judging.

    @abstractmethod
    def evaluate(
        self, model: BridgedModel, data: Any, head: str, *, report: Report | None = None
    ) -> Result:
        """Judge a split by the figures of the task.

        Further options are the task's own, with defaults; `bridger evaluate` offers "batch_size",
        "threshold" and "first_sentence" for the tasks that have them.

        Args:
            model: in any mode; it is judged in eval mode.
            data: what `open` returned.
            head: name of the model's head.
            report: is told how far it is.

        Raises:
            ValueError: the head is of another task.
        """

    def validate(
        self, model: BridgedModel, data: Any, head: str, *, report: Report | None = None
    ) -> Result:
        """Judge a split in order to choose a checkpoint; arguments as of `evaluate`.

        Args:
            model: that is trained.
            data: what `open` returned.
            head: name of the model's head.
            report: is told how far it is.
        """
        return self.evaluate(model, data, head, report=report)

    @abstractmethod
    def draw(self, model: BridgedModel, data: Any, head: str, index: int) -> list[Image.Image]:
        """Draw what the model says about one entry of a split, and what is true.

        Args:
            model: that answers.
            data: what `open` returned.
            head: name of the model's head.
            index: of the entry.
        """
