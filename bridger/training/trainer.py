"""transformers' Trainer for bridged models: it saves, resumes and judges the adapter alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.trainer_utils import EvalLoopOutput

from bridger import checkpoint
from bridger.config import did_you_mean
from bridger.model import BridgedModel
from bridger.training.callbacks import Interruption, Progress

Score = Callable[[BridgedModel], Mapping[str, float]]


class BridgerTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose checkpoints hold the adapter and never the towers.

    Checkpoints are adapter folders with the states of optimiser, schedule and random numbers
    beside them; resuming from one goes on to the same bits as an uninterrupted run. Ctrl-C
    saves one, then raises KeyboardInterrupt.

    Args:
        model: the bridged model; towers keep their place, whatever is trained.
        args: transformers' TrainingArguments.
        learning_rates: rates for single parts by their name in `model.parameter_groups()`:
            "bridgers", "tower_tensors", "peft", the heads' names. Others train at
            `args.learning_rate`.
        score: judges the model in place of the Trainer's own evaluation loop; its figures are
            reported with the prefix "eval_", and one may be `args.metric_for_best_model`.
        in_order: take the training data in its own order, instead of shuffling it.
        **kwargs: as for Trainer: train_dataset, eval_dataset, data_collator, callbacks, ...

    Raises:
        ValueError: a learning rate for a part that is not trained.
    """

    def __init__(
        self,
        model: BridgedModel,
        args: Any,
        *,
        learning_rates: Mapping[str, float] | None = None,
        score: Score | None = None,
        in_order: bool = False,
        **kwargs: Any,
    ) -> None:
        parts = [group["name"] for group in model.parameter_groups()]
        for name in learning_rates or {}:
            if name not in parts:
                raise ValueError(f"nothing trained is called {name!r}: {did_you_mean(name, parts)}")
        self.learning_rates = dict(learning_rates or {})
        self.score = score
        self.in_order = in_order
        if score is not None and kwargs.get("eval_dataset") is None:
            # The Trainer wants something to evaluate; `score` brings its own pictures.
            kwargs["eval_dataset"] = _Nothing()
        super().__init__(model=model, args=args, **kwargs)
        # Without this the loss of an evaluation is silently dropped.
        self.label_names = ["labels"]
        self.interruption, self.progress = Interruption(), Progress()
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(self.interruption)
        if not args.disable_tqdm:
            self.add_callback(self.progress)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as Trainer does; Ctrl-C saves a checkpoint.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        with self.interruption.watching():
            try:
                result = super().train(*args, **kwargs)
            except KeyboardInterrupt:
                if self.interruption.between_steps:
                    self._save_checkpoint(self.model, trial=None)
                raise
            finally:
                self.progress.close()
        if self.interruption.requested:
            raise KeyboardInterrupt
        return result

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Give every part its learning rate, and weight decay to matrices alone."""
        if self.optimizer is None:  # type: ignore[has-type]
            build, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = build(self._optimizer_groups(), **options)
        return self.optimizer

    def _optimizer_groups(self) -> list[dict[str, Any]]:
        groups = []
        for part in self.model.parameter_groups():
            rate = self.learning_rates.get(part["name"], self.args.learning_rate)
            for decays in (True, False):
                parameters = [p for p in part["params"] if (p.ndim > 1) == decays]
                decay = self.args.weight_decay if decays else 0.0
                if parameters:
                    groups.append({"params": parameters, "lr": rate, "weight_decay": decay})
        return groups

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.in_order:
            return SequentialSampler(dataset)
        return super()._get_train_sampler(dataset)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as Trainer does; Ctrl-C need not wait for the end."""
        self.interruption.between_steps = True
        try:
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        except KeyboardInterrupt:
            raise
        except BaseException:
            self.interruption.between_steps = False
            raise
        self.interruption.between_steps = False
        return metrics

    def evaluation_loop(
        self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> Any:
        """Report `score`'s figures, or run the Trainer's own loop where there is no `score`."""
        if self.score is None:
            return super().evaluation_loop(
                dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs
            )
        figures = self.score(self.accelerator.unwrap_model(self.model))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        return EvalLoopOutput(None, None, metrics, num_samples=1)

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        """Keep each head's own output out of what is gathered: logits stand beside it."""
        ignored = [*(ignore_keys or []), "heads"]
        return super().prediction_step(model, inputs, prediction_loss_only, ignored)

    # Checkpoints.

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            self.model.save_pretrained(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._load_adapter(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        # By its name, so that a run that was moved to another folder finds it too.
        self._load_adapter(Path(self.args.output_dir) / Path(self.state.best_model_checkpoint).name)

    def _load_adapter(self, folder: Path) -> None:
        model = self.accelerator.unwrap_model(self.model)
        _, tensors = checkpoint.read(folder)
        with torch.no_grad():
            checkpoint.load_adapter_tensors(model, tensors, os.fspath(folder))


class _Nothing(Dataset[Any]):
    """No data at all."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Any:
        raise IndexError(index)
