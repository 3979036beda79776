"""Builds the model of a user's own clone of ETRIS (github.com/kkakkkka/ETRIS) on today's torch.

    released = load("path/to/ETRIS", "ViT-B/16")
    released.model(pixels, ids)                   # the released code's own forward

Nothing of the clone is changed on disk, and no patch changes what it computes; `Released.patches`
says what was done. No weights are needed: CLIP's are drawn at random, at their real sizes.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

CONFIGS = {"ViT-B/16": "bridge_v16.yaml", "RN50": "bridge_r50.yaml"}
TOWERS: dict[str, dict[str, Any]] = {
    "ViT-B/16": {
        "embed_dim": 512,
        "vision_layers": 12,
        "vision_width": 768,
        "vision_patch_size": 16,
    },
    "RN50": {
        "embed_dim": 1024,
        "vision_layers": (3, 4, 6, 3),
        "vision_width": 64,
        "vision_patch_size": None,
    },
}
TEXT = {"vocab_size": 49408, "transformer_width": 512, "transformer_heads": 8}
CLIP = {"image_resolution": 224, "context_length": 77, "txt_length": 77, "transformer_layers": 12}


@dataclass(frozen=True)
class Released:
    """The released model, and how its train.py trains it.

    Attributes:
        model: called with pixels (B, 3, H, W) and ids (B, L) it returns logits (B, 1, H/4, W/4),
            with masks (B, 1, H, W) in train mode (logits, masks, loss).
        groups: of its optimiser, Adam.
        options: its config, by name.
        commit: of the clone; "unknown" where git does not tell.
        patches: what was done to make it run.
    """

    model: nn.Module
    groups: list[dict[str, Any]]
    options: SimpleNamespace
    commit: str
    patches: tuple[str, ...]


def load(path: str | Path, backbone: str) -> Released:
    """Build the released model with random weights, on the CPU.

    Args:
        path: of the clone.
        backbone: a name in `CONFIGS`.

    Raises:
        FileNotFoundError: there is no such clone.
    """
    root = Path(path).expanduser().resolve()
    config = root / "config" / "refcoco" / CONFIGS[backbone]
    for file in (config, root / "model" / "segmenter.py"):
        if not file.exists():
            raise FileNotFoundError(
                f"{file} is not there: expected in {root} a clone of github.com/kkakkkka/ETRIS"
            )
    options = _options(config)
    patches = [
        "the model is called directly: no DistributedDataParallel, no SyncBatchNorm",
        "CLIP's weights are random: torch.jit.load returns the clone's own CLIP",
    ]
    with _importing(root, patches) as code:
        clip = _random_clip(code("model.clip").CLIP, backbone)
        with patch.object(torch.jit, "load", lambda *_, **__: clip):
            model, groups = code("model").build_segmenter(options)
    # "torch.meshgrid: in an upcoming release, it will be required to pass the indexing argument"
    warnings.filterwarnings("ignore", message="torch.meshgrid")
    return Released(model, groups, options, _commit(root), tuple(patches))


def _options(config: Path) -> SimpleNamespace:
    """Read a config as the clone's own code does: the sections' entries side by side."""
    import yaml

    sections = yaml.safe_load(config.read_text())
    return SimpleNamespace(**{k: v for section in sections.values() for k, v in section.items()})


@contextmanager
def _importing(root: Path, patches: list[str]) -> Iterator[Callable[[str], ModuleType]]:
    """Import from the clone, which logs with loguru, whether or not that is installed."""
    stubs: dict[str, ModuleType] = {}
    if importlib.util.find_spec("loguru") is None:
        stub: Any = ModuleType("loguru")
        stub.logger = logging.getLogger("etris")
        stubs["loguru"] = stub
        patches.append("loguru, which is not installed, is the standard library's logging")
    before = set(sys.modules)
    sys.modules.update(stubs)
    with patch.object(sys, "path", [str(root), *sys.path]):
        yield importlib.import_module
    # Its "model" is too common a name to be left; what it has imported of others stays.
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if name in stubs or Path(file).is_relative_to(root):
            del sys.modules[name]


def _random_clip(clip_class: Callable[..., nn.Module], backbone: str) -> nn.Module:
    """Draw a CLIP of the released size, as its own code does.

    That code starts residual blocks of ResNets at zero: here they count, as in trained weights.
    """
    clip = clip_class(**TOWERS[backbone], **TEXT, **CLIP)
    for name, parameter in clip.named_parameters():
        if name.endswith("bn3.weight"):
            nn.init.constant_(parameter, 0.25)
    return clip


def _commit(root: Path) -> str:
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
