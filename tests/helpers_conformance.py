"""What the conformance suite does to a pair of towers, whatever their classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers_families import PairRow, Row, TextRow, VisionRow
from helpers_towers import ids, images, open_clip_vit
from torch import Tensor, nn

from bridger import BridgedEncoder, BridgedFeatures, BridgerConfig, attach_bridgers
from bridger.towers.lean import with_lean_parts

SMALL = BridgerConfig.preset("paper", hidden_dim=16, num_heads=2, ffn_dim=16)


class Subject:
    """A row's towers, made anew, with inputs that they take."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.image_size, self.other_sizes, self.pad = (32, 32), (), 0
        if isinstance(row, PairRow):
            self.vision, self.text = row.build()
        elif isinstance(row, VisionRow):
            self.vision, self.text = row.build(), open_clip_vit(custom=True).text
        else:
            self.vision, self.text = open_clip_vit().visual, row.build()
            self.pad = row.pad
        if not isinstance(row, TextRow):
            self.image_size, self.other_sizes = row.image_size, row.other_sizes

    def batch(
        self, count: int = 2, size: tuple[int, int] | None = None, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Pictures and texts."""
        height, width = size or self.image_size
        return images(count, height, width, seed=seed), ids(count, pad=self.pad, seed=seed)

    def attach(
        self, stages: int = 2, config: BridgerConfig | None = SMALL, **options: Any
    ) -> BridgedEncoder:
        """Bridge the towers."""
        return attach_bridgers(self.vision, self.text, stages, config, **options)


def changed(encoder: BridgedEncoder, seed: int = 1) -> BridgedEncoder:
    """Give zero-started Bridgers something to say."""
    generator = torch.Generator().manual_seed(seed)
    assert encoder.bridgers is not None
    with torch.no_grad():
        for parameter in encoder.bridgers.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return encoder


def features(out: BridgedFeatures) -> list[Tensor]:
    """All tensors of an output."""
    tensors = [*out.maps, out.tokens, out.sentence, out.pooled]
    return [tensor for tensor in tensors if tensor is not None]


def same(a: BridgedFeatures, b: BridgedFeatures) -> bool:
    """Whether two outputs have the same bits."""
    return all(torch.equal(x, y) for x, y in zip(features(a), features(b), strict=True))


def close(a: Tensor, b: Tensor) -> None:
    """Equal up to what the order of sums changes."""
    scale = max(1.0, float(b.detach().abs().max()))
    torch.testing.assert_close(a, b, atol=2e-5 * scale, rtol=1e-4)


def gradients(encoder: BridgedEncoder, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Gradients of all that the adapter trains, in the encoder's mode."""
    encoder.zero_grad()
    torch.manual_seed(0)  # of dropout
    sum(t.square().mean() for t in features(encoder(*batch))).backward()
    return {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}


def forwards(encoder: BridgedEncoder, batch: tuple[Tensor, Tensor]) -> dict[str, int]:
    """How often a forward and a backward run parts of the last stage's blocks and Bridger."""
    assert encoder.bridgers is not None
    vision, text = encoder.stages[-1]
    last = {
        "vision": encoder.vision.blocks[vision].module,
        "text": encoder.text.blocks[text].module,
        "bridgers": encoder.bridgers.at(len(encoder.stages) - 1).interactor,
    }
    counts = dict.fromkeys(last, 0)
    hooks = []
    for name, block in last.items():

        def count(module: nn.Module, args: Any, name: str = name) -> None:
            counts[name] += 1

        # Of the parts: hooks of the block itself may stay outside of what is recomputed.
        parts = [part for part in block.modules() if part is not block]
        hooks += [part.register_forward_pre_hook(count) for part in parts]
    gradients(encoder, batch)
    for hook in hooks:
        hook.remove()
    return counts


def trace(module: nn.Module) -> list[object]:
    """Everything that attaching could leave behind."""
    seen: list[object] = [list(module.state_dict())]
    for name, child in module.named_modules():
        hooks = (len(child._forward_hooks), len(child._forward_pre_hooks))
        flags = [(k, id(p), p.requires_grad) for k, p in child._parameters.items() if p is not None]
        seen.append((name, child.training, hooks, sorted(child.__dict__), flags))
    return seen


def replayed(encoder: BridgedEncoder, pixels: Tensor, words: Tensor) -> list[Tensor]:
    """The encoder's features without lockstep: each tower runs alone, once for every stage.

    In the run for stage i, hooks put what the Bridgers made at the stages before in the place of
    what those blocks return, and keep what block i returns.
    """
    # Products of other shapes may differ in the last bit.
    vision, text = with_lean_parts(encoder.vision), with_lean_parts(encoder.text)
    token_ids, mask = text.prepare(words)
    size = (pixels.shape[-2], pixels.shape[-1])
    made: tuple[dict[int, Any], dict[int, Any]] = ({}, {})
    carry, maps = None, []
    assert encoder.bridgers is not None
    for stage, (v, t) in enumerate(encoder.stages):
        _, seen = _run(vision, made[0], v, lambda: vision.call(pixels, {}))
        _, read = _run(text, made[1], t, lambda: text.call(token_ids, mask, {}))
        state, tokens = vision.read_map(v, seen, size), text.read_tokens(t, read)
        if stage == 0:
            state = state.clone(memory_format=torch.contiguous_format)  # one per expression
        to_state, to_tokens, carry = encoder.bridgers(stage, state, tokens, mask, carry, size)
        maps.append(state if to_state is None else state + to_state)
        if to_state is not None:
            made[0][v] = vision.write_map(v, seen, maps[-1])
        if to_tokens is not None:
            made[1][t] = text.write_tokens(t, read, tokens + to_tokens)
    last = len(vision.blocks) - 1, len(text.blocks) - 1
    image, seen = _run(vision, made[0], last[0], lambda: vision.call(pixels, {}))
    said, read = _run(text, made[1], last[1], lambda: text.call(token_ids, mask, {}))
    final = vision.read_map(last[0], seen, size)
    tokens = text.tokens(text.read_tokens(last[1], read), said, {})
    dense = final if encoder.dense is None else encoder.dense(final, {})
    tensors = [
        *maps[:-1],
        dense,
        tokens,
        text.sentence(tokens, token_ids, said),
        vision.pooled(image),
    ]
    return [tensor for tensor in tensors if tensor is not None]


def _run(tower: Any, made: dict[int, Any], wanted: int, call: Any) -> tuple[Any, Any]:
    """Run a tower with some blocks' outputs replaced; give its result and one block's output."""
    kept: dict[int, Any] = {}

    def hook(index: int) -> Any:
        def act(module: nn.Module, args: Any, output: Any) -> Any:
            kept[index] = made.get(index, output)
            return kept[index]

        return act

    blocks = {index: tower.blocks[index].module for index in {*made, wanted}}
    handles = [block.register_forward_hook(hook(index)) for index, block in blocks.items()]
    try:
        return call(), kept[wanted]
    finally:
        for handle in handles:
            handle.remove()


def kept_for_backward(forward: Callable[[], Any]) -> int:
    """Return how many numbers a forward keeps for backward."""
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return total
