"""The released ETRIS model and bridger's on the same weights: what `against_etris.py` runs."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from etris_patches import Released
from measuring import largest, synchronize
from torch import Tensor, nn

from bridger import BridgedModel, etris

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WORDS = (2, 9)  # as many words has a sentence, the latter excluded
PARTS = {  # of the released model, and of bridger's
    "towers and Bridgers": ("bridger", "encoder"),
    "hierarchical alignment": ("neck", "heads.head.hierarchical_alignment"),
    "global alignment": ("decoder", "heads.head.global_alignment"),
    "projector": ("proj", "heads.head.projector"),
}


class Batch(NamedTuple):
    """Pixels (B, 3, H, W), ids (B, L) and masks (B, H, W)."""

    pixels: Tensor
    ids: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Setting:
    """What a case runs in."""

    batch: int
    dtype: str
    device: str


def draw(size: int, released: Released, device: str) -> Batch:
    """Draw pictures of noise, sentences of `WORDS` words padded to the end, and boxes as masks."""
    torch.manual_seed(1)
    side, length = released.options.input_size, released.options.word_len
    ids = torch.randint(300, 49000, (size, length))
    ends = torch.randint(*WORDS, (size, 1)) + 1
    places = torch.arange(length)
    ids[:, 0] = 49406
    ids = ids.masked_fill(places == ends, 49407).masked_fill(places > ends, 0)
    masks = torch.zeros(size, side, side, device=device)
    masks[:, side // 4 : side // 2, side // 3 : side // 2] = 1
    return Batch(torch.randn(size, 3, side, side, device=device), ids.to(device), masks)


def logits_of(module: nn.Module, batch: Batch) -> Tensor:
    """Return (B, 1, H/4, W/4), in eval mode."""
    output = module(batch.pixels, batch.ids)
    found: Tensor = output.logits if isinstance(module, BridgedModel) else output
    return found


def loss_of(module: nn.Module, batch: Batch) -> Tensor:
    """Return the loss, in train mode."""
    if isinstance(module, BridgedModel):
        loss: Tensor = module(batch.pixels, batch.ids, labels=batch.masks).loss
    else:
        _, _, loss = module(batch.pixels, batch.ids, batch.masks[:, None])
    return loss


def titles(device: str, memory: Sequence[str]) -> dict[str, str]:
    """Return what there is to compare, by name; the first one is the reference."""
    released = {"etris": "ETRIS"}
    if device.startswith("cuda"):
        released = {"etris": "ETRIS, cudnn off as released", "etris-cudnn": "ETRIS, cudnn on"}
    frozen = "bridger, positions frozen"
    saving = {f"frozen-{level}": f"{frozen}, memory={level}" for level in memory}
    return {**released, "bridger": "bridger, same training", "frozen": frozen, **saving}


def module_of(name: str, released: Released, state: Mapping[str, Tensor]) -> nn.Module:
    """Return the released model, or bridger's on its state dict."""
    if name.startswith("etris"):
        return released.model
    model = bridged(released, state)
    if name != "bridger":
        model.encoder.tower_tensors.requires_grad_(False)
    if level := name.partition("-")[2]:
        model.save_memory(level)
    return model


def bridged(released: Released, state: Mapping[str, Tensor]) -> BridgedModel:
    """Build bridger's model on the released one's state dict."""
    options = released.options
    return etris.from_state_dict(
        state, options.word_len, bridger_heads=options.nhead, decoder_heads=options.num_head
    )


@contextmanager
def use_cudnn(wanted: bool) -> Iterator[None]:
    """Set whether convolutions and BatchNorm use it, and leave TF32 as it is set."""
    before, torch.backends.cudnn.enabled = torch.backends.cudnn.enabled, wanted
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


class Case:
    """A model with its inputs and Adam, as the released train.py sets it up.

    Args:
        module: of `module_of`.
        released: which has the optimiser's settings.
        setting: what it runs in.
        cudnn: whether cudnn may be used, which the released train.py switches off.
    """

    def __init__(
        self, module: nn.Module, released: Released, setting: Setting, *, cudnn: bool = True
    ) -> None:
        self.module, self.setting, self.cudnn = module.to(setting.device), setting, cudnn
        self.released, options = released, released.options
        self.batch = draw(setting.batch, released, setting.device)
        self.trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        parameters: Any = [p for p in module.parameters() if p.requires_grad]
        if module is released.model:
            parameters = [dict(group) for group in released.groups]
        self.optimizer = torch.optim.Adam(
            parameters, lr=options.base_lr, weight_decay=options.weight_decay
        )
        # A scale that small leaves no step out, as the first ones of a training would be.
        kind, scaled = torch.device(setting.device).type, setting.dtype == "fp16"
        self.scaler = torch.amp.GradScaler(kind, init_scale=256.0, enabled=scaled)

    def _autocast(self) -> torch.autocast:
        dtype = DTYPES[self.setting.dtype]
        device = torch.device(self.setting.device).type
        return torch.autocast(device, dtype, enabled=dtype != torch.float32)

    @torch.no_grad()
    def forward(self) -> Tensor:
        """Run in eval mode without gradients."""
        self.module.eval()
        with use_cudnn(self.cudnn), self._autocast():
            return logits_of(self.module, self.batch)

    def step(self) -> Tensor:
        """Run one training step, in the order of the released one: gradients go after forward."""
        self.module.train()
        with use_cudnn(self.cudnn):
            with self._autocast():
                loss = loss_of(self.module, self.batch)
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return loss.detach()

    def two_steps(self) -> None:
        """Run a first step and one that has the optimiser's state; nothing of them is left."""
        self.step()
        self.step()
        self.forget()

    def forget(self) -> None:
        """Let go of gradients and of the optimiser's state."""
        self.optimizer.zero_grad()
        self.optimizer.state.clear()

    def largest_batch(self) -> dict[str, Any]:
        """Find to 5 % the largest batch whose steps fit on a GPU, and why a larger one does not."""
        reasons: dict[int, str] = {}

        def fits(size: int) -> bool:
            try:
                self.batch = draw(size, self.released, self.setting.device)
                self.two_steps()
                synchronize(self.setting.device)
            except RuntimeError as error:  # too little memory, or more than a kernel can index
                reasons[size] = f"{type(error).__name__}: {error}".splitlines()[0]
            # The error, which holds the step's tensors, is gone by now.
            self.forget()
            gc.collect()
            torch.cuda.empty_cache()
            return size not in reasons

        found = largest(fits, within=0.05)
        return {"batch": found, "reason": reasons[min(reasons)] if reasons else None}


def differences(
    released: Released, state: Mapping[str, Tensor], batch: Batch, dtype: torch.dtype
) -> dict[str, float]:
    """Compare what both models compute on the same weights, without dropout.

    In float32 a few of the million cells at which a ReLU begins fall on either side, which shows in
    gradients; float64 tells this from an error. The released CLIP's LayerNorms round to float32,
    which they do not do there.

    Returns:
        The largest differences: of logits in eval mode, of the loss and the gradients in train
        mode, and of BatchNorm's running statistics after it, relative to the largest value of the
        released model.
    """
    pair: list[nn.Module] = [copy.deepcopy(released.model), bridged(released, state)]
    batch = Batch(batch.pixels.to(dtype), batch.ids, batch.masks.to(dtype))
    logits, losses = [], []
    norm: Any = type(released.model.get_submodule("backbone.ln_final"))
    forward = norm.forward if dtype == torch.float32 else nn.LayerNorm.forward
    with patch.object(norm, "forward", forward):
        for module in pair:
            module.to(batch.pixels.device, dtype).eval()
            without_dropout(module)
            with torch.no_grad():
                logits.append(logits_of(module, batch))
            loss = loss_of(module.train(), batch)
            loss.backward()
            losses.append(loss.detach())
            put_gradients(module)
    expected, found = pair[0].state_dict(), etris.to_state_dict(pair[1].float())
    trained = [name for name, p in released.model.named_parameters() if p.requires_grad]
    running = [name for name in expected if "running_" in name]
    compared = {
        "logits": ([logits[1]], [logits[0]]),
        "loss": ([losses[1]], [losses[0]]),
        "gradients": ([found[n] for n in trained], [expected[n] for n in trained]),
        "running statistics": ([found[n] for n in running], [expected[n] for n in running]),
    }
    return {name: relative(*tensors) for name, tensors in compared.items()}


def relative(found: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest difference to the largest value."""
    apart = max(float((f - e).abs().max()) for f, e in zip(found, expected, strict=True))
    return apart / max(float(e.abs().max()) for e in expected)


def without_dropout(module: nn.Module) -> None:
    """Set every dropout to 0, which attention layers hold as a number."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(getattr(part, "dropout", None), float):
            part.dropout = 0.0  # type: ignore[assignment]


@torch.no_grad()
def put_gradients(module: nn.Module) -> None:
    """Put gradients in the parameters' places, so that state dicts name them; 0 where none is."""
    for parameter in module.parameters():
        parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)


@contextmanager
def clocked(module: nn.Module, device: str) -> Iterator[dict[str, list[float]]]:
    """Take the seconds of every call of `PARTS`; a GPU is waited for before and after."""
    seconds: dict[str, list[float]] = {name: [] for name in PARTS}
    ours = isinstance(module, BridgedModel)
    started: dict[str, float] = {}

    def start(name: str, *_: Any) -> None:
        synchronize(device)
        started[name] = time.perf_counter()

    def stop(name: str, *_: Any) -> None:
        synchronize(device)
        seconds[name].append(time.perf_counter() - started[name])

    hooks = []
    for name, places in PARTS.items():
        part = module.get_submodule(places[ours])
        hooks.append(part.register_forward_pre_hook(partial(start, name)))
        hooks.append(part.register_forward_hook(partial(stop, name)))
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()
