"""What is known of an adapter from its folder, for its card."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import getdoc
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bridger._json import check_object, read_json
from bridger.adapter_files import WEIGHTS_FILE, part_sizes, read, read_recipe
from bridger.class_phrases import names_of
from bridger.heads import get_head, list_heads
from bridger.named_towers.of_adapter import towers_of
from bridger.named_towers.origins import Origin, origins_of
from bridger.summary import count

if TYPE_CHECKING:
    from bridger.model import BridgedModel
    from bridger.saving import SavedModel

Figures = str | os.PathLike[str] | Mapping[str, Any]
"""What `bridger evaluate --json` wrote: the file, or what is in it."""

EMBEDDED, SCENES, OWN = "tiny", "scenes", "folder"


@dataclass(frozen=True)
class HeadFacts:
    """What is known of one head.

    Attributes:
        name: in the adapter.
        registered: name of its kind.
        about: what it does, in a sentence; empty for heads of a package that is not imported.
        text: what it reads, "expressions" or "classes".
        pipeline_tag: the Hub's name for what it does; empty where it has none.
        options: its config.
    """

    name: str
    registered: str
    about: str
    text: str
    pipeline_tag: str
    options: Mapping[str, Any]

    @property
    def classes(self) -> list[str]:
        """The names of the classes that it was trained on."""
        return [names_of(entry)[0] for entry in self.options.get("classes") or ()]


@dataclass(frozen=True)
class Facts:
    """What is known of an adapter.

    Attributes:
        repo_id: "user/name" on the Hub.
        config: what `bridger_config.json` says.
        recipe: of its training; None where there is none.
        origins: of its towers, one entry or two; empty where they are not known.
        heads: its heads, in order.
        numbers: how many numbers each part holds, by its name.
        size: bytes of its weights.
        tower_numbers: parameters of both towers; None where they were not loaded.
        results: records of `bridger evaluate`, each with "task", "head" and "metrics".
        licence: its identifier on the Hub; None where none is named.
    """

    repo_id: str
    config: Mapping[str, Any]
    recipe: Mapping[str, Any] | None
    origins: Sequence[Origin]
    heads: Sequence[HeadFacts]
    numbers: Mapping[str, int]
    size: int
    tower_numbers: int | None
    results: Sequence[Mapping[str, Any]]
    licence: str | None

    @property
    def name(self) -> str:
        """The name without the user."""
        return self.repo_id.rpartition("/")[2]

    @property
    def is_embedded(self) -> bool:
        """Whether it is for the towers in the package."""
        return [origin.name for origin in self.origins] == [EMBEDDED]

    @property
    def pipeline_tags(self) -> list[str]:
        """The Hub's names for what its heads do; of one without heads, that it gives features."""
        if not self.heads:
            return ["image-feature-extraction"]
        return list(dict.fromkeys(head.pipeline_tag for head in self.heads if head.pipeline_tag))


def facts_of(
    folder: Path,
    repo_id: str,
    model: SavedModel | None,
    figures: Figures | Sequence[Figures] | None,
    licence: str | None,
) -> Facts:
    """Gather what is known; arguments and errors as of `bridger.model_card.write_card`."""
    config, tensors = read(folder)
    towers = towers_of(folder)
    results = records_of(figures, [head["type"] for head in config["heads"].values()])
    if towers == EMBEDDED:  # scenes come in the layouts of published data sets, and are none
        results = [
            record if record.get("dataset") == OWN else {**record, "dataset": SCENES}
            for record in results
        ]
    heads = [_head(name, saved) for name, saved in config["heads"].items()]
    return Facts(
        repo_id=repo_id,
        config=config,
        recipe=read_recipe(folder),
        origins=origins_of(towers) if towers else (),
        heads=heads,
        numbers={part: sizes["numbers"] for part, sizes in part_sizes(tensors).items()},
        size=(folder / WEIGHTS_FILE).stat().st_size,
        tower_numbers=None if model is None else _tower_numbers(model),
        results=results,
        licence=licence,
    )


def _head(name: str, saved: Mapping[str, Any]) -> HeadFacts:
    registered = saved["type"]
    if registered not in list_heads():
        return HeadFacts(name, registered, "", "expressions", "", saved["config"])
    known = get_head(registered)
    about = (getdoc(known) or "").partition("\n\n")[0].replace("\n", " ")
    return HeadFacts(name, registered, about, known.text, known.pipeline_tag, saved["config"])


def _tower_numbers(model: SavedModel) -> int:
    groups = cast("BridgedModel", model).parameter_groups()
    own = [p for group in groups if group["name"] == "peft" for p in group["params"]]
    frozen: int = count(model.encoder.towers) - sum(p.numel() for p in own)
    return frozen


def records_of(
    figures: Figures | Sequence[Figures] | None, heads: Sequence[str]
) -> list[Mapping[str, Any]]:
    """Return the records of all figures, each with the task and the head that it is of.

    Args:
        figures: what `bridger evaluate --json` wrote: one, several or none.
        heads: the registered names of the adapter's heads.

    Raises:
        ValueError: they are no figures, or those of another adapter's heads.
    """
    single = isinstance(figures, (str, os.PathLike, Mapping))
    given: Sequence[Any] = [figures] if single else figures or ()  # type: ignore[assignment]
    found: list[Mapping[str, Any]] = []
    for each in given:
        said = each if isinstance(each, Mapping) else read_json(Path(each))
        named = "the figures" if isinstance(each, Mapping) else str(each)
        if not isinstance(said, Mapping) or not {"task", "head", "results"} <= set(said):
            raise ValueError(f"{named} are not what `bridger evaluate ADAPTER --json` writes")
        if said["task"] not in heads:
            raise ValueError(
                f"{named} are those of a head for {said['task']}; this adapter has {list(heads)}"
            )
        about = {"task": said["task"], "head": said["head"]}
        _check_records(said["results"], named)
        found += [{**about, **record} for record in said["results"]]
    return found


def _check_records(records: Any, named: str) -> None:
    """Raise ValueError where records lack what a card shows of them."""
    if not isinstance(records, Sequence) or isinstance(records, str):
        raise ValueError(f'"results" of {named} must be a list, found {records!r}')
    for number, record in enumerate(records):
        where = f"result {number} of {named}"
        check_object(record, where)
        how_many = "expressions" if "expressions" in record else "pictures"
        needed = ("dataset", "split", how_many, "metrics")
        if missing := [key for key in needed if record.get(key) is None]:
            raise ValueError(f"{where} lacks {missing}: give what `bridger evaluate --json` wrote")
        check_object(record["metrics"], f'"metrics" of {where}')
        for name, share in record["metrics"].items():
            if type(share) not in (int, float) or not math.isfinite(share):
                raise ValueError(f"metric {name!r} of {where} must be a number, found {share!r}")
