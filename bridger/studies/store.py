"""The run store: a folder for each (setting, seed), which is run once and found again.

    STORE/<digest>/seed-<k>/
        plan.json            what is to be run
        trained.json         what the training measured of itself; where it is, it is finished
        result.json          figures; where it is, the run is finished
        history.json         losses and validations by step
        cases-<split>.npz    intersection and union of every expression
        pictures/<i>.jpg     of seed 0: what it answers to question i
        log.txt              what the run said
        adapter/             what it trained
    STORE/questions/<data>/
        questions.json       what runs on these data are asked for a picture of
        <i>.jpg              what is meant

The digest is of what decides a run but its seed: the recipe, the data, the splits that are judged,
and files of the user's own that it imports. So two studies that ask for the same run share it, and
a run of other options is another.
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
from bridger._json import read_json, save_json
from bridger.studies.study import identity

if TYPE_CHECKING:
    from bridger.training import Recipe

PLAN_FILE, TRAINED_FILE, RESULT_FILE = "plan.json", "trained.json", "result.json"
LOG_FILE, QUESTIONS = "log.txt", "questions"
HISTORY_FILE, ADAPTER = "history.json", "adapter"
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
        fingerprints: of the training split and those, by name (see `fingerprint`), and of imported
            files.
        use_cpu: train on the CPU where there is a GPU too; it does not tell runs apart.
    """

    setting: str
    recipe: Recipe
    data: Path
    splits: tuple[str, ...]
    fingerprints: Mapping[str, str]
    use_cpu: bool = False

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
            "use_cpu": self.use_cpu,
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
            values["use_cpu"],
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
        """Return losses and validations by step; None is what was no number."""
        entries: list[dict[str, Any]] = read_json(self.folder / HISTORY_FILE)
        return entries

    @property
    def diverged(self) -> int | None:
        """The update from which on its losses were no numbers; None: they always were."""
        steps = (entry["step"] for entry in self.history() if None in entry.values())
        return next(steps, None)


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
        save_json(folder / PLAN_FILE, plan.to_dict())
        return folder

    def questions_folder(self, fingerprints: Mapping[str, str]) -> Path:
        """Return where the questions to runs on such data lie.

        Args:
            fingerprints: of the data.
        """
        text = json.dumps(dict(fingerprints), sort_keys=True)
        return self.root / QUESTIONS / hashlib.sha256(text.encode()).hexdigest()[:12]

    def questions(self, fingerprints: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return what runs on such data are asked for a picture of, as `write_questions` took it.

        Args:
            fingerprints: of the data.
        """
        path = self.questions_folder(fingerprints) / f"{QUESTIONS}.json"
        questions: list[dict[str, Any]] = read_json(path) if path.is_file() else []
        return questions

    def write_questions(
        self, fingerprints: Mapping[str, str], questions: Sequence[Mapping[str, Any]]
    ) -> Path:
        """Fix what runs on such data are asked for a picture of; return the folder.

        Args:
            fingerprints: of the data.
            questions: "split", "index" of the ref, "image" and "words" of each.
        """
        folder = self.questions_folder(fingerprints)
        folder.mkdir(parents=True, exist_ok=True)
        save_json(folder / f"{QUESTIONS}.json", list(questions))
        return folder


def cases_file(split: str) -> str:
    """Return the name of the file of a split's expressions."""
    return f"cases-{split}.npz"


def picture_file(number: int) -> str:
    """Return where, below a run's folder, its answer to a question is drawn."""
    return f"pictures/{number}.jpg"


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

    It is of the names of pictures, the refs' ids, the sentences and the outlines, in their order,
    and not of where they lie. Of outlines that are files, the sizes count.

    Args:
        data: a `ReferringDataset`.
    """
    digest = hashlib.sha256()
    for index in range(len(data)):
        sample = data[index]
        what = sample.image_path.name, sample.ref_id, sample.sentences, _told(sample.outline)
        digest.update(f"{what}\n".encode())
    return digest.hexdigest()[:16]


def _told(outline: Any) -> str:
    """Return an outline as text, a file by its name and size."""
    told = {
        name: [value.name, value.stat().st_size if value.is_file() else 0]
        if isinstance(value, Path)
        else value
        for name, value in vars(outline).items()
    }
    return repr(sorted(told.items()))


def remove_leftovers(folder: Path) -> None:
    """Remove what a finished run needs no more: its checkpoints and its logs for TensorBoard."""
    for name in ("checkpoints", "runs", "pictures"):
        shutil.rmtree(folder / ADAPTER / name, ignore_errors=True)
