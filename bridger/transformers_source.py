"""By which name a model of transformers can be loaded again, if by any.

A model keeps the name that it was loaded by, and so does one that was only built from that
checkpoint's config, one whose head the checkpoint lacks, or one that was trained since. The name
is therefore believed only where the checkpoint on this machine says the same: the same config,
and in it the numbers of every tensor of the tower.
"""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bridger.hub_cache import commit_of, model_folders, weights_in
from bridger.tower_peft import own_tensors
from bridger.towers.base import is_a

COUNT = 4
"""Numbers of each tensor that are compared."""

PASSING = (
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "dtype",
    "gradient_checkpointing",
    "id2label",
    "label2id",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_cache",
)
"""What a config says of how a model is run or labelled, and not of which it is."""

Numbers = tuple[tuple[int, ...], tuple[float, ...]]


def transformers_name(given: Any, module: nn.Module) -> str | None:
    """Return the name by which `bridger.load_towers` makes a model of transformers again.

    In which precision it runs, and by which implementation of attention, is no part of it.

    Args:
        given: the model, without peft around it.
        module: the part of it that is the tower.

    Returns:
        "transformers:MODEL[@REVISION]#CLASS", or None where it is of another library, was not
        loaded from a checkpoint on this machine, or was changed since.
    """
    name = getattr(given, "name_or_path", None)
    if not is_a(given, "transformers", "PreTrainedModel") or not name:
        return None
    try:
        kind = _kind(given)
        folder = None if kind is None else _first_of(given, module, model_folders(name))
    except Exception:  # whatever a file that is broken or of another kind leads to: not known
        return None
    if folder is None:
        return None
    if os.path.isdir(name):
        return f"transformers:{os.path.abspath(name)}{kind}"
    return f"transformers:{name}@{commit_of(folder)}{kind}"


def _has_its_pooler(given: Any) -> bool:
    """Whether add_pooling_layer was left as it is for its class: no name says more."""
    option = inspect.signature(type(given).__init__).parameters.get("add_pooling_layer")
    return option is None or option.default == (getattr(given, "pooler", None) is not None)


def _kind(given: Any) -> str | None:
    """Return "#CLASS", "" for a class that the checkpoint's own code defines, None for others."""
    import transformers

    kind = type(given)
    if getattr(transformers, kind.__name__, None) is kind:
        return f"#{kind.__name__}"
    said = (getattr(given.config, "auto_map", None) or {}).get("AutoModel", "")
    brought = kind.__module__.startswith("transformers_modules.")
    return "" if brought and said.rpartition(".")[2] == kind.__name__ else None


def _first_of(given: Any, module: nn.Module, folders: Iterable[Path]) -> Path | None:
    return next((folder for folder in folders if _is_of(given, module, folder)), None)


def _is_of(given: Any, module: nn.Module, folder: Path) -> bool:
    if not _has_its_pooler(given):
        return False
    said = type(given.config).from_pretrained(str(folder), trust_remote_code=False)
    if _lasting(said.to_dict()) != _lasting(given.config.to_dict()):
        return False
    files = weights_in(folder)
    own = [tensor for _, _, tensor in own_tensors(module, buffers=False)]
    if not files or not own:
        return False
    there = list(itertools.chain.from_iterable(map(_tensors, files)))
    known = {dtype: _known(there, dtype) for dtype in {tensor.dtype for tensor in own}}
    return all(_numbers(tensor, tensor.shape) in known[tensor.dtype] for tensor in own)


def _lasting(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {name: _lasting(value) for name, value in config.items() if name not in PASSING}


def _tensors(file: Path) -> Iterator[tuple[torch.Size, Tensor]]:
    """Yield the shape and the last row of each tensor of a checkpoint, as far as it is read."""
    if file.suffix != ".safetensors":
        held = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        yield from ((tensor.shape, _looked_at(tensor)) for tensor in held.values())
        return
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():
            shape = torch.Size(opened.get_slice(name).get_shape())
            if len(shape) < 2:
                yield shape, opened.get_tensor(name)
            else:
                row = (*(slice(size - 1, size) for size in shape[:-1]), slice(0, COUNT))
                yield shape, opened.get_slice(name)[row]


def _known(there: Iterable[tuple[torch.Size, Tensor]], dtype: torch.dtype) -> set[Numbers]:
    return {_numbers(row.to(dtype), shape) for shape, row in there}


def _looked_at(tensor: Tensor) -> Tensor:
    """Return the first numbers of a tensor's last row; the first may be padding's, and zeros."""
    row = tensor.detach()
    while row.ndim > 1:
        row = row[-1]
    return row.flatten()[:COUNT]


def _numbers(tensor: Tensor, shape: torch.Size) -> Numbers:
    return tuple(shape), tuple(_looked_at(tensor).float().tolist())
