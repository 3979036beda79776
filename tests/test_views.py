"""Views compute with other tensors and leave the module alone; positions resize as documented."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_towers import EOS, fill, ids, images, open_clip_resnet, open_clip_vit
from torch import nn

from bridger.towers.views import resize_positions, square_grid, tensor_at, view_with


def _toy() -> Any:
    return fill(nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))))


def test_a_view_computes_with_the_given_tensors() -> None:
    module = _toy()
    x = torch.randn(3, 4)
    new = {"1.1.weight": torch.randn(2, 4), "1.0.running_mean": torch.randn(4)}
    expected = torch.func.functional_call(module, new, (x,))
    assert torch.equal(view_with(module, new)(x), expected)
    assert not torch.equal(module(x), expected)


def test_gradients_reach_the_given_tensor_and_not_the_original() -> None:
    module = _toy().requires_grad_(False)
    weight = torch.randn(2, 4, requires_grad=True)
    view_with(module, {"1.1.weight": 2 * weight})(torch.randn(3, 4)).sum().backward()
    assert weight.grad is not None and module[1][1].weight.grad is None


def test_float32_tensors_stand_in_for_half_precision_and_learn() -> None:
    module = _toy().bfloat16()
    weight = torch.randn(2, 4, requires_grad=True)
    out = view_with(module, {"1.1.weight": weight})(torch.randn(3, 4).bfloat16())
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32


def test_no_tensors_means_the_module_itself() -> None:
    module = _toy()
    assert view_with(module, {}) is module


def test_a_view_shares_everything_off_its_path() -> None:
    clip = open_clip_vit()
    name = "visual.transformer.resblocks.1.mlp.c_fc.weight"
    view: Any = view_with(clip, {name: torch.zeros_like(tensor_at(clip, name))})
    assert view is not clip and view.visual is not clip.visual
    blocks, copies = clip.visual.transformer.resblocks, view.visual.transformer.resblocks
    assert copies[0] is blocks[0] and copies[1] is not blocks[1]
    assert copies[1].attn is blocks[1].attn and view.transformer is clip.transformer
    assert copies[1].mlp.c_proj is blocks[1].mlp.c_proj


def test_hooks_fire_in_a_view_even_on_copied_modules() -> None:
    module = _toy()
    seen: list[str] = []
    handles = [
        module[0].register_forward_hook(lambda *_: seen.append("shared")),
        module[1].register_forward_hook(lambda *_: seen.append("copied")),
    ]
    view = view_with(module, {"1.1.bias": torch.zeros(2)})
    view(torch.randn(3, 4))
    for handle in handles:
        handle.remove()
    view(torch.randn(3, 4))
    assert seen == ["shared", "copied"]


def test_the_module_is_left_as_it_was() -> None:
    clip = open_clip_resnet()
    before = [(name, id(tensor), tensor.clone()) for name, tensor in clip.state_dict().items()]
    owned = [id(parameter) for parameter in clip.parameters()]
    attributes = {name: sorted(module.__dict__) for name, module in clip.named_modules()}
    name = "visual.attnpool.positional_embedding"
    table = torch.randn_like(tensor_at(clip, name)).requires_grad_()
    view: Any = view_with(clip, {name: table, "visual.layer1.0.bn1.weight": torch.ones(8)})
    view.encode_image(images(2, 64)).sum().backward()
    view.train()
    view.new_attribute = 1
    view.visual.attnpool.positional_embedding = None
    assert [id(parameter) for parameter in clip.parameters()] == owned
    assert attributes == {name: sorted(module.__dict__) for name, module in clip.named_modules()}
    after = clip.state_dict()
    assert [name for name, *_ in before] == list(after)
    assert all(torch.equal(value, after[name]) for name, _, value in before)


def test_plain_calls_from_another_thread_never_see_a_view() -> None:
    clip = open_clip_vit()
    clip.requires_grad_(False)
    tokens = ids()
    expected, other = clip.encode_text(tokens), None
    wrong: list[int] = []
    stop = threading.Event()

    def plain() -> None:
        while not stop.is_set():
            wrong.append(int(not torch.equal(clip.encode_text(tokens), expected)))

    thread = threading.Thread(target=plain)
    thread.start()
    for _ in range(60):
        table = torch.zeros_like(clip.positional_embedding)
        view: Any = view_with(clip, {"positional_embedding": table})
        other = view.encode_text(tokens)
    stop.set()
    thread.join()
    assert len(wrong) > 5 and sum(wrong) == 0
    assert other is not None and not torch.allclose(other, expected)


def test_a_compiled_block_is_not_led_back_to_the_original() -> None:
    module = _toy()
    module[1].compile(backend="eager")
    x = torch.randn(3, 4)
    new = {"1.1.weight": torch.randn(2, 4)}
    expected = torch.func.functional_call(_toy(), new, (x,))
    assert torch.allclose(view_with(module, new)(x), expected)
    assert module[1]._compiled_call_impl is not None


def test_bound_methods_kept_as_attributes_follow_the_view() -> None:
    module = _toy()
    module[0].forward = module[0].forward
    x = torch.randn(3, 4)
    new = {"0.bias": torch.randn(4)}
    assert torch.equal(view_with(module, new)(x), torch.func.functional_call(_toy(), new, (x,)))


def test_a_replaced_forward_is_refused_on_the_way_and_harmless_elsewhere() -> None:
    module = _toy()
    module[0].forward = lambda x: x
    with pytest.raises(ValueError, match="0 .Linear. has a replaced `forward`.*accelerate"):
        view_with(module, {"0.bias": torch.zeros(4)})
    view_with(module, {"1.1.bias": torch.zeros(2)})(torch.randn(3, 4))


@pytest.mark.parametrize("name", ["visual.positional_embeding", "nowhere.weight", "visual"])
def test_an_unknown_name_offers_near_ones(name: str) -> None:
    clip = open_clip_vit()
    with pytest.raises(ValueError, match=f"CLIP has no tensor '{name}'"):
        view_with(clip, {name: torch.zeros(1)})
    with pytest.raises(ValueError, match="visual.positional_embedding"):
        tensor_at(clip, "visual.positional_embeding")


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_resized_positions_equal_plain_interpolation(prefix: int) -> None:
    table = torch.randn(prefix + 12, 6)
    resized = resize_positions(table, (3, 4), (5, 2), prefix)
    for channel in range(6):
        grid = table[prefix:, channel].reshape(1, 1, 3, 4)
        expected = F.interpolate(grid, (5, 2), mode="bicubic", align_corners=False, antialias=False)
        assert torch.equal(resized[prefix:, channel], expected.flatten())
    assert torch.equal(resized[:prefix], table[:prefix])


def test_resizing_is_differentiable_row_major_and_lazy() -> None:
    table = torch.arange(7.0).reshape(7, 1).requires_grad_()
    assert resize_positions(table, (2, 3), (2, 3), 1) is table
    rows = resize_positions(table, (2, 3), (2, 6), 1)[1:].reshape(2, 6)
    assert (rows.diff(dim=1)[:, 1:-1] > 0).all() and (rows[1] > rows[0]).all()
    rows.sum().backward()
    assert table.grad is not None and (table.grad[1:] != 0).all() and table.grad[0] == 0


def test_half_precision_is_resized_in_float32() -> None:
    table = torch.randn(1 + 9, 4).bfloat16()
    exact = resize_positions(table.float(), (3, 3), (4, 4), 1)
    resized = resize_positions(table, (3, 3), (4, 4), 1)
    assert resized.dtype == torch.bfloat16 and torch.equal(resized, exact.bfloat16())


def test_tables_that_do_not_fit_their_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a position table of 1 \+ 3\*3 rows"):
        resize_positions(torch.zeros(9, 4), (3, 3), (4, 4), 1)
    with pytest.raises(ValueError, match="the pool has 8 cells, which is no square grid"):
        square_grid(8, "the pool")
    assert square_grid(EOS // 7, "nine") == (3, 3)
