"""One run, in a process of its own: `python -m bridger.studies.perform FOLDER [MODULE...]`.

The folder holds the plan; the modules are the user's own, which register heads or Bridgers. Where
another process is at the same run, this one waits for it; where the run was broken off, it goes on.
"""

from __future__ import annotations

import hashlib
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from bridger._importing import import_modules
from bridger._json import read_json, save_json
from bridger.studies.data import open_data
from bridger.studies.store import (
    ADAPTER,
    HISTORY_FILE,
    RESULT_FILE,
    TRAINED_FILE,
    Cases,
    Plan,
    Store,
    cases_file,
    draw_answer,
    fingerprint,
    picture_file,
    remove_leftovers,
)
from bridger.studies.study import VALIDATION

if TYPE_CHECKING:
    from bridger.evaluation import Evaluation
    from bridger.model import BridgedModel
    from bridger.tasks import Task
    from bridger.training import Recipe

LOCK_FILE, METERS_FILE = ".lock", "meters.json"


def main(arguments: Sequence[str]) -> None:
    """Make the run whose folder is the first argument, unless it is finished."""
    folder, imports = Path(arguments[0]), arguments[1:]
    # What a shell has put in the background ignores Ctrl-C, and so would this process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import_modules(imports)
    lock = FileLock(folder / LOCK_FILE)  # let go when this process ends, however it does
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("another process is at this run: waiting for it", flush=True)
        lock.acquire()
    if not (folder / RESULT_FILE).is_file():
        perform(folder)


def perform(folder: Path) -> None:
    """Train, judge and write what came out; the result last.

    Raises:
        ValueError: the data are not those that were planned with.
        FileNotFoundError, RuntimeError, KeyboardInterrupt: see `bridger.training.train`.
    """
    from bridger.tasks import get_task

    plan = Plan.read(folder)
    task = get_task(plan.recipe.task)
    splits = open_data(plan.recipe, plan.data, [VALIDATION, *plan.splits])
    _check(plan, splits)
    model = _trained(plan, folder, splits)
    started = time.perf_counter()
    judged = {name: splits[name] for name in plan.splits}
    results = judge(model, task, judged, folder)
    measured = read_json(folder / TRAINED_FILE)
    measured["seconds"]["evaluation"] = time.perf_counter() - started
    measured["seconds"]["all"] = sum(measured["seconds"][n] for n in ("training", "evaluation"))
    if plan.seed == 0:
        answer(model, Store(folder.parent.parent), plan, judged, folder)
    result = {
        "setting": plan.setting,
        "seed": plan.seed,
        "recipe": plan.recipe.to_dict(),
        "splits": results,
        "parameters": parameters_of(model),
        "bytes": sum(path.stat().st_size for path in (folder / ADAPTER).glob("*.safetensors")),
        **measured,
        "samples": {
            "order": order_of(plan.recipe, task, splits["train"]),
            "data": dict(plan.fingerprints),
        },
    }
    save_json(folder / RESULT_FILE, result)
    (folder / TRAINED_FILE).unlink()


def _check(plan: Plan, splits: Mapping[str, Any]) -> None:
    for name, data in splits.items():
        if fingerprint(data) != plan.fingerprints[name]:
            raise ValueError(
                f"{name} in {plan.data} has changed since the study began: start the study again, "
                "which makes new runs, or restore the data"
            )


def _trained(plan: Plan, folder: Path, splits: Mapping[str, Any]) -> BridgedModel:
    """Train, or load what was trained before the run was broken off."""
    from bridger.model import BridgedModel
    from bridger.studies.meters import Meters, environment
    from bridger.training.run import has_checkpoint, train

    out = folder / ADAPTER
    if (folder / TRAINED_FILE).is_file():
        return BridgedModel.from_pretrained(out)
    meters = Meters(folder / METERS_FILE)
    model = train(
        plan.recipe,
        splits["train"],
        out,
        validation=splits[VALIDATION],
        resume=has_checkpoint(out),
        use_cpu=plan.use_cpu,
        callbacks=[meters],
    )
    save_json(folder / HISTORY_FILE, curve(read_json(out / HISTORY_FILE)))
    save_json(folder / TRAINED_FILE, {**meters.told(), "environment": environment()})
    (folder / METERS_FILE).unlink(missing_ok=True)
    remove_leftovers(folder)
    return model


def judge(
    model: BridgedModel, task: Task, judged: Mapping[str, Any], folder: Path
) -> dict[str, dict[str, float]]:
    """Judge every sentence of every split; write the counts, and return the figures."""
    results = {}
    for split, data in judged.items():
        found: Any = task.evaluate(model, data, model.head_name())
        cases_of(found).save(folder / cases_file(split))
        results[split] = found.figures()
    return results


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
    return counts


def order_of(recipe: Recipe, task: Task, training: Any) -> str:
    """Return what tells whether two runs see the same pictures and words in the same order.

    It is of the schedule, which the Trainer takes in its own order.
    """
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


def answer(
    model: BridgedModel, store: Store, plan: Plan, judged: Mapping[str, Any], folder: Path
) -> None:
    """Draw what the model says to the questions on these data."""
    for number, question in enumerate(store.questions(plan.fingerprints)):
        picture = judged[question["split"]][question["index"]].image_path
        found = model.predict(picture, question["words"])
        draw_answer(found, picture, folder / picture_file(number))


if __name__ == "__main__":
    main(sys.argv[1:])
