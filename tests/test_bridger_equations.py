"""Bridgers against docs/method.md section 3, written again in helpers_bridgers.py."""

from __future__ import annotations

import pytest
import torch
from helpers_bridgers import (
    FULL,
    RAGGED,
    SMALL,
    TEXT,
    TOKENS,
    assert_close,
    attend,
    attention_bridgers,
    make_stack,
    norm,
    released_vit,
    run_stack,
    states,
)
from torch import Tensor, nn

from bridger.bridgers import BridgerConfig
from bridger.bridgers import interactor as interactor_module


@pytest.mark.parametrize("mask", [FULL, RAGGED], ids=["full", "ragged"])
def test_paper_preset_equals_its_equations(mask: Tensor) -> None:
    stack = make_stack(BridgerConfig.preset("paper", **SMALL), [6, 10, 14], [8, 16, 32])
    maps, texts = states([6, 10, 14], [(8, 12), (4, 6), (2, 3)])
    wanted = attention_bridgers(
        stack.state_dict(), maps, texts, mask, [2, 1, 2], [False, False, True], 2, released=False
    )
    assert_close(run_stack(stack, maps, texts, mask, (64, 96)), wanted)


@pytest.mark.parametrize("mask", [FULL, RAGGED], ids=["full", "ragged"])
def test_norms_before_branches_equal_their_equations(mask: Tensor) -> None:
    config = BridgerConfig.preset("paper", **SMALL, pre_norm=True)
    stack = make_stack(config, [6], [16])
    w = {k.removeprefix("stages.0.interactor."): v for k, v in stack.state_dict().items()}
    v, t = torch.randn(2, 6, 8), torch.randn(2, TOKENS, 8)

    def itself(at: str, x: Tensor, own: Tensor | None) -> Tensor:
        h = norm(w, f"{at}norm_self.", x)
        return x + attend(w, f"{at}self_attn.", h, h, 2, own)

    def other(at: str, x: Tensor, y: Tensor, read: Tensor | None) -> Tensor:
        h, source = norm(w, f"{at}norm_cross.", x), norm(w, f"{at}norm_other.", y)
        x = x + attend(w, f"{at}cross_attn.", h, source, 2, read)
        h = norm(w, f"{at}norm_ffn.", x) @ w[f"{at}ffn_up.weight"].T + w[f"{at}ffn_up.bias"]
        return x + h.relu() @ w[f"{at}ffn_down.weight"].T + w[f"{at}ffn_down.bias"]

    v_self, t_self = itself("vision.", v, None), itself("text.", t, mask)
    found = stack.stages[0].interactor(v, t, mask, (2, 3))
    wanted = other("vision.", v_self, t_self, mask), other("text.", t_self, v_self, None)
    assert_close([found], [wanted])


def test_with_norms_before_branches_zooming_out_reads_normed_states_and_the_carry_is_not() -> None:
    config = BridgerConfig.preset("paper", **SMALL, pre_norm=True)
    bridger = make_stack(config, [6], [16]).stages[0]
    w, (v, t) = bridger.state_dict(), (torch.randn(2, 6, 2, 3), torch.randn(2, TOKENS, TEXT))
    found_v, found_t, carry = bridger(v, t, FULL, None, (32, 48))
    vision_in = bridger.vision_in(v, (2, 3)).flatten(2).mT
    wanted = bridger.interactor(vision_in, bridger.text_in(t), FULL, (2, 3))
    assert_close([tuple(carry)], [wanted])
    normed = norm(w, "vision_out_norm.", carry.vision).mT.unflatten(2, (2, 3))
    text = norm(w, "text_out_norm.", carry.text) @ w["text_out.weight"].T + w["text_out.bias"]
    assert_close([(found_v, found_t)], [(bridger.vision_out(normed, (2, 3)), text)])


@pytest.mark.parametrize("mask", [FULL, RAGGED], ids=["full", "ragged"])
def test_etris_resnet_equals_the_released_code_and_ignores_the_mask(mask: Tensor) -> None:
    config = BridgerConfig.preset("etris_resnet", hidden_dim=8, ffn_dim=20)
    stack = make_stack(config, [6, 10, 14], [8, 16, 32])
    maps, texts = states([6, 10, 14], [(8, 12), (4, 6), (2, 3)])
    wanted = attention_bridgers(
        stack.state_dict(), maps, texts, None, [2, 1, 2], [False, False, True], 4, released=True
    )
    assert_close(run_stack(stack, maps, texts, mask, (64, 96)), wanted)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_etris_vit_equals_the_released_code(training: bool) -> None:
    stack = make_stack(BridgerConfig.preset("etris_vit", hidden_dim=16), [10] * 3, [16] * 3)
    maps, texts = states([10] * 3, [(3, 5)] * 3)
    weights = {name: tensor.clone() for name, tensor in stack.state_dict().items()}
    found = run_stack(stack.train(training), maps, texts, RAGGED, (48, 80))
    assert_close(found, released_vit(weights, maps, texts, 8, training))
    assert all((vision >= 0).all() for vision, _ in found)
    moved = not torch.equal(
        weights["stages.0.vision_in.norm.running_mean"],
        stack.state_dict()["stages.0.vision_in.norm.running_mean"],
    )
    assert moved == training


def test_attention_equals_torch_module_with_the_same_names() -> None:
    ours = interactor_module.MultiheadAttention(8, 4)
    torchs = nn.MultiheadAttention(8, 4, batch_first=True)
    torchs.load_state_dict(ours.state_dict())
    x, y = torch.randn(2, 3, 8), torch.randn(2, TOKENS, 8)
    wanted, _ = torchs(x, y, y, key_padding_mask=~RAGGED)
    torch.testing.assert_close(ours(x, y, RAGGED), wanted)
