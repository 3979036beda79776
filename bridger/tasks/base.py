"""What a task is: a head's data, batches and figures.

A task has the registered name of its head. Adding a head to the command line is adding a file to
this folder; nothing else needs to know of it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch.utils.data import Dataset

if TYPE_CHECKING:
    from bridger.model import BridgedModel
    from bridger.training.recipes import Recipe

Report = Callable[[int, int, float], None]
"""Called with how much is judged, of how much, and the headline so far."""


class Result(Protocol):
    """What judging a split gives; figures are shares from 0 to 1.

    Attributes:
        name: of the data set.
        split: name of the split.
    """

    name: str
    split: str

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
        metrics: what `Recipe.metric` may name, the default first.
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]

    @abstractmethod
    def splits(self, root: str | os.PathLike[str], dataset: str | None = None) -> list[str]:
        """Return the names of the splits of a data set in a folder.

        Raises:
            FileNotFoundError: the folder holds no data of this task; what was expected is said.
        """

    @abstractmethod
    def open(self, root: str | os.PathLike[str], split: str, dataset: str | None = None) -> Any:
        """Open a split.

        Raises:
            FileNotFoundError, ValueError: it is not there, or its files are broken.
        """

    def head_options(self, data: Any) -> dict[str, Any]:
        """Return the options of the head that the training data decide, such as its classes."""
        return {}

    @abstractmethod
    def items(self, recipe: Recipe, data: Any) -> int:
        """Return how many items an epoch has."""

    @abstractmethod
    def schedule(self, recipe: Recipe, data: Any, length: int) -> Dataset[Any]:
        """Return what a run of `length` items sees, item by item, fixed by the recipe's seed."""

    @abstractmethod
    def collator(
        self, recipe: Recipe, model: BridgedModel, head: str, data: Any, cache: int
    ) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """Return what makes a batch of items: the arguments of `BridgedModel.forward`."""

    @abstractmethod
    def evaluate(
        self, model: BridgedModel, data: Any, head: str, *, report: Report | None = None
    ) -> Result:
        """Judge a split by the figures of the task.

        Raises:
            ValueError: the head is of another task.
        """
