"""Lean parts of towers compute what the parts do that they stand in for."""

from __future__ import annotations

import pytest
import torch
from helpers_towers import hf_vision, images, open_clip_vit
from torch import Tensor, nn

from bridger.towers.lean import LeanAttention, LeanQuickGELU, lean_parts, with_lean_parts
from bridger.towers.registry import find_vision_tower


def attention(**options: object) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    return nn.MultiheadAttention(16, 4, batch_first=True, **options).eval()  # type: ignore[arg-type]


def lean_of(module: nn.MultiheadAttention) -> nn.Module:
    (lean,) = lean_parts(nn.Sequential(module)).values()
    assert isinstance(lean, LeanAttention)
    return lean


@pytest.mark.parametrize("masked", [False, True])
def test_self_attention_is_torch_s(masked: bool) -> None:
    module, x = attention(), torch.randn(2, 5, 16, requires_grad=True)
    mask = torch.full((5, 5), -torch.inf).triu(1) if masked else None
    found, weights = lean_of(module)(x, x, x, need_weights=False, attn_mask=mask)
    expected, _ = module(x, x, x, need_weights=False, attn_mask=mask)
    assert weights is None
    torch.testing.assert_close(found, expected)
    downstream = torch.randn_like(found)
    gradients = [torch.autograd.grad((y * downstream).sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_other_calls_are_the_module_s() -> None:
    module, x, y = attention(), torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    lean = lean_of(module)
    for args, options in (
        ((x, x, x), {}),  # weights wanted
        ((x, y, y), {"need_weights": False}),
        ((x, x, x), {"need_weights": False, "key_padding_mask": torch.rand(2, 5) > 0.9}),
        ((x, x, x), {"need_weights": False, "attn_mask": torch.ones(5, 5).triu(1).bool()}),
        ((x[0], x[0], x[0]), {"need_weights": False}),
    ):
        for found, expected in zip(lean(*args, **options), module(*args, **options), strict=True):
            assert found is expected or torch.equal(found, expected)


def test_dropout_on_attention_is_kept() -> None:
    module, x = attention(dropout=0.5).train(), torch.randn(2, 5, 16)
    torch.manual_seed(1)
    found, _ = lean_of(module)(x, x, x, need_weights=False)
    torch.manual_seed(1)
    assert torch.equal(found, module(x, x, x, need_weights=False)[0])


def test_quick_gelu_is_clip_s() -> None:
    x = torch.linspace(-20, 20, 401, dtype=torch.float64, requires_grad=True)
    expected = x * torch.sigmoid(1.702 * x)
    torch.testing.assert_close(LeanQuickGELU()(x), expected)
    for y in (LeanQuickGELU()(x), expected):
        y.sum().backward()
    x_too = x.detach().requires_grad_()
    LeanQuickGELU()(x_too).sum().backward()
    assert x.grad is not None and x_too.grad is not None
    torch.testing.assert_close(2 * x_too.grad, x.grad)


@pytest.mark.parametrize("build", [open_clip_vit, hf_vision])
def test_blocks_of_towers_are_lean(build: object) -> None:
    tower = find_vision_tower(build())  # type: ignore[operator]
    assert lean_parts(tower.blocks[0].module)
    twin = with_lean_parts(tower)
    assert twin.module is not tower.module
    assert all("forward" not in vars(part) for part in tower.module.modules())
    with torch.no_grad():
        pixels = images(2)
        found, expected = twin.call(pixels, {}), tower.call(pixels, {})
    torch.testing.assert_close(first(found), first(expected), rtol=1e-4, atol=1e-5)


def test_what_others_replaced_is_left_alone() -> None:
    tower = find_vision_tower(open_clip_vit())
    for block in tower.blocks:
        block.module.forward = block.module.forward  # as accelerate's hooks do
    assert with_lean_parts(tower) is tower


def test_tensors_stand_in_inside_lean_attention() -> None:
    tower = find_vision_tower(open_clip_vit())
    names = {module: name for name, module in tower.module.named_modules()}
    name = f"{names[tower.blocks[0].module]}.attn.in_proj_weight"
    tensors = {name: torch.zeros_like(tower.module.get_parameter(name))}
    with torch.no_grad():
        pixels = images(2)
        found = with_lean_parts(tower).call(pixels, tensors)
        torch.testing.assert_close(first(found), first(tower.call(pixels, tensors)))
        assert not torch.allclose(first(found), first(tower.call(pixels, {})))


def test_what_the_module_gets_later_its_lean_form_has_too() -> None:
    module, x = attention(), torch.randn(1, 3, 16)
    lean = lean_of(module)
    module.in_proj_weight = nn.Parameter(torch.zeros(48, 16))
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    found = lean(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(found, module(x, x, x, need_weights=False)[0])
    assert len(calls) == 2


def first(result: object) -> Tensor:
    while not isinstance(result, Tensor):
        result = result[0]  # type: ignore[index]
    return result


def test_a_block_that_the_user_compiled_stays_compiled() -> None:
    tower = find_vision_tower(open_clip_vit())
    for block in tower.blocks:
        block.module.compile(backend="eager")
    assert with_lean_parts(tower) is tower
