"""What a visitor can choose between: every head of every adapter, on towers that are shared."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridger.adapter_files import read_saved_config
from bridger.heads.base import TextKind
from bridger.heads.dense import DenseHead

if TYPE_CHECKING:
    from bridger.heads import Head
    from bridger.model import BridgedModel

LABELS = {
    "referring_segmentation": "Masks",
    "clipseg": "Masks by CLIPSeg's decoder",
    "semantic_segmentation": "Label map",
    "detection": "Boxes",
    "referring_comprehension": "One box each",
    "classification": "Classes",
}
"""What the heads of the library are called on the page, in the order in which they stand there."""


@dataclass(frozen=True, eq=False)
class Choice:
    """One head of one adapter.

    Attributes:
        label: what it is called on the page; no two choices have the same.
        adapter: the adapter's name as it was given.
        model: in eval mode, as `predict` in several threads at once wants it.
        name: of the head in the model.
    """

    label: str
    adapter: str
    model: BridgedModel
    name: str

    @property
    def head(self) -> Head:
        """The head."""
        return self.model.heads[self.name]

    @property
    def text(self) -> TextKind:
        """What it reads: "expressions" or "classes"."""
        return self.head.text

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that it was trained on, by which it answers where none are named."""
        from bridger.class_phrases import names_of

        return tuple(names_of(entry)[0] for entry in getattr(self.head.config, "classes", ()))

    @property
    def has_threshold(self) -> bool:
        """Whether its results have a threshold."""
        return "threshold" in self.head.result_options()

    @property
    def threshold(self) -> float | None:
        """The threshold that it has by itself; None where it has another rule, or none at all."""
        head = self.head
        makes = head.result if isinstance(head, DenseHead) else head.results
        option = inspect.signature(makes).parameters.get("threshold")
        value = None if option is None else option.default
        return float(value) if isinstance(value, (int, float)) else None


def load_choices(
    adapters: Sequence[str],
    towers: str | None = None,
    device: Any = None,
    *,
    download: bool | None = None,
) -> list[Choice]:
    """Load adapters; those for the same towers share one pair of them.

    Adapters with layers of peft or bottleneck adapters, which become part of the towers, have
    towers of their own.

    Args:
        adapters: names, see `bridger.hub.find_adapter`.
        towers: name of the towers in place of what the adapters say.
        device: where the models run; None: where they are loaded.
        download: whether the towers' weights may be downloaded; None: see
            `bridger.BridgedModel.from_pretrained`.

    Raises:
        FileNotFoundError, OSError: see `bridger.BridgedModel.from_pretrained`.
        ValueError: an adapter does not fit, has no head, or takes a processor that is not known.
    """
    from bridger.hub import find_adapter

    first_on: dict[str, BridgedModel] = {}
    found: list[Choice] = []
    for adapter in dict.fromkeys(adapters):
        model = _load(adapter, find_adapter(adapter), towers, download, first_on)
        if not model.heads:
            raise ValueError(f"{adapter} has no head that could answer: train one on it first")
        if model.processor is None:
            raise ValueError(
                f"{adapter} does not say how pictures and words become its towers' input: set "
                f"model.processor and save it again"
            )
        model = model.to(device).eval()
        found += [
            Choice(LABELS.get(head.name) or _worded(head.name or name), adapter, model, name)
            for name, head in model.heads.items()
        ]
    order = list(LABELS)
    ranks = {name: rank for rank, name in enumerate(order)}
    found.sort(key=lambda choice: ranks.get(choice.head.name, len(order)))
    return _told_apart(found)


def _load(
    adapter: str,
    folder: Path,
    towers: str | None,
    download: bool | None,
    first_on: dict[str, BridgedModel],
) -> BridgedModel:
    """Load an adapter onto towers that are there already, or else onto new ones."""
    from bridger.model import BridgedModel
    from bridger.named_towers.of_adapter import towers_of

    source = towers_of(folder, towers)
    encoder = read_saved_config(folder)["encoder"]
    changes_towers = encoder.get("peft") or encoder.get("bottlenecks")
    shares = source is not None and not changes_towers
    first = first_on.get(source) if shares and source is not None else None
    if first is None:
        model = BridgedModel.from_pretrained(adapter, towers=towers, download=download)
        if shares and source is not None:
            first_on[source] = model
        return model
    there = first.encoder
    model = BridgedModel.from_pretrained(adapter, there.vision.module, there.text.module)
    model.processor = model.processor or first.processor
    return model


def _told_apart(choices: Sequence[Choice]) -> list[Choice]:
    """Add the adapter, and where that is not enough the head's name, to labels that are taken."""
    for more in ("adapter", "name"):
        counts = Counter(choice.label for choice in choices)
        choices = [
            replace(c, label=f"{c.label}, {_short(getattr(c, more))}") if counts[c.label] > 1 else c
            for c in choices
        ]
    counts = Counter(choice.label for choice in choices)
    return [
        replace(c, label=f"{c.label} ({number})") if counts[c.label] > 1 else c
        for number, c in enumerate(choices, 1)
    ]


def _worded(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _short(name: str) -> str:
    return Path(name).name or name
