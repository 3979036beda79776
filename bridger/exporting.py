"""A bridged model as one program of torch.export, which needs neither bridger nor threads.

torch.export does not see what runs in the threads of the towers (see `lockstep.py`), but the modes
that record operations are taken over by them. So the operations of one forward are recorded first,
towers and Bridgers in the order in which they really ran, and the recording is exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bridger.features import Mentions
from bridger.freezing import in_eval_mode
from bridger.heads import HeadOutput

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    from bridger.model import BridgedModel


@torch.no_grad()
def export(
    model: BridgedModel,
    pixel_values: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    mentions: Mentions | None = None,
    head: str | None = None,
) -> ExportedProgram:
    """Return a program that computes what one head answers, in eval mode and without gradients.

    `program.module()(pixel_values=..., input_ids=..., attention_mask=...)` takes tensors of the
    example's shapes, device and dtypes, and no others; texts are padded to its length. It looks at
    no numbers, so that texts without a token or ids out of range are not refused. What leads from
    pictures and words to tensors, and from logits to results, is the processor's and the head's
    part and is not exported. `torch.export.save` writes the program, `torch.onnx.export` takes it.

    While it runs, torch is told that it compiles, in all threads: let no other model run meanwhile.

    Args:
        model: as it stands; later changes do not reach the program.
        pixel_values: (B, 3, H, W), an example.
        input_ids: (B, L) or (B, N, L), an example.
        attention_mask: like input_ids; what is not given here the program does not take.
        mentions: of a head that reads class names; they become a part of the program.
        head: which one answers, where there are several.

    Returns:
        A program whose outputs are a dict of the tensors of the head's output, such as "logits".

    Raises:
        RuntimeError: a tower or the head decides by numbers in tensors what to do (heads that find
            boxes do), or the recording does not give what the model gives.
        ValueError: the model has a prefix cache, or is compiled.
    """
    name = model.head_name(head)
    if model.encoder.prefix_cache is not None:
        raise ValueError(
            "what a prefix cache holds would become a part of the program: call "
            "model.encoder.cache_prefix(None) first"
        )
    if model.encoder._compiled is not None:
        raise ValueError("a compiled model cannot be recorded: export it before compile()")
    example = {"pixel_values": pixel_values, "input_ids": input_ids}
    if attention_mask is not None:
        example["attention_mask"] = attention_mask

    def run(*inputs: Tensor) -> dict[str, Tensor]:
        given = dict(zip(example, inputs, strict=True))
        return tensors_of(model.heads[name](model.encode(**given, mentions=mentions)))

    with in_eval_mode(model):
        recorded = _record(run, example, name)
        _check(recorded, run, example)
    program: ExportedProgram = torch.export.export(recorded, (), example, strict=False)
    return program


def tensors_of(output: HeadOutput) -> dict[str, Tensor]:
    """Return the tensors of a head's output by name."""
    return {name: value for name, value in vars(output).items() if isinstance(value, Tensor)}


def _record(run: Any, example: Mapping[str, Tensor], head: str) -> GraphModule:
    """Record a run; what comes of it takes the example's tensors by name."""
    from torch.fx.experimental.proxy_tensor import make_fx

    inputs = tuple(example.values())
    run(*inputs)  # refuses what does not fit, and lets towers make what they keep
    try:
        with _said_to_compile():
            recorded: GraphModule = make_fx(run)(*inputs)
    except RuntimeError as error:
        if "tracing tensor" not in str(error):
            raise
        raise RuntimeError(
            f"head {head!r} cannot be exported: it, or a tower, reads numbers out of tensors to "
            f"decide what to do next, and a program of torch.export has no such decisions"
        ) from error
    for node, name in zip(recorded.graph.find_nodes(op="placeholder"), example, strict=True):
        node.target = name
    recorded.graph.eliminate_dead_code()
    recorded.recompile()
    return recorded


@contextmanager
def _said_to_compile() -> Iterator[None]:
    """Let `torch.compiler.is_compiling` say so, as torch.export does: checks of numbers rest."""
    compiler: Any = torch.compiler
    before, compiler._is_compiling_flag = compiler._is_compiling_flag, True
    try:
        yield
    finally:
        compiler._is_compiling_flag = before


def _check(recorded: GraphModule, run: Any, example: Mapping[str, Tensor]) -> None:
    """Compare the recording with the model on another picture.

    Raises:
        RuntimeError: they differ, as where a tower computes outside of torch.
    """
    other = {**example, "pixel_values": 0.5 - example["pixel_values"].flip(-1)}
    expected, found = run(*other.values()), recorded(**other)
    for name, value in expected.items():
        if not torch.allclose(found[name], value, rtol=1e-4, atol=1e-5):
            difference = (found[name] - value).abs().max()
            raise RuntimeError(
                f"the recording gives other {name} than the model for another picture, by up to "
                f"{difference:.1e}: a part of it computes with other means than torch's tensors"
            )
