"""From a recipe to transformers' TrainingArguments."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import torch

from bridger.config import did_you_mean

if TYPE_CHECKING:
    from bridger.training.recipes import Recipe

MOST_STEPS_BETWEEN_LOGS = 100  # as often as the released code prints


def training_arguments(
    recipe: Recipe, folder: str | os.PathLike[str], steps: int, evaluate: bool, **changes: Any
) -> Any:
    """Return TrainingArguments; see `Recipe.arguments`."""
    from transformers import TrainingArguments

    options = {**_options(recipe, steps), "output_dir": os.fspath(folder)}
    if evaluate:
        if not recipe.metric:
            raise ValueError(
                f"the metric of {recipe.task} follows the labels: choose one in the recipe, or "
                f"fill it in by Recipe.with_head_options"
            )
        options |= {
            "eval_strategy": "steps",
            "eval_steps": options["save_steps"],
            "load_best_model_at_end": True,
            "metric_for_best_model": f"eval_{recipe.metric}",
            "greater_is_better": True,
        }
    options |= changes
    _check_reports(options["report_to"])
    if recipe.precision == "fp16" and (
        options.get("use_cpu") or not torch.accelerator.is_available()
    ):
        raise ValueError(
            "precision='fp16' needs an accelerator, and none is there: choose 'bf16' or 'float32'"
        )
    # What a launcher or an earlier run has left there would silently win.
    chosen = next((name for name in ("fp16", "bf16") if options[name]), "no")
    os.environ["ACCELERATE_MIXED_PRECISION"] = chosen
    args = TrainingArguments(**options)
    if "per_device_train_batch_size" not in changes:
        # How many devices there are is known only now.
        args.per_device_train_batch_size = _per_device(recipe, args)
    return args


def _options(recipe: Recipe, steps: int) -> dict[str, Any]:

    evaluations = recipe.evaluations or recipe.epochs or 4
    return {
        "max_steps": steps,
        "gradient_accumulation_steps": recipe.accumulation,
        "learning_rate": recipe.learning_rate,
        # Without weight decay AdamW is Adam, to the bit. "multistep" is made by the recipe.
        "optim": "adamw_torch_fused",
        "adam_beta1": recipe.betas[0],
        "adam_beta2": recipe.betas[1],
        "adam_epsilon": recipe.eps,
        "lr_scheduler_type": "constant" if recipe.schedule == "multistep" else recipe.schedule,
        "warmup_steps": recipe.warmup_steps(steps),
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "bf16": recipe.precision == "bf16",
        "fp16": recipe.precision == "fp16",
        "seed": recipe.seed,
        # A loss that is no number is said to be none: the Trainer would print 0.
        "logging_nan_inf_filter": False,
        "logging_steps": max(1, min(steps // 20, MOST_STEPS_BETWEEN_LOGS)),
        "save_strategy": "steps",
        "save_steps": math.ceil(steps / evaluations),
        "save_total_limit": 2,
        "report_to": list(recipe.report_to) or "none",
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def _per_device(recipe: Recipe, args: Any) -> int:
    devices = args.world_size  # a process has one device: see `BridgerTrainer`
    size, left = divmod(recipe.batch_size, devices * recipe.accumulation)
    if left:
        raise ValueError(
            f"batch_size={recipe.batch_size} is the total, and does not split into {devices} "
            f"devices x {recipe.accumulation} micro-batches: choose a multiple of "
            f"{devices * recipe.accumulation}"
        )
    return int(size)


def _check_reports(names: Any) -> None:
    """Refuse what would fail when the towers are loaded already."""
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in () if names == "none" else names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = did_you_mean(name, list(INTEGRATION_TO_CALLBACK))
            raise ValueError(f"report_to names {name!r}, which is unknown: {known}")
        if name not in get_available_reporting_integrations():
            raise ValueError(
                f"report_to names {name!r}, which is not installed: install it, or leave it out"
            )
