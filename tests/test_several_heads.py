"""Several heads on one bridged encoder: what they share, and what they leave to each other."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from einops import rearrange
from helpers_towers import PAIRS, ids, pictures
from safetensors.torch import save_file
from torch import Tensor, nn

import bridger.heads.registry as registry
from bridger import BridgedModel, BridgerConfig, adapter_files, attach_bridgers
from bridger.config import Config
from bridger.features import BridgedFeatures, EncoderSpec
from bridger.heads import Head, HeadOutput, ReferringSegmentationHead, register_head
from bridger.heads.base import TextKind

SMALL = BridgerConfig.preset("paper", hidden_dim=16, num_heads=2, ffn_dim=16)
HEAD = {"width": 32, "num_layers": 1, "num_heads": 2}
MASKS = (ReferringSegmentationHead, HEAD)


@dataclass(frozen=True)
class NoisyConfig(Config):
    classes: tuple[Any, ...] = ()


class NoisyHead(Head):
    """Scores each of a picture's class names, with statistics and dropout of its own."""

    text: ClassVar[TextKind] = "classes"
    config_class = NoisyConfig

    def __init__(self, spec: EncoderSpec, config: Config) -> None:
        super().__init__(spec, config)
        self.layers = nn.Sequential(
            nn.Linear(spec.sentence_width, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1)
        )

    def forward(
        self, features: BridgedFeatures, labels: Any = None, expression_mask: Tensor | None = None
    ) -> HeadOutput:
        scores = self.layers(features.sentence.float())
        logits = rearrange(scores, "(b n) 1 -> b n", n=features.num_expressions)
        loss = None if labels is None else (logits - labels).square().mean()
        return HeadOutput(logits, loss)

    def results(self, output: HeadOutput, *others: Any) -> list[Any]:
        return output.logits.tolist()


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_HEADS", dict(registry._HEADS))
    register_head("noisy_in_tests")(NoisyHead)


def encoder(pair: str = "open_clip_resnet", trainable: Sequence[str] = (), stages: int = 2) -> Any:
    torch.manual_seed(0)
    return attach_bridgers(*PAIRS[pair](), stages, SMALL, trainable=trainable)


def build(heads: Mapping[str, Any], pair: str = "open_clip_resnet", **weights: float) -> Any:
    """A model whose heads are built after the same seed, whatever they are."""
    bridged = encoder(pair, ["positions", "statistics"] if "resnet" in pair else ["positions"])
    torch.manual_seed(1)
    return bridged.with_heads(loss_weights=weights, **heads)


PIXELS = pictures("open_clip_resnet")
EXPRESSIONS = {"input_ids": ids(2)}
CLASSES = {"input_ids": torch.stack([ids(3, seed=4), ids(3, seed=5)])}
LABELS = {
    "masks": (PIXELS[:, 0] > 0).float(),
    "classes": torch.rand(2, 3, generator=torch.Generator().manual_seed(3)),
}


def train(model: BridgedModel, inputs: Mapping[str, Any], steps: int = 4) -> list[Tensor]:
    """Take steps from the same seed; returns the losses."""
    torch.manual_seed(2)
    model.train()
    parameters = model.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    losses = []
    for _ in range(steps):
        loss = model(PIXELS, **inputs).loss
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


def same(model: BridgedModel, alone: BridgedModel) -> bool:
    """Whether all that one model saves is the same in the other."""
    expected, found = alone.adapter_state_dict(), model.adapter_state_dict()
    return all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def both_texts(labels: Sequence[str]) -> dict[str, Any]:
    texts = {"expressions": EXPRESSIONS, "classes": CLASSES}
    return {
        "texts": {name: text for name, text in texts.items() if name in labels or len(labels) > 1},
        "labels": {name: LABELS[name] for name in labels},
    }


def only(name: str) -> dict[str, Any]:
    kind = "expressions" if name == "masks" else "classes"
    text = EXPRESSIONS if name == "masks" else CLASSES
    return {"texts": {kind: text}, "labels": {name: LABELS[name]}}


HEADS: dict[str, Any] = {"masks": MASKS, "classes": NoisyHead}


@pytest.mark.parametrize("order", [("masks", "classes"), ("classes", "masks")])
@pytest.mark.parametrize("trained", ["masks", "classes"])
def test_a_head_of_weight_0_changes_no_bit_of_another_ones_training(
    order: tuple[str, ...], trained: str
) -> None:
    alone = build({trained: HEADS[trained]})
    expected = train(alone, only(trained))
    other = next(name for name in order if name != trained)
    model = build({name: HEADS[name] for name in order}, **{other: 0.0})
    resting = copy.deepcopy(model.heads[other].state_dict())
    found = train(model, both_texts(order))
    assert torch.equal(torch.stack(found), torch.stack(expected))
    assert same(model, alone)
    # What rests stays as it was built, statistics included; what trains does move.
    left = model.heads[other].state_dict()
    assert all(torch.equal(left[name], tensor) for name, tensor in resting.items())
    fresh = build({trained: HEADS[trained]})
    assert not same(model, fresh)
    # With weight 1 the other head pulls at the Bridgers, so the test can fail.
    pulled = build({name: HEADS[name] for name in order})
    train(pulled, both_texts(order))
    assert not same(pulled, alone)


def test_a_head_of_weight_0_on_the_same_text_changes_no_bit() -> None:
    alone = build({"masks": MASKS})
    labels = {"masks": LABELS["masks"], "others": 1 - LABELS["masks"]}
    expected = train(alone, {**EXPRESSIONS, "labels": labels["masks"]})
    others = (ReferringSegmentationHead, {**HEAD, "width": 64, "dropout": 0.5})
    model = build({"others": others, "masks": MASKS}, others=0)
    assert torch.equal(
        torch.stack(train(model, {**EXPRESSIONS, "labels": labels})), torch.stack(expected)
    )
    assert same(model, alone)


def test_heads_that_read_the_same_text_share_one_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    model = build({"masks": MASKS, "others": MASKS, "classes": NoisyHead}).eval()
    run = type(model.encoder).forward
    monkeypatch.setattr(
        type(model.encoder), "forward", lambda *a, **k: calls.append(a) or run(*a, **k)
    )
    with torch.no_grad():
        out = model(PIXELS, texts={"expressions": EXPRESSIONS, "classes": CLASSES})
        assert len(calls) == 2 and list(out.heads) == ["masks", "others", "classes"]
        model(PIXELS, **EXPRESSIONS)
        assert len(calls) == 3
        # A text of a head's own name is its own.
        out = model(PIXELS, texts={"others": EXPRESSIONS, "classes": CLASSES})
    assert list(out.heads) == ["others", "classes"]
    assert torch.equal(out.logits, out.heads["others"].logits)


def test_only_heads_with_labels_run_in_training() -> None:
    model = build(HEADS).train()
    texts = {"expressions": EXPRESSIONS, "classes": CLASSES}
    out = model(PIXELS, texts=texts, labels={"classes": LABELS["classes"]})
    assert list(out.heads) == ["classes"]
    assert list(model(PIXELS, texts=texts).heads) == ["masks", "classes"]
    out = model.eval()(PIXELS, texts=texts, labels={"classes": LABELS["classes"]})
    assert list(out.heads) == ["masks", "classes"] and out.heads["masks"].loss is None
    torch.testing.assert_close(out.loss, out.heads["classes"].loss)


def test_every_head_resting_and_labels_without_text_are_refused() -> None:
    model = build(HEADS, masks=0).train()
    with pytest.raises(ValueError, match=r"every head rests: .*\['masks'\].*loss_weights\["):
        model(PIXELS, texts={"expressions": EXPRESSIONS}, labels={"masks": LABELS["masks"]})
    for wrong in ([EXPRESSIONS], {"expressions": [1]}):
        with pytest.raises(TypeError, match="texts must be a dict of texts by name"):
            model(PIXELS, texts=wrong)
    with pytest.raises(ValueError, match="texts holds no text"):
        model(PIXELS, texts={})
    with pytest.raises(ValueError, match="labels for 'classes', and no text.*'expressions'"):
        model(PIXELS, texts={"expressions": EXPRESSIONS}, labels=LABELS)


def test_weights_are_set_by_name_and_checked(capsys: pytest.CaptureFixture[str]) -> None:
    model = build(HEADS, classes=0.25)
    assert dict(model.loss_weights) == {"masks": 1, "classes": 0.25}
    for wrong in (-1, float("nan"), float("inf"), True, "1"):
        with pytest.raises(ValueError, match="weight of 'masks' must be 0 or more, got"):
            model.loss_weights["masks"] = wrong
    for forget in (lambda: model.loss_weights.pop("masks"), model.loss_weights.clear):
        with pytest.raises(TypeError, match="every head has a loss weight"):
            forget()
    model.loss_weights["masks"] = np.float32(0.5)
    assert model.loss_weights["masks"] == 0.5 and type(model.loss_weights["masks"]) is float
    with pytest.raises(ValueError, match="no head is called 'mask': did you mean 'masks'"):
        model.loss_weights["mask"] = 1
    with pytest.raises(ValueError, match="no head is called 'boxes'"):
        build(HEADS, boxes=1)
    with pytest.raises(AttributeError):
        model.loss_weights = {"masks": 0}
    model.loss_weights["masks"] = 0
    assert [g["name"] for g in model.parameter_groups()] == ["bridgers", "tower_tensors", "classes"]
    model.print_trainable_parameters()
    printed = capsys.readouterr().out
    size = sum(p.numel() for p in model.heads["masks"].parameters())
    assert f"|| resting, with loss weight 0: masks on expressions {size:,} ||" in printed
    assert "classes on classes 2" in printed  # its parameters are 200 and more
    again = pickle.loads(pickle.dumps(copy.deepcopy(model.loss_weights)))
    assert dict(again) == {"masks": 0, "classes": 0.25}
    lines = model.summary().splitlines()
    assert f"head masks: referring_segmentation on expressions, {size:,}" in lines


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("peft", "groups of other parameters"),
        ("my.head", "identifier"),
        ("a-b", "identifier"),
        ("", "identifier"),
        ("keys", "ModuleDict has no use"),
        ("train", "ModuleDict has no use"),
        ("classes", "a kind of text, while it reads expressions"),
    ],
)
def test_names_that_a_head_cannot_have(name: str, words: str) -> None:
    bridged = encoder("open_clip_vit")
    with pytest.raises(ValueError, match=f"cannot be called '{name}'.*{words}"):
        bridged.with_heads(**{name: MASKS})
    model = bridged.with_heads()
    with pytest.raises(ValueError, match=f"cannot be called '{name}'"):
        model.add_head(name, ReferringSegmentationHead, **HEAD)
    assert not len(model.heads) and not model.loss_weights


def test_a_head_starts_alike_whatever_stands_beside_it() -> None:
    first = build({"masks": MASKS}, "open_clip_vit")
    second = build({"classes": NoisyHead, "masks": MASKS}, "open_clip_vit")
    third = build({"masks": MASKS, "classes": NoisyHead}, "open_clip_vit")
    assert same(second, first) and same(third, first)


def test_heads_are_added_and_dropped() -> None:
    model = build({"masks": MASKS}, "open_clip_vit").eval()
    x, words = pictures("open_clip_vit"), ids(2)
    with torch.no_grad():
        before = model(x, words).logits
    model.add_head("more", ReferringSegmentationHead, **HEAD)
    assert not model.heads["more"].training and model.loss_weights["more"] == 1
    with torch.no_grad():
        out = model(x, words)
    assert torch.equal(out.heads["masks"].logits, before) and list(out.heads) == ["masks", "more"]
    with pytest.raises(ValueError, match=r"head 'more' already; drop_head\('more'\)"):
        model.add_head("more", NoisyHead)
    with pytest.raises(TypeError, match="class of heads"):
        model.add_head("other", "referring_segmentation")
    model.drop_head("masks")
    assert list(model.heads) == list(model.loss_weights) == ["more"]
    with pytest.raises(ValueError, match="no head 'masks'; the heads are"):
        model.drop_head("masks")


# Saving.


def trained(**weights: float) -> BridgedModel:
    model = build({"masks": MASKS, "classes": (NoisyHead, {"classes": ("a", ("b", "c"))})})
    train(model, both_texts(("masks", "classes")), steps=2)
    for name, weight in weights.items():
        model.loss_weights[name] = weight
    return model.eval()


def outputs(model: BridgedModel) -> dict[str, Tensor]:
    texts = {"expressions": EXPRESSIONS, "classes": CLASSES}
    kinds = {head.text for head in model.heads.values()}
    with torch.no_grad():
        out = model(PIXELS, texts={kind: texts[kind] for kind in kinds})
    return {name: head.logits for name, head in out.heads.items()}


@pytest.mark.slow
def test_some_heads_of_an_adapter_are_loaded(tmp_path: Path) -> None:
    model = trained(classes=0.5)
    expected = outputs(model)
    model.save_pretrained(tmp_path)
    for chosen in (None, ["classes"], ["masks"], [], ["classes", "masks"]):
        again = BridgedModel.from_pretrained(tmp_path, *PAIRS["open_clip_resnet"](), heads=chosen)
        names = ["masks", "classes"] if chosen is None else sorted(chosen, reverse=True)
        assert list(again.heads) == names
        assert dict(again.loss_weights) == {n: {"masks": 1, "classes": 0.5}[n] for n in names}
        if names:
            assert all(torch.equal(t, expected[name]) for name, t in outputs(again).items())
        again.detach()
    assert model.heads["classes"].config.classes == ("a", ("b", "c"))
    for wrong in ("masks", ["mask"]):
        with pytest.raises(ValueError, match=r"list of the names in .*\['masks', 'classes'\]; got"):
            BridgedModel.from_pretrained(tmp_path, *PAIRS["open_clip_resnet"](), heads=wrong)


@pytest.mark.slow
def test_a_head_saved_alone_comes_back_to_its_bridgers(tmp_path: Path) -> None:
    model = trained(classes=0.5)
    expected = outputs(model)
    model.save_pretrained(tmp_path / "adapter", dtype=torch.float16)
    model.save_head(tmp_path / "head", "classes")
    assert sorted(path.name for path in (tmp_path / "head").iterdir()) == [
        "bridger_head.json",
        "bridger_head.safetensors",
    ]
    model.drop_head("classes")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_head(tmp_path / "head")
        assert model.loss_weights["classes"] == 0.5
        assert model.heads["classes"].config.classes == ("a", ("b", "c"))
        assert not model.heads["classes"].training
        assert torch.equal(outputs(model)["classes"], expected["classes"])
        # A second one under another name; and from an adapter that was saved in half precision.
        model.load_head(tmp_path / "head", "more")
        model.load_head(tmp_path / "adapter", "halves", saved_as="classes")
    assert torch.equal(outputs(model)["more"], expected["classes"])
    torch.testing.assert_close(outputs(model)["halves"], expected["classes"], atol=1e-2, rtol=0)
    # Added to the adapter.
    model.save_pretrained(tmp_path / "adapter")
    again = BridgedModel.from_pretrained(tmp_path / "adapter", *PAIRS["open_clip_resnet"]())
    assert list(again.heads) == ["masks", "classes", "more", "halves"]
    found = outputs(again)
    assert all(torch.equal(t, found[name]) for name, t in outputs(model).items())


@pytest.mark.slow
def test_a_head_on_other_features_is_told_of(tmp_path: Path) -> None:
    model = trained()
    model.save_pretrained(tmp_path / "adapter")
    model.save_head(tmp_path / "head", "masks")
    for folder in ("adapter", "head"):
        fresh = build({})
        with pytest.warns(UserWarning, match="'masks'.*: the Bridgers differ; train it further"):
            fresh.load_head(tmp_path / folder, saved_as="masks")
        loaded = fresh.heads["masks"].state_dict()
        assert all(torch.equal(t, loaded[k]) for k, t in model.heads["masks"].state_dict().items())
    other = build({})
    with torch.no_grad():
        for parameter in other.encoder.towers.parameters():
            parameter.mul_(1.5)
    with pytest.warns(UserWarning, match="vision tower's weights and the text .* and the Bridgers"):
        other.load_head(tmp_path / "head")


def test_a_head_at_other_stages_or_options_is_told_of(tmp_path: Path) -> None:
    def bare(stages: Any, **options: Any) -> BridgedModel:
        torch.manual_seed(0)
        towers = PAIRS["open_clip_vit"]()
        return attach_bridgers(*towers, stages, **{"config": None, **options}).with_heads()

    here = [(0, 0), (1, 1)]
    model = bare(here)
    model.add_head("masks", ReferringSegmentationHead, **MASKS[1])
    model.save_head(tmp_path, "masks")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bare(here).load_head(tmp_path)
    said = (
        r"other features than .*: stages \(here \[\[0, 0\], \[2, 1\]\], in training \[\[0, 0\], \["
    )
    with pytest.warns(UserWarning, match=said):
        bare([(0, 0), (2, 1)]).load_head(tmp_path)
    with pytest.warns(UserWarning, match=r": word_length \(here 5, in training None\) differ;"):
        bare(here, word_length=5).load_head(tmp_path)
    # Bridgers of the same numbers that read them in another way.
    model = bare(here, config=SMALL)
    model.add_head("masks", ReferringSegmentationHead, **MASKS[1])
    model.save_head(tmp_path, "masks")
    other = bare(here, config=SMALL.replace(carry="none"))
    with pytest.warns(UserWarning, match=r": carry \(here none, in training output\) differ;"):
        other.load_head(tmp_path)


def test_a_head_on_other_options_of_peft_is_told_of(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def tuned(alpha: int) -> BridgedModel:
        torch.manual_seed(0)
        vision, text = PAIRS["open_clip_vit"]()
        lora = peft.LoraConfig(r=2, lora_alpha=alpha, target_modules=["c_fc"])
        return attach_bridgers(peft.get_peft_model(vision, lora), text, 2, None).with_heads()

    model = tuned(16)
    model.add_head("masks", ReferringSegmentationHead, **HEAD)
    model.save_pretrained(tmp_path / "adapter")
    model.save_head(tmp_path / "head", "masks")
    towers = PAIRS["open_clip_vit"]()
    again = BridgedModel.from_pretrained(tmp_path / "adapter", *towers, heads=[])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.load_head(tmp_path / "head")
        tuned(16).load_head(tmp_path / "head")
    with pytest.warns(UserWarning, match=r": the options of peft's layers differ;"):
        tuned(4).load_head(tmp_path / "head")


def test_what_cannot_be_loaded_is_named_and_leaves_the_model(tmp_path: Path) -> None:
    model = trained()
    model.save_pretrained(tmp_path / "adapter")
    model.save_head(tmp_path / "head", "masks")
    with pytest.raises(ValueError, match="head 'masks' already"):
        model.load_head(tmp_path / "head")
    with pytest.raises(ValueError, match=r"holds the heads \['masks', 'classes'\]; pass saved_as="):
        model.load_head(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"holds the heads \['masks'\]; pass saved_as="):
        model.load_head(tmp_path / "head", saved_as="classes")
    with pytest.raises(FileNotFoundError, match=r"holds no head: expected bridger_head\.safe"):
        model.load_head(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no adapter: expected bridger\.safetensors"):
        BridgedModel.from_pretrained(tmp_path / "head", *PAIRS["open_clip_resnet"]())
    with pytest.raises(NotADirectoryError, match="is a file"):
        model.save_head(tmp_path / "head" / "bridger_head.json", "masks")
    with pytest.raises(ValueError, match="no head 'boxes'; the heads are"):
        model.save_head(tmp_path / "head", "boxes")
    for folder in ("adapter", "head"):
        other = encoder("open_clip_vit").with_heads()
        with pytest.raises(ValueError, match="another kind of encoder:\n  map_widths is") as error:
            other.load_head(tmp_path / folder, saved_as="masks")
        assert "map_strides is [8, 8], the head was built for [8, 32]" in str(error.value)
        assert not len(other.heads)
    three = encoder(stages=3).with_heads()
    with pytest.raises(ValueError, match="another kind of encoder"):
        three.load_head(tmp_path / "head")


def test_an_adapter_of_an_older_version_still_loads_and_gives_its_head(tmp_path: Path) -> None:
    model = trained()
    model.save_pretrained(tmp_path)
    config, tensors = adapter_files.read(tmp_path)
    del config["encoder"]["spec"]
    file = tmp_path / "bridger.safetensors"
    save_file(tensors, file, metadata={"bridger_config": json.dumps(config)})
    (tmp_path / "bridger_config.json").write_text(json.dumps(config))
    again = BridgedModel.from_pretrained(tmp_path, *PAIRS["open_clip_resnet"](), heads=[])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.load_head(tmp_path, saved_as="masks")
    assert torch.equal(outputs(again)["masks"], outputs(model)["masks"])
