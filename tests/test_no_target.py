"""Expressions that mean nothing in the picture: the score, its loss, and the prediction."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_heads import SPEC, features, randomised
from helpers_towers import PAIRS, ids, images
from helpers_words import word_tokenizer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bridger import BridgedModel, BridgerConfig, Processor, attach_bridgers
from bridger.heads import HeadOutput, ReferringSegmentationHead
from bridger.heads.losses import dice_loss, no_target_loss, text_to_pixel_loss
from bridger.predictions import Prediction

SMALL = {"width": 32, "num_heads": 4, "num_layers": 2}


def build(**changes: object) -> ReferringSegmentationHead:
    torch.manual_seed(0)
    options = {**SMALL, "no_target": True, **changes}
    return randomised(ReferringSegmentationHead.from_spec(SPEC, **options))


def masks_of(batch: int, expressions: int) -> Tensor:
    """Masks with an object each, but for the first image's last expression."""
    masks = (torch.rand(batch, expressions, 64, 96) > 0.5).float()
    masks[0, -1] = 0
    return masks


def test_the_score_reads_the_sentence_and_the_mean_of_the_aligned_map() -> None:
    head, given = build(), features(batch=2, expressions=3)
    aligned = []
    head.global_alignment.register_forward_hook(lambda m, i, o: aligned.append(o))
    with torch.no_grad():
        output = head(given)
    (fused,) = aligned
    first, _, last = head.no_target
    with torch.no_grad():
        x = torch.cat([fused.sum(3).sum(2) / fused[0, 0].numel(), given.sentence], 1)
        expected = (x @ first.weight.T + first.bias).clamp(min=0) @ last.weight[0] + last.bias
    torch.testing.assert_close(output.no_target, expected.reshape(2, 3), rtol=1e-4, atol=1e-5)


def test_the_masks_are_those_of_the_head_without_it() -> None:
    plain, scored = build(no_target=False), build()
    scored.load_state_dict(plain.state_dict(), strict=False)
    given = features(batch=2, expressions=2)
    found = plain(given)
    assert found.no_target is None
    assert torch.equal(scored(given).logits, found.logits)
    assert not any(name.startswith("no_target") for name in plain.state_dict())


@pytest.mark.parametrize("weight", [0.1, 2.0, 0])
def test_the_loss_adds_the_cross_entropy_as_weighted(weight: float) -> None:
    head, given = build(no_target_weight=weight), features(batch=2, expressions=2)
    masks = masks_of(2, 2)
    output = head(given, masks)
    p = output.no_target.sigmoid()
    empty = torch.tensor([[0.0, 1], [0, 0]])
    entropy = -(empty * p.log() + (1 - empty) * (1 - p).log()).mean()
    pixels = text_to_pixel_loss(output.logits, masks[..., ::4, ::4])
    torch.testing.assert_close(output.loss, pixels + weight * entropy)
    output.loss.backward()
    assert all(p.grad is not None for p in head.no_target.parameters())


def test_the_summands_are_those_of_the_loss_to_the_bit() -> None:
    given, masks = features(batch=2, expressions=2), masks_of(2, 2)
    plain = build(no_target=False)(given, masks)
    assert plain.losses == {}
    output = build(dice_weight=0.7, no_target_weight=0.3)(given, masks)
    targets = masks[..., ::4, ::4].float()
    expected = {
        "cross_entropy": text_to_pixel_loss(output.logits, targets),
        "dice": 0.7 * dice_loss(output.logits, targets),
        "no_target": 0.3 * no_target_loss(output.no_target, masks),
    }
    assert list(output.losses) == list(expected)
    assert all(torch.equal(output.losses[name], loss) for name, loss in expected.items())
    entropy, dice, scored = expected.values()
    assert torch.equal(output.loss, entropy + dice + scored)


def test_an_object_too_small_for_a_cell_is_an_object() -> None:
    logits, masks = torch.zeros(1, 1), torch.zeros(1, 64, 96)
    masks[0, 5, 6] = 0.2  # between the pixels that the logits' targets take
    assert masks[..., ::4, ::4].sum() == 0
    logits += 3
    expected = -torch.log(1 - torch.sigmoid(logits)).squeeze()
    torch.testing.assert_close(no_target_loss(logits, masks), expected)
    torch.testing.assert_close(no_target_loss(logits, masks > 0), expected)
    assert no_target_loss(logits, masks * 0) < 0.1


def test_padding_expressions_do_not_count() -> None:
    logits, masks = torch.randn(2, 3), masks_of(2, 3)
    mask = torch.tensor([[True, False, True], [True, False, False]])
    expected = no_target_loss(logits[mask][:, None], masks[mask][:, None])
    masks[~mask] = 0
    torch.testing.assert_close(no_target_loss(logits, masks, mask), expected)


def test_half_precision_features_give_float32_scores() -> None:
    head, given = build(), features()
    with torch.autocast("cpu", torch.bfloat16):
        output = head(given, masks_of(2, 1))
    assert output.no_target.dtype == output.loss.dtype == torch.float32
    half = dataclasses.replace(given, maps=tuple(m.bfloat16() for m in given.maps))
    assert head(half).no_target.dtype == torch.float32


def test_it_learns_which_sentences_mean_nothing() -> None:
    torch.manual_seed(0)
    head = ReferringSegmentationHead.from_spec(SPEC, **SMALL, no_target=True, no_target_weight=1.0)
    given, masks = features(batch=4, expressions=2), masks_of(4, 2)
    masks[2] = 0
    optimizer = torch.optim.Adam(head.parameters(), 1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        head(given, masks).loss.backward()
        optimizer.step()
    found = head(given).no_target > 0
    assert found.tolist() == [[False, True], [False, False], [True, True], [False, False]]


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf"), True])
def test_a_bad_weight_is_named(weight: float) -> None:
    with pytest.raises(ValueError, match="no_target_weight must be a number, 0 or more"):
        build(no_target_weight=weight)


def test_prediction_empties_what_means_nothing() -> None:
    probabilities = np.full((3, 4, 5), 0.75, dtype=np.float32)
    found = Prediction.from_probabilities(probabilities, no_target=np.array([0.2, 0.51, 0.5]))
    assert found.masks.any(axis=(1, 2)).tolist() == [True, False, True]  # above, not at
    assert found.scores.tolist() == [0.75, 0, 0.75] and found.boxes[1].tolist() == [0, 0, 0, 0]
    assert np.array_equal(found.probabilities, probabilities)
    assert found.no_target is not None and found.no_target.dtype == np.float32
    assert Prediction.from_probabilities(probabilities).no_target is None


def model(no_target: bool) -> BridgedModel:
    torch.manual_seed(0)
    config = BridgerConfig.preset("paper", hidden_dim=16, num_heads=2, ffn_dim=16)
    encoder = attach_bridgers(*PAIRS["open_clip_vit"](), 2, config)
    head = {"width": 32, "num_layers": 1, "num_heads": 2, "no_target": no_target}
    built = encoder.with_head(ReferringSegmentationHead, **head)
    built.processor = Processor((32, 32), (0.5,) * 3, (0.5,) * 3, word_tokenizer(), 8)
    return built.eval()


@pytest.mark.parametrize("no_target", [True, False])
def test_saved_and_loaded(no_target: bool, tmp_path: Path) -> None:
    made = model(no_target)
    made.save_pretrained(tmp_path)
    again = BridgedModel.from_pretrained(tmp_path, *PAIRS["open_clip_vit"]())
    given = images(2, 32), ids(2)
    with torch.no_grad():
        found, expected = (m(*given).heads["head"] for m in (again, made))
    assert isinstance(found, HeadOutput) and torch.equal(found.logits, expected.logits)
    assert (found.no_target is not None) == no_target
    if no_target:
        assert torch.equal(found.no_target, expected.no_target)


def test_an_adapter_saved_before_there_was_the_option_loads(tmp_path: Path) -> None:
    made = model(False)
    made.save_pretrained(tmp_path)
    file, config = tmp_path / "bridger.safetensors", tmp_path / "bridger_config.json"

    def older(text: str) -> str:
        values = json.loads(text)
        options = values["heads"]["head"]["config"]
        assert not options.pop("no_target")
        del options["no_target_weight"]
        return json.dumps(values)

    with safe_open(file, "pt") as opened:
        metadata = {k: older(v) if "no_target" in v else v for k, v in opened.metadata().items()}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    save_file(tensors, file, metadata)
    config.write_text(older(config.read_text()))
    again = BridgedModel.from_pretrained(tmp_path, *PAIRS["open_clip_vit"]())
    with torch.no_grad():
        assert torch.equal(again(images(2, 32), ids(2)).logits, made(images(2, 32), ids(2)).logits)


def test_predict_says_what_means_nothing() -> None:
    made = model(True)
    picture = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    for bias, empty in ((9.0, True), (-9.0, False)):
        with torch.no_grad():
            made.heads["head"].no_target[-1].bias.fill_(bias)
        found = made.predict(picture, ["a dog", "a cat"], threshold=0.0)
        assert found.no_target is not None and found.no_target.shape == (2,)
        assert (found.no_target > 0.5).tolist() == [empty] * 2
        assert found.masks.any() == (not empty)
        assert found.probabilities.max() > 0
    assert model(False).predict(picture, "a dog").no_target is None
