"""Bridgers from a finished text tower into the vision tower: `direction="to_vision"`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_bridgers import make_stack, run_stack
from helpers_conformance import SMALL, changed, features, gradients, same, trace
from helpers_one_way import CONFIGS, STAGES, acting, by_hand, dinov2, misaligned, one_way
from helpers_towers import PAIRS, ids, images, open_clip_vit, pictures
from torch import nn

from bridger import BridgedModel, attach_bridgers
from bridger.bridgers import BridgerStack
from bridger.heads import ReferringSegmentationHead

# What is computed.


@pytest.mark.parametrize("name", CONFIGS)
def test_equal_to_a_plain_loop_to_the_last_bit(name: str) -> None:
    """Outputs and all gradients."""
    encoder = acting(CONFIGS[name])
    pixels, words = images(2, 56), ids(2)
    outcomes = []
    for run in (lambda: features(encoder(pixels, words)), lambda: by_hand(encoder, pixels, words)):
        encoder.zero_grad()
        out = run()
        sum(tensor.square().mean() for tensor in out).backward()
        owned = [p.grad.clone() for p in encoder.bridgers.parameters()]  # type: ignore[union-attr]
        outcomes.append([*out, *owned])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def test_a_number_of_stages_counts_vision_blocks_alone() -> None:
    encoder = acting(stages=4)
    assert encoder.stages == ((0, None), (1, None), (2, None), (3, None))
    pixels, words = images(1, 56), ids(1)
    with torch.no_grad():
        found, expected = features(encoder(pixels, words)), by_hand(encoder, pixels, words)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    shallow = open_clip_vit(custom=True, text=dict(layers=2)).text
    assert len(attach_bridgers(dinov2(), shallow, 4, CONFIGS["paper"]).stages) == 4


def test_many_expressions_share_the_prefix() -> None:
    encoder = acting(stages=[(1, None), (3, None)])
    pixels = images(2, 56)
    words = torch.stack([ids(2, seed=i) for i in range(3)], dim=1)
    rows: list[int] = []
    for index in (0, 1, 2):
        block = encoder.vision.blocks[index].module
        block.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    encoder.text.blocks[0].module.register_forward_pre_hook(
        lambda _, args: rows.append(100 + len(args[0]))
    )
    with torch.no_grad():
        found = features(encoder(pixels, words))
        assert rows == [106, 2, 2, 6]  # the whole text first, then two images, then six rows
        expected = by_hand(encoder, pixels, words.flatten(0, 1), 3)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_ragged_expressions() -> None:
    encoder = acting()
    pixels, words = images(2, 56), torch.stack([ids(2, seed=i) for i in range(2)], dim=1)
    real = torch.tensor([[True, False], [True, True]])
    garbage = words.clone()
    garbage[0, 1] = 0
    with torch.no_grad():
        found = features(encoder(pixels, garbage, expression_mask=real))
        expected = features(encoder(pixels, words))
        first = features(encoder(pixels[:1], words[:1, 0]))
    for a, b, alone in zip(found, expected, first, strict=True):
        assert torch.equal(a[real.flatten()], b[real.flatten()])
        torch.testing.assert_close(a[1], alone[0])  # a copy of the image's first


@pytest.mark.parametrize("pair", sorted(PAIRS))
def test_text_is_what_the_tower_alone_makes_of_it(pair: str) -> None:
    vision, text = PAIRS[pair]()
    pixels, words = pictures(pair), ids(2)
    with torch.no_grad():
        plain = attach_bridgers(vision, text, 2, config=None)(pixels, words)
        encoder = attach_bridgers(vision, text, 2, CONFIGS["paper"]).eval()
        fresh = encoder(pixels, words)
        assert same(fresh, plain)
        out = changed(encoder)(pixels, words)
        with encoder.disable():
            assert same(encoder(pixels, words), plain)
    assert torch.equal(out.tokens, plain.tokens) and torch.equal(out.sentence, plain.sentence)
    assert not any(torch.equal(a, b) for a, b in zip(out.maps, plain.maps, strict=True))
    spec = encoder.spec
    assert tuple(m.shape[1] for m in out.maps) == spec.map_widths


def test_a_text_does_not_depend_on_its_padding() -> None:
    encoder, pixels, words = acting(), images(2, 56), ids(2)
    with torch.no_grad():
        together = encoder(pixels, words)
        length = int(together.token_mask[1].sum())
        alone = encoder(pixels[1:], words[1:, :length])
    for a, b in zip(alone.maps, together.maps, strict=True):
        torch.testing.assert_close(a[0], b[1], atol=2e-5, rtol=1e-4)


def test_without_bridgers_both_kinds_of_stages_read_the_same() -> None:
    vision, text = misaligned()
    pixels, words = images(2, 56), ids(2)
    with torch.no_grad():
        finished = attach_bridgers(vision, text, [(1, None), (3, None)], None)(pixels, words)
        meeting = attach_bridgers(vision, text, [(1, 1), (3, 3)], None)(pixels, words)
    assert same(finished, meeting)


# What is trained.


@pytest.mark.parametrize("stages", [1, 3], ids=["one stage", "three"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_gets_a_gradient(name: str, stages: int) -> None:
    encoder = acting(CONFIGS[name], stages, trainable=["positions"])
    given = gradients(encoder, (images(2, 56), ids(2)))
    names = {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert set(given) == names
    assert [n for n, gradient in given.items() if not gradient.any()] == []
    assert any(n.startswith("tower_tensors.text") for n in names)
    assert not any("text_out" in n for n in names)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, [True, True, True]),
        ({"carry": "none"}, [False, False, False]),
        ({"carry": "input"}, [False, False, False]),
    ],
)
def test_text_is_updated_only_where_a_later_stage_reads_it(
    changes: dict[str, Any], kept: list[bool]
) -> None:
    stack = BridgerStack(one_way(**changes), [8] * 4, [16] * 4, [12] * 4)
    names = list(stack.state_dict())

    def holds(stage: int, part: str) -> bool:
        return any(n.startswith(f"stages.{stage}.interactor.text.{part}") for n in names)

    assert [holds(stage, "cross_attn") for stage in range(4)] == [*kept, False]
    assert all(holds(stage, "self_attn") for stage in range(4))  # pictures read its outcome


@pytest.mark.parametrize("name", CONFIGS)
def test_maps_get_what_bridgers_in_both_directions_would_give_them(name: str) -> None:
    """On the same states: what was left out never reached a map."""
    config = CONFIGS[name]
    one = make_stack(config, [8] * 3, [16] * 3)
    both = make_stack(config.replace(direction="both"), [8] * 3, [16] * 3)
    rest = both.load_state_dict(one.state_dict(), strict=False)
    assert not rest.unexpected_keys and rest.missing_keys
    assert all("text_out" in n or ".interactor.text." in n for n in rest.missing_keys)
    maps, texts = [torch.randn(2, 8, 2, 2) for _ in range(3)], [torch.randn(2, 5, 12)] * 3
    mask = torch.arange(5) < torch.tensor([[5], [3]])
    with torch.no_grad():
        found = run_stack(one, maps, texts, mask, (32, 32))
        expected = run_stack(both, maps, texts, mask, (32, 32))
    for (to_map, to_text), (wanted, _) in zip(found, expected, strict=True):
        assert to_text is None and to_map.any() and torch.equal(to_map, wanted)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_both_directions_start_from_the_values_that_they_had(pre_norm: bool) -> None:
    """What is left out is left out of the end: the rest is drawn alike, and works alike."""
    stacks = []
    for direction in ("both", "to_vision"):
        torch.manual_seed(0)
        config = SMALL.replace(direction=direction, pre_norm=pre_norm)
        stacks.append(BridgerStack(config, [8], [16], [12]))
    both, vision = (stack.state_dict() for stack in stacks)
    common = [n for n in vision if ".interactor." not in n or ".vision." in n]
    assert set(vision) < set(both) and all(torch.equal(vision[n], both[n]) for n in common)


def test_lora_in_the_finished_text_trains() -> None:
    peft: Any = pytest.importorskip("peft")
    vision, text = misaligned()
    layers = peft.LoraConfig(target_modules=["c_fc", "c_proj"], r=2, init_lora_weights=False)
    peft.inject_adapter_in_model(layers, text)
    encoder = changed(attach_bridgers(vision, text, STAGES, CONFIGS["paper"]))
    batch = images(2, 56), ids(2)
    encoder.zero_grad()
    # By way of the maps alone, so through the Bridgers.
    sum(state.square().mean() for state in encoder(*batch).maps).backward()
    lora = {n: p.grad for n, p in encoder.named_parameters() if ".lora_" in n}
    assert len(lora) == 16 and all(g is not None and g.any() for g in lora.values())
    assert encoder.peft_parts()[0].side == "text"
    others = [p for n, p in encoder.towers.named_parameters() if ".lora_" not in n]
    assert all(p.grad is None for p in others)


@pytest.mark.parametrize("name", ["paper", "paper, shared", "etris_vit"])
def test_activation_checkpointing_changes_no_gradient(name: str) -> None:
    config = CONFIGS[name]
    if config.interactor == "attention":
        config = config.replace(dropout=0.3)
    encoder, batch = acting(config).train(), (images(2, 56), ids(2))
    expected = gradients(encoder, batch)
    encoder.activation_checkpointing_enable()
    runs: list[nn.Module] = []
    for tower in (encoder.vision, encoder.text):
        inner = next(iter(tower.blocks[-1].module.children()))
        inner.register_forward_hook(lambda module, *_: runs.append(module))
    found = gradients(encoder, batch)
    vision = next(iter(encoder.vision.blocks[-1].module.children()))
    assert runs.count(vision) == 2  # the vision tower is recomputed; nothing trains in the text
    assert list(found) == list(expected)
    assert all(torch.equal(found[n], expected[n]) for n in found)


def test_a_step_of_ddp_finds_every_parameter(tmp_path: Path) -> None:
    """DDP raises in the second forward where a parameter took no part in the first."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    if not dist.is_available():
        pytest.skip("no torch.distributed here")
    store = f"file://{tmp_path}/store"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        encoder = acting().train()
        wrapped = DistributedDataParallel(encoder)
        for _ in range(2):
            sum(t.square().mean() for t in features(wrapped(images(2, 56), ids(2)))).backward()
    finally:
        dist.destroy_process_group()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)


@pytest.mark.slow
def test_compiled_is_the_same() -> None:
    torch._dynamo.reset()
    encoder, batch = acting(), (images(2, 56), ids(2))
    expected = [*features(encoder(*batch)), *gradients(encoder, batch).values()]
    encoder.compile(backend="eager")
    found = [*features(encoder(*batch)), *gradients(encoder, batch).values()]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    torch._dynamo.reset()


# What is left behind, saved and shown.


def test_towers_called_alone_never_notice() -> None:
    vision, text = misaligned()
    pixels, words = images(2, 56), ids(2)
    before = trace(vision), trace(text)
    bits = copy.deepcopy((vision.state_dict(), text.state_dict()))
    with torch.no_grad():
        expected = vision(pixels), text(words)
        encoder = changed(attach_bridgers(vision, text, STAGES, CONFIGS["paper"]))
    assert all(not block.module._forward_hooks for block in encoder.text.blocks[:-1])
    gradients(encoder.train(), (pixels, words))
    with torch.no_grad():
        assert torch.equal(vision(pixels), expected[0]) and torch.equal(text(words), expected[1])
    encoder.detach()
    for state, tower in zip(bits, (vision, text), strict=True):
        assert all(torch.equal(state[k], now) for k, now in tower.state_dict().items())
    assert (trace(vision), trace(text)) == before


def test_copies_live_on_their_own() -> None:
    encoder, batch = acting(), (images(1, 56), ids(1))
    with torch.no_grad():
        expected = encoder(*batch)
        twin = copy.deepcopy(encoder)
        assert same(twin(*batch), expected)
        assert not same(changed(twin, seed=5)(*batch), expected)
        assert same(encoder(*batch), expected)


@pytest.mark.parametrize("name", ["paper", "paper, shared", "etris_vit"])
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    head = {"width": 64, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
    model = acting(CONFIGS[name]).with_head(ReferringSegmentationHead, **head).eval()
    batch = images(2, 56), ids(2)
    with torch.no_grad():
        expected = model(*batch).logits
        model.save_pretrained(tmp_path)
        model.detach()
        loaded = BridgedModel.from_pretrained(tmp_path, *misaligned())
        assert torch.equal(loaded(*batch).logits, expected)
    assert loaded.encoder.stages == tuple(STAGES)
    assert loaded.encoder.config == CONFIGS[name]
    assert "finished text" in loaded.summary()


def test_a_table_of_stages_says_finished_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = acting()
    rows = encoder.summary().splitlines()[1:]
    assert len(rows) == 3 and all("finished text  32 " in row for row in rows)
    BridgedModel(encoder, {}).save_pretrained(tmp_path)
    from bridger.cli.main import main

    main(["inspect", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "(0, finished text), (2, finished text), (3, finished text)" in shown
    assert "direction=to_vision" in shown
