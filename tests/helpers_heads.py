"""Features without an encoder, and the referring head once more, written out plainly.

`plain_logits` follows the equations of the method with one expression at a time, full attention
over the single key and a true convolution for the mask, so it shares nothing with the head but
its parameters.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bridger.features import BridgedFeatures, EncoderSpec
from bridger.heads import ReferringSegmentationHead
from bridger.heads.fusing import FusingHead
from bridger.heads.projector import Enlarger

HeadT = TypeVar("HeadT", bound=nn.Module)

SPEC = EncoderSpec(
    map_widths=(6, 10, 12), map_strides=(8, 16, 32), token_width=20, sentence_width=12, joint=True
)


def features(
    spec: EncoderSpec = SPEC,
    batch: int = 2,
    expressions: int = 1,
    image_size: tuple[int, int] = (64, 96),
    words: int = 5,
) -> BridgedFeatures:
    """Random features of a tower that rounds its map sizes up; the last row's text is shorter."""
    rows = batch * expressions
    token_mask = torch.ones(rows, words, dtype=torch.bool)
    token_mask[-1, words // 2 :] = False
    sizes = [[-(-side // stride) for side in image_size] for stride in spec.map_strides]
    return BridgedFeatures(
        maps=tuple(
            torch.randn(rows, c, *size) for c, size in zip(spec.map_widths, sizes, strict=True)
        ),
        tokens=torch.randn(rows, words, spec.token_width),
        token_mask=token_mask,
        sentence=torch.randn(rows, spec.sentence_width),
        pooled=torch.randn(rows, spec.pooled_width) if spec.pooled_width else None,
        image_size=image_size,
        num_expressions=expressions,
    )


def randomised(head: HeadT) -> HeadT:
    """Give norms and biases values that show when one is forgotten; returns the head in eval."""
    for name, tensor in head.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.ndim == 1:
            tensor.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.3)
    return head.eval()


def plain_logits(head: ReferringSegmentationHead, given: BridgedFeatures) -> Tensor:
    """Return the logits (B*N, h, w), row by row, for sizes that are multiples of 32."""
    return torch.cat([_one(head, given, row) for row in range(len(given.sentence))])


def _one(head: ReferringSegmentationHead, given: BridgedFeatures, row: int) -> Tensor:
    projector = head.projector
    x = plain_enlarged(projector, plain_fused(head, given, row))
    z = F.linear(given.sentence[row], projector.sentence.weight, projector.sentence.bias)
    return F.conv2d(x, z[:-1].reshape(1, -1, 3, 3), z[-1:], padding=1)[0]


def plain_enlarged(layers: Enlarger, x: Tensor) -> Tensor:
    """Return the map (1, D/2, 4H, 4W) of a fused one (1, D, H, W)."""
    x = _conv(F.interpolate(x, scale_factor=2, mode="bilinear"), layers.first)
    x = _conv(F.interpolate(x, scale_factor=2, mode="bilinear"), layers.second)
    return F.conv2d(x, layers.last.weight, layers.last.bias)


def plain_fused(head: FusingHead, given: BridgedFeatures, row: int) -> Tensor:
    """Return the fused map (1, D, H, W) of a row, at a grid_stride of 16."""
    maps = [m[row : row + 1] for m in given.maps]
    sentence = given.sentence[row : row + 1]
    neck, config = head.hierarchical_alignment, head.config
    height, width = (side // 16 for side in given.image_size)
    s = F.linear(sentence, neck.sentence.weight, neck.sentence.bias)
    aligned = []
    for features_i, stride, zoom, gate in zip(
        maps, head.spec.map_strides, neck.zooms, neck.gates, strict=True
    ):
        f = _zoom(features_i, zoom, stride)
        a = _single_key(gate, f, s, config.num_heads)
        aligned.append({"product": f * a, "residual": f + a, "attention": a}[config.gate])
    fused = _conv(torch.cat(aligned, 1), neck.merge)
    x = torch.tensor([[2 * j / (width - 1) - 1 for j in range(width)] for _ in range(height)])
    y = torch.tensor([[2 * i / (height - 1) - 1 for _ in range(width)] for i in range(height)])
    fused = torch.cat([fused, x[None, None], y[None, None]], 1)
    fused = _conv(_conv(fused, neck.place), neck.smooth)
    if config.decoder_text == "tokens":
        text = given.tokens[row][given.token_mask[row]][None]  # padding is simply not there
    else:
        text = sentence[None]
    return _decode(head.global_alignment, fused, text, config.num_heads)


def _bn(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    mean, var, gain, bias = (
        t[:, None, None] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / torch.sqrt(var + 1e-5) * gain + bias


def _conv(x: Tensor, layers: nn.Sequential) -> Tensor:
    weight = layers[0].weight
    return _bn(F.conv2d(x, weight, padding=weight.shape[-1] // 2), layers[1]).relu()


def _zoom(x: Tensor, zoom: nn.Module, stride: int) -> Tensor:
    if stride > 16:
        x = F.conv_transpose2d(x, zoom.conv.weight, stride=stride // 16)
    else:
        x = F.conv2d(x, zoom.conv.weight, stride=16 // stride)
    return _bn(x, zoom.norm).relu()


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention, one head after the other: (Q, D), (K, D), (K, D) to (Q, D)."""
    read = []
    for qh, kh, vh in zip(*(t.chunk(heads, dim=-1) for t in (q, k, v)), strict=True):
        weights = (qh @ kh.T / math.sqrt(qh.shape[-1])).softmax(-1)
        read.append(weights @ vh)
    return torch.cat(read, -1)


def _single_key(attention: nn.Module, f: Tensor, s: Tensor, heads: int) -> Tensor:
    """The full attention of a map over one key, with any query and key weights: f's shape."""
    query = f[0].flatten(1).T @ torch.randn(f.shape[1], f.shape[1])
    key = s @ torch.randn(s.shape[1], f.shape[1])
    value = F.linear(s, attention.value.weight, attention.value.bias)
    read = _attend(query, key, value, heads)
    read = F.linear(read, attention.out.weight, attention.out.bias)
    return read.T.reshape(f.shape)


def _mha(attention: nn.Module, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    if not isinstance(attention, nn.MultiheadAttention):
        read = F.linear(value, attention.value.weight, attention.value.bias)
        return F.linear(read, attention.out.weight, attention.out.bias).expand_as(query)
    if attention.in_proj_weight is not None:
        weights = attention.in_proj_weight.chunk(3)
    else:
        weights = [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
    biases = attention.in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)
    )
    return F.linear(_attend(q, k, v, heads), attention.out_proj.weight, attention.out_proj.bias)


def _ln(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias)


def code(position: int, width: int) -> list[float]:
    """The sine and cosine code of one position."""
    rates = [10000 ** (-2 * (c // 2) / width) for c in range(width)]
    return [(math.cos if c % 2 else math.sin)(position * w) for c, w in enumerate(rates)]


def _decode(decoder: nn.Module, fused: Tensor, text: Tensor, heads: int) -> Tensor:
    _, d, height, width = fused.shape
    grid = torch.tensor(
        [code(j, d // 2) + code(i, d // 2) for i in range(height) for j in range(width)]
    )
    text = text[0]
    places = torch.tensor([code(position, text.shape[1]) for position in range(len(text))])
    x = fused[0].flatten(1).T
    for layer in decoder.layers:
        h = _ln(x, layer.norm_self_in)
        x = x + _ln(_mha(layer.self_attn, h + grid, h + grid, h, heads), layer.norm_self_out)
        h = _ln(x, layer.norm_cross_in)
        read = _mha(layer.cross_attn, h + grid, text + places, text, heads)
        x = x + _ln(read, layer.norm_cross_out)
        up, _, _, norm, down = layer.ffn
        h = F.linear(_ln(x, layer.norm_ffn), up.weight, up.bias).relu()
        x = x + F.linear(_ln(h, norm), down.weight, down.bias)
    return _ln(x, decoder.norm).T.reshape(fused.shape)
