"""Towers that no family knows: invented ones, and known ones taken the same way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from helpers_generic import (
    WIDTH,
    ChannelsLast,
    Encoder,
    FixedPatches,
    NamedWords,
    Overlapping,
    Patches,
    Recurrent,
    Resizing,
    Shuffled,
    Stages,
    TwoBranches,
    Words,
    build,
)
from helpers_towers import (
    CONTEXT,
    VOCAB,
    Watch,
    fill,
    hf_clip,
    hf_text,
    hf_vision,
    ids,
    images,
    open_clip_resnet,
    open_clip_vit,
)
from torch import Tensor, nn

import bridger
from bridger import (
    BridgedModel,
    BridgerConfig,
    attach_bridgers,
    generic_text,
    generic_vision,
    register_tower,
)
from bridger.heads import ReferringSegmentationHead
from bridger.towers import (
    TokenVisionTower,
    find_text_tower,
    find_vision_tower,
    registered_towers,
    registry,
)

SMALL = BridgerConfig.preset("paper", hidden_dim=16, num_heads=2, ffn_dim=16)
HEAD = {"width": 32, "num_layers": 1, "num_heads": 2}

Make = Callable[[], Any]

# Module, and what is to be found: blocks, layout, strides, prefix, the one size that it takes.
VISION: dict[str, tuple[Make, Any, str, list[int], int | None, tuple[int, int] | None]] = {
    "registers": (lambda: build(Patches), "layers.", "b l c", [8] * 4, 3, None),
    "tuples": (lambda: build(Patches, wrap=True), "layers.", "b l c", [8] * 4, 3, None),
    "linear": (lambda: build(Patches, linear=True), "layers.", "b l c", [8] * 4, 3, None),
    "two_layers": (lambda: build(Patches, layers=2), "layers.", "b l c", [8] * 2, 3, None),
    "fixed": (lambda: build(FixedPatches), "layers.", "b l c", [8] * 4, 1, (32, 32)),
    "resizing": (lambda: build(Resizing), "layers.", "b l c", [8] * 4, 1, (32, 32)),
    "stem": (lambda: build(Overlapping), "layers.", "b l c", [8] * 4, 0, None),
    "batch_second": (lambda: build(Encoder), "inner.layers.", "l b c", [16] * 3, 0, None),
    "stages": (lambda: build(Stages), ("one", "two", "three"), "b c h w", [4, 8, 16], None, None),
    "last": (lambda: build(ChannelsLast), "blocks.", "b h w c", [8, 8, 16, 16], None, None),
}
TEXT: dict[str, Make] = {
    "batch_first": lambda: build(Words),
    "batch_second": lambda: build(Words, batch_first=False),
    "named": lambda: build(NamedWords),
    "unmasked": lambda: build(NamedWords, masked=False),
}
ALL = [*((kind, "named") for kind in VISION), *(("registers", kind) for kind in TEXT)]


def size_of(kind: str) -> tuple[int, int]:
    return VISION[kind][5] or (32, 48)


def pair(vision: str, text: str) -> tuple[Any, Any]:
    return VISION[vision][0](), TEXT[text]()


def randomise(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    registered_towers("vision")
    monkeypatch.setattr(registry, "_families", {k: list(v) for k, v in registry._families.items()})


# What is found.


@pytest.mark.parametrize("kind", VISION)
def test_blocks_layout_and_prefix_of_a_vision_tower_are_found(kind: str) -> None:
    make, name, layout, strides, prefix, size = VISION[kind]
    module = make()
    tower = find_vision_tower(module)
    found = tower.describe()
    assert all(block.name.startswith(name) for block in tower.blocks)
    assert [module.get_submodule(b.name) for b in tower.blocks] == [b.module for b in tower.blocks]
    assert (found["library"], found["class"]) == ("generic", type(module).__name__)
    assert (found["layout"], found["strides"]) == (layout, strides)
    assert found["prefix"] == prefix and tower.image_size == size
    assert tower.pooled_width == (32 if kind == "stages" else WIDTH)


@pytest.mark.parametrize("kind", TEXT)
def test_blocks_and_masks_of_a_text_tower_are_found(kind: str) -> None:
    tower = find_text_tower(TEXT[kind]())
    found = tower.describe()
    assert (len(tower.blocks), tower.max_length, tower.vocab_size) == (4, CONTEXT, VOCAB)
    assert found["layout"] == ("l b c" if kind == "batch_second" else "b l c")
    masks = {"named": "attention_mask", "unmasked": None}
    assert found["mask"] == masks.get(kind, "src_key_padding_mask")
    assert found["fixed_length"] == (kind == "unmasked")


KNOWN: dict[str, Make] = {
    "open_clip_vit": lambda: open_clip_vit().visual,
    "open_clip_resnet": lambda: open_clip_resnet().visual,
    "hf_clip": lambda: hf_vision(),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_known_vision_towers_look_the_same_without_their_family(kind: str) -> None:
    module = KNOWN[kind]()
    family, generic = find_vision_tower(module), generic_vision(module)
    assert type(family).library != "generic" and family.blocks == generic.blocks
    assert (family.image_size, family.pooled_width) == (generic.image_size, generic.pooled_width)
    assert getattr(family, "prefix", None) == getattr(generic, "prefix", None)
    pictures = images(2, *(family.image_size or ()))
    with Watch(family) as states:
        result = family.call(pictures, {})
    assert torch.equal(family.pooled(result), generic.pooled(result))  # type: ignore[arg-type]
    size = (pictures.shape[2], pictures.shape[3])
    for index, state in enumerate(states):
        assert torch.equal(
            family.read_map(index, state, size), generic.read_map(index, state, size)
        )


def test_a_known_text_tower_looks_the_same_without_its_family() -> None:
    module = hf_text()
    family, generic = find_text_tower(module), generic_text(module)
    assert family.blocks == generic.blocks
    for name in ("max_length", "vocab_size", "sentence_width", "token_width"):
        assert getattr(family, name) == getattr(generic, name)


def test_towers_of_timm_torchvision_and_bert_are_found() -> None:
    import timm
    import torchvision
    from transformers import BertConfig, BertModel

    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=48, depth=4, num_heads=3)
    tower: Any = generic_vision(vit)
    assert [b.name for b in tower.blocks] == [f"blocks.{i}" for i in range(4)]
    assert (tower.patch, tower.prefix, tower.image_size) == (16, 1, (64, 64))
    resnet = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    stages = generic_vision(resnet).blocks
    assert [b.name for b in stages] == ["layer1", "layer2", "layer3", "layer4"]
    assert [b.stride for b in stages] == [4, 8, 16, 32]
    sizes = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
    text = generic_text(BertModel(BertConfig(vocab_size=VOCAB, **sizes)))
    assert [b.name for b in text.blocks] == [f"encoder.layer.{i}" for i in range(3)]
    assert (text.max_length, text.describe()["mask"]) == (512, "attention_mask")


# What is read and written, against the same blocks by hand.


@pytest.mark.parametrize("wrap", [False, True])
def test_a_state_written_goes_on_as_in_a_loop_over_the_blocks(wrap: bool) -> None:
    module = build(Patches, wrap=wrap)
    tower = find_vision_tower(module)
    pictures, added = images(2, 32, 48), torch.randn(2, WIDTH, 4, 6)

    def replace(index: int, output: Any) -> Any:
        if index != 1:
            return None
        return tower.write_map(1, output, tower.read_map(1, output, (32, 48)) + added)

    with Watch(tower, replace):
        found = tower.pooled(tower.call(pictures, {}))
    x = module.tokens(pictures)
    for index, layer in enumerate(module.layers):
        x = layer(x)[0] if wrap else layer(x)
        if index == 1:
            x[:, 3:] += added.permute(0, 2, 3, 1).reshape(2, 24, WIDTH)
    torch.testing.assert_close(found, module.norm(x.mean(dim=1)))


@pytest.mark.parametrize("kind", VISION)
def test_maps_keep_their_place_in_the_picture(kind: str) -> None:
    """What is changed in one corner shows up in that corner of the first map, more than else."""
    tower = find_vision_tower(VISION[kind][0]())
    height, width = size_of(kind)
    height, width = (height, width) if VISION[kind][5] else (64, 96)
    stride = tower.blocks[0].stride or 0
    pictures = images(1, height, width).repeat(2, 1, 1, 1)
    pictures[1, :, :stride, -stride:] += 3
    with Watch(tower) as states:
        tower.call(pictures, {})
    first = tower.read_map(0, states[0], (height, width))
    assert first.shape == (2, WIDTH, height // stride, width // stride)
    if kind == "batch_second":  # its first layer carries a change all over the picture
        by_hand = rearrange(states[0], "(h w) b c -> b c h w", h=height // stride)
        assert torch.equal(first, by_hand)
    else:
        changed = (first[1] - first[0]).abs().sum(dim=0)
        row, column = divmod(int(changed.argmax()), changed.shape[1])
        assert row <= 1 and column == changed.shape[1] - 1
    copied = tower.write_map(0, states[0], first)
    assert torch.equal(tower.read_map(0, copied, (height, width)), first)
    grown = tower.write_map(0, states[0], first.repeat_interleave(3, dim=0))
    again = tower.read_map(0, grown, (height, width))
    assert torch.equal(again, first.repeat_interleave(3, dim=0))


@pytest.mark.parametrize("kind", ["batch_first", "batch_second"])
def test_tokens_are_those_of_a_loop_over_the_layers(kind: str) -> None:
    module = TEXT[kind]()
    tower = find_text_tower(module)
    words, mask = tower.prepare(ids())
    with Watch(tower) as states:
        result = tower.call(words, mask, {})
    x = module.embed(words) + module.positions[: words.shape[1]]
    for index, layer in enumerate(module.inner.layers):
        turned = x if kind == "batch_first" else x.transpose(0, 1)
        turned = layer(turned, src_key_padding_mask=~mask)
        x = turned if kind == "batch_first" else turned.transpose(0, 1)
        read = tower.read_tokens(index, states[index])
        torch.testing.assert_close(read[mask], x[mask])
        assert torch.equal(
            tower.read_tokens(index, tower.write_tokens(index, states[index], read)), read
        )
    tokens = tower.tokens(read, result, {})
    mean = torch.stack([row[real].mean(dim=0) for row, real in zip(x, mask, strict=True)])
    torch.testing.assert_close(tower.sentence(tokens, words, result), mean)


# Attached.


@pytest.mark.parametrize(("vision", "text"), ALL)
def test_fresh_bridgers_change_nothing_and_gradients_reach_all(vision: str, text: str) -> None:
    image_tower, text_tower = pair(vision, text)
    pictures, words = images(2, *size_of(vision)), torch.stack([ids(3), ids(3, seed=1)])
    plain = image_tower(pictures)
    plain = plain["pooler_output"] if isinstance(plain, dict) else plain
    encoder = attach_bridgers(image_tower, text_tower, 2, SMALL)
    with torch.no_grad():
        features = encoder(pictures, words)
        with encoder.disable():
            off = encoder(pictures, words)
    torch.testing.assert_close(features.pooled, plain.repeat_interleave(3, dim=0))
    torch.testing.assert_close(features.pooled, off.pooled)
    torch.testing.assert_close(features.sentence, off.sentence)
    assert features.maps[-1].shape[:2] == (6, encoder.spec.map_widths[-1])
    assert encoder.bridgers is not None
    randomise(encoder.bridgers)
    features = encoder(pictures, words)
    assert not torch.allclose(features.sentence, off.sentence)
    assert not torch.allclose(features.pooled, off.pooled)
    parts = (*features.maps, features.tokens, features.sentence, features.pooled)
    torch.stack([part.square().mean() for part in parts]).sum().backward()
    assert not [n for n, p in encoder.bridgers.named_parameters() if p.grad is None]


@pytest.mark.parametrize("text", TEXT)
def test_what_a_text_says_does_not_depend_on_its_batch(text: str) -> None:
    encoder = attach_bridgers(*pair("registers", text), 2, SMALL)
    randomise(encoder.bridgers)  # type: ignore[arg-type]
    words = ids(2)
    with torch.no_grad():
        encoder.eval()
        both = encoder(images(2, 32, 48), words)
        alone = encoder(images(2, 32, 48)[1:], words[1:, :5])
    torch.testing.assert_close(both.sentence[1:], alone.sentence)
    torch.testing.assert_close(both.tokens[1:, :5], alone.tokens[:, :5])


def test_sizes_that_a_tower_is_not_known_to_take_are_refused() -> None:
    encoder = attach_bridgers(*pair("fixed", "named"), 2, SMALL)
    with pytest.raises(ValueError, match=r"known to take pictures of 32 x 32.*found 32 x 48"):
        encoder(images(2, 32, 48), ids())


# What is left behind.


def everything(module: nn.Module) -> list[Any]:
    state: list[Any] = [torch.get_rng_state().tolist()]
    for below in module.modules():
        plain = {k: v for k, v in below.__dict__.items() if not isinstance(v, dict)}
        hooks = [len(v) for k, v in below.__dict__.items() if "hooks" in k]
        tensors = [*below._parameters.values(), *below._buffers.values()]
        state.append((below, plain, hooks, [t is not None and t._version for t in tensors]))
        state.append([t is not None and t.requires_grad for t in tensors])
    return state


class Remembering(Stages):
    """Notes the last size, draws random numbers even in eval mode, and keeps a buffer."""

    size: Any = None

    def forward(self, pictures: Tensor) -> Tensor:
        self.size, self.seen = pictures.shape, True
        self.register_buffer("noise", torch.rand(1))
        return super().forward(pictures)


@pytest.mark.parametrize("kind", [Patches, Stages, Remembering, TwoBranches, Recurrent, Words])
def test_nothing_is_left_on_a_module_found_or_refused(kind: type[nn.Module]) -> None:
    module = build(kind).train()
    next(module.children()).eval()
    before = everything(module)
    found = []
    for find in (generic_vision, generic_text):
        try:
            found.append(find(module))
        except (TypeError, ValueError):
            pass
        assert everything(module) == before
    assert len(found) == (0 if kind in (TwoBranches, Recurrent) else 1)


# What the user says.


def test_an_ambiguous_tower_lists_its_candidates_and_blocks_decides() -> None:
    module = build(TwoBranches)
    with pytest.raises(ValueError, match="ambiguous; the argument `blocks`") as raised:
        attach_bridgers(module, build(NamedWords), 2, SMALL)
    assert "blocks='left.layers': 3 x Layer, states (3, 99, 16)" in str(raised.value)
    assert "blocks='right.layers': 3 x Layer, states (3, 96, 16)" in str(raised.value)
    # The left branch has registers; the convolution nearest to a branch is its own.
    left = generic_vision(module, blocks="left.layers")
    right = generic_vision(module, blocks=["right.layers.0", "right.layers.2"])
    assert isinstance(left, TokenVisionTower) and isinstance(right, TokenVisionTower)
    assert (left.prefix, right.prefix, len(right.blocks)) == (3, 0, 2)
    encoder = attach_bridgers(right, generic_text(build(NamedWords)), 2, SMALL)
    assert encoder(images(2, 32, 48), ids()).maps[0].shape == (2, WIDTH, 4, 6)


class Square(nn.Module):
    """A block that keeps its map's size."""

    def __init__(self, width: int = WIDTH, outer: int = WIDTH) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, outer, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mix(x).tanh()
        return mixed


class Broken(nn.Module):
    """A CNN whose pool, between its stages, breaks the chain of its blocks."""

    def __init__(self, *late: nn.Module, cells: int | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 4, 4)
        self.early = nn.Sequential(*(Square() for _ in range(3)))
        self.pool = nn.MaxPool2d(2) if cells is None else nn.AdaptiveMaxPool2d(cells)
        self.late = nn.Sequential(*late) if len(late) > 1 else late[0]

    def forward(self, pictures: Tensor) -> Tensor:
        pooled: Tensor = self.late(self.pool(self.early(self.stem(pictures)))).mean((2, 3))
        return pooled


@pytest.mark.parametrize(
    "late",
    [
        lambda: (Square(), Square()),  # GoogLeNet's last stage
        lambda: (Square(),),
        lambda: (nn.Sequential(nn.Conv2d(WIDTH, 4 * WIDTH, 3, 1, 1), nn.ReLU()),),  # another class
    ],
)
def test_a_chain_that_leaves_out_the_towers_end_is_ambiguous(late: Any) -> None:
    module = fill(Broken(*late()))
    with pytest.raises(ValueError, match="ambiguous; the argument `blocks`") as raised:
        find_vision_tower(module)
    whole, early, *_ = str(raised.value).splitlines()[1:]
    assert "'late" in whole and "(3, 16, 16, 24)" in whole
    assert "blocks='early': 3 x Square, states (3, 16, 16, 24)" in early
    names = whole[whole.index("[") + 1 : whole.index("]")].replace("'", "").split(", ")
    tower = generic_vision(module, blocks=names)
    assert tower.blocks[-1].stride == 8 and [b.stride for b in tower.blocks[:3]] == [4, 4, 4]


@pytest.mark.parametrize(
    "late",
    [
        lambda: Broken(Square(), cells=1),  # a head, on a pooled cell
        lambda: Broken(nn.Sequential(nn.Conv2d(WIDTH, 8, 1), nn.ReLU())),  # a thin neck
        lambda: Broken(nn.BatchNorm2d(WIDTH)),
    ],
)
def test_a_head_or_a_thin_neck_is_not_taken_for_the_towers_end(late: Any) -> None:
    tower = find_vision_tower(fill(late()))
    assert [block.name for block in tower.blocks] == ["early.0", "early.1", "early.2"]


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (Patches, {"blocks": "layer"}, r"no module 'layer'.*lists of modules in it: \['layers'\]"),
        (Patches, {"blocks": ["layers.1", "layers.0"]}, r"order.*'layers.0', 'layers.1'"),
        (Patches, {"blocks": ["layers.0", "layers.9"]}, "no module 'layers.9'"),
        (Patches, {"blocks": []}, "names no module"),
        (Patches, {"layout": "tokens"}, r"layout must be one of \['b c h w'"),
        (Patches, {"layout": "b c h w"}, "none of the layouts.*`layout` decides"),
        (Patches, {"patch": 16, "prefix": 1}, "not 1 and 4.6 patches.*`patch` and `prefix` decide"),
        (Patches, {"image_size": 32, "prefix": 2}, "19 tokens.*not 2 and 4.4 patches"),
        (Recurrent, {"blocks": ["layer"]}, "ran 3 times in a trial forward.*name other blocks"),
        (Shuffled, {}, "99 tokens.*`patch` .pixels per patch. decides"),
        (Shuffled, {"patch": 8}, "row 0, column 11 of 8 x 12 shows up in tokens.*another order"),
        (Stages, {"blocks": ["one", "one.0"]}, "order"),
    ],
)
def test_what_does_not_hold_is_said(kind: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){words}"):
        generic_vision(build(kind), **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layout": "b h w c"}, r"layout must be one of \['b l c', 'l b c'\]"),
        ({"layout": "l b c"}, r"does not fit: states are \(2, 7, 16\), 'b l c'"),
        ({"blocks": "embed"}, "names no module"),
    ],
)
def test_what_does_not_hold_of_a_text_tower_is_said(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        generic_text(build(NamedWords), **options)


def test_a_text_tower_without_mask_or_limit_needs_one() -> None:
    module = build(NamedWords, masked=False)
    module.place = nn.Identity()  # positions no longer say how long a text may be
    module.place.forward = lambda x: 0.0  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="padding changes what.*`max_length` decides"):
        generic_text(module)
    assert generic_text(module, max_length=9).describe()["fixed_length"]


@pytest.mark.parametrize("length", [7, 12])
def test_a_text_tower_of_one_length_gets_its_texts_padded(length: int) -> None:
    module = build(NamedWords)
    module.place = nn.Embedding(length, WIDTH)
    rows = torch.arange(length)
    module.place.register_forward_pre_hook(lambda _, args: (rows + 0 * args[0].sum(),))
    tower = generic_text(module)
    assert (tower.max_length, tower.describe()["fixed_length"]) == (length, True)
    assert tower.prepare(ids(2, 6))[0].shape == (2, length)


# What is no tower of that side.


def test_towers_on_the_wrong_side_are_refused() -> None:
    words = build(NamedWords)
    with pytest.raises(TypeError, match="expected a vision tower, found the text tower .*NamedW"):
        attach_bridgers(words, words)
    with pytest.raises(TypeError, match="expected a text tower, found the vision tower .*Patches"):
        attach_bridgers(build(Patches), build(Patches))
    with pytest.raises(TypeError, match="expected a text tower, found the vision tower generic"):
        attach_bridgers(build(Patches), generic_vision(build(Patches)))  # type: ignore[arg-type]


def test_a_layer_that_runs_several_times_is_named() -> None:
    with pytest.raises(TypeError, match=r"no chain of blocks.*more than once.*layer \(3 times\)"):
        attach_bridgers(build(Recurrent), build(NamedWords))


class Leaves(nn.Module):
    """A CNN of nothing but leaves, as VGG is."""

    def __init__(self) -> None:
        super().__init__()
        convs = [nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, WIDTH, 3, 2, 1), nn.ReLU()]
        self.features = nn.Sequential(*convs)

    def forward(self, pictures: Tensor) -> Tensor:
        pooled: Tensor = self.features(pictures).mean((2, 3))
        return pooled


class LoneWords(nn.Module):
    """A text encoder whose parts are kept by kind, as XLM's are; `turned` states have no layout."""

    def __init__(self, turned: bool = False) -> None:
        super().__init__()
        self.turned = turned
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH)) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for mlp, norm in zip(self.mlps, self.norms, strict=True):
            x = x[None] if self.turned else x
            x = norm(x + mlp(x))
            x = x[0] if self.turned else x
        mean: Tensor = x.mean(dim=1)
        return mean


def test_where_no_chain_is_found_what_was_seen_is_listed() -> None:
    with pytest.raises(TypeError, match="return what could be a state") as raised:
        find_vision_tower(fill(Leaves()))
    listed = (
        "blocks=['features.0', 'features.2']: 2 x Conv2d, states (3, 8, 16, 24), (3, 16, 8, 12)"
    )
    assert listed in str(raised.value)
    assert len(generic_vision(fill(Leaves()), blocks=["features.0", "features.2"]).blocks) == 2
    with pytest.raises(TypeError, match="return what could be a state") as raised:
        find_text_tower(fill(LoneWords()))
    first, second = str(raised.value).splitlines()[1:]  # those with most parameters first
    assert first.strip() == "blocks='mlps': 3 x Sequential, states (2, 7, 16)"
    assert second.strip() == "blocks='norms': 3 x LayerNorm, states (2, 7, 16)"
    with pytest.raises(TypeError, match=r"(?s)Nothing that runs for every block .*\(1, 2, 7, 16\)"):
        find_text_tower(fill(LoneWords(turned=True)))


@pytest.mark.parametrize("module", [nn.Linear(96, 4), nn.Conv2d(3, 4, 1), nn.Identity()])
def test_what_is_no_encoder_is_refused(module: nn.Module) -> None:
    with pytest.raises(TypeError, match="no vision tower is known .*As an unknown tower"):
        attach_bridgers(module, build(NamedWords))


def test_generative_language_models_are_refused() -> None:
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

    gpt = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=VOCAB))
    with pytest.raises(TypeError, match="GPT2LM.*is a decoder.*expected an encoder"):
        attach_bridgers(build(Patches), gpt)
    sizes = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
    bert = BertForMaskedLM(BertConfig(vocab_size=VOCAB, **sizes))
    with pytest.raises(TypeError, match="64 numbers a token.*pass the encoder inside it"):
        generic_text(bert)


# Saved and loaded.


def model_of(vision: Any, text: Any) -> BridgedModel:
    encoder = attach_bridgers(vision, text, 2, SMALL, trainable="text.*norm.weight")
    model = encoder.with_head(ReferringSegmentationHead, **HEAD)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.trainable_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("said", [False, True])
def test_an_adapter_comes_back_on_the_bare_modules(said: bool, tmp_path: Path) -> None:
    kind = TwoBranches if said else Patches
    vision = generic_vision(build(kind), blocks="left.layers") if said else build(kind)
    model = model_of(vision, build(NamedWords))
    batch = images(2, 32, 48), ids(2)
    with torch.no_grad():
        expected = model(*batch).logits
    model.save_pretrained(tmp_path)
    again = BridgedModel.from_pretrained(tmp_path, build(kind), build(NamedWords))
    with torch.no_grad():
        assert torch.equal(again(*batch).logits, expected)
        assert torch.equal(copy.deepcopy(again)(*batch).logits, expected)


def test_an_adapter_is_not_put_on_another_tower(tmp_path: Path) -> None:
    model_of(build(Patches), build(NamedWords)).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="made for another Patches than the vision tower.*96 tokens.*not 3 and"
    ):
        BridgedModel.from_pretrained(tmp_path, build(Patches, prefix=0), build(NamedWords))
    with pytest.raises(ValueError, match="class is 'Overlapping', expected 'Patches'"):
        BridgedModel.from_pretrained(tmp_path, build(Overlapping), build(NamedWords))
    with pytest.raises(ValueError, match="library is 'open_clip', expected 'generic'"):
        BridgedModel.from_pretrained(tmp_path, open_clip_vit().visual, build(NamedWords))


def test_an_adapter_outlives_a_later_family(tmp_path: Path, own_registry: None) -> None:
    model_of(build(Patches), build(NamedWords)).save_pretrained(tmp_path)
    register_family(Patches)
    assert find_vision_tower(build(Patches)).describe()["library"] == "mine"
    BridgedModel.from_pretrained(tmp_path, build(Patches), build(NamedWords))


# Families of one's own.


def register_family(module_class: type[nn.Module]) -> type[TokenVisionTower]:
    @register_tower("vision")
    class Mine(TokenVisionTower):
        library, family = "mine", "Patches"

        @classmethod
        def matches(cls, module: nn.Module) -> bool:
            return isinstance(module, module_class)

        def __init__(self, given: Any) -> None:
            self.module, self.patch, self.prefix = given, 8, 3
            self.image_size = self.joint_width = None
            self.pooled_width = WIDTH
            layers = list(given.layers)
            self.blocks = self._name_blocks(given, layers, [WIDTH] * 4, [8] * 4)

        def position_names(self) -> tuple[str, ...]:
            return ()

        def run(self, module: Any, pixel_values: Tensor) -> Any:
            return module(pixel_values)

        def pooled(self, result: Any) -> Tensor:
            pooled: Tensor = result
            return pooled

    return Mine


def test_a_registered_family_comes_before_the_generic_tower(own_registry: None) -> None:
    first = register_family(Patches)
    encoder = attach_bridgers(build(Patches), build(NamedWords), 2, SMALL)
    assert type(encoder.vision) is first
    assert encoder(images(2, 32, 48), ids()).maps[0].shape == (2, WIDTH, 4, 6)
    # A notebook's cell run again.
    second = register_family(Patches)
    assert type(find_vision_tower(build(Patches))) is second
    assert first not in registered_towers("vision")


def test_a_registered_family_comes_before_the_librarys_own(own_registry: None) -> None:
    visual = hf_clip().vision_model
    mine = register_family(type(visual))
    assert registered_towers("vision")[0] is mine


def test_peft_wrapped_unknown_towers_keep_their_blocks(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(build(Patches), peft.LoraConfig(target_modules=["mix"]))
    tower = find_vision_tower(wrapped)
    assert tower.blocks[0].name == "base_model.model.layers.0"
    assert wrapped.get_submodule(tower.blocks[0].name) is tower.blocks[0].module
    assert tower.describe() == find_vision_tower(build(Patches)).describe()


def test_half_precision_and_public_names() -> None:
    assert {"generic_text", "generic_vision", "register_tower"} <= set(bridger.__all__)
    encoder = attach_bridgers(*pair("registers", "named"), 2, SMALL).bfloat16()
    assert encoder(images(2, 32, 48), ids()).maps[0].dtype in (torch.float32, torch.bfloat16)
    assert generic_vision(build(Patches).bfloat16()).blocks[0].width == WIDTH


def test_the_meta_device_is_refused_first() -> None:
    with pytest.raises(ValueError, match="tower Patches is on the meta device"):
        find_vision_tower(build(Patches).to("meta"))
