"""What a run demands of devices and processes, and what accelerate makes of a model on them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from bridger.model import BridgedModel
from bridger.training import distributed


def check_devices(args: Any) -> None:
    """Refuse what would go wrong later or silently."""
    if args.fp16 and args.device.type == "cpu":
        raise ValueError("fp16 needs a GPU, whose scaler it relies on: on the CPU, use bf16")
    if distributed.world_size() != args.world_size:
        raise ValueError(
            f"{distributed.world_size()} processes were launched, but TrainingArguments know "
            f"{args.world_size}: on the CPU, set use_cpu=True"
        )
    if args.device.type == "cpu":
        # transformers 4 loads the optimiser's state to "cpu:0", which torch does not know.
        vars(args)["_setup_devices"] = torch.device("cpu")
    if args.n_gpu > 1:
        # DataParallel copies modules between threads, hooks and all: one process per GPU.
        args._n_gpu = 1


def prepare_sharding(trainer: Trainer) -> None:
    """Make FSDP fit the Trainer's model, or refuse it."""
    asked = trainer.args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if asked and not trainer.is_fsdp_enabled:
        raise ValueError("accelerate has no FSDP on the CPU, and would train without: drop fsdp")
    if not trainer.is_fsdp_enabled:
        return
    plugin = trainer.accelerator.state.fsdp_plugin
    if getattr(plugin, "fsdp_version", 1) != 2:
        raise ValueError("bridged models need FSDP2 (fsdp_version 2, from accelerate 1.6 on)")
    # It cannot shard scalars, such as CLIP's temperature.
    scalars = nn.ParameterList(p for p in trainer.model.parameters() if p.ndim == 0)
    plugin.ignored_modules = [*(plugin.ignored_modules or ()), scalars]
    # Every process has the towers; to drop and send them would tear them from the user's.
    plugin.cpu_ram_efficient_loading = False


@contextmanager
def own_forward(model: BridgedModel) -> Iterator[None]:
    """Take off what accelerate puts on a model: a forward for mixed precision, and a mark.

    A model with the mark, which an evaluation leaves too, would be trained as it is.
    """
    own = vars(model).get("forward")
    vars(model).pop("_is_accelerate_prepared", None)
    try:
        yield
    finally:
        for name in ("_is_accelerate_prepared", "_original_forward", "forward"):
            vars(model).pop(name, None)
        if own is not None:
            vars(model)["forward"] = own
