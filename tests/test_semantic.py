"""The semantic segmentation head against plain loops, its losses, padding, bad input."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from helpers_heads import SPEC, features, plain_enlarged, plain_fused, randomised
from torch import Tensor
from torch.nn import functional as F

from bridger.features import BridgedFeatures, EncoderSpec, Mentions
from bridger.heads import SemanticSegmentationHead
from bridger.heads.semantic_losses import label_cross_entropy, label_dice
from bridger.labels import BACKGROUND, IGNORE

SMALL = {"width": 32, "num_heads": 4, "num_layers": 1, "dropout": 0.0}
SIZE = (64, 96)


def build(spec: EncoderSpec = SPEC, **changes: Any) -> SemanticSegmentationHead:
    torch.manual_seed(0)
    return randomised(SemanticSegmentationHead.from_spec(spec, **{**SMALL, **changes}))


def packed(batch: int = 2) -> BridgedFeatures:
    """Four classes, two of them mentioned twice, in two expressions; rows in no order."""
    given = features(batch=batch, expressions=2)
    rows, classes = torch.tensor([1, 0, 1, 0, 1, 0]), torch.tensor([2, 0, 1, 2, 3, 3])
    tokens = torch.zeros(1, 6, 5, dtype=torch.bool)
    for mention, (first, last) in enumerate([(0, 1), (0, 2), (1, 2), (2, 4), (0, 2), (4, 5)]):
        tokens[0, mention, first:last] = True
    return dataclasses.replace(given, mentions=Mentions(rows, classes, tokens, 4))


def label_map(classes: int, batch: int = 2) -> Tensor:
    """Every class, background and pixels that do not count."""
    labels = torch.randint(0, classes, (batch, *SIZE))
    labels[:, :, :20], labels[:, :, -8:] = BACKGROUND, IGNORE
    return labels


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def plain_logits(head: SemanticSegmentationHead, given: BridgedFeatures) -> Tensor:
    """The logits (B, K, h, w), one class of one picture after the other."""
    n, mentions = given.num_expressions, given.mentions
    batch = len(given.sentence) // n
    if mentions is None:
        tokens = given.token_mask.reshape(batch, n, -1)
        mentions = Mentions(torch.arange(n), torch.arange(n), tokens, n)
    tokens = mentions.tokens.expand(batch, -1, -1)
    logits = []
    for b in range(batch):
        for k in range(mentions.num_classes):
            scores = []
            for m in (mentions.classes == k).nonzero()[:, 0].tolist():
                row = b * n + int(mentions.rows[m])
                cells = plain_enlarged(head.enlarger, plain_fused(head, given, row))[0]
                said = given.tokens[row][tokens[b, m]].mean(dim=0)
                text = head.embedding.sentence(given.sentence[row]) + head.embedding.tokens(said)
                score = sum(c * t for c, t in zip(cells, text, strict=True)) / math.sqrt(len(text))
                scores.append(score + plain_cosines(head, given, row, score.shape))
            logits.append(sum(scores) / len(scores) + (0 if head.bias is None else head.bias))
    return torch.stack(logits).reshape(batch, mentions.num_classes, *logits[0].shape)


def plain_cosines(
    head: SemanticSegmentationHead, given: BridgedFeatures, row: int, size: torch.Size
) -> Tensor | float:
    if head.zero_shot is None:
        return 0.0
    cosines = F.cosine_similarity(given.maps[-1][row], given.sentence[row][:, None, None], dim=0)
    return (
        10 * head.zero_shot * F.interpolate(cosines[None, None], tuple(size), mode="bilinear")[0, 0]
    )


@pytest.mark.parametrize("zero_shot", [True, False])
@pytest.mark.parametrize("background", [True, False])
def test_it_computes_what_it_says(zero_shot: bool, background: bool) -> None:
    head = build(zero_shot=zero_shot, background=background)
    for given in (features(batch=2, expressions=3), packed()):
        with torch.no_grad():
            close(head(given).logits, plain_logits(head, given))


def test_towers_without_a_joint_space_have_no_cosines() -> None:
    spec = dataclasses.replace(SPEC, joint=False, sentence_width=9)
    head = build(spec, zero_shot=True)
    assert head.zero_shot is None
    assert head(features(spec)).logits.isfinite().all()


def test_one_class_is_the_same_packed_and_by_itself() -> None:
    head, given = build(), features(batch=2, expressions=1)
    alone = head(given).logits
    tokens = given.token_mask[:, None]
    each = torch.zeros(1, dtype=torch.long)
    same = dataclasses.replace(given, mentions=Mentions(each, each, tokens, 1))
    assert torch.equal(head(same).logits, alone)


def test_classes_asked_in_chunks_are_joined_exactly() -> None:
    head, given = build(), features(batch=2, expressions=5)
    whole = head(given)
    parts = []
    for some in (slice(0, 2), slice(2, 5)):
        chosen = torch.arange(10).reshape(2, 5)[:, some].flatten()
        part = dataclasses.replace(
            given,
            maps=tuple(m[chosen] for m in given.maps),
            tokens=given.tokens[chosen],
            token_mask=given.token_mask[chosen],
            sentence=given.sentence[chosen],
            num_expressions=some.stop - some.start,
        )
        parts.append(head(part))
    merged = head.merge(parts)
    assert torch.equal(merged.logits, torch.cat([part.logits for part in parts], dim=1))
    close(merged.logits, whole.logits)
    close(head.probabilities(merged.logits), head.probabilities(whole.logits))


def test_probabilities_share_one_pixel_among_classes_and_background() -> None:
    logits = torch.randn(2, 3, 4, 5)
    e = logits.exp()
    close(build().probabilities(logits), e / (1 + e.sum(dim=1, keepdim=True)))
    close(build(background=False).probabilities(logits), e / e.sum(dim=1, keepdim=True))
    close(build(multi_label=True).probabilities(logits), e / (1 + e))


@pytest.mark.parametrize("background", [True, False])
def test_the_loss_is_torchs_cross_entropy_and_dice_as_weighted(background: bool) -> None:
    head, given, labels = build(background=background, dice_weight=0.5), packed(), label_map(4)
    output = head(given, labels)
    small = labels[:, ::4, ::4]
    counts = small != IGNORE if background else small >= 0
    scores = output.logits
    if background:
        scores = torch.cat([scores, torch.zeros(2, 1, 16, 24)], dim=1)
    truth = torch.where(small == BACKGROUND, 4, small)
    entropy = F.cross_entropy(scores.movedim(1, -1)[counts], truth[counts])
    p = scores.softmax(dim=1)
    dice = []
    for b in range(2):
        for k in range(4):
            a, y = p[b, k][counts[b]], (small[b] == k)[counts[b]].float()
            dice.append(1 - (2 * (a * y).sum() + 1) / (a.sum() + y.sum() + 1))
    close(output.losses["cross_entropy"], entropy)
    close(output.losses["dice"], 0.5 * torch.stack(dice).mean())
    close(output.loss, entropy + 0.5 * torch.stack(dice).mean())


def test_the_loss_of_nothing_that_counts_is_zero() -> None:
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    targets = torch.full((2, 4, 5), IGNORE)
    for background in (True, False):
        loss = label_cross_entropy(logits, targets, background)
        loss = loss + label_dice(logits.softmax(dim=1), targets, background)
        assert loss == 0
        loss.backward()
        assert logits.grad.isfinite().all()


def test_multi_label_judges_each_class_for_itself() -> None:
    head, given = build(multi_label=True, dice_weight=0.5), packed()
    masks = torch.rand(2, 4, *SIZE)
    output = head(given, masks)
    p, y = output.logits.sigmoid(), masks[..., ::4, ::4]
    entropy = F.binary_cross_entropy_with_logits(output.logits, y)
    both, sums = (p * y).sum(dim=(2, 3)), (p + y).sum(dim=(2, 3))
    close(output.loss, entropy + 0.5 * (1 - (2 * both + 1) / (sums + 1)).mean())


def test_multi_label_leaves_out_what_does_not_count() -> None:
    head, given = build(multi_label=True, dice_weight=0.5), packed()
    masks = torch.rand(2, 4, *SIZE)
    masks[0, :, :, 40:], masks[1, 2, 8:] = IGNORE, IGNORE
    output = head(given, masks)
    entropies, dice = [], []
    for b in range(2):
        for k in range(4):
            y = masks[b, k, ::4, ::4]
            z, y = output.logits[b, k][y >= 0], y[y >= 0]  # those pixels cut out
            entropies.append(F.binary_cross_entropy_with_logits(z, y, reduction="none"))
            p = z.sigmoid()
            dice.append(1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1))
    close(output.losses["cross_entropy"], torch.cat(entropies).mean())
    close(output.losses["dice"], 0.5 * torch.stack(dice).mean())
    output.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())
    nothing = head(given, torch.full_like(masks, IGNORE))
    assert nothing.loss == 0
    for wrong in (-1.0, -99.0, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1, or be -100 for what does not"):
            head(given, torch.full_like(masks, wrong))


@pytest.mark.parametrize(
    "changes", [{}, {"background": False}, {"multi_label": True}, {"zero_shot": True}]
)
def test_every_trained_parameter_gets_a_gradient(changes: dict[str, Any]) -> None:
    head = build(**changes).train()
    masks = torch.rand(2, 4, *SIZE) if "multi_label" in changes else label_map(4)
    head(packed(), masks).loss.backward()
    assert [n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("changes", [{}, {"background": False}, {"multi_label": True}])
def test_padding_classes_never_win_and_never_count(changes: dict[str, Any]) -> None:
    head, given = build(**changes), features(batch=2, expressions=3)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    multi = "multi_label" in changes
    labels = torch.rand(2, 3, *SIZE) if multi else label_map(2)
    output = head(given, labels, mask)
    assert (head.probabilities(output.logits)[1, 2] == 0).all()
    assert torch.equal(output.logits[mask], head(given).logits[mask])
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())
    for features_i in (*given.maps, given.tokens, given.sentence):
        features_i[5] = 7.0  # what padding holds
    if multi:
        labels[1, 2] = 3.0
    close(head(given, labels, mask).loss, output.loss)
    if not multi:
        labels[1, 30, 50] = 2
        with pytest.raises(ValueError, match=r"number of a class that is not padding.*got \[2\]"):
            head(given, labels, mask)


def test_padding_tokens_do_not_count() -> None:
    head, given = build(), features(batch=2, expressions=2)
    before = head(given).logits
    given.tokens[~given.token_mask] = 1e3
    assert torch.equal(head(given).logits, before)


@pytest.mark.parametrize("image_size", [(70, 100), (33, 17)])
@pytest.mark.parametrize("grid_stride", [16, 8])
def test_any_size_ends_at_a_quarter_of_the_grid_stride(
    image_size: tuple[int, int], grid_stride: int
) -> None:
    head = build(grid_stride=grid_stride)
    given = features(batch=2, expressions=2, image_size=image_size)
    output = head(given, torch.zeros(2, *image_size, dtype=torch.long))
    cell = grid_stride // 4
    assert output.logits.shape == (2, 2, *(-(-side // cell) for side in image_size))
    assert output.loss.isfinite()


def test_half_precision_gives_float32() -> None:
    head, given, labels = build(), packed(), label_map(4)
    half = dataclasses.replace(
        given,
        maps=tuple(m.bfloat16() for m in given.maps),
        tokens=given.tokens.bfloat16(),
        sentence=given.sentence.bfloat16(),
    )
    assert head(half).logits.dtype == torch.float32
    torch.testing.assert_close(head(half).logits, head(given).logits, rtol=0.1, atol=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        output = head(given, labels)
    assert output.logits.dtype == output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, head(given, labels).loss, rtol=0.1, atol=0)
    output.loss.backward()


def test_bad_labels_say_what_was_expected_and_found() -> None:
    head, given, labels = build(), packed(), label_map(4)
    with pytest.raises(ValueError, match=r"\(2, 64, 96\).*got \(2, 16, 24\)"):
        head(given, labels[:, ::4, ::4])
    with pytest.raises(ValueError, match=r"\(2, 64, 96\).*got \(2, 4, 64, 96\)"):
        head(given, labels[:, None].expand(-1, 4, -1, -1))
    for masks in (torch.rand(2, 4, *SIZE), torch.rand(2, *SIZE) > 0.5, labels.to(torch.uint8)):
        with pytest.raises(TypeError, match="int64.*multi_label=True"):
            head(given, masks)
    for wrong in (4, -2, 255):
        bad = labels.clone()
        bad[1, 3, 30] = wrong
        with pytest.raises(ValueError, match=rf"0 to 3.*got \[{wrong}\]"):
            head(given, bad)
    with pytest.raises(ValueError, match=r"expression_mask must be \(B, N\) = \(2, 2\)"):
        head(given, labels, torch.ones(2, 4, dtype=torch.bool))
    several = build(multi_label=True)
    for each in (False, True):
        with pytest.raises(TypeError, match="labels must be a tensor of .*, got list"):
            build(multi_label=each)(packed(), [[0, 1]])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="built with multi_label=True"):
        several(given, labels)
    with pytest.raises(ValueError, match=r"\(2, 4, 64, 96\).*got \(2, 64, 96\)"):
        several(given, torch.rand(2, *SIZE))
    with pytest.raises(ValueError, match="labels must lie between 0 and 1"):
        several(given, torch.full((2, 4, *SIZE), 255.0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dice_weight": -1.0}, "dice_weight"),
        ({"dice_weight": "a"}, "dice_weight must be a number, 0 or more, got 'a'"),
        ({"background": "no"}, "background must be True or False, got 'no'"),
        ({"width": 30}, "multiple of 4"),
        ({"text_mode": "joined"}, "did you mean 'joint'"),
        ({"classes": ("dog", "dog")}, "dog"),
        ({"backgruond": True}, "did you mean 'background'"),
    ],
)
def test_bad_options_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SemanticSegmentationHead.from_spec(SPEC, **changes)
