"""One run, in a process of its own: `python -m bridger.studies.perform FOLDER [MODULE...]`.

The folder holds the plan; the modules are the user's own, which register heads or Bridgers. Where
another process is at the same run, this one waits for it; where the run was broken off, it goes on.
"""

from __future__ import annotations

import hashlib
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from bridger._json import read_json
from bridger.cli.adapters import import_own
from bridger.studies.meters import Meters, environment
from bridger.studies.store import (
    ADAPTER,
    HISTORY_FILE,
    RESULT_FILE,
    Cases,
    Plan,
    Store,
    cases_file,
    draw_answer,
    picture_file,
    remove_leftovers,
    write_json,
)

if TYPE_CHECKING:
    from bridger.evaluation import Evaluation
    from bridger.model import BridgedModel
    from bridger.tasks import Task
    from bridger.training import Recipe

LOCK_FILE = ".lock"


def main(arguments: Sequence[str]) -> None:
    """Make the run whose folder is the first argument, unless it is finished."""
    folder, imports = Path(arguments[0]), arguments[1:]
    import_own(Namespace(imports=imports))
    with FileLock(folder / LOCK_FILE):
        if not (folder / RESULT_FILE).is_file():
            perform(folder)


def perform(folder: Path) -> None:
    """Train, judge and write what came out; the result last.

    Raises:
        ValueError: the data are not those that were planned with, or the recipe's task gives no
            masks to compare.
        FileNotFoundError, RuntimeError, KeyboardInterrupt: see `bridger.training.train`.
    """
    from bridger.tasks import get_task
    from bridger.training.run import has_checkpoint, train

    plan = Plan.read(folder)
    recipe, task = plan.recipe, get_task(plan.recipe.task)
    started = time.perf_counter()
    training, validation, judged = open_data(plan, task)
    meters = Meters()
    out = folder / ADAPTER
    model = train(
        recipe,
        training,
        out,
        validation=validation,
        resume=has_checkpoint(out),
        callbacks=[meters],
    )
    trained = time.perf_counter()
    results = {}
    for split, data in judged.items():
        found: Any = task.evaluate(model, data, model.head_name())
        cases_of(found).save(folder / cases_file(split))
        results[split] = found.figures()
    finished = time.perf_counter()
    if plan.seed == 0:
        answer(model, Store(folder.parent.parent), judged, folder)
    write_json(folder / HISTORY_FILE, curve(read_json(out / HISTORY_FILE)))
    remove_leftovers(folder)
    seconds = {
        "step": meters.step,
        "training": trained - started,
        "evaluation": finished - trained,
        "all": finished - started,
    }
    result = {
        "setting": plan.setting,
        "seed": plan.seed,
        "recipe": recipe.to_dict(),
        "splits": results,
        "parameters": parameters_of(model),
        "bytes": sum(path.stat().st_size for path in out.glob("*.safetensors")),
        "steps": meters.steps,
        "seconds": seconds,
        "memory": meters.memory(),
        "samples": {
            "order": order_of(recipe, task, training),
            "data": dict(plan.fingerprints),
        },
        "environment": environment(),
    }
    write_json(folder / RESULT_FILE, result)


def open_data(plan: Plan, task: Task) -> tuple[Any, Any, dict[str, Any]]:
    """Return the training split, the one that chooses the checkpoint, and those to judge.

    Raises:
        ValueError: they are not those that were planned with.
    """
    from bridger.studies.store import fingerprint

    names = list(dict.fromkeys(["train", *plan.splits]))
    splits = dict(zip(names, task.open_several(plan.data, names), strict=True))
    for name, data in splits.items():
        if fingerprint(data) != plan.fingerprints[name]:
            raise ValueError(
                f"{name} in {plan.data} has changed since the study began: start the study again, "
                "which makes new runs, or restore the data"
            )
    return splits["train"], splits.get("val"), {name: splits[name] for name in plan.splits}


def cases_of(found: Evaluation) -> Cases:
    """Return what an evaluation of masks counted."""
    _, picture = np.unique([case.picture for case in found.cases], return_inverse=True)
    return Cases(picture.ravel().astype(np.int64), found.intersections, found.unions)


def parameters_of(model: BridgedModel) -> dict[str, int]:
    """Return how many parameters are trained, by part; the heads' are one part."""
    counts: dict[str, int] = {"head": 0}
    for group in model.parameter_groups():
        name = "head" if group["name"] in model.heads else group["name"]
        counts[name] = counts.get(name, 0) + sum(p.numel() for p in group["params"])
    counts["frozen"] = sum(p.numel() for p in model.encoder.towers.parameters())
    return counts


def order_of(recipe: Recipe, task: Task, training: Any) -> str:
    """Return what tells whether two runs saw the same pictures and words in the same order."""
    items = recipe.batch_size * recipe.steps_for(task.items(recipe, training))
    schedule: Any = task.schedule(recipe, training, items)
    digest = hashlib.sha256()
    for index in range(items):
        for sample in schedule[index]:
            seen = f"{sample.image_path.name}\t{sample.ref_id}\t{sample.sentences[0]}"
            digest.update(f"{seen}\t{sample.transform}\n".encode())
    return digest.hexdigest()[:16]


def curve(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return of a training's log what curves are drawn of: losses, and validations' figures."""
    kept = ("step", "loss", *(f"eval_{name}" for name in ("mIoU", "oIoU", "loss")))
    entries = ({name: entry[name] for name in kept if name in entry} for entry in history)
    return [entry for entry in entries if len(entry) > 1]


def answer(model: BridgedModel, store: Store, judged: Mapping[str, Any], folder: Path) -> None:
    """Draw what the model says to the store's questions, as far as they are of these splits."""
    for number, question in enumerate(store.pictures()):
        data = judged.get(question["split"])
        if data is None or data[question["index"]].image_path.name != question["image"]:
            continue  # a store may hold runs on several data sets
        picture, words = data[question["index"]].image_path, question["words"]
        draw_answer(model.predict(picture, words), picture, folder / picture_file(number))


if __name__ == "__main__":
    main(sys.argv[1:])
