"""What a recipe may say: every option is checked when the recipe is made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from bridger.bottlenecks import BottleneckConfig
from bridger.config import check_known, did_you_mean
from bridger.recomputing import LEVELS
from bridger.tasks import Task, get_task, list_tasks

if TYPE_CHECKING:
    from bridger.training.recipes import Recipe

SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup", "multistep")
OPTIMIZERS = ("adamw", "adam")
PRECISIONS = ("float32", "bf16", "fp16")
AIMS = ("metric", "source", "splits")
SIDES = ("vision", "text")

_COUNTS = ("batch_size", "accumulation", "expressions")
_COUNTS_OR_NONE = ("steps", "epochs", "evaluations", "shots", "word_length", "max_length")
_RATES = ("learning_rate", "eps", "gamma")
_RATES_OR_NONE = ("bridger_learning_rate", "tower_learning_rate")
_NUMBERS = ("warmup", "weight_decay", "max_grad_norm")
_FLAGS = ("connect", "compile")
_TEXTS = ("towers", "task", "metric", "note", "cost")
_TEXTS_OR_NONE = {"bridgers": "a preset's name", "prefix_cache": '"memory", a folder'}
_MAPPINGS = ("bridger_options", "head", "peft", "bottlenecks", "aims")
_WORDS = ("trainable", "datasets", "report_to", "augment")
_CHOICES = {
    "schedule": SCHEDULES,
    "optimizer": OPTIMIZERS,
    "precision": PRECISIONS,
    "memory": LEVELS,
}


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe that cannot be followed.

    Raises:
        ValueError: an option has a value that cannot be, or two do not fit together.
    """
    _check_kinds(recipe)
    for name, known in _CHOICES.items():
        check_known(name, getattr(recipe, name), known)
    check_known("task", recipe.task, list_tasks())
    task = get_task(recipe.task)
    if recipe.metric:
        check_known("metric", recipe.metric, task.metrics)
    _check_augment(recipe.augment, task)
    if recipe.augment and recipe.prefix_cache is not None:
        raise ValueError(
            f"prefix_cache keeps what towers make of a picture, but with "
            f"augment={list(recipe.augment)} no picture is seen twice: leave one of them out"
        )
    if recipe.shots is not None and not task.takes_shots:
        raise ValueError(f"shots={recipe.shots} has no meaning for the task {recipe.task}: drop it")
    _check_datasets(recipe.datasets, task)
    _check_aims(recipe.aims, task)
    _check_peft(recipe.peft)
    if recipe.bottlenecks:
        BottleneckConfig.from_dict(recipe.bottlenecks)
    _check_optimizer(recipe)
    _check_schedule(recipe)
    if recipe.steps is not None and recipe.epochs is not None:
        raise ValueError(
            f"a run is as long as steps={recipe.steps} or epochs={recipe.epochs} say: give one"
        )
    if recipe.batch_size % recipe.accumulation:
        raise ValueError(
            f"batch_size={recipe.batch_size} does not split into "
            f"accumulation={recipe.accumulation} equal micro-batches"
        )
    if recipe.word_length is not None and recipe.max_length is not None:
        raise ValueError(
            f"word_length={recipe.word_length} already says where sentences are cut: leave out "
            f"max_length={recipe.max_length}"
        )


def _check_kinds(recipe: Recipe) -> None:
    """Refuse values of the wrong kind, so that what follows can compare them."""
    for name in (*_COUNTS, *_COUNTS_OR_NONE):
        value = getattr(recipe, name)
        if not (_is_whole(value, 1) or (value is None and name in _COUNTS_OR_NONE)):
            raise ValueError(f"{name} must be a positive whole number, got {value!r}")
    if not _is_whole(recipe.seed, 0):
        raise ValueError(f"seed must be a whole number, 0 or more, got {recipe.seed!r}")
    for name in (*_RATES, *_RATES_OR_NONE):
        value = getattr(recipe, name)
        if not (_is_number(value, above=0) or (value is None and name in _RATES_OR_NONE)):
            raise ValueError(f"{name} must be a number above 0, got {value!r}")
    for name in _NUMBERS:
        if not _is_number(getattr(recipe, name)):
            value = getattr(recipe, name)
            raise ValueError(f"{name} must be a number, 0 or more, got {value!r}")
    for name in _FLAGS:
        if not isinstance(getattr(recipe, name), bool):
            raise ValueError(f"{name} must be true or false, got {getattr(recipe, name)!r}")
    for name in _TEXTS:
        if not isinstance(getattr(recipe, name), str):
            raise ValueError(f"{name} must be a text, got {getattr(recipe, name)!r}")
    for name in _MAPPINGS:
        if not isinstance(getattr(recipe, name), Mapping):
            raise ValueError(f"{name} must hold options by name, got {getattr(recipe, name)!r}")
    for name in _WORDS:
        words = getattr(recipe, name)
        if not _is_list(words) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{name} must be a list of names, got {words!r}")
    for name, what in _TEXTS_OR_NONE.items():
        value = getattr(recipe, name)
        if not (value is None or isinstance(value, str)):
            raise ValueError(f"{name} must be {what} or null, got {value!r}")


def _check_augment(names: Sequence[str], task: Task) -> None:
    for name in names:
        check_known("augment", name, task.augmentations)


def _check_datasets(names: Sequence[str], task: Task) -> None:
    if names and not task.datasets:
        raise ValueError(
            f"datasets names {', '.join(names)}, but a folder holds one data set for {task.name}, "
            f"which is found without a name: leave datasets out"
        )
    for name in names:
        check_known("datasets", name, task.datasets)
    if len(set(names)) < len(names):
        raise ValueError(f"datasets names one twice: {', '.join(names)}")


def _check_aims(aims: Mapping[str, Any], task: Task) -> None:
    if not aims:
        return
    for key in aims:
        check_known("aims", key, AIMS)
    if missing := [key for key in AIMS if key not in aims]:
        raise ValueError(f"aims must hold {', '.join(AIMS)}; {', '.join(missing)} is missing")
    check_known("aims.metric", aims["metric"], task.metrics)
    splits = aims["splits"]
    percent = isinstance(splits, Mapping) and all(
        _is_number(value, above=1) and value <= 100 for value in splits.values()
    )
    if not splits or not percent:
        raise ValueError(f"aims.splits must hold a percentage for every split, got {splits!r}")
    if not isinstance(aims["source"], str) or not aims["source"]:
        raise ValueError(f"aims.source must say where the figures stand, got {aims['source']!r}")


def _check_peft(configs: Mapping[str, Any]) -> None:
    if not configs:
        return
    from peft.config import PromptLearningConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    methods = {kind.value: method for kind, method in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    for side, config in configs.items():
        check_known("peft", side, SIDES)
        if not isinstance(config, Mapping) or "peft_type" not in config:
            raise ValueError(
                f'peft.{side} must be a config of peft with its "peft_type", got {config!r}'
            )
        name = config["peft_type"]
        check_known(f"peft.{side}.peft_type", name, sorted(methods))
        options = [option.name for option in fields(methods[name])]
        for option in config:
            if option not in options:
                raise ValueError(
                    f"peft.{side} has no option {option!r} for {name}: "
                    f"{did_you_mean(option, options)}"
                )
        if side == "vision" and issubclass(methods[name], PromptLearningConfig):
            raise ValueError(f"{name} puts virtual tokens before texts: give it to peft.text")


def _check_optimizer(recipe: Recipe) -> None:
    betas = recipe.betas
    if not _is_list(betas) or len(betas) != 2 or not all(_is_number(b) and b < 1 for b in betas):
        raise ValueError(f"betas must be two numbers from 0 to below 1, got {betas!r}")
    if recipe.optimizer == "adam" and recipe.weight_decay:
        raise ValueError(
            f"optimizer 'adam' goes without weight decay, got {recipe.weight_decay}: "
            "'adamw' decays weights"
        )


def _check_schedule(recipe: Recipe) -> None:
    if recipe.warmup >= 1:
        raise ValueError(f"warmup is a share of all steps and below 1, got {recipe.warmup}")
    milestones, length = recipe.milestones, recipe.length
    if not _is_list(milestones) or not all(_is_number(m, above=0) for m in milestones):
        raise ValueError(f"milestones must be numbers above 0, got {milestones!r}")
    if (recipe.schedule == "multistep") != bool(milestones):
        raise ValueError(
            f"schedule 'multistep' and milestones belong together, got {recipe.schedule!r} with "
            f"{list(milestones)}"
        )
    if list(milestones) != sorted(set(milestones)) or (milestones and milestones[-1] >= length):
        unit = "steps" if recipe.epochs is None else "epochs"
        raise ValueError(
            f"milestones must grow and lie below the {length} {unit} of the run, "
            f"got {list(milestones)}"
        )


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any, above: float | None = None) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return False
    return value >= 0 if above is None else value > above
