"""What a config can make of Bridgers beside the presets, held to the invariants of all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_bridgers import RAGGED, make_stack, run_stack
from helpers_conformance import (
    SMALL,
    changed,
    close,
    features,
    gradients,
    replayed,
    same,
)
from helpers_one_way import acting, by_hand, one_way
from helpers_towers import PAIRS, ids, images, pictures
from torch import Tensor

from bridger import BridgedEncoder, BridgedModel, BridgerConfig, attach_bridgers
from bridger.bridgers import BridgerStack
from bridger.heads import ReferringSegmentationHead

TO_TEXT: dict[str, dict[str, Any]] = {
    "to text": {},
    "to text, pre-norm": {"pre_norm": True},
    "to text, shared": {"share": True},
    "to text, norm of the carry": {"carry_norm": True},
    "to text, no carry": {"carry": "none"},
    "to text, input carried": {"carry": "input", "cross_source": "input"},
    "to text, gate": {"interactor": "gate"},
    "to text, dense": {"interactor": "dense"},
}
VARIANTS: dict[str, BridgerConfig] = {
    "no self-attention": SMALL.replace(self_attention=False),
    "no feed-forward": SMALL.replace(ffn_dim=0),
    "cross-attention alone": SMALL.replace(self_attention=False, ffn_dim=0, pre_norm=True),
    "dense": SMALL.replace(interactor="dense"),
    "zoom by convolutions": SMALL.replace(zoom="convolution"),
    "zoom by transposed convolutions": SMALL.replace(zoom="transposed"),
    "first skipped": SMALL.replace(skip=(0,), carry_norm=True),
    "second skipped": SMALL.replace(skip=(1,), carry_norm=True),
    "last skipped": SMALL.replace(skip=(2,), carry_norm=True),
    "one left": SMALL.replace(skip=(2, 0)),
    **{k: SMALL.replace(direction="to_text", **changes) for k, changes in TO_TEXT.items()},
    "to text, first skipped": SMALL.replace(direction="to_text", skip=(0,)),
}


@pytest.fixture(params=sorted(VARIANTS))
def variant(request: pytest.FixtureRequest) -> BridgerConfig:
    return VARIANTS[request.param]


def attached(config: BridgerConfig | None, **options: Any) -> BridgedEncoder:
    """Three stages on towers of one width; shared Bridgers need one stride too."""
    return attach_bridgers(*PAIRS[pair_of(config)](), 3, config, **options)


def pair_of(config: BridgerConfig | None) -> str:
    return "open_clip_vit" if config is None or config.share else "open_clip_resnet"


def batch_of(config: BridgerConfig, count: int = 2) -> tuple[Tensor, Tensor]:
    return pictures(pair_of(config), count), ids(count)


# --- Every variant in an encoder ----------------------------------------------------------------


def test_towers_go_on_with_what_bridgers_made(variant: BridgerConfig) -> None:
    """The same without lockstep: each tower alone, once for every stage."""
    encoder = changed(attached(variant)).eval()
    with torch.no_grad():
        expected = replayed(encoder, *batch_of(variant))
        found = features(encoder(*batch_of(variant)))
    for a, b in zip(found, expected, strict=True):
        close(a, b)


def test_fresh_bridgers_change_nothing(variant: BridgerConfig) -> None:
    encoder, batch = attached(variant).eval(), batch_of(variant)
    with torch.no_grad():
        plain = attach_bridgers(encoder.vision.module, encoder.text.module, 3, config=None)(*batch)
        assert same(encoder(*batch), plain)
        acting = changed(encoder)(*batch)
        with encoder.disable():
            assert same(encoder(*batch), plain)
    assert not torch.equal(acting.tokens, plain.tokens)
    assert not torch.equal(acting.sentence, plain.sentence)
    touched = [not torch.equal(a, b) for a, b in zip(acting.maps, plain.maps, strict=True)]
    if variant.direction == "to_text":
        assert not any(touched)
    else:  # from the first Bridger on
        first = min({0, 1, 2} - set(variant.skip))
        assert touched == [stage >= first for stage in range(3)]


def test_every_parameter_learns_and_no_tower_does(variant: BridgerConfig) -> None:
    encoder = changed(attached(variant))
    given = gradients(encoder, batch_of(variant))
    names = {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert names and set(given) == names
    assert [n for n, gradient in given.items() if not gradient.any()] == []
    assert all(p.grad is None for p in encoder.towers.parameters())


def test_many_expressions_equal_many_calls(variant: BridgerConfig) -> None:
    encoder = changed(attached(variant)).eval()
    pixels, _ = batch_of(variant)
    words = torch.stack([ids(2, seed=i) for i in range(3)], dim=1)
    real = torch.tensor([[True, True, False], [True, True, True]])
    garbage = words.clone()
    garbage[0, 2] = 0
    with torch.no_grad():
        together = features(encoder(pixels, words))
        alone = [features(encoder(pixels, words[:, n])) for n in range(3)]
        ragged = features(encoder(pixels, garbage, expression_mask=real))
    for row, tensors in enumerate(zip(*alone, strict=True)):
        expected = torch.stack(tensors, dim=1).flatten(0, 1)
        close(together[row], expected)
        close(ragged[row][real.flatten()], expected[real.flatten()])


def test_a_text_does_not_depend_on_its_padding(variant: BridgerConfig) -> None:
    encoder = changed(attached(variant)).eval()
    pixels, words = batch_of(variant, 3)
    with torch.no_grad():
        together = encoder(pixels, words)
        for row in range(3):
            length = int(together.token_mask[row].sum())
            alone = encoder(pixels[row : row + 1], words[row : row + 1, :length])
            for a, b in zip(
                [*alone.maps, alone.sentence], [*together.maps, together.sentence], strict=True
            ):
                close(a[0], b[row])
            close(alone.tokens[0, :length], together.tokens[row, :length])


def test_saved_and_loaded(variant: BridgerConfig, tmp_path: Path) -> None:
    head = {"width": 64, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
    model = changed(attached(variant)).with_head(ReferringSegmentationHead, **head).eval()
    with torch.no_grad():
        expected = model(*batch_of(variant)).logits
        model.save_pretrained(tmp_path)
        model.detach()
        loaded = BridgedModel.from_pretrained(tmp_path, *PAIRS[pair_of(variant)]())
        assert torch.equal(loaded(*batch_of(variant)).logits, expected)
    assert loaded.encoder.config == variant


def test_config_survives_json(variant: BridgerConfig) -> None:
    assert BridgerConfig.from_dict(json.loads(json.dumps(variant.to_dict()))) == variant


def test_configs_of_before_are_what_they_were() -> None:
    old = {k: v for k, v in SMALL.to_dict().items() if k not in ("skip", "self_attention")}
    assert BridgerConfig.from_dict(old) == SMALL
    assert BridgerConfig.preset("paper").skip == ()


@pytest.mark.parametrize("name", ["dense", "to text, dense", "no feed-forward", "first skipped"])
def test_activation_checkpointing_changes_no_gradient_and_counts_no_batch_twice(name: str) -> None:
    config = VARIANTS[name].replace(dropout=0.3)
    outcomes = []
    for recompute in (False, True):
        torch.manual_seed(0)
        encoder = changed(attached(config)).train()
        if recompute:
            encoder.activation_checkpointing_enable()
        assert encoder.bridgers is not None
        given = gradients(encoder, batch_of(config))
        outcomes.append([*given.values(), *encoder.bridgers.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "to text", "second skipped", "cross-attention alone"])
def test_compiled_is_the_same(name: str) -> None:
    torch._dynamo.reset()
    encoder, batch = changed(attached(VARIANTS[name])).eval(), batch_of(VARIANTS[name])
    expected = [*features(encoder(*batch)), *gradients(encoder, batch).values()]
    encoder.compile(backend="eager")
    found = [*features(encoder(*batch)), *gradients(encoder, batch).values()]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    torch._dynamo.reset()


# --- Stages without a Bridger -------------------------------------------------------------------


@pytest.mark.parametrize("skip", [(0,), (1,), (2,), (0, 2)])
@pytest.mark.parametrize("carry", ["output", "input", "none"])
def test_skipped_stages_are_as_if_they_were_none(carry: str, skip: tuple[int, ...]) -> None:
    """The others' maps and texts are those of an encoder that never had the skipped stages."""
    config = SMALL.replace(carry=carry, carry_norm=True)
    blocks = [(0, 0), (2, 1), (3, 3)]
    left = [stage for stage in range(3) if stage not in skip]
    towers, batch = PAIRS["open_clip_vit"](), (images(2, 32), ids(2))
    fewer = changed(attach_bridgers(*towers, [blocks[s] for s in left], config)).eval()
    skipping = attach_bridgers(*towers, blocks, config.replace(skip=skip)).eval()
    assert fewer.bridgers is not None and skipping.bridgers is not None
    skipping.bridgers.load_state_dict(fewer.bridgers.state_dict())
    with torch.no_grad():
        found, expected = skipping(*batch), fewer(*batch)
    assert torch.equal(found.tokens, expected.tokens) and len(found.maps) == 3
    assert torch.equal(found.sentence, expected.sentence)
    inner = zip(left[:-1], expected.maps, strict=False)  # the last one is made dense
    assert all(torch.equal(found.maps[stage], wanted) for stage, wanted in inner)
    close(found.maps[-1], expected.maps[-1])


@pytest.mark.parametrize("skip", [(0,), (1,), (2,), (0, 2)])
def test_one_way_skipped_stages_are_read_all_the_same(skip: tuple[int, ...]) -> None:
    encoder = acting(one_way(skip=skip, carry_norm=True))
    pixels, words = images(2, 56), ids(2)
    with torch.no_grad():
        found, expected = features(encoder(pixels, words)), by_hand(encoder, pixels, words)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("config", "rows"),
    [
        (SMALL, [2, 6, 6, 6]),
        (SMALL.replace(skip=(0,)), [2, 2, 2, 6]),
        (SMALL.replace(direction="to_text"), [2, 2, 2, 2]),
    ],
)
def test_pictures_run_once_up_to_the_first_bridger_that_writes_to_them(
    config: BridgerConfig, rows: list[int]
) -> None:
    encoder = changed(attach_bridgers(*PAIRS["open_clip_vit"](), [(0, 0), (2, 2)], config)).eval()
    seen: list[int] = []
    for block in encoder.vision.blocks:
        block.module.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    out = encoder(images(2, 32), torch.stack([ids(2, seed=i) for i in range(3)], dim=1))
    assert seen == rows and all(len(one) == 6 for one in features(out))


def test_skipped_stages_have_no_module_and_say_so() -> None:
    encoder = attached(SMALL.replace(skip=(0, 2)))
    bridgers = encoder.bridgers
    assert bridgers is not None and len(bridgers) == 3 and len(bridgers.stages) == 1
    assert bridgers.at(0) is None and bridgers.at(1) is bridgers.stages[0]
    lines = encoder.summary().splitlines()[1:]
    assert [line.endswith("none") for line in lines] == [True, False, True]


def test_stages_that_are_skipped_need_not_be_alike_to_share() -> None:
    config = SMALL.replace(share=True, skip=(1,))
    stack = make_stack(config, [6, 10, 6], [16, 8, 16])
    assert stack.at(0) is stack.at(2) and stack.at(1) is None
    with pytest.raises(ValueError, match=r"same vision widths at every stage, found \[6, 10\]"):
        BridgerStack(SMALL.replace(share=True, skip=(1,)), [6, 6, 10], [16] * 3, [12] * 3)


# --- Texts that read pictures -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, [True, True, True, False]),
        ({"skip": (2, 3)}, [True, False]),
        ({"share": True}, [True]),
        ({"carry": "none"}, [False] * 4),
        ({"carry": "input"}, [False] * 4),
    ],
)
def test_pictures_are_updated_only_where_a_later_stage_reads_them(
    changes: dict[str, Any], kept: list[bool]
) -> None:
    config = SMALL.replace(direction="to_text", **changes)
    names = list(BridgerStack(config, [8] * 4, [16] * 4, [12] * 4).state_dict())

    def holds(place: int, part: str) -> bool:
        return any(n.startswith(f"stages.{place}.interactor.vision.{part}") for n in names)

    assert [holds(place, "cross_attn") for place in range(len(kept))] == kept
    assert all(holds(place, "self_attn") for place in range(len(kept)))  # texts read its outcome
    assert not any("vision_out" in name for name in names)


@pytest.mark.parametrize("name", TO_TEXT)
def test_texts_get_what_bridgers_in_both_directions_would_give_them(name: str) -> None:
    """On the same states: what was left out never reached a text."""
    config = VARIANTS[name]
    one = make_stack(config, [8] * 3, [16] * 3)
    both = make_stack(config.replace(direction="both"), [8] * 3, [16] * 3)
    rest = both.load_state_dict(one.state_dict(), strict=False)
    assert not rest.unexpected_keys and rest.missing_keys
    assert all("vision_out" in n or ".interactor.vision." in n for n in rest.missing_keys)
    maps, texts = [torch.randn(2, 8, 2, 2) for _ in range(3)], [torch.randn(2, 5, 12)] * 3
    with torch.no_grad():
        found = run_stack(one, maps, texts, RAGGED, (32, 32))
        expected = run_stack(both, maps, texts, RAGGED, (32, 32))
    for (to_map, to_text), (_, wanted) in zip(found, expected, strict=True):
        assert to_map is None and to_text.any() and torch.equal(to_text, wanted)


def test_backward_keeps_nothing_of_the_vision_tower() -> None:
    encoder = changed(attached(SMALL.replace(direction="to_text")))
    out = encoder(*batch_of(SMALL))
    assert not any(one.requires_grad for one in out.maps) and out.tokens.requires_grad
