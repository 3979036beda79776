"""Recipes: everything that decides a run, in one frozen dataclass that JSON can hold."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridger.config import Config
from bridger.tasks import get_task
from bridger.training.recipe_checks import check_recipe
from bridger.training.recipe_files import plain, read_inherited, recipe_path

if TYPE_CHECKING:
    from torch import nn

    from bridger.model import BridgedModel
    from bridger.processing import Processor
    from bridger.training.rates import Scheduler

STEPS = 1000
"""Updates of a recipe that does not say how long it is."""

DESCRIPTIONS = ("note", "aims", "cost", "report_to")
"""Options that decide nothing about what is learned."""


@dataclass(frozen=True)
class Recipe(Config):
    """What is trained, on what, and how.

    Attributes:
        note: what it is, in a sentence or two.
        towers: the frozen pair; see `bridger.load_towers`.
        stages: as in `attach_bridgers`, as are `trainable`, `connect` and `word_length`.
        bridgers: a preset of `BridgerConfig`, or None for the head alone.
        bridger_options: options that differ from that preset.
        task: the registered name of the head that is trained; `bridger.tasks` says what its data
            and figures are.
        head: options of that head, its "preset" among them. What they leave open and the training
            data decide, such as the classes, `train` fills in.
        trainable: tower tensors that are trained.
        peft: configs of peft by side, "vision" and "text", whose layers are put into the towers
            and trained; "peft_type" says the method, such as "LORA". Virtual tokens come before
            texts only.
        bottlenecks: options of `bridger.bottlenecks.BottleneckConfig`, whose adapters are put into
            the towers' blocks and trained; {}: none.
        connect: the released code's residual in a ResNet's last map.
        word_length: tokens that every text is cut to and padded to with id 0, as in the released
            code; None: texts are as long as they are.
        max_length: most tokens of a text, None: as many as the towers take.
        datasets: names of `bridger.data.PUBLISHED`, or "folder" for one's own; several are mixed,
            none: the only one that is there. Of tasks on referring expressions only.
        augment: of "flip", "colour", "crop" (referring segmentation only); each is left out where
            the words forbid it.
        steps: updates; without `epochs` 1,000 by default.
        epochs: in place of steps: how often every item is seen, in whole batches. An item is a
            ref, and with several `expressions` a picture.
        batch_size: items of an update, over all devices and micro-batches.
        accumulation: micro-batches of an update on each device.
        expressions: expressions for each picture of a batch. More than one is cheap, since the
            first part of the vision tower runs once per picture. Of tasks on classes: how many of
            them a picture is asked about, its own and others by chance; see
            `bridger.data.class_questions.ClassQuestions`.
        shots: most pictures of a class that are seen, drawn by the seed; None: all. Classification
            only.
        optimizer: "adamw", or "adam", which knows no weight decay.
        betas: of the optimizer.
        eps: of the optimizer.
        learning_rate: of heads, and of all that has no rate of its own.
        bridger_learning_rate: of Bridgers; None: as the rest.
        tower_learning_rate: of `trainable` tower tensors, of peft's layers and of bottleneck
            adapters; None: as the rest.
        schedule: of all rates, after a linear warm-up: "cosine", "linear", "constant",
            "constant_with_warmup" (transformers'), or "multistep".
        milestones: where rates are multiplied by `gamma`, in epochs, or in steps where the recipe
            has `steps`. "multistep" only.
        gamma: what rates are multiplied by there.
        warmup: steps of warm-up, as a share of all.
        weight_decay: of matrices (AdamW's).
        max_grad_norm: gradients are scaled down to this norm; 0: never.
        precision: "float32", or autocast to "bf16" or "fp16" (with scaled losses) in training.
        memory: "fast", "balanced" or "low"; see `BridgedModel.save_memory`.
        compile: compile blocks, Bridgers and heads; see `BridgedModel.compile`.
        prefix_cache: "memory" or a folder, where the frozen towers' outputs before the first stage
            are kept from epoch to epoch; see `BridgedEncoder.cache_prefix`. Not with `augment`.
        evaluations: how often the validation split is looked at; the best adapter is kept. None:
            after every epoch, or four times where the recipe has `steps`.
        metric: by which it is the best; one of the task's, by default its first. Of classification
            it stays open until the head's options are whole, since the default follows the labels.
        report_to: where transformers' Trainer writes its logs.
        seed: of initial values, dropout and the order of pictures.
        aims: published figures: "metric", "source", and "splits" with a percentage by split.
        cost: what a run takes, measured or estimated, and on what.

    Raises:
        ValueError: a value that cannot be, or two that do not fit together.
    """

    note: str = ""
    towers: str = "tiny"
    stages: Any = 3
    bridgers: str | None = "paper"
    bridger_options: Mapping[str, Any] = field(default_factory=dict)
    task: str = "referring_segmentation"
    head: Mapping[str, Any] = field(default_factory=dict)
    trainable: tuple[str, ...] = ()
    peft: Mapping[str, Any] = field(default_factory=dict)
    bottlenecks: Mapping[str, Any] = field(default_factory=dict)
    connect: bool = False
    word_length: int | None = None
    max_length: int | None = None
    datasets: tuple[str, ...] = ()
    augment: tuple[str, ...] = ()
    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 16
    accumulation: int = 1
    expressions: int = 2
    shots: int | None = None
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    learning_rate: float = 1e-3
    bridger_learning_rate: float | None = None
    tower_learning_rate: float | None = None
    schedule: str = "cosine"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    warmup: float = 0.05
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    precision: str = "float32"
    memory: str = "fast"
    compile: bool = False
    prefix_cache: str | None = None
    evaluations: int | None = None
    metric: str = ""
    report_to: tuple[str, ...] = ("tensorboard",)
    seed: int = 0
    aims: Mapping[str, Any] = field(default_factory=dict)
    cost: str = ""

    def __post_init__(self) -> None:
        if self.steps is None and self.epochs is None:
            object.__setattr__(self, "steps", STEPS)
        check_recipe(self)
        if not self.metric:
            object.__setattr__(self, "metric", get_task(self.task).usual_metric(self.head))

    # Files.

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Recipe:
        """Return a recipe of the package, with some options changed as by `replace`.

        Args:
            name: "quickstart", "etris-vit-b16-refcoco", ...; `bridger recipes` lists them.
            **changes: options that shall differ.

        Raises:
            ValueError: the recipe or an option is unknown.

        Example:
            >>> Recipe.preset("quickstart", steps=20).steps
            20
        """
        return cls.load(recipe_path(name)).replace(**changes)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a recipe's JSON file; "base" in it names a recipe that it changes.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no JSON object, or holds an unknown option or a bad value.
        """
        first, *changes = read_inherited(Path(path))
        try:
            recipe = cls.from_dict(first)
            for values in changes:
                recipe = recipe.replace(**values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return recipe

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole recipe as JSON."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    def replace(self, **changes: Any) -> Recipe:
        """Return a copy with some options changed.

        `steps` takes the place of `epochs`, and the other way round. Where the length changes,
        milestones that are not given keep their share of it. Another task has another metric.

        Raises:
            ValueError: see `Recipe`.
        """
        for name, other in (("steps", "epochs"), ("epochs", "steps")):
            value = changes.get(name)
            if isinstance(value, int) and other not in changes:
                kept = tuple(plain(m * value / self.length) for m in self.milestones)
                changes = {"milestones": kept, **changes, other: None}
        if changes.get("task", self.task) != self.task:
            changes = {"metric": "", **changes}
        return super().replace(**changes)

    def with_head_options(self, options: Mapping[str, Any]) -> Recipe:
        """Return a copy that holds options of the head where it has none of its own.

        An empty list or null leaves an option open, as in "classes": []; false does not.
        """
        given = {name: own for name, own in self.head.items() if own not in (None, [], ())}
        return self.replace(head={**self.head, **options, **given})

    def differences(self, other: Recipe) -> list[str]:
        """Return the options in which two recipes differ, those aside that only describe."""
        first, second = (json.loads(json.dumps(r.to_dict())) for r in (self, other))
        return [n for n in first if n not in DESCRIPTIONS and first[n] != second[n]]

    # What a run takes from it.

    @property
    def length(self) -> int:
        """The steps, or the epochs where those are given."""
        return self.epochs or self.steps or STEPS

    def steps_for(self, items: int | None = None) -> int:
        """Return the number of updates.

        Args:
            items: refs of the training split, or pictures where a batch holds several expressions
                of each; needed where the recipe counts epochs.

        Raises:
            ValueError: the recipe counts epochs, and items are missing or do not fill a batch.
        """
        return self.length * (1 if self.epochs is None else self._batches(items))

    def _batches(self, items: int | None) -> int:
        if items is None or items < self.batch_size:
            raise ValueError(
                f"an epoch of {items} items holds no batch of {self.batch_size}: choose a smaller "
                "batch_size, or steps in place of epochs"
            )
        return items // self.batch_size

    def warmup_steps(self, steps: int) -> int:
        """Return how many of a run's updates are warm-up."""
        return math.ceil(self.warmup * steps)

    def scheduler(self, items: int | None = None) -> Scheduler | None:
        """Return the maker of the schedule of learning rates.

        Args:
            items: as in `steps_for`.

        Returns:
            None where transformers' Trainer makes it from `arguments`.
        """
        if self.schedule != "multistep":
            return None
        from bridger.training.rates import falling_at

        unit = 1 if self.epochs is None else self._batches(items)
        milestones = [milestone * unit for milestone in self.milestones]
        return falling_at(milestones, self.gamma, self.warmup_steps(self.steps_for(items)))

    def arguments(
        self,
        folder: str | os.PathLike[str],
        evaluate: bool,
        items: int | None = None,
        **changes: Any,
    ) -> Any:
        """Return transformers' TrainingArguments for a run with its checkpoints in `folder`.

        Args:
            folder: of the checkpoints.
            evaluate: whether there is something to validate on.
            items: as in `steps_for`.
            **changes: arguments that shall differ.

        Raises:
            ValueError: the batch does not split into the devices' shares, fp16 without an
                accelerator, `report_to` names what is not installed.
        """
        from bridger.training.arguments import training_arguments

        return training_arguments(self, folder, self.steps_for(items), evaluate, **changes)

    def learning_rates(self, model: BridgedModel) -> dict[str, float]:
        """Return the rates of the parts that have their own."""
        own = {
            "bridgers": self.bridger_learning_rate,
            "tower_tensors": self.tower_learning_rate,
            "peft": self.tower_learning_rate,
        }
        parts = [group["name"] for group in model.parameter_groups()]
        return {name: rate for name, rate in own.items() if rate is not None and name in parts}

    def build(
        self, vision: nn.Module, text: nn.Module, processor: Processor | None
    ) -> BridgedModel:
        """Attach Bridgers and the head to a pair of towers, from the recipe's seed.

        Bridgers and the head start from the same values whatever else is in the towers. What the
        recipe puts into these is gone when the model is detached, and when building fails.

        Raises:
            ValueError: options that do not fit the towers; see `attach_bridgers`.
        """
        from bridger.training.building import build

        return build(self, vision, text, processor)
