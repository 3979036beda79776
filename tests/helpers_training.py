"""Small runs of BridgerTrainer, in the test's process or in others that they may take down.

As a program, `python helpers_training.py FILE` makes the runs that a JSON list in FILE describes
(`Run`), one after the other, and also under `torchrun`. With `--fork` each run has a
process of its own, which may kill itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from helpers_deaths import die_at
from helpers_towers import PAIRS, ids, images
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate
from transformers import TrainingArguments

from bridger import BridgedModel, BridgerConfig, attach_bridgers
from bridger.__main__ import run as run_command
from bridger.config import Config
from bridger.features import BridgedFeatures, EncoderSpec
from bridger.freezing import in_eval_mode
from bridger.heads import DenseHead, HeadOutput, ReferringSegmentationHead, register_head
from bridger.heads.losses import mask_targets, text_to_pixel_loss
from bridger.predictions import Prediction
from bridger.predictions.maps import PictureMaps
from bridger.texts import Texts
from bridger.training import BridgerTrainer, distributed

SMALL = BridgerConfig.preset("paper", hidden_dim=16, num_heads=2, ffn_dim=16)
HEAD = {"width": 32, "num_layers": 1, "num_heads": 2}
STEPS = 6
"""Updates of a run; every second one leaves a checkpoint."""
INTERRUPTED = [(2, 0), (2, 1), (2, 2), (4, 0), (4, 1)]
"""Steps and rounds of evaluations until a run gets Ctrl-C."""


class Pictures(Dataset[dict[str, Tensor]]):
    """Random pictures and texts whose masks are where the picture is bright.

    Args:
        count: of pictures.
        expressions: of each picture; 0: one, without a dimension of its own.
        ragged: leave out the last expression of all pictures but every third.
    """

    def __init__(self, count: int = 8, expressions: int = 0, ragged: bool = False) -> None:
        self.pixels = images(count, 32)
        self.ids = ids(4).repeat(count // 4 + 1, 1)[:count]
        self.labels = (self.pixels[:, 0] > 0).float()
        self.expressions, self.ragged = expressions, ragged

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = {"pixel_values": self.pixels[index], "index": torch.tensor(index)}
        if not self.expressions:
            return {**item, "input_ids": self.ids[index], "labels": self.labels[index]}
        rows = [(index + n) % len(self) for n in range(self.expressions)]
        present = torch.ones(self.expressions, dtype=torch.bool)
        present[-1] = not self.ragged or index % 3 == 0
        labels = (self.pixels[index] > 0)[torch.arange(self.expressions) % 3].float()
        return {
            **item,
            "input_ids": self.ids[rows],
            "labels": labels,
            "expression_mask": present,
        }


@register_head("dot_in_tests")
class DotHead(DenseHead):
    """The sentence's product with every cell of the last map: no BatchNorm and no dropout."""

    config_class = Config

    def __init__(self, spec: EncoderSpec, config: Config) -> None:
        super().__init__(spec, config)
        self.cells = nn.Linear(spec.map_widths[-1], spec.sentence_width)

    def forward(
        self,
        features: BridgedFeatures,
        labels: Tensor | None = None,
        expression_mask: Tensor | None = None,
    ) -> HeadOutput:
        cells = self.cells(rearrange(features.maps[-1], "r c h w -> r h w c"))
        logits = torch.einsum("rhwc,rc->rhw", cells, features.sentence) / cells.shape[-1]
        rows = rearrange(logits.float(), "(b n) h w -> b n h w", n=features.num_expressions)
        if labels is None:
            return HeadOutput(rows)
        targets = mask_targets(labels, rows, features.image_size)
        return HeadOutput(rows, text_to_pixel_loss(rows, targets, expression_mask))

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def result(self, maps: PictureMaps, texts: Texts, output: HeadOutput, index: int) -> Prediction:
        return Prediction.from_probabilities(maps)


def make_model(
    config: BridgerConfig | None = SMALL,
    head: str = "referring",
    trainable: str = "",
    **options: Any,
) -> BridgedModel:
    torch.manual_seed(0)
    bridged = attach_bridgers(*PAIRS["open_clip_vit"](), 2, config, trainable=trainable or ())
    if head == "dot":
        return bridged.with_head(DotHead, **options)
    if head == "resting":
        heads = {"head": (DotHead, options), "other": (ReferringSegmentationHead, HEAD)}
        return BridgedModel.build(bridged, heads, {"other": 0.0})
    return bridged.with_head(ReferringSegmentationHead, **HEAD, **options)


def make_trainer(folder: Path, model: BridgedModel | None = None, **changes: Any) -> BridgerTrainer:
    own_names = ("learning_rates", "score", "callbacks", "eval_dataset", "scheduler", "in_order")
    own_names += ("train_dataset", "data_collator", "compute_metrics")
    own = {name: changes.pop(name) for name in own_names if name in changes}
    options: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    args = TrainingArguments(**{**options, **changes})
    given = {"train_dataset": Pictures(), "eval_dataset": Pictures(), **own}
    return BridgerTrainer(model or make_model(), args, **given)


def numbers(model: BridgedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.adapter_state_dict().items()}


def assert_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert list(first) == list(second)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@dataclass(frozen=True)
class Run:
    """A run with 24 pictures, 4 in each update, that another process may be told to make.

    Attributes:
        folder: gets the adapter, checkpoints, and what each process saw.
        head: "referring", which has BatchNorm, "dot", which has none, or "resting": the latter
            beside one whose loss has weight 0.
        expressions, ragged: of `Pictures`.
        trainable: tower tensors that are trained.
        args: of TrainingArguments, changed.
        resume: from the last checkpoint.
        die: where a process kills itself, see `die_at`; "": nowhere.
        rank: which one.
        interrupt: that process gets Ctrl-C after `INTERRUPTED`, in the second of three rounds.
    """

    folder: str
    head: str = "referring"
    expressions: int = 0
    ragged: bool = False
    trainable: str = ""
    args: Mapping[str, Any] = field(default_factory=dict)
    resume: bool = False
    die: str = ""
    rank: int = 0
    interrupt: bool = False

    def __call__(self) -> None:
        """Train, and write what came of it."""
        accumulation = self.args.get("gradient_accumulation_steps", 1)
        share = 4 // distributed.world_size() // accumulation
        seen: list[int] = []
        still = {"dropout": 0.0} if self.head == "referring" else {}
        model = make_model(SMALL.replace(dropout=0.0), self.head, self.trainable, **still)

        rounds: list[tuple[int, int]] = []

        def score(judged: BridgedModel) -> dict[str, float]:
            for number in range(3):
                rounds.append((trainer.state.global_step, number))
                me = distributed.rank() == self.rank
                if self.interrupt and me and rounds == INTERRUPTED:
                    os.kill(os.getpid(), signal.SIGINT)
                trainer.interruption.break_off(trainer.args.device)
            nearness = -abs(trainer.state.global_step - 4)
            return {"answer": _answer(judged), "nearness_to_4": nearness}

        trainer = make_trainer(
            Path(self.folder, "checkpoints"),
            model,
            train_dataset=Pictures(4 * STEPS, self.expressions, self.ragged),
            in_order=True,
            data_collator=lambda items: _collate(items, seen, self.head == "resting"),
            score=score,
            eval_dataset=None,
            eval_strategy="steps",
            eval_steps=2,
            metric_for_best_model="nearness_to_4",
            greater_is_better=True,
            load_best_model_at_end=True,
            save_total_limit=2,
            per_device_train_batch_size=share,
            remove_unused_columns=False,
            **self.args,
        )
        if self.die and distributed.rank() == self.rank:
            die_at(self.die, trainer)
        try:
            trainer.train(resume_from_checkpoint=self.resume or None)
        except KeyboardInterrupt:
            assert self.interrupt and not self.resume
        trainer.save_model(self.folder)
        result: dict[str, Any] = {"seen": seen, "history": [*trainer.state.log_history]}
        result["rounds"] = [*rounds]
        result["afterwards"] = trainer.evaluate()["eval_answer"]
        result["modules"] = [type(module).__name__ for module in model.modules()]
        Path(self.folder, f"result-{distributed.rank()}.json").write_text(json.dumps(result))


def result(folder: Path, rank: int = 0) -> dict[str, Any]:
    """What a process of a run saw."""
    read: dict[str, Any] = json.loads(Path(folder, f"result-{rank}.json").read_text())
    return read


def figures(folder: Path, name: str, rank: int = 0) -> list[float]:
    """One of the figures that a run logged, from its first step to its last."""
    return [entry[name] for entry in result(folder, rank)["history"] if name in entry]


def adapter(folder: Path) -> dict[str, Tensor]:
    """The tensors of the adapter that a run left."""
    return load_file(Path(folder, "bridger.safetensors"))


def _answer(model: BridgedModel) -> float:
    """A figure of what the model says in eval mode, by other methods than its forward."""
    data = Pictures(2)
    with torch.no_grad(), in_eval_mode(model):
        output = model.heads["head"](model.encode(data.pixels, data.ids))
    return float(output.logits.double().abs().mean())


def _collate(items: list[dict[str, Tensor]], seen: list[int], named: bool) -> dict[str, Any]:
    batch: dict[str, Any] = default_collate(items)
    seen += batch.pop("index").tolist()
    return {**batch, "labels": {"head": batch["labels"]}} if named else batch


def make_runs(folder: Path, runs: list[Run], *flags: str, processes: int = 1) -> int:
    """Make the runs in another process, or in several under torchrun; return its exit code.

    Args:
        folder: for what is told to them.
        runs: one after the other.
        *flags: "--fork": give each run a process of its own, which may kill itself. "--sharded":
            let accelerate take CPUs for devices on which it knows FSDP.
        processes: more than one share each run.
    """
    told = folder / "runs.json"
    told.write_text(json.dumps([asdict(run) for run in runs]))
    program = [str(Path(__file__)), str(told), *flags]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), *program]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, timeout=300).returncode


def main(told: str, *flags: str) -> int:
    torch.set_num_threads(1)
    if "--sharded" in flags:
        take_cpus_for_devices()
    for values in json.loads(Path(told).read_text()):
        run = Run(**values)
        if "--fork" not in flags:
            run()
        elif (child := os.fork()) == 0:
            try:
                run()
            finally:
                os._exit(0)
        else:
            died = os.waitpid(child, 0)[1] == signal.SIGKILL
            assert died == bool(run.die), run
    return 0


def take_cpus_for_devices() -> None:
    """Let accelerate use FSDP, which it knows on GPUs alone and forgets silently elsewhere."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    def stay(state: Any) -> None:
        state.device = torch.device("cpu")

    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = stay


if __name__ == "__main__":
    sys.exit(run_command(partial(main, *sys.argv[1:])))
