"""transformers' Trainer for bridged models: it saves, resumes and judges the adapter alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_utils import EvalLoopOutput

from bridger import adapter_files, checkpoint
from bridger.config import did_you_mean
from bridger.features import Mentions
from bridger.model import BridgedModel
from bridger.number_checks import settle
from bridger.sharded import gathered
from bridger.training import distributed
from bridger.training.batch_norm import synchronized_batch_norm
from bridger.training.callbacks import BestCheckpoint, Interruption, MissedEvaluation, OwnChance
from bridger.training.checkpoints import newest_whole, remove_unfinished
from bridger.training.devices import check_devices, own_forward, prepare_sharding
from bridger.training.loss_shares import LossLog, items_by_head
from bridger.training.progress import Progress
from bridger.training.rates import Scheduler

Score = Callable[[BridgedModel], Mapping[str, float]]


class BridgerTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose checkpoints hold the adapter and never the towers.

    Checkpoints are adapter folders with the states of optimiser, schedule and random numbers
    beside them; resuming from one goes on to the same bits as an uninterrupted run. Ctrl-C
    saves one, then raises KeyboardInterrupt. Of a run that was killed, the last checkpoint that
    was written to its end counts.

    Under `torchrun` or `accelerate launch` several processes share each update. Its loss is that
    of their batches, and of accumulated ones, each weighted by its real expressions (of heads that
    read class names, by its pictures), and BatchNorm of Bridgers and heads normalises over all.
    For masks of expressions this is the mean over all of them, so that a run does not depend on
    the devices it has. Of the other heads it is so only nearly: detection and comprehension
    divide by a batch's cells matched to a true box, semantic segmentation and classification by
    what is not IGNORE or padding, so that their runs depend a little on how an update is divided
    into batches (`bridger.training.loss_shares`). Heads whose loss has weight 0 rest. With FSDP2
    the towers' parameters are spread over the processes, the trained ones too.

    Args:
        model: the bridged model; towers keep their place, whatever is trained.
        args: transformers' TrainingArguments.
        learning_rates: rates for single parts by their name in `model.parameter_groups()`:
            "bridgers", "tower_tensors", "peft", the heads' names. Others train at
            `args.learning_rate`.
        score: judges the model in place of the Trainer's own evaluation loop; its figures are
            reported with the prefix "eval_", and one may be `args.metric_for_best_model`. Of
            several processes each calls it; where it takes long, it lets Ctrl-C in by calling
            `interruption.break_off(args.device)` as often in each.
        scheduler: makes the schedule of rates from the optimiser and the number of updates; by
            default `args.lr_scheduler_type` names it.
        in_order: take the training data in its own order, instead of shuffling it.
        **kwargs: as for Trainer: train_dataset, eval_dataset, data_collator, callbacks, ...

    Raises:
        ValueError: a learning rate for a part that is not trained, fp16 or FSDP without a GPU,
            FSDP1, or processes that `args` do not know of.
    """

    def __init__(
        self,
        model: BridgedModel,
        args: Any,
        *,
        learning_rates: Mapping[str, float] | None = None,
        score: Score | None = None,
        scheduler: Scheduler | None = None,
        in_order: bool = False,
        **kwargs: Any,
    ) -> None:
        parts = [group["name"] for group in model.parameter_groups()]
        for name in learning_rates or {}:
            if name not in parts:
                raise ValueError(f"nothing trained is called {name!r}: {did_you_mean(name, parts)}")
        check_devices(args)
        self.learning_rates = dict(learning_rates or {})
        self.score = score
        self.scheduler = scheduler
        self.in_order = in_order
        if score is not None and kwargs.get("eval_dataset") is None:
            # The Trainer wants something to evaluate; `score` brings its own pictures.
            kwargs["eval_dataset"] = _Nothing()
        super().__init__(model=model, args=args, **kwargs)
        prepare_sharding(self)
        # Without this the loss of an evaluation is silently dropped.
        self.label_names = ["labels"]
        # `compute_loss` weighs accumulated batches itself; the Trainer shall not divide again.
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = True
        self.interruption, self.progress, self.losses = Interruption(), Progress(), LossLog()
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        missed = MissedEvaluation(self._make_up_evaluation)
        shown = () if args.disable_tqdm else (self.progress,)
        for callback in (OwnChance(), *shown, missed, BestCheckpoint(), self.interruption):
            self.add_callback(callback)

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Train as Trainer does; Ctrl-C saves a checkpoint.

        Args:
            resume_from_checkpoint: a checkpoint, or True for the last whole one in
                `args.output_dir`, where those that a killed run left unfinished are removed.
            **kwargs: as for Trainer.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
            ValueError: there is no whole checkpoint to resume from.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self._newest_checkpoint()
        self._made_up, self.losses = 0, LossLog()
        model, device = self.model, self.args.device
        synchronized = synchronized_batch_norm(model, device)
        with self.interruption.watching(), synchronized, own_forward(model):
            try:
                result = super().train(resume_from_checkpoint or None, **kwargs)
                settle()
                if self.interruption.agreed(device):
                    raise KeyboardInterrupt
            except KeyboardInterrupt:
                # The step whose evaluation is made up for has its checkpoint.
                if self.interruption.may_save and self.state.global_step > self._made_up:
                    self._save_checkpoint(self.model, trial=None)
                    # A launcher ends the others when it sees one of them end.
                    distributed.wait_for_all()
                raise
            finally:
                self.progress.close()
        return result

    def _newest_checkpoint(self) -> str:
        folder = Path(self.args.output_dir)
        newest = newest_whole(folder)
        if newest is None:
            raise ValueError(f"{folder} holds no whole checkpoint to resume from")
        if self.args.should_save:
            remove_unfinished(folder)
        distributed.wait_for_all()
        return str(newest)

    # Optimisation.

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
                    group = {"params": parameters, "lr": rate, "weight_decay": decay}
                    groups.append({**group, "part": part["name"]})
        return groups

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the schedule with `scheduler`, where there is one."""
        if self.scheduler is not None and self.lr_scheduler is None:  # type: ignore[has-type]
            self.lr_scheduler = self.scheduler(optimizer or self.optimizer, num_training_steps)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.in_order:
            return SequentialSampler(dataset)
        return super()._get_train_sampler(dataset)

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> dict[str, int]:
        """Count what each head's losses are weighted by, in all of an update's batches."""
        counts = [items_by_head(self.model, batch) for batch in batch_samples]
        return {
            name: distributed.total(sum(each[name] for each in counts), self.args.device)
            for name in self.model.heads
        }

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: dict[str, int] | None = None,
    ) -> Any:
        """Return this batch's share in the update's loss: of each head that of its items in all.

        Several processes' gradients are averaged later. Without `num_items_in_batch`, and in
        evaluation, the heads' own losses of the batch.
        """
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if num_items_in_batch is not None and model.training:
            heads, weights = outputs["heads"], self.model.loss_weights
            counts = items_by_head(self.model, inputs)
            factors = {
                name: counts[name] / num_items_in_batch[name] * self.args.world_size
                for name, head in heads.items()
                if head.loss is not None and weights[name]
            }
            shares = [weights[name] * heads[name].loss.float() * f for name, f in factors.items()]
            loss = torch.stack(shares).sum()
            weighted = {name: weights[name] * f for name, f in factors.items()}
            self.losses.add(self.state.global_step, heads, weighted)
        return (loss, outputs) if return_outputs else loss

    def _prepare_input(self, data: Any) -> Any:
        """Move a batch to the device, with what says where it names its classes."""
        if isinstance(data, Mentions):
            return data.to(self.args.device)
        return super()._prepare_input(data)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as Trainer does, with the loss's summands, and rates where they are set by part."""
        if self.score is not None:  # how much it judges is not known here, nor its speed
            for name in [n for n in logs if n.startswith("eval_") and n.endswith("_per_second")]:
                del logs[name]
        if "loss" in logs:
            logs = {**logs, **self.losses.take()}
        if "learning_rate" in logs and self.learning_rates:
            logs = {**logs, **self._rates}
        super().log(logs, *args, **kwargs)

    def _get_learning_rate(self) -> Any:
        # The Trainer asks between an update and the change of rates that follows it.
        groups = self.optimizer.param_groups
        self._rates = {f"learning_rate/{group['part']}": group["lr"] for group in groups}
        return super()._get_learning_rate()

    # Evaluation.

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as Trainer does; Ctrl-C need not wait for the end."""
        self.interruption.between_steps = True
        # DataLoaders draw numbers, which a run must not miss where it makes up for an evaluation.
        chance = torch.random.fork_rng(devices=[])
        try:
            with self.progress.evaluating(self.args, self.state), gathered(self.model), chance:
                metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        except KeyboardInterrupt:
            raise
        except BaseException:
            self.interruption.between_steps = False
            raise
        self.interruption.between_steps = False
        return metrics

    def _make_up_evaluation(self) -> None:
        """Evaluate the step that the run is resumed at, unless its figures are there."""
        self._made_up = self.state.global_step
        entries = [e for e in self.state.log_history if e.get("step") == self._made_up]
        metrics = {name: e[name] for e in entries for name in e if name.startswith("eval_")}
        chooses = (self.args.metric_for_best_model or "").removeprefix("eval_")
        if not metrics or (chooses and f"eval_{chooses}" not in metrics):
            metrics = self._evaluate(None, None)
        self._determine_best_metric(metrics, None)

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
        self.interruption.break_off(self.args.device)
        ignored = [*(ignore_keys or []), "heads"]
        return super().prediction_step(model, inputs, prediction_loss_only, ignored)

    # Checkpoints.

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter; where FSDP spreads it over processes, all of them take part."""
        if self.is_fsdp_enabled:
            self.model.save_pretrained(output_dir or self.args.output_dir)
        else:
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # The Trainer would save the towers with them.
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            self.model.save_pretrained(output_dir or self.args.output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # What comes next says that the checkpoint is whole.
        distributed.wait_for_all()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._load_adapter(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        # By its name, so that a run that was moved to another folder finds it too.
        self._load_adapter(Path(self.args.output_dir) / Path(self.state.best_model_checkpoint).name)

    def _load_adapter(self, folder: Path) -> None:
        model = self.accelerator.unwrap_model(self.model)
        _, tensors = adapter_files.read(folder)
        with torch.no_grad():
            checkpoint.load_adapter_tensors(model, tensors, os.fspath(folder))


class _Nothing(Dataset[Any]):
    """No data at all."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Any:
        raise IndexError(index)
