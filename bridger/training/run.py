"""A whole run: data, model, training, the best adapter on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridger.data import RaggedRefCollator, RefCollator, ReferringDataset, Sample
from bridger.evaluation.evaluate import evaluate
from bridger.training.pairs import load_towers
from bridger.training.recipes import Recipe
from bridger.training.schedule import Schedule
from bridger.training.trainer import BridgerTrainer

if TYPE_CHECKING:
    from bridger.model import BridgedModel

RECIPE_FILE, HISTORY_FILE, CHECKPOINTS = "recipe.json", "history.json", "checkpoints"


def train(
    recipe: Recipe,
    data: ReferringDataset,
    out: str | os.PathLike[str],
    *,
    validation: ReferringDataset | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> BridgedModel:
    """Train an adapter; what validates best is saved to `out`, with the recipe beside it.

    Args:
        recipe: what is trained, and how.
        data: the training split.
        out: becomes the adapter's folder; checkpoints lie in a folder below.
        validation: the split that chooses the adapter, by the mIoU of the first sentences;
            without one the last adapter is saved.
        resume: go on from the last checkpoint in `out`.
        quiet: show no progress.

    Returns:
        The model as saved, in eval mode.

    Raises:
        FileExistsError: `out` holds a run and `resume` was not asked for.
        FileNotFoundError: there is nothing to resume.
        ValueError: the run in `out` followed another recipe.
        KeyboardInterrupt: Ctrl-C; a checkpoint was saved.
    """
    out = Path(out)
    _prepare(out, recipe, resume)
    model = recipe.build(*load_towers(recipe.towers))
    try:
        trainer = _make_trainer(model, recipe, data, out, validation, quiet)
        trainer.train(resume_from_checkpoint=resume or None)
    except BaseException:
        model.detach()
        raise
    model.eval()
    if trainer.args.should_save:
        model.save_pretrained(out)
        (out / HISTORY_FILE).write_text(json.dumps(trainer.state.log_history, indent=1) + "\n")
    return model


def has_checkpoint(out: Path) -> bool:
    """Whether a run in that folder has left a checkpoint to go on from."""
    return any((out / CHECKPOINTS).glob("checkpoint-*"))


def _prepare(out: Path, recipe: Recipe, resume: bool) -> None:
    started = has_checkpoint(out)
    if resume and not started:
        raise FileNotFoundError(f"{out} holds no checkpoint to resume from")
    if started and not resume:
        raise FileExistsError(
            f"{out} already holds checkpoints of a run: resume it, or choose another folder"
        )
    if resume:
        before, now = Recipe.load(out / RECIPE_FILE).to_dict(), recipe.to_dict()
        changed = [name for name in now if json.dumps(now[name]) != json.dumps(before[name])]
        if changed:
            raise ValueError(
                f"the run in {out} followed another recipe (it differs in {', '.join(changed)}), "
                "and a run can be neither changed nor lengthened: resume it with "
                f"{out / RECIPE_FILE}, or choose another folder"
            )
    out.mkdir(parents=True, exist_ok=True)
    recipe.save(out / RECIPE_FILE)


def _make_trainer(
    model: BridgedModel,
    recipe: Recipe,
    data: ReferringDataset,
    out: Path,
    validation: ReferringDataset | None,
    quiet: bool,
) -> BridgerTrainer:
    if model.processor is None:
        raise RuntimeError(
            f"no processor could be inferred from the towers {recipe.towers!r}: build the model "
            f"with a Processor of your own and train it with BridgerTrainer"
        )
    args = recipe.arguments(out / CHECKPOINTS, evaluate=validation is not None, disable_tqdm=quiet)
    items = recipe.steps * args.train_batch_size * args.world_size
    collator: Any = RaggedRefCollator(model.processor)
    if recipe.expressions == 1:
        collator = _Single(RefCollator(model.processor))

    def score(judged: BridgedModel) -> dict[str, float]:
        if validation is None:
            raise RuntimeError("this run has no validation split to judge the model on")
        return evaluate(judged, validation, first_sentence=True).figures()

    return BridgerTrainer(
        model,
        args,
        learning_rates=recipe.learning_rates(model),
        score=score,
        in_order=True,
        train_dataset=Schedule(data, items, recipe.expressions, recipe.seed),
        data_collator=collator,
    )


class _Single:
    """Batches with one expression per picture from lists of one."""

    def __init__(self, collator: RefCollator) -> None:
        self.collator = collator

    def __call__(self, items: list[list[Sample]]) -> Any:
        return self.collator([item[0] for item in items])
