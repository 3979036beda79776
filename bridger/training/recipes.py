"""Recipes: everything that decides a run, in one frozen dataclass that JSON can hold."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridger.config import Config, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from bridger.model import BridgedModel
    from bridger.processing import Processor

SCHEDULES = ["cosine", "linear", "constant", "constant_with_warmup"]


@dataclass(frozen=True)
class Recipe(Config):
    """What is trained, and how.

    Attributes:
        towers: the frozen pair; see `bridger.training.load_towers`.
        stages: as in `attach_bridgers`.
        bridgers: a preset of `BridgerConfig`, or None for the head alone.
        bridger_options: options that differ from that preset.
        head: options of the referring segmentation head, its "preset" among them.
        trainable: tower tensors that are trained; as in `attach_bridgers`.
        steps: updates.
        batch_size: pictures in an update.
        expressions: expressions for each picture of a batch. More than one is cheap, since the
            first part of the vision tower runs once per picture.
        learning_rate: of heads, and of all that has no rate of its own.
        bridger_learning_rate: of Bridgers; None: as the rest.
        tower_learning_rate: of `trainable` tower tensors and of peft's layers; None: as the rest.
        schedule: of all rates, after a linear warm-up.
        warmup: steps of warm-up, as a share of all.
        weight_decay: of matrices (AdamW's).
        max_grad_norm: gradients are scaled down to this norm; 0: never.
        evaluations: how often the validation split is looked at; the best adapter is kept.
        seed: of initial values, dropout and the order of pictures.

    Raises:
        ValueError: a value that cannot be.
    """

    towers: str = "tiny"
    stages: Any = 3
    bridgers: str | None = "paper"
    bridger_options: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Any] = field(default_factory=dict)
    trainable: tuple[str, ...] = ()
    steps: int = 1000
    batch_size: int = 16
    expressions: int = 2
    learning_rate: float = 1e-3
    bridger_learning_rate: float | None = None
    tower_learning_rate: float | None = None
    schedule: str = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    evaluations: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "expressions", "evaluations"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number, got {value!r}")
        rates = ("learning_rate", "bridger_learning_rate", "tower_learning_rate")
        for name in rates:
            value = getattr(self, name)
            if (value is not None or name == rates[0]) and not _is_number(value, above=0):
                raise ValueError(f"{name} must be a number above 0, got {value!r}")
        for name in ("warmup", "weight_decay", "max_grad_norm"):
            if not _is_number(getattr(self, name)):
                raise ValueError(f"{name} must be a number, 0 or more, got {getattr(self, name)!r}")
        if self.warmup >= 1:
            raise ValueError(f"warmup is a share of all steps and below 1, got {self.warmup}")
        if self.schedule not in SCHEDULES:
            known = did_you_mean(str(self.schedule), SCHEDULES)
            raise ValueError(f"schedule={self.schedule!r} is unknown: {known}")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Recipe:
        """Return a preset, with some options changed.

        Args:
            name: "quickstart", or "etris" (the released code's rate, optimiser and head).
            **changes: options that shall differ.

        Raises:
            ValueError: the preset or an option is unknown.

        Example:
            >>> Recipe.preset("quickstart", steps=20).steps
            20
        """
        if name not in _PRESETS:
            known = did_you_mean(name, list(_PRESETS))
            raise ValueError(f"there is no recipe {name!r}: {known}")
        return cls.from_dict({**_PRESETS[name], **changes})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a recipe's JSON file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no JSON object, or holds an unknown option or a bad value.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no recipe file {path}")
        try:
            values = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold one JSON object, found {type(values).__name__}")
        return cls.from_dict(values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    def build(
        self, vision: nn.Module, text: nn.Module, processor: Processor | None
    ) -> BridgedModel:
        """Attach Bridgers and the head to a pair of towers, from the recipe's seed.

        The head starts from the same values with Bridgers and without.
        """
        import torch

        from bridger.attach import attach_bridgers
        from bridger.bridgers import BridgerConfig
        from bridger.heads import ReferringSegmentationHead

        config = None
        if self.bridgers is not None:
            config = BridgerConfig.preset(self.bridgers, **self.bridger_options)
        torch.manual_seed(self.seed)
        encoder = attach_bridgers(vision, text, self.stages, config, trainable=self.trainable)
        torch.manual_seed(self.seed)
        try:
            model = encoder.with_head(ReferringSegmentationHead, **self.head)
        except BaseException:
            encoder.detach()
            raise
        model.processor = processor or model.processor
        return model

    def learning_rates(self, model: BridgedModel) -> dict[str, float]:
        """Return the rates of the parts that have their own."""
        own = {
            "bridgers": self.bridger_learning_rate,
            "tower_tensors": self.tower_learning_rate,
            "peft": self.tower_learning_rate,
        }
        parts = [group["name"] for group in model.parameter_groups()]
        return {name: rate for name, rate in own.items() if rate is not None and name in parts}

    def arguments(self, folder: str | os.PathLike[str], evaluate: bool, **changes: Any) -> Any:
        """Return transformers' TrainingArguments for a run with its checkpoints in `folder`.

        Args:
            folder: of the checkpoints.
            evaluate: whether there is something to validate on.
            **changes: arguments that shall differ.
        """
        import torch
        from transformers import TrainingArguments

        every = max(1, math.ceil(self.steps / self.evaluations))
        options: dict[str, Any] = {
            "output_dir": os.fspath(folder),
            "max_steps": self.steps,
            "per_device_train_batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": self.schedule,
            "warmup_steps": math.ceil(self.warmup * self.steps),
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
            "seed": self.seed,
            "optim": "adamw_torch_fused",
            "logging_steps": max(1, self.steps // 20),
            "save_strategy": "steps",
            "save_steps": every,
            "save_total_limit": 2,
            "report_to": "none",
            "remove_unused_columns": False,
            "label_names": ["labels"],
            "dataloader_pin_memory": torch.cuda.is_available(),
        }
        if evaluate:
            options |= {
                "eval_strategy": "steps",
                "eval_steps": every,
                "load_best_model_at_end": True,
                "metric_for_best_model": "eval_mIoU",
                "greater_is_better": True,
            }
        return TrainingArguments(**{**options, **changes})


_PRESETS: dict[str, dict[str, Any]] = {
    # As good as 2 cores can make it in five minutes.
    "quickstart": {
        # At the head's rate and with norms behind their branches they shrink to constants.
        "bridger_options": {"dropout": 0.0, "pre_norm": True},
        "head": {"width": 64, "num_layers": 2, "num_heads": 4, "dropout": 0.0},
        "steps": 330,
        "learning_rate": 2e-3,
        "bridger_learning_rate": 5e-4,
        "warmup": 0.25,  # at 0.1, chance in the first steps moves the end by six points
        "evaluations": 2,
    },
    # docs/method.md, section 8; the released step schedule of rates is left to `schedule`.
    "etris": {
        "towers": "open_clip:ViT-B-16-quickgelu:openai@416",
        "head": {"preset": "etris"},
        "trainable": ("positions",),
        "steps": 66_250,
        "batch_size": 32,
        "expressions": 1,
        "learning_rate": 1e-4,
        "bridger_learning_rate": 1e-3,
        "schedule": "constant",
        "warmup": 0.0,
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "evaluations": 50,
    },
}


def _is_number(value: Any, above: float | None = None) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return False
    return value >= 0 if above is None else value > above
