"""Several adapters on one pair of towers, some of which bring layers of peft."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_adapters import MASKS, SMALL, answers, changed, equal, numbers, saved
from helpers_conformance import trace
from helpers_towers import PAIRS, ids, images, open_clip_vit
from torch import Tensor, nn

from bridger import BridgedModel, attach_bridgers
from bridger.towers.base import is_layer

peft: Any = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:Unsupported layer type")


def bert_pair() -> tuple[nn.Module, nn.Module]:
    from transformers import BertConfig, BertModel

    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(0)
    text = BertModel(BertConfig(**size, intermediate_size=32, vocab_size=64))
    return open_clip_vit().visual, text.eval()


def lora(*targets: str, **options: Any) -> Any:
    return peft.LoraConfig(target_modules=list(targets), r=4, **options)


def prompts() -> Any:
    return peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=2)


CASES: dict[str, tuple[Callable[[], Any], str, Callable[[], Any]]] = {
    "LoRA in feed-forwards": (PAIRS["open_clip_vit"], "vision", lambda: lora("c_fc", "c_proj")),
    "LoRA in torch's attention": (PAIRS["open_clip_vit"], "vision", lambda: lora("attn")),
    "LoRA in a text tower": (PAIRS["hf_clip_projection"], "text", lambda: lora("q_proj", "fc1")),
    "LN-tuning": (
        PAIRS["open_clip_vit"],
        "vision",
        lambda: peft.LNTuningConfig(target_modules=["ln_1", "ln_2"]),
    ),
    "VeRA": (
        PAIRS["open_clip_vit"],
        "text",
        lambda: peft.VeraConfig(target_modules=["c_fc", "c_proj"], r=8),
    ),
    "LoRA and a whole layer": (
        bert_pair,
        "text",
        lambda: lora("query", modules_to_save=["pooler"]),
    ),
    "virtual tokens": (bert_pair, "text", prompts),
}


class Tuned:
    """Folders of one adapter without peft and two with, for the same towers."""

    def __init__(self, case: str, folder: Path) -> None:
        self.build, self.side, self.config = CASES[case]
        self.folders = {name: folder / name for name in ("plain", "tuned", "more")}
        for seed, name in enumerate(self.folders):
            torch.manual_seed(seed)
            towers = dict(zip(("vision", "text"), self.build(), strict=True))
            if name != "plain":
                towers[self.side] = peft.get_peft_model(towers[self.side], self.config())
            encoder = attach_bridgers(towers["vision"], towers["text"], 2, SMALL)
            model = changed(encoder.with_heads(masks=MASKS), seed)
            model.save_pretrained(self.folders[name])

    def load(self, name: str) -> BridgedModel:
        """Load one adapter onto fresh towers."""
        return BridgedModel.from_pretrained(self.folders[name], *self.build())


@pytest.fixture(params=sorted(CASES))
def tuned(request: pytest.FixtureRequest, tmp_path: Path) -> Tuned:
    return Tuned(request.param, tmp_path)


@pytest.mark.slow
def test_layers_act_with_their_adapter_alone(tuned: Tuned) -> None:
    expected = {name: answers(tuned.load(name)) for name in tuned.folders}
    saved_as = {name: numbers(tuned.load(name)) for name in tuned.folders}
    vision, text = tuned.build()
    before = trace(vision), trace(text)
    model = BridgedModel.from_pretrained(tuned.folders["tuned"], vision, text)
    for name in ("plain", "more"):
        model.load_adapter(name, tuned.folders[name])
    names = {"default": "tuned", "plain": "plain", "more": "more"}
    for name in ("plain", "more", "default", "plain", "default", "more", "plain"):
        model.set_adapter(name)
        for _ in range(2):  # peft rounds anew what it writes into torch's attention
            found = answers(model)
        trained = set(model.trainable_parameters())
        towers = [p for tower in (vision, text) for p in tower.parameters()]
        assert not [p for p in towers if p.requires_grad and p not in trained]
        close = equal if "attn" not in repr(tuned.config()) else nearly
        assert close(found, expected[names[name]]), name
        assert equal(numbers(model), saved_as[names[name]])
        layers = [module for tower in (vision, text) for module in tower.modules()]
        brings = name != "plain" and not tuned.config().is_prompt_learning
        assert any(map(is_layer, layers)) == brings
    assert equal(answers(model), expected["plain"])  # nothing is left in the towers
    model.delete_adapter("default")
    assert equal(answers(model), expected["plain"])
    model.set_adapter("more")
    assert nearly(answers(model), expected["more"])
    model.delete_adapter("plain")
    model.detach()
    assert (trace(vision), trace(text)) == before


def nearly(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return all(torch.allclose(found[name], expected[name], atol=1e-4) for name in expected)


def test_towers_called_alone_are_plain_while_a_plain_adapter_acts(tmp_path: Path) -> None:
    tuned = Tuned("LoRA in feed-forwards", tmp_path)
    vision, text = tuned.build()
    text.requires_grad_(False)  # torch's attention takes other kernels for what may be trained
    with torch.no_grad():
        own = vision(images(2)), text.encode_text(ids(2))
        model = BridgedModel.from_pretrained(tuned.folders["tuned"], vision, text)
        model.load_adapter("plain", tuned.folders["plain"])
        assert not torch.equal(vision(images(2)), own[0])
        model.set_adapter("plain")
        assert torch.equal(vision(images(2)), own[0])
        assert torch.equal(text.encode_text(ids(2)), own[1])


def test_layers_of_an_adapter_that_rests_are_not_trained(tuned: Tuned) -> None:
    model = tuned.load("tuned")
    model.load_adapter("more", tuned.folders["more"])
    first = numbers(model)
    model.set_adapter("more")
    second = numbers(model)
    optimizer = torch.optim.SGD(model.train().trainable_parameters(), lr=0.1)
    model(images(2), ids(2), labels=torch.ones(2, 32, 32)).loss.backward()
    optimizer.step()
    peft_part = [name for name in second if name.startswith("peft.")]
    assert peft_part and any(not torch.equal(numbers(model)[k], second[k]) for k in peft_part)
    model.set_adapter("default")
    assert equal(numbers(model), first)


def test_layers_follow_the_model_at_hand(tuned: Tuned) -> None:
    model = tuned.load("tuned")
    model.load_adapter("plain", tuned.folders["plain"])
    model.set_adapter("plain")
    model.bfloat16()  # the towers alone
    expected = answers(tuned.load("tuned").bfloat16())
    model.train()
    model.set_adapter("default")
    assert equal(answers(model.eval()), expected)
    model.train()
    model.set_adapter("plain")
    model.to(torch.float64)
    model.set_adapter("default")
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_a_copy_keeps_its_layers(tuned: Tuned) -> None:
    model = tuned.load("tuned")
    expected = answers(model)
    model.load_adapter("plain", tuned.folders["plain"])
    model.set_adapter("plain")
    twin = copy.deepcopy(model)
    model.detach()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    twin.set_adapter("default")
    assert nearly(answers(twin), expected)


# What is refused.


def test_layers_that_the_user_put_there(tmp_path: Path) -> None:
    clip = open_clip_vit()
    wrapped = peft.get_peft_model(clip.visual, lora("c_fc"))
    model = attach_bridgers(wrapped, clip, 2, SMALL).with_heads(masks=MASKS).eval()
    expected = answers(model)
    with pytest.raises(ValueError, match="act for every adapter: save this one, and load"):
        model.load_adapter("other", saved(tmp_path, 1))
    assert equal(answers(model), expected)
    fresh = BridgedModel.from_pretrained(tmp_path / "1", *PAIRS["open_clip_vit"]())
    fresh.load_adapter("other", tmp_path / "1")
    peft.get_peft_model(fresh.encoder.vision.module, lora("c_fc"))
    with pytest.raises(ValueError, match="act for every adapter"):
        fresh.set_adapter("other")
    assert fresh.active_adapter == "default"


def test_averages_and_merges_of_layers(tuned: Tuned) -> None:
    model = tuned.load("tuned")
    for name in ("plain", "more"):
        model.load_adapter(name, tuned.folders[name])
    for names in (["default", "more"], ["plain", "more"]):
        with pytest.raises(ValueError, match=r"layers of peft cannot be averaged, and \['(d|m)"):
            model.add_weighted_adapter(names, [1, 1], "mean")
    model.add_weighted_adapter(["plain", "plain"], [1, 1], "mean")
    expected = answers(tuned.load("plain"))
    model.set_adapter("mean")
    assert equal(answers(model), expected)
    model.set_adapter("default")
    with pytest.raises(ValueError, match=r"change the towers of the adapters .*delete them first"):
        model.merge_peft()
    if tuned.config().is_prompt_learning:
        return
    with pytest.raises(ValueError, match="other encoders are attached to the towers"):
        model.encoder.merge_peft()
    acting = answers(model)
    for name in ("plain", "more", "mean"):
        model.delete_adapter(name)
    model.encoder.merge_peft()
    assert nearly(answers(model), acting)
    assert not any(map(is_layer, model.encoder.towers.modules()))


def test_what_others_stand_on_is_not_merged(tmp_path: Path) -> None:
    tuned = Tuned("LoRA in a text tower", tmp_path)
    vision, text = tuned.build()
    model = BridgedModel.from_pretrained(tuned.folders["tuned"], vision, text)
    other = attach_bridgers(vision, text, 2, SMALL)
    with pytest.raises(ValueError, match="other encoders are attached .* detach them first"):
        model.merge_peft()
    other.detach()
    beside = attach_bridgers(vision, tuned.build()[1], 2, SMALL)  # shares no layers of peft
    model.merge_peft()
    beside.detach()
