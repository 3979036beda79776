"""Invented towers, in classes that no library has, filled as `helpers_towers.fill` does."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from helpers_towers import CONTEXT, VOCAB, fill
from torch import Tensor, nn

WIDTH = 16


class Layer(nn.Module):
    """A Transformer layer on (B, L, C); `wrap` returns a tuple, as some libraries do."""

    def __init__(self, width: int = WIDTH, wrap: bool = False) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.wrap = wrap

    def forward(self, x: Tensor, real: Tensor | None = None) -> Any:
        normed = self.norm(x)
        mask = None if real is None else real[:, None].bool()  # (B, 1, L)
        attention = F.scaled_dot_product_attention(self.mix(normed), normed, normed, mask)
        x = x + attention
        x = x + self.mlp(x)
        return (x, attention) if self.wrap else x


class Patches(nn.Module):
    """A ViT without absolute positions: takes any size. `prefix` tokens, then the patches."""

    def __init__(
        self,
        layers: int = 4,
        prefix: int = 3,
        wrap: bool = False,
        patch: int = 8,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.embed: nn.Module = (
            nn.Linear(3 * patch * patch, WIDTH) if linear else nn.Conv2d(3, WIDTH, patch, patch)
        )
        self.extra = nn.Parameter(torch.zeros(1, prefix, WIDTH))
        self.layers = nn.ModuleList(Layer(wrap=wrap) for _ in range(layers))
        self.norm = nn.LayerNorm(WIDTH)

    def tokens(self, pictures: Tensor) -> Tensor:
        p = self.patch
        if isinstance(self.embed, nn.Linear):
            cut = rearrange(pictures, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)
            x = self.embed(cut)
        else:
            x = rearrange(self.embed(pictures), "b c h w -> b (h w) c")
        return torch.cat([self.extra.expand(len(x), -1, -1), x], dim=1)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.tokens(pictures)
        for layer in self.layers:
            x = layer(x)
            x = x[0] if isinstance(x, tuple) else x
        pooled: Tensor = self.norm(x.mean(dim=1))
        return pooled


class FixedPatches(Patches):
    """A ViT with a position table for 32 x 32 pixels; other sizes raise."""

    def __init__(self) -> None:
        super().__init__(prefix=1)
        self.positions = nn.Parameter(torch.zeros(1, 17, WIDTH))

    def tokens(self, pictures: Tensor) -> Tensor:
        return super().tokens(pictures) + self.positions


class Resizing(FixedPatches):
    """The same, which makes every picture 32 x 32 by itself."""

    def tokens(self, pictures: Tensor) -> Tensor:
        return super().tokens(F.interpolate(pictures, size=(32, 32)))


class Shuffled(Patches):
    """A ViT whose patches run column by column."""

    def tokens(self, pictures: Tensor) -> Tensor:
        return super().tokens(pictures.transpose(2, 3))


class Overlapping(Patches):
    """A ViT on a convolutional stem, of which no single convolution has the patch's stride."""

    def __init__(self) -> None:
        super().__init__(prefix=0)
        steps = [nn.Conv2d(c, WIDTH, 3, 2, 1) for c in (3, WIDTH, WIDTH)]
        self.embed = nn.Sequential(steps[0], nn.ReLU(), steps[1], nn.ReLU(), steps[2])


class Encoder(nn.Module):
    """A vision tower on torch's own Transformer, sequence first, batch second."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 16, 16)
        self.inner = nn.TransformerEncoder(
            torch_layer(batch_first=False), 3, enable_nested_tensor=False
        )

    def forward(self, pictures: Tensor) -> Tensor:
        x = rearrange(self.embed(pictures), "b c h w -> (h w) b c")
        pooled: Tensor = self.inner(x).mean(dim=0)
        return pooled


def torch_layer(batch_first: bool) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, batch_first=batch_first)


def stage(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, 2, 1), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)
    )


class Stages(nn.Module):
    """A CNN whose stages hang off the root."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.one, self.two, self.three = stage(8, 16), stage(16, 24), stage(24, 32)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.three(self.two(self.one(self.stem(pictures))))
        return torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)


class LastLayer(nn.Module):
    """A mixing layer on (B, H, W, C); `half` halves the map."""

    def __init__(self, width: int, half: bool) -> None:
        super().__init__()
        self.norm, self.half = nn.LayerNorm(width), half
        self.mlp = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.half:
            x = x.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).mean(dim=(2, 4))
        mixed: Tensor = x + self.mlp(self.norm(x)) + x.mean(dim=(1, 2), keepdim=True)
        return mixed


class ChannelsLast(nn.Module):
    """Maps (B, H, W, C) of two sizes, between a neck and a stem that make a chain of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 8, 8), nn.GELU())
        self.blocks = nn.Sequential(*(LastLayer(WIDTH, half=i == 2) for i in range(4)))

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        x = self.blocks(self.stem(pictures).permute(0, 2, 3, 1))
        return {"map": x, "pooler_output": x.mean(dim=(1, 2))}


class TwoBranches(nn.Module):
    """Two encoders side by side: which of them is meant?"""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Patches(3), Patches(3, prefix=0)

    def forward(self, pictures: Tensor) -> Tensor:
        both: Tensor = self.left(pictures) + self.right(pictures)
        return both


class Recurrent(nn.Module):
    """One layer that runs three times."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer = nn.Conv2d(3, WIDTH, 8, 8), Layer()

    def forward(self, pictures: Tensor) -> Tensor:
        x = rearrange(self.embed(pictures), "b c h w -> b (h w) c")
        for _ in range(3):
            x = self.layer(x)
        return x.mean(dim=1)


class Words(nn.Module):
    """A text tower on torch's own Transformer; a mask by torch's name for it."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.positions = nn.Parameter(torch.zeros(CONTEXT, WIDTH))
        self.inner = nn.TransformerEncoder(
            torch_layer(batch_first), 4, enable_nested_tensor=batch_first
        )

    def forward(self, ids: Tensor, src_key_padding_mask: Tensor | None = None) -> Tensor:
        x = self.embed(ids) + self.positions[: ids.shape[1]]
        x = x if self.batch_first else x.transpose(0, 1)
        y: Tensor = self.inner(x, src_key_padding_mask=src_key_padding_mask)
        return y


class NamedWords(nn.Module):
    """Layers of one's own, tuples, a position embedding, a sentence and a mask by name."""

    def __init__(self, masked: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH, padding_idx=0)
        self.place = nn.Embedding(CONTEXT, WIDTH)
        self.layers = nn.ModuleList(Layer(wrap=True) for _ in range(4))
        self.norm, self.masked = nn.LayerNorm(WIDTH), masked

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        x = self.embed(ids) + self.place(torch.arange(ids.shape[1], device=ids.device))
        real = torch.ones_like(ids) if attention_mask is None or not self.masked else attention_mask
        for layer in self.layers:
            x, _ = layer(x, real)
        return {"pooler_output": x[:, 0] * 2, "last_hidden_state": self.norm(x)}


def build(kind: type[nn.Module], **options: Any) -> Any:
    """An invented tower with random numbers everywhere, the same on every call."""
    return fill(kind(**options))
