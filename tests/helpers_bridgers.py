"""The Bridger written again from docs/method.md, on a dict of weights, and small inputs for it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridger.bridgers import BridgerConfig, BridgerStack

GOLDEN = Path(__file__).parent / "golden"
Weights = dict[str, Tensor]

SMALL = {"hidden_dim": 8, "num_heads": 2}
TOKENS, TEXT = 5, 12
FULL = torch.ones(2, TOKENS, dtype=torch.bool)
RAGGED = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
ALL_ZOOM_PARTS = ["plain", "norm", "norm_relu"]


def golden_bridger_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released code's Bridger tensors."""
    shapes = json.loads((GOLDEN / f"{name}.layout.json").read_text())["shapes"]
    return {key: tuple(shape) for key, shape in shapes.items() if key.startswith("bridger.")}


def released_name(name: str, resnet: bool) -> str:
    """What the released code calls one of `BridgerStack`'s tensors."""
    _, stage, part, *rest = name.split(".")
    tail = ".".join(rest)
    if part in ("text_in", "text_out"):
        return f"bridger.{'linear1' if part == 'text_in' else 'linear2'}.{stage}.{tail}"
    if part in ("vision_norm", "text_norm"):
        return f"bridger.ln_{part[0]}.{int(stage) - 1}.{tail}"
    if part in ("vision_in", "vision_out"):
        index = "" if resnet else {"conv": "0.", "norm": "1."}[rest[0]]
        return f"bridger.zoom_{part[7:]}.{stage}.{index}{rest[-1]}"
    fusion = f"bridger.fusion_{rest[0][0]}.{stage}"
    if not resnet:
        return f"{fusion}.multihead_attn.{'.'.join(rest[1:])}"
    renamed = {
        "cross_attn": "multihead_attn",
        "norm_self": "norm1",
        "norm_cross": "norm2",
        "norm_ffn": "norm3",
        "ffn_up": "linear1",
        "ffn_down": "linear2",
    }
    return f"{fusion}.{renamed.get(rest[1], rest[1])}.{'.'.join(rest[2:])}"


def randomised(stack: BridgerStack) -> BridgerStack:
    """Give every number of a stack a random value, so that nothing is hidden behind zeros."""
    with torch.no_grad():
        for name, tensor in stack.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif tensor.is_floating_point():
                tensor.normal_(std=0.3)
    return stack


def make_stack(
    config: BridgerConfig, widths: list[int], strides: list[int], text_width: int = 12
) -> BridgerStack:
    return randomised(BridgerStack(config, widths, strides, [text_width] * len(widths))).eval()


def attend(w: Weights, at: str, x: Tensor, y: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """MHA(query=x, key=value=y), head by head."""
    dim = x.shape[-1]
    wq, wk, wv = w[at + "in_proj_weight"].split(dim)
    bq, bk, bv = w[at + "in_proj_bias"].split(dim)
    q, k, v = x @ wq.T + bq, y @ wk.T + bk, y @ wv.T + bv
    size, read = dim // heads, []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, :], -math.inf)
        read.append(scores.softmax(-1) @ v[..., part])
    return torch.cat(read, -1) @ w[at + "out_proj.weight"].T + w[at + "out_proj.bias"]


def norm(w: Weights, at: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / scale * w[at + "weight"] + w[at + "bias"]


def ita(
    w: Weights,
    at: str,
    x: Tensor,
    y: Tensor,
    y_self: Tensor | None,
    heads: int,
    masks: list[Tensor | None],
) -> Tensor:
    """Self-attention, cross-attention, feed-forward, post-norm. masks: of x, of y."""
    x = norm(w, at + "norm_self.", x + attend(w, at + "self_attn.", x, x, heads, masks[0]))
    source = y if y_self is None else y_self
    x = norm(w, at + "norm_cross.", x + attend(w, at + "cross_attn.", x, source, heads, masks[1]))
    inner = (x @ w[at + "ffn_up.weight"].T + w[at + "ffn_up.bias"]).relu()
    return norm(
        w, at + "norm_ffn.", x + inner @ w[at + "ffn_down.weight"].T + w[at + "ffn_down.bias"]
    )


def self_state(w: Weights, at: str, x: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    return norm(w, at + "norm_self.", x + attend(w, at + "self_attn.", x, x, heads, mask))


def conv_bn_relu(w: Weights, at: str, x: Tensor, transposed: bool, training: bool) -> Tensor:
    conv = F.conv_transpose2d if transposed else F.conv2d
    x = conv(x, w[at + "conv.weight"])
    if training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    else:
        mean, var = w[at + "norm.running_mean"], w[at + "norm.running_var"]
    x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    return (x * w[at + "norm.weight"][:, None, None] + w[at + "norm.bias"][:, None, None]).relu()


def released_vit(
    w: Weights, maps: list[Tensor], texts: list[Tensor], heads: int, training: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """The released ViT Bridgers' residuals at every stage."""
    results, last_v, last_t = [], None, None
    for i, (vision, text) in enumerate(zip(maps, texts, strict=True)):
        at, last = f"stages.{i}.", i == len(maps) - 1
        x = conv_bn_relu(w, at + "vision_in.", vision, last, training)
        shape = x.shape
        v = x.flatten(2).transpose(1, 2)
        t = text @ w[at + "text_in.weight"].T + w[at + "text_in.bias"]
        if i:
            v = norm(w, at + "vision_norm.", v + last_v)
            t = norm(w, at + "text_norm.", t + last_t)
        last_v, last_t = v, t
        v_out = v * attend(w, at + "interactor.vision.", v, t, heads, None)
        t_out = t * attend(w, at + "interactor.text.", t, v, heads, None)
        x = v_out.transpose(1, 2).reshape(shape)
        x = conv_bn_relu(w, at + "vision_out.", x, not last, training)
        results.append((x, t_out @ w[at + "text_out.weight"].T + w[at + "text_out.bias"]))
    return results


def attention_bridgers(
    w: Weights,
    maps: list[Tensor],
    texts: list[Tensor],
    mask: Tensor | None,
    kernels: list[int],
    enlarges: list[bool],
    heads: int,
    released: bool,
) -> list[tuple[Tensor, Tensor]]:
    """The paper's, or the released ResNet's, Bridgers' residuals at every stage."""
    results, last_v, last_t = [], None, None
    for i, (vision, text) in enumerate(zip(maps, texts, strict=True)):
        at, k, up = f"stages.{i}.", kernels[i], enlarges[i]
        conv, back = F.conv2d, F.conv_transpose2d
        if up:
            conv, back = back, conv
        x = conv(vision, w[at + "vision_in.conv.weight"], stride=k)
        shape = x.shape
        v = x.flatten(2).transpose(1, 2)
        t = text @ w[at + "text_in.weight"].T + w[at + "text_in.bias"]
        if i:
            v, t = v + last_v, t + last_t
            if released:
                v = norm(w, at + "vision_norm.", v)
                t = norm(w, at + "text_norm.", t)
        to_v, to_t = at + "interactor.vision.", at + "interactor.text."
        v_self = t_self = None
        if not released:
            v_self = self_state(w, to_v, v, heads, None)
            t_self = self_state(w, to_t, t, heads, mask)
        v_out = ita(w, to_v, v, t, t_self, heads, [None, mask])
        t_out = ita(w, to_t, t, v, v_self, heads, [mask, None])
        last_v, last_t = (v, t) if released else (v_out, t_out)
        x = back(v_out.transpose(1, 2).reshape(shape), w[at + "vision_out.conv.weight"], stride=k)
        t_out = t_out @ w[at + "text_out.weight"].T + w[at + "text_out.bias"]
        results.append((x, t_out if mask is None else t_out * mask[..., None]))
    return results


def run_stack(
    stack: BridgerStack,
    maps: list[Tensor],
    texts: list[Tensor],
    mask: Tensor,
    image_size: tuple[int, int],
) -> list[tuple[Tensor, Tensor]]:
    carry, results = None, []
    for stage, (vision, text) in enumerate(zip(maps, texts, strict=True)):
        v, t, carry = stack(stage, vision, text, mask, carry, image_size)
        results.append((v, t))
    return results


def states(widths: list[int], sizes: list[tuple[int, int]]) -> tuple[list[Tensor], list[Tensor]]:
    """Random maps of these sizes, and as many texts."""
    maps = [torch.randn(2, c, *size) for c, size in zip(widths, sizes, strict=True)]
    return maps, [torch.randn(2, TOKENS, TEXT) for _ in widths]


def assert_close(found: list[tuple[Tensor, Tensor]], wanted: list[tuple[Tensor, Tensor]]) -> None:
    for one, other in zip(found, wanted, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.detach().abs().max()))


def count(module: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
