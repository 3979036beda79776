"""The run store: a folder for each (setting, seed), which is run once and found again.

    STORE/<digest>/seed-<k>/
        plan.json            what is to be run
        result.json          figures; where it is, the run is finished
        history.json         losses and validations by step
        cases-<split>.npz    intersection and union of every expression
        pictures/<i>.jpg     of seed 0: what it answers about picture i of STORE/pictures.json
        log.txt              what the run said
        adapter/             what it trained

STORE/pictures/<i>.jpg shows what is meant in picture i.

The digest is of what decides a run but its seed: the recipe, the data, and the splits that are
judged. So two studies that ask for the same run share it, and a run of other options is another.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bridger._files import replacing
from bridger._json import read_json
from bridger.studies.study import identity

if TYPE_CHECKING:
    from bridger.training import Recipe

PLAN_FILE, RESULT_FILE, LOG_FILE = "plan.json", "result.json", "log.txt"
HISTORY_FILE, ADAPTER, PICTURES = "history.json", "adapter", "pictures"
SIDE = 256  # pixels of a drawn answer: a store may hold thousands
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cases:
    """The judged expressions of a split, in the order of the data set.

    Attributes:
        picture: (E,) which picture each is about, counted from 0.
        intersection: (E,) pixels in both masks.
        union: (E,) pixels in either mask.
    """

    picture: Counts
    intersection: Counts
    union: Counts

    def save(self, path: Path) -> None:
        """Write them, compressed."""
        arrays = {"picture": self.picture, "intersection": self.intersection, "union": self.union}
        small = {name: array.astype(np.int32) for name, array in arrays.items()}
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **small)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Cases:
        """Read them; no pickle in the file is run."""
        with np.load(path, allow_pickle=False) as arrays:
            names = ("picture", "intersection", "union")
            return cls(*(arrays[name].astype(np.int64) for name in names))


@dataclass(frozen=True)
class Plan:
    """One run that is to be made.

    Attributes:
        setting: the name under which it is asked for.
        recipe: what is trained; its seed is the run's.
        data: folder of the data.
        splits: what is judged at the end, every sentence of it.
        fingerprints: of the training split and those, by name; see `fingerprint`.
    """

    setting: str
    recipe: Recipe
    data: Path
    splits: tuple[str, ...]
    fingerprints: Mapping[str, str]

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.recipe.seed

    @cached_property
    def digest(self) -> str:
        """What tells it from runs of other settings, data or splits."""
        what = {
            "recipe": identity(self.recipe),
            "data": dict(self.fingerprints),
            "splits": list(self.splits),
        }
        text = json.dumps(what, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        return {
            "setting": self.setting,
            "recipe": self.recipe.to_dict(),
            "data": str(self.data.resolve()),
            "splits": list(self.splits),
            "fingerprints": dict(self.fingerprints),
        }

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """Read the plan of a run's folder."""
        from bridger.training import Recipe

        values = read_json(folder / PLAN_FILE)
        return cls(
            values["setting"],
            Recipe.from_dict(values["recipe"]),
            Path(values["data"]),
            tuple(values["splits"]),
            values["fingerprints"],
        )


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where it lies.
        setting: the name under which a study asks for it.
        seed: its seed.
        result: what result.json says.
    """

    folder: Path
    setting: str
    seed: int
    result: Mapping[str, Any]

    def metric(self, split: str, name: str) -> float:
        """Return a figure of a split, a share from 0 to 1."""
        return float(self.result["splits"][split][name])

    def cases(self, split: str) -> Cases:
        """Return the judged expressions of a split."""
        return Cases.load(self.folder / cases_file(split))

    def history(self) -> list[dict[str, Any]]:
        """Return losses and validations by step."""
        entries: list[dict[str, Any]] = read_json(self.folder / HISTORY_FILE)
        return entries


class Store:
    """A folder of runs.

    Args:
        root: the folder; made when something is put into it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, plan: Plan) -> Path:
        """Return where a run lies, or would."""
        return self.root / plan.digest / f"seed-{plan.seed}"

    def find(self, plan: Plan) -> Run | None:
        """Return the run if it is finished."""
        folder = self.folder(plan)
        if not (folder / RESULT_FILE).is_file():
            return None
        return Run(folder, plan.setting, plan.seed, read_json(folder / RESULT_FILE))

    def prepare(self, plan: Plan) -> Path:
        """Make a run's folder with its plan; return it."""
        folder = self.folder(plan)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / PLAN_FILE, plan.to_dict())
        return folder

    def pictures(self) -> list[dict[str, Any]]:
        """Return the questions that every run answers with a picture, as `write_pictures` took."""
        path = self.root / f"{PICTURES}.json"
        questions: list[dict[str, Any]] = read_json(path) if path.is_file() else []
        return questions

    def write_pictures(self, questions: Sequence[Mapping[str, Any]]) -> None:
        """Fix the questions that every run answers with a picture.

        Args:
            questions: "split", "index" of the ref, "image" and "words" of each.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        write_json(self.root / f"{PICTURES}.json", list(questions))


def cases_file(split: str) -> str:
    """Return the name of the file of a split's expressions."""
    return f"cases-{split}.npz"


def picture_file(number: int) -> str:
    """Return where, below a run's folder, its answer to a question is drawn."""
    return f"{PICTURES}/{number}.jpg"


def draw_answer(found: Any, picture: Path, file: Path) -> None:
    """Draw masks on their picture.

    Args:
        found: a `Prediction`.
        picture: that it is of.
        file: where to; its folder is made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    overlay = found.overlay(picture, least_side=SIDE)
    overlay.thumbnail((SIDE, SIDE))
    overlay.convert("RGB").save(file, quality=85)


def fingerprint(data: Any) -> str:
    """Return what tells a split of referring expressions from another.

    It is of the names of pictures, the refs' ids and the sentences, in their order, and not of
    where they lie.

    Args:
        data: a `ReferringDataset`.
    """
    digest = hashlib.sha256()
    for index in range(len(data)):
        sample = data[index]
        text = f"{sample.image_path.name}\t{sample.ref_id}\t" + "\t".join(sample.sentences)
        digest.update(f"{text}\n".encode())
    return digest.hexdigest()[:16]


def write_json(path: Path, values: Any) -> None:
    """Write JSON to a file that appears whole or not at all."""
    with replacing(path) as partial:
        text = json.dumps(values, indent=1, ensure_ascii=False)
        partial.write_text(text + "\n", encoding="utf-8")


def remove_leftovers(folder: Path) -> None:
    """Remove what a finished run needs no more: its checkpoints and its logs for TensorBoard."""
    for name in ("checkpoints", "runs", "pictures"):
        shutil.rmtree(folder / ADAPTER / name, ignore_errors=True)
