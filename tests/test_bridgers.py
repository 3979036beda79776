"""Bridgers in a stack: sizes, the zero start, masks, what is carried and shared, precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers_bridgers import (
    ALL_ZOOM_PARTS,
    FULL,
    RAGGED,
    SMALL,
    TEXT,
    TOKENS,
    assert_close,
    count,
    golden_bridger_shapes,
    make_stack,
    released_name,
    run_stack,
    states,
)
from torch import Tensor, nn

from bridger.bridgers import Bridger, BridgerConfig, BridgerStack

# --- Sizes --------------------------------------------------------------------------------------


def test_paper_preset_is_small_on_vit_b() -> None:
    stack = BridgerStack(BridgerConfig.preset("paper"), [768] * 3, [16] * 3, [512] * 3)
    assert count(stack) <= 875_000


@pytest.mark.parametrize(
    ("preset", "golden", "widths", "strides", "parameters"),
    [
        ("etris_vit", "etris_vit_b16", [768] * 3, [16] * 3, 598_592),
        ("etris_resnet", "etris_rn50", [512, 1024, 2048], [8, 16, 32], 1_942_080),
    ],
)
def test_released_presets_hold_the_released_tensors(
    preset: str, golden: str, widths: list[int], strides: list[int], parameters: int
) -> None:
    stack = BridgerStack(BridgerConfig.preset(preset), widths, strides, [512] * 3)
    assert count(stack) == parameters
    found = {
        released_name(name, preset == "etris_resnet"): tuple(tensor.shape)
        for name, tensor in stack.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert found == golden_bridger_shapes(golden)


@pytest.mark.parametrize("zoom", ["strided", "pointwise", "convolution", "transposed"])
@pytest.mark.parametrize("parts", ALL_ZOOM_PARTS)
@pytest.mark.parametrize("image", [(64, 64), (97, 33), (8, 8)], ids=str)
@pytest.mark.parametrize("stride", [4, 8, 14, 16, 24, 32])
def test_residuals_have_their_states_shapes(
    stride: int, image: tuple[int, int], parts: str, zoom: str
) -> None:
    config = BridgerConfig(**SMALL, zoom_in=parts, zoom_out=parts, zoom=zoom)
    stack = make_stack(config, [6, 6], [stride, stride])
    for size in (
        tuple(-(-side // stride) for side in image),
        tuple(max(1, side // stride) for side in image),
    ):
        maps, texts = states([6, 6], [size, size])
        for (v, t), vision, text in zip(
            run_stack(stack, maps, texts, FULL, image), maps, texts, strict=True
        ):
            assert v.shape == vision.shape and t.shape == text.shape
            assert v.isfinite().all() and t.isfinite().all()


@pytest.mark.parametrize(
    ("stride", "kernel", "transposed"),
    [(4, 4, 0), (8, 2, 0), (14, 1, 0), (16, 1, 0), (20, 1, 1), (24, 2, 1), (32, 2, 1)],
)
def test_kernel_is_the_rounded_ratio_and_the_way_out_is_its_reverse(
    stride: int, kernel: int, transposed: int
) -> None:
    bridger = Bridger(BridgerConfig(**SMALL), 6, stride, TEXT, 0, 1)
    kinds = (nn.ConvTranspose2d, nn.Conv2d) if transposed else (nn.Conv2d, nn.ConvTranspose2d)
    for zoom, kind in zip((bridger.vision_in, bridger.vision_out), kinds, strict=True):
        assert type(zoom.conv) is kind
        assert zoom.conv.kernel_size == zoom.conv.stride == (kernel, kernel)


def test_a_fractional_ratio_is_resized_bilinearly() -> None:
    zoom = Bridger(BridgerConfig(**SMALL), 6, 14, TEXT, 0, 1).vision_in
    x = torch.randn(2, 6, 16, 16)
    wanted = F.interpolate(
        F.conv2d(x, zoom.conv.weight), size=(14, 14), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(zoom(x, (14, 14)), wanted)


def test_an_odd_map_loses_no_cells_and_stays_aligned() -> None:
    bridger = Bridger(BridgerConfig(**SMALL, init="released"), 6, 8, TEXT, 0, 1)
    x = torch.randn(1, 6, 13, 13, requires_grad=True)
    zoomed = bridger.vision_in(x, (7, 7))
    whole = F.conv2d(x[..., :12, :12], bridger.vision_in.conv.weight, stride=2)
    torch.testing.assert_close(zoomed[..., :6, :6], whole)
    zoomed.square().sum().backward()
    assert x.grad is not None and (x.grad[0, :, -1, -1] != 0).any()
    back = bridger.vision_out(zoomed, (13, 13))
    full = F.conv_transpose2d(zoomed, bridger.vision_out.conv.weight, stride=2)
    torch.testing.assert_close(back, full[..., :13, :13])


def test_any_number_of_stages() -> None:
    for stages in (1, 2, 5):
        config = BridgerConfig.preset("etris_resnet", hidden_dim=8)
        stack = make_stack(config, [6] * stages, [16] * stages)
        maps, texts = states([6] * stages, [(2, 2)] * stages)
        assert len(run_stack(stack, maps, texts, FULL, (32, 32))) == len(stack) == stages


# --- Zero start ---------------------------------------------------------------------------------


@pytest.mark.parametrize("interactor", ["attention", "gate", "dense"])
@pytest.mark.parametrize("zoom_in", ALL_ZOOM_PARTS)
@pytest.mark.parametrize("zoom_out", ALL_ZOOM_PARTS)
def test_zero_start_changes_nothing_and_everything_learns(
    interactor: str, zoom_in: str, zoom_out: str
) -> None:
    config = BridgerConfig(
        **SMALL, interactor=interactor, zoom_in=zoom_in, zoom_out=zoom_out, carry_norm=True
    )
    stack = BridgerStack(config, [6, 10], [8, 32], [TEXT] * 2).train()
    maps, texts = states([6, 10], [(8, 8), (2, 2)])
    goals = [(torch.randn_like(v), torch.randn_like(t)) for v, t in zip(maps, texts, strict=True)]

    def step() -> list[tuple[Tensor, Tensor]]:
        stack.zero_grad()
        results = run_stack(stack, maps, texts, RAGGED, (64, 64))
        sum(
            (r * g).sum()
            for result, goal in zip(results, goals, strict=True)
            for r, g in zip(result, goal, strict=True)
        ).backward()
        return results

    results = step()
    assert all(not r.any() for result in results for r in result)
    last_layers = {"plain": "conv.weight", "norm": "norm.weight", "norm_relu": "scale"}
    moving = [f"stages.{i}.vision_out.{last_layers[zoom_out]}" for i in range(2)]
    moving += [f"stages.{i}.text_out.weight" for i in range(2)]
    parameters = dict(stack.named_parameters())
    for name in moving:
        assert parameters[name].grad.any(), f"{name} would never move"
        parameters[name].data -= 0.1 * parameters[name].grad
    step()
    assert not [name for name, p in parameters.items() if p.grad is None or not p.grad.any()]


def test_released_start_is_the_released_distribution() -> None:
    stack = BridgerStack(BridgerConfig.preset("etris_resnet"), [512], [8], [512])
    weights = stack.state_dict()
    for name, std in {
        "text_out.weight": 0.02,
        "interactor.vision.self_attn.out_proj.weight": 0.02,
        "vision_in.conv.weight": (2 / (64 * 4)) ** 0.5,
        # fan_out of a transposed convolution is torch's: in_channels times the kernel's area
        "vision_out.conv.weight": (2 / (64 * 4)) ** 0.5,
    }.items():
        assert weights["stages.0." + name].std() == pytest.approx(std, rel=0.05)
    assert not weights["stages.0.text_in.bias"].any()


# --- Masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("interactor", ["attention", "gate", "dense"])
def test_a_text_alone_equals_itself_in_a_padded_batch(interactor: str) -> None:
    stack = make_stack(BridgerConfig(**SMALL, interactor=interactor), [6, 6], [16, 16])
    maps, texts = states([6, 6], [(2, 3)] * 2)
    for text in texts:
        text[0, 3:] = torch.nan  # whatever stands at padding
    together = run_stack(stack, maps, texts, RAGGED, (32, 48))
    alone = run_stack(
        stack, [v[:1] for v in maps], [t[:1, :3] for t in texts], RAGGED[:1, :3], (32, 48)
    )
    assert_close([(v[:1], t[:1, :3]) for v, t in together], alone)
    assert all(not t[0, 3:].any() for _, t in together)


@pytest.mark.parametrize("position", range(TOKENS))
def test_one_true_token_anywhere_is_enough(position: int) -> None:
    stack = make_stack(BridgerConfig(**SMALL), [6, 6], [16, 16])
    maps, texts = states([6, 6], [(2, 3)] * 2)
    mask = torch.arange(TOKENS).expand(2, -1) == position
    results = run_stack(stack, maps, texts, mask, (32, 48))
    sum(v.square().sum() + t.square().sum() for v, t in results).backward()
    assert all(p.grad.isfinite().all() for p in stack.parameters())


def test_without_masking_padding_matters() -> None:
    stack = make_stack(BridgerConfig(**SMALL, mask_padding=False), [6], [16])
    maps, texts = states([6], [(2, 3)])
    before = run_stack(stack, maps, texts, RAGGED, (32, 48))
    texts[0][0, 4] += 1
    after = run_stack(stack, maps, texts, RAGGED, (32, 48))
    assert not torch.allclose(before[0][0][0], after[0][0][0])
    assert before[0][1][0, 4].any()


# --- Carry, sharing, precision ------------------------------------------------------------------


def test_what_is_carried() -> None:
    maps, texts = states([6, 6], [(2, 2)] * 2)
    weights = make_stack(BridgerConfig(**SMALL), [6, 6], [16, 16]).state_dict()
    results = {}
    for carry in ("none", "input", "output"):
        stack = BridgerStack(BridgerConfig(**SMALL, carry=carry), [6, 6], [16, 16], [TEXT] * 2)
        stack.load_state_dict(weights)
        results[carry] = run_stack(stack.eval(), maps, texts, FULL, (32, 32))
        bridger = stack.stages[0]
        vision, text, given = bridger(maps[0], texts[0], FULL, None, (32, 32))
        if carry == "input":
            torch.testing.assert_close(given.text, bridger.text_in(texts[0]))
        else:
            torch.testing.assert_close(text, bridger.text_out(given.text))
    alone, _, _ = stack(1, maps[1], texts[1], FULL, None, (32, 32))
    torch.testing.assert_close(results["none"][1][0], alone)
    assert not torch.allclose(results["none"][1][0], results["input"][1][0])
    assert not torch.allclose(results["output"][1][0], results["input"][1][0])


def test_stages_may_share_one_bridger() -> None:
    config = BridgerConfig(**SMALL, share=True, carry_norm=True)
    stack = make_stack(config, [6] * 3, [16] * 3)
    assert count(stack) == count(Bridger(config, 6, 16, TEXT, 1, 3))
    maps, texts = states([6] * 3, [(2, 2)] * 3)
    separate = BridgerStack(config.replace(share=False), [6] * 3, [16] * 3, [TEXT] * 3).eval()
    for bridger in separate.stages:
        bridger.load_state_dict(stack.stages[0].state_dict(), strict=False)
    wanted = run_stack(separate, maps, texts, FULL, (32, 32))
    assert_close(run_stack(stack, maps, texts, FULL, (32, 32)), wanted)


@pytest.mark.parametrize("preset", ["paper", "etris_vit", "etris_resnet"])
def test_half_states_and_autocast(preset: str) -> None:
    stack = make_stack(BridgerConfig.preset(preset, hidden_dim=8), [6] * 2, [16] * 2)
    maps, texts = states([6] * 2, [(3, 3)] * 2)
    exact = run_stack(stack, maps, texts, RAGGED, (48, 48))
    halves = [m.bfloat16() for m in maps], [t.bfloat16() for t in texts]
    half = run_stack(stack, *halves, RAGGED, (48, 48))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run_stack(stack, maps, texts, RAGGED, (48, 48))
        mixed_half = run_stack(stack, *halves, RAGGED, (48, 48))
    for results, dtype in ((half, torch.bfloat16), (mixed, torch.float32)):
        for result, wanted in zip(results, exact, strict=True):
            for r, w in zip(result, wanted, strict=True):
                assert r.dtype == dtype
                assert (r.float() - w).norm() < 0.05 * w.norm()
    assert mixed_half[0][0].dtype == torch.bfloat16
    mixed[1][0].sum().backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in stack.parameters())
