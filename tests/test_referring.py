"""The referring head against the method's equations written out plainly, and its edges."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers_heads import SPEC, features, plain_logits, randomised
from torch import Tensor
from torch.nn import functional as F

from bridger.features import EncoderSpec
from bridger.heads import ReferringSegmentationHead
from bridger.heads.losses import dice_loss, text_to_pixel_loss

SMALL = {"width": 32, "num_heads": 4, "num_layers": 2}


def build(spec: EncoderSpec = SPEC, **changes: object) -> ReferringSegmentationHead:
    return randomised(ReferringSegmentationHead.from_spec(spec, **{**SMALL, **changes}))


def close(found: Tensor, expected: Tensor) -> None:
    largest = float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * largest)


@pytest.mark.parametrize("gate", ["product", "residual", "attention"])
@pytest.mark.parametrize("decoder_text", ["tokens", "sentence"])
def test_it_computes_the_equations(gate: str, decoder_text: str) -> None:
    head = build(gate=gate, decoder_text=decoder_text, ffn_width=24)
    given = features(batch=1, expressions=2)
    with torch.no_grad():
        close(head(given).logits[0], plain_logits(head, given))


def test_it_computes_the_equations_where_tokens_are_as_wide_as_the_head() -> None:
    # torch packs query, key and value projections into one matrix then.
    head = build(dataclasses.replace(SPEC, token_width=32))
    given = features(head.spec)
    with torch.no_grad():
        close(head(given).logits[:, 0], plain_logits(head, given))


def test_the_inert_weights_have_no_effect_and_no_gradient() -> None:
    head = build(keep_inert=True)
    given = features()
    before = head(given).logits
    inert = [p for n, p in head.named_parameters() if "query_key" in n]
    assert len(inert) == 6
    assert not any(p.requires_grad for p in inert)
    with torch.no_grad():
        for parameter in inert:
            parameter.normal_()
    assert torch.equal(head(given).logits, before)


def test_the_etris_preset_has_the_released_sizes() -> None:
    spec = EncoderSpec((768, 768, 512), (16, 16, 16), 512, 512, True)
    with torch.device("meta"):
        head = ReferringSegmentationHead.from_spec(spec, "etris")
    assert _size(head.hierarchical_alignment) == 9_983_488
    assert _size(head.global_alignment) == 7_899_136
    assert _size(head.projector) == 4_788_737
    # Trainable is what has an effect: the gates' queries and keys have none.
    assert _size(head, trainable=True) == 22_671_361 - 3 * (2 * 512 * 512 + 2 * 512)


def _size(module: torch.nn.Module | None, trainable: bool = False) -> int:
    assert module is not None
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


@pytest.mark.parametrize(("sentence", "width"), [(20, 64), (128, 128), (130, 192), (1024, 512)])
def test_the_default_width_follows_the_sentence(sentence: int, width: int) -> None:
    spec = dataclasses.replace(SPEC, sentence_width=sentence)
    with torch.device("meta"):
        config = ReferringSegmentationHead.from_spec(spec).config
    assert (config.width, config.ffn_width) == (width, width)


@pytest.mark.parametrize("switches", [(True, False), (False, True), (False, False)])
def test_each_alignment_can_be_switched_off(switches: tuple[bool, bool]) -> None:
    head = build(hierarchical_alignment=switches[0], global_alignment=switches[1])
    given = features(batch=2, expressions=3)
    output = head(given, torch.rand(2, 3, 64, 96))
    assert output.logits.shape == (2, 3, 16, 24)
    output.loss.backward()
    assert all(p.grad is not None for p in head.parameters() if p.requires_grad)


def test_without_hierarchical_alignment_only_the_last_map_counts() -> None:
    head = build(hierarchical_alignment=False)
    given = features()
    before = head(given).logits
    given.maps[0].normal_()
    assert torch.equal(head(given).logits, before)


@pytest.mark.parametrize("strides", [(16,), (14, 14), (4, 8, 16, 32), (64, 7)])
@pytest.mark.parametrize("image_size", [(70, 100), (33, 17), (112, 112)])
@pytest.mark.parametrize("grid_stride", [16, 8])
def test_any_maps_and_sizes_end_at_the_grid_and_at_a_quarter_of_its_stride(
    strides: tuple[int, ...], image_size: tuple[int, int], grid_stride: int
) -> None:
    spec = EncoderSpec((6, 8, 10, 12)[: len(strides)], strides, 9, 12, False)
    given = features(spec, image_size=image_size)
    head = build(spec, grid_stride=grid_stride)
    fused = []
    head.hierarchical_alignment.register_forward_hook(lambda m, i, o: fused.append(o.shape[-2:]))
    logits = head(given).logits
    mask_stride = grid_stride // 4
    assert fused == [tuple(-(-side // grid_stride) for side in image_size)]
    assert logits.shape == (2, 1, *(-(-side // mask_stride) for side in image_size))
    assert logits.isfinite().all()


def test_padding_tokens_do_not_count() -> None:
    head = build()
    given = features()
    before = head(given).logits
    given.tokens[~given.token_mask] = 1e3
    assert torch.equal(head(given).logits, before)
    short = dataclasses.replace(
        given,
        **{name: getattr(given, name)[-1:, :2] for name in ("tokens", "token_mask")},
        maps=tuple(m[-1:] for m in given.maps),
        sentence=given.sentence[-1:],
    )
    close(head(short).logits, before[-1:])


def test_expressions_do_not_see_each_other() -> None:
    head = build()
    given = features(batch=2, expressions=3)
    together = head(given).logits.flatten(0, 1)
    for row in range(6):
        alone = dataclasses.replace(
            given,
            maps=tuple(m[row : row + 1] for m in given.maps),
            tokens=given.tokens[row : row + 1],
            token_mask=given.token_mask[row : row + 1],
            sentence=given.sentence[row : row + 1],
            num_expressions=1,
        )
        close(head(alone).logits[0, 0], together[row])


def test_half_precision_features_give_float32_logits() -> None:
    head, given = build(), features()
    half = dataclasses.replace(
        given,
        maps=tuple(m.bfloat16() for m in given.maps),
        tokens=given.tokens.bfloat16(),
        sentence=given.sentence.bfloat16(),
    )
    logits = head(half).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, head(given).logits, rtol=0.1, atol=0.2)
    with torch.autocast("cpu", torch.bfloat16):
        output = head(given, torch.rand(2, 64, 96))
    assert output.logits.dtype == output.loss.dtype == torch.float32
    output.loss.backward()


def test_the_loss_takes_every_fourth_pixel() -> None:
    head, given = build(), features(batch=2, expressions=2)
    masks = torch.rand(2, 2, 64, 96)
    output = head(given, masks)
    p, y = output.logits.sigmoid(), masks[..., ::4, ::4]
    expected = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    torch.testing.assert_close(output.loss, expected)
    assert torch.equal(head.probabilities(output.logits), p)


def test_labels_may_come_without_expressions_and_as_bool() -> None:
    head, given = build(), features()
    masks = torch.rand(2, 64, 96) > 0.5
    assert head(given, masks).loss == head(given, masks[:, None].float()).loss


def test_padding_expressions_do_not_count() -> None:
    logits, targets = torch.randn(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    logits[~mask] = torch.nan
    logits.requires_grad_()
    loss = text_to_pixel_loss(logits, targets, mask)
    expected = F.binary_cross_entropy_with_logits(logits[mask], targets[mask])
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert logits.grad[mask].abs().min() > 0


def test_dice_is_added_as_weighted() -> None:
    given, masks = features(), torch.rand(2, 1, 64, 96)
    torch.manual_seed(0)
    plain = build()(given, masks)
    torch.manual_seed(0)
    output = build(dice_weight=0.5)(given, masks)
    p, y = output.logits.sigmoid(), masks[..., ::4, ::4]
    dice = [
        1 - (2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1) for a, b in zip(p, y, strict=True)
    ]
    torch.testing.assert_close(output.loss, plain.loss + 0.5 * sum(dice) / 2)


def test_padding_expressions_do_not_count_for_dice() -> None:
    logits, targets = torch.randn(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    expected = dice_loss(logits[mask][:, None], targets[mask][:, None])
    logits[~mask] = torch.nan
    torch.testing.assert_close(dice_loss(logits, targets, mask), expected)


def test_wrong_labels_say_what_was_expected_and_found() -> None:
    head, given = build(), features(batch=2, expressions=3)
    with pytest.raises(ValueError, match=r"\(2, 3, 64, 96\).*got \(2, 3, 16, 24\)"):
        head(given, torch.rand(2, 3, 16, 24))
    with pytest.raises(ValueError, match=r"\(2, 3, 64, 96\).*got \(2, 64, 96\)"):
        head(given, torch.rand(2, 64, 96))
    with pytest.raises(ValueError, match="divide masks of 0 and 255 by 255"):
        head(given, torch.full((2, 3, 64, 96), 255, dtype=torch.uint8))
    for wrong in (255.0, -1.0, float("nan")):
        labels = torch.zeros(2, 3, 64, 96)
        labels[1, 2, 8:16, 8:16] = wrong
        with pytest.raises(ValueError, match="labels must lie between 0 and 1, got"):
            head(given, labels)
        with pytest.raises(ValueError, match="labels must lie between 0 and 1, got"):
            head(given, labels, torch.ones(2, 3))
        # What a padding expression holds does not matter.
        real = torch.tensor([[1, 1, 1], [1, 1, 0]])
        assert head(given, labels, real).loss.isfinite()
    assert head(given, torch.full((2, 3, 64, 96), 1 + 1e-6)).loss.isfinite()  # resizing rounds
    with pytest.raises(ValueError, match=r"expression_mask must be \(B, N\) = \(2, 3\)"):
        head(given, torch.rand(2, 3, 64, 96), torch.ones(2, 2))


def test_features_of_other_towers_are_refused() -> None:
    other = dataclasses.replace(SPEC, map_widths=(6, 10))
    with pytest.raises(ValueError, match="build it from the spec"):
        build()(features(dataclasses.replace(other, map_strides=(8, 16))))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 60, "num_heads": 8}, "60 does not split into num_heads=8"),
        ({"width": 30, "num_heads": 2}, "multiple of 4"),
        ({"grid_stride": 14}, "multiple of 4"),
        ({"num_layers": 0}, "num_layers must be a positive integer"),
        ({"dropout": 1.0}, "dropout"),
        ({"gate": "produkt"}, "did you mean 'product'"),
        ({"decoder_text": "words"}, "decoder_text='words'"),
        ({"widht": 64}, "did you mean 'width'"),
        ({"preset": "etriss"}, "did you mean 'etris'"),
    ],
)
def test_bad_options_are_named(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ReferringSegmentationHead.from_spec(SPEC, **changes)
