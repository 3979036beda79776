"""In which module of a block a bottleneck adapter hangs: one that runs as before with it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers_generic import WIDTH, Layer, Patches, build
from helpers_rivals import towers
from helpers_towers import images
from torch import Tensor, nn

from bridger import generic_vision
from bridger.bottlenecks import BottleneckAdapter, BottleneckConfig, insert_bottlenecks

VISION = BottleneckConfig(3, towers=("vision",))


class Whole(nn.Module):
    """Runs all its children, and says so in words of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Layer(), nn.Sequential(Layer(), nn.LayerNorm(WIDTH))

    def parts(self) -> Iterator[nn.Module]:
        return iter(self._modules.values())

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts():
            x = part(x)
        return x


class Latest(Layer):
    """Takes all that was made before."""

    def forward(self, states: list[Tensor], real: Tensor | None = None) -> Any:
        return super().forward(states[-1], real)


class Collecting(Whole):
    """Gives its children lists, with which another kind of child would not run at all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Latest(), Latest()

    def forward(self, x: Tensor) -> Tensor:
        states = [x]
        for part in self.parts():
            states.append(part(states))
        return torch.stack(states).sum(0)


class ButTheLast(Whole):
    """Leaves its last child out: with one more it would run another one."""

    def forward(self, x: Tensor) -> Tensor:
        *parts, _ = self.parts()
        for part in parts:
            x = part(x)
        return x


class Naming(Layer):
    """Speaks of the children of something else, and runs its own by name."""

    def __init__(self) -> None:
        super().__init__()
        self.tree: Any = SimpleNamespace(children=(1.0, 2.0))

    def forward(self, x: Tensor, real: Tensor | None = None) -> Any:
        return super().forward(sum(self.tree.children) * x, real)


class Bare(nn.Module):
    """Runs the children that it might have."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x * self.weight


class Towered(Patches):
    """Patches with blocks of some class."""

    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(block() for _ in range(3))


def adapters(tower: nn.Module) -> dict[str, BottleneckAdapter]:
    named = tower.named_modules()
    return {name: module for name, module in named if isinstance(module, BottleneckAdapter)}


@pytest.mark.parametrize(
    ("kind", "inside"),
    [(Whole, "last.1."), (Collecting, "last."), (ButTheLast, "last."), (Naming, "")],
)
def test_a_block_runs_as_before_and_its_adapter_adds_to_that(
    kind: type[nn.Module], inside: str
) -> None:
    tower = build(Towered, block=kind)
    state = torch.randn(2, 5, WIDTH)
    with torch.no_grad():
        before, plain = tower(images(2, 32)), tower.layers[1](state)
        inserted = insert_bottlenecks(tower, towers()[1], VISION)
        found = adapters(tower)
        assert torch.equal(tower(images(2, 32)), before)
        for adapter in found.values():
            adapter.up.bias.fill_(1.0)
        assert torch.equal(tower.layers[1](state), plain + 1)
        inserted.remove()
        assert torch.equal(tower.layers[1](state), plain) and not adapters(tower)
    assert list(found) == [f"layers.{i}.{inside}bottleneck_adapter" for i in range(3)]


def test_a_block_without_a_place_is_refused() -> None:
    tower = build(Towered, block=Bare)
    names = [name for name, _ in tower.named_modules()]
    with pytest.raises(TypeError, match="class Bare has no place for a bottleneck adapter"):
        insert_bottlenecks(generic_vision(tower, blocks="layers"), towers()[1], VISION)
    assert [name for name, _ in tower.named_modules()] == names
    assert not any(module._forward_hooks for module in tower.modules())


def test_blocks_that_run_all_their_children_keep_theirs_further_inside() -> None:
    regnet: Any = pytest.importorskip("timm").create_model("regnetx_002", num_classes=0).eval()
    with torch.no_grad():
        before = regnet(images(1, 64))
        inserted = insert_bottlenecks(regnet, towers()[1], VISION)
        assert torch.equal(regnet(images(1, 64)), before)
    inserted.remove()


def test_blocks_that_cannot_have_one_beside_them_are_told() -> None:
    swin = pytest.importorskip("timm").create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=4, num_classes=0
    )
    with pytest.raises(ValueError, match=r"layers.1.*turns .* into .*Use place='after'"):
        insert_bottlenecks(swin, towers()[1], BottleneckConfig(3, "beside"))
    insert_bottlenecks(swin, towers()[1], BottleneckConfig(3, "after")).remove()
