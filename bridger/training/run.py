"""A whole run: data, model, training, the best adapter on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bridger._json import save_json
from bridger.adapter_files import RECIPE_FILE
from bridger.data.collate import CACHE_BYTES
from bridger.named_towers import load_towers
from bridger.tasks import Task, get_task
from bridger.training import distributed
from bridger.training.checkpoints import newest_whole, remove_unfinished
from bridger.training.pictures_log import PredictionPictures
from bridger.training.recipes import Recipe
from bridger.training.trainer import BridgerTrainer

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from bridger.model import BridgedModel

HISTORY_FILE, CHECKPOINTS = "history.json", "checkpoints"
LOGS, PICTURES = "runs", "pictures"
MOST_WORKERS = 4


def train(
    recipe: Recipe,
    data: Any,
    out: str | os.PathLike[str],
    *,
    validation: Any = None,
    resume: bool = False,
    quiet: bool = False,
    workers: int | None = None,
    use_cpu: bool = False,
    callbacks: Sequence[Any] = (),
) -> BridgedModel:
    """Train an adapter; what validates best is saved to `out`, with the recipe beside it.

    Under `torchrun` or `accelerate launch` every process calls this; the first one writes.

    Args:
        recipe: what is trained, and how. Options of the head that it leaves to the data, such as
            the classes, are in the one that is saved.
        data: the training split, of the kind that the recipe's task is about.
        out: becomes the adapter's folder; checkpoints, logs and pictures lie in folders below.
        validation: the split that chooses the adapter, by the recipe's metric (of referring
            segmentation, over the first sentences); without one the last adapter is saved.
        resume: go on from the last checkpoint in `out` that was written to its end.
        quiet: show no progress.
        workers: processes that prepare batches, for each process that trains. They do not change
            what is learned. By default none on the CPU, which has enough to do, and beside a GPU
            up to four.
        use_cpu: train on the CPU where there is a GPU too.
        callbacks: of the Trainer, transformers' TrainerCallbacks, beside its own.

    Returns:
        The model as saved, in eval mode.

    Raises:
        FileExistsError: `out` holds a run and `resume` was not asked for.
        FileNotFoundError: there is nothing to resume, or pictures are missing.
        ValueError: the validation split cannot give the recipe's metric, the towers know no word
            of a sentence, the run in `out` followed another recipe, or this machine cannot run it.
        KeyboardInterrupt: Ctrl-C; a checkpoint was saved.
    """
    out, task = Path(out), get_task(recipe.task)
    splits = [split for split in (data, validation) if split is not None]
    for split in splits:
        split.require_pictures()
    recipe = recipe.with_head_options(task.head_options(data))
    task.check(recipe, data, validation)
    args: TrainingArguments = recipe.arguments(
        out / CHECKPOINTS,
        items=task.items(recipe, data),
        evaluate=validation is not None,
        disable_tqdm=quiet,
        # Without it, processes on CPUs do not find each other.
        use_cpu=use_cpu or not torch.accelerator.is_available(),
    )
    args.dataloader_num_workers = _workers(args) if workers is None else workers
    _prepare(out, recipe, resume)
    model = recipe.build(*load_towers(recipe.towers))
    try:
        model.encoder.cache_prefix(recipe.prefix_cache)
        model.save_memory(recipe.memory)
        if recipe.compile:
            model.compile()
        if model.processor is None:
            raise RuntimeError(
                f"no processor could be inferred from the towers {recipe.towers!r}: build the "
                f"model with a Processor of your own and train it with BridgerTrainer"
            )
        for split in splits:
            task.check_words(model.processor, split)
        trainer = _make_trainer(model, recipe, task, args, data, out, validation)
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=resume or None)
    except BaseException:
        model.detach()
        raise
    model.eval()
    model.encoder.cache_prefix(None)
    if trainer.args.should_save:
        model.save_pretrained(out)
        save_json(out / HISTORY_FILE, trainer.state.log_history)
    distributed.wait_for_all()
    return model


def has_checkpoint(out: Path) -> bool:
    """Whether a run in that folder has left a checkpoint to go on from."""
    return newest_whole(out / CHECKPOINTS) is not None


def _prepare(out: Path, recipe: Recipe, resume: bool) -> None:
    started = has_checkpoint(out)
    if resume and not started:
        raise FileNotFoundError(f"{out} holds no checkpoint to resume from")
    if started and not resume:
        raise FileExistsError(
            f"{out} already holds checkpoints of a run: resume it, or choose another folder"
        )
    if resume:
        changed = recipe.differences(Recipe.load(out / RECIPE_FILE))
        if changed:
            raise ValueError(
                f"the run in {out} followed another recipe (it differs in {', '.join(changed)}), "
                "and a run can be neither changed nor lengthened: resume it with "
                f"{out / RECIPE_FILE}, or choose another folder"
            )
    elif distributed.is_main():
        out.mkdir(parents=True, exist_ok=True)
        remove_unfinished(out / CHECKPOINTS)
        recipe.save(out / RECIPE_FILE)


def _make_trainer(
    model: BridgedModel,
    recipe: Recipe,
    task: Task,
    args: TrainingArguments,
    data: Any,
    out: Path,
    validation: Any,
) -> BridgerTrainer:
    head = model.head_name()

    def score(judged: BridgedModel) -> dict[str, float]:
        if validation is None:
            raise RuntimeError("this run has no validation split to judge the model on")
        figures = task.validate(judged, validation, head, report=report).figures()
        if recipe.metric not in figures:
            # Labels that are costly to read are not looked through before the run.
            raise ValueError(
                f"{validation!r} does not give metric={recipe.metric!r}, for example since none of "
                f"its labels is of a class that it is over: choose one of {', '.join(figures)}"
            )
        return figures

    def report(done: int, total: int, so_far: float) -> None:
        trainer.progress.judging(done, total, so_far)
        trainer.interruption.break_off(args.device)

    trainer = BridgerTrainer(
        model,
        args,
        learning_rates=recipe.learning_rates(model),
        score=score,
        scheduler=recipe.scheduler(task.items(recipe, data)),
        in_order=True,
        train_dataset=task.schedule(recipe, data, recipe.batch_size * args.max_steps),
        # Every worker keeps pictures of its own.
        data_collator=task.collator(
            recipe, model, head, data, CACHE_BYTES // max(1, args.dataloader_num_workers)
        ),
    )
    trainer.progress.judged, trainer.progress.headline = task.judged, task.metrics[0]
    writer = _tensorboard(trainer, out / LOGS)
    if validation is not None:
        trainer.add_callback(PredictionPictures(task, validation, head, out / PICTURES, writer))
    return trainer


def _workers(args: Any) -> int:
    """Return how many processes prepare batches beside this one."""
    if args.device.type == "cpu":
        return 0
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(MOST_WORKERS, max(0, (os.cpu_count() or 1) // beside - 1))


def _tensorboard(trainer: BridgerTrainer, folder: Path) -> Any:
    """Let TensorBoard write to `folder`, if the run reports to it; return its writer."""
    from transformers.integrations import TensorBoardCallback

    if trainer.pop_callback(TensorBoardCallback) is None or not distributed.is_main():
        return None
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(os.fspath(folder))
    trainer.add_callback(TensorBoardCallback(writer))
    return writer
