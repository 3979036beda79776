"""Trial forwards of unknown towers: they leave no trace, and see what cannot be bridged."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers_conformance import SMALL, changed, same, trace
from helpers_towers import SMALL_BERT, hf_text, hf_vision, ids, images
from torch import Tensor, nn

from bridger import attach_bridgers, generic_text
from bridger.towers import find_text_tower, find_vision_tower

transformers: Any = pytest.importorskip("transformers")


def everything(module: nn.Module) -> list[Any]:
    """What a module holds, hooks and containers included."""
    held = []
    for below in module.modules():
        for name, value in vars(below).items():
            inside: Any = id(value)
            if isinstance(value, dict):
                inside = [(str(key), id(item)) for key, item in value.items()]
            elif isinstance(value, (list, set)):
                inside = [id(item) for item in value]
            held.append((name, inside))
    return held


class Frozen(dict[str, int]):
    """A dict that nobody may write to, nor copy."""

    def __setitem__(self, *item: Any) -> None:
        raise TypeError("frozen")

    def __copy__(self) -> Any:
        raise TypeError("no copies")


class Fields(OrderedDict[str, int]):
    """What takes items, and no updates."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("no updates")


class Counting(nn.Module):
    """A tower whose forward writes things down, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("unseen", torch.zeros(3))
        self.register_buffer("spread", torch.zeros(1).expand(4))
        self.frozen, self.fields = Frozen(a=1), Fields(a=1)
        self.seen: list[Any] = []
        self.known = {"sizes": 0}
        self.stem = nn.Conv2d(3, 16, 8, 8)
        self.blocks = nn.Sequential(*(Convolution() for _ in range(4)))

    def forward(self, pixels: Tensor) -> Tensor:
        self.calls += 1
        self.unseen.data.add_(1)  # which torch does not count
        self.spread[:1].add_(1)
        self.fields["b"] = 2
        self.seen.append(pixels.shape)
        self.known["sizes"] += 1
        self.blocks[1] = copy.deepcopy(self.blocks[1])
        self.blocks[0].register_forward_hook(lambda *_: None)
        result: Tensor = self.blocks(self.stem(pixels)).mean((2, 3))
        return result


class Convolution(nn.Module):
    """A residual block, in place or not."""

    def __init__(self, how: str = "outside") -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Tanh())
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.inner(x)
        return x.add_(change) if self.how == "in place" else x + change


class Net(nn.Module):
    """A small CNN that may change its states in place, in blocks or after them."""

    def __init__(self, blocks: str = "outside", end: str = "outside") -> None:
        super().__init__()
        self.stem, self.end = nn.Conv2d(3, 16, 8, 8), end
        self.blocks = nn.Sequential(*(Convolution(blocks) for _ in range(4)))

    def forward(self, pixels: Tensor) -> Tensor:
        x: Tensor = self.blocks(self.stem(pixels))
        return (x.relu_() if self.end == "in place" else x.relu()).mean((2, 3))


def big_bird() -> nn.Module:
    """Swaps its attention modules when a text is short, as trials are."""
    config = transformers.BigBirdConfig(
        **SMALL_BERT, vocab_size=64, max_position_embeddings=256, block_size=4, num_random_blocks=1
    )
    return transformers.BigBirdModel(config).eval()


def ernie(**options: int) -> nn.Module:
    """Hooks itself at its first forward, to capture states."""
    size = {**SMALL_BERT, **options}
    config = transformers.ErnieConfig(**size, vocab_size=64, output_hidden_states=True)
    return transformers.ErnieModel(config).eval()


def run_big_bird(module: nn.Module) -> Tensor:
    result: Tensor = module(torch.arange(64)[None]).last_hidden_state
    return result


@pytest.mark.parametrize("build", [Counting, big_bird, ernie])
def test_a_trial_leaves_no_trace(build: Callable[[], nn.Module]) -> None:
    module = build()
    held, before = everything(module), trace(module)
    bits = copy.deepcopy(module.state_dict())
    if build is Counting:
        tower: Any = find_vision_tower(module)
        assert len(tower.blocks) == 4
    else:
        find_text_tower(module)
    assert everything(module) == held and trace(module) == before
    assert all(torch.equal(value, bits[name]) for name, value in module.state_dict().items())


def test_towers_that_change_with_the_length_are_themselves_after_attaching() -> None:
    module = big_bird()
    plain = copy.deepcopy(module)
    attach_bridgers(hf_vision(), module, 2, SMALL).detach()
    with torch.no_grad():
        torch.testing.assert_close(run_big_bird(module), run_big_bird(plain))


def test_a_captured_state_is_captured_once() -> None:
    module, words = ernie(), ids(2)
    expected = len(copy.deepcopy(module)(words).hidden_states)
    attach_bridgers(hf_vision(), module, 2, SMALL).detach()
    assert len(module(words).hidden_states) == expected == 4


@pytest.mark.parametrize("how", [{"blocks": "in place"}, {"end": "in place"}])
def test_states_that_are_overwritten_are_refused(how: dict[str, str]) -> None:
    module = Net(**how).eval()
    before = trace(module)
    with pytest.raises(ValueError, match="is changed in place by what runs after it"):
        attach_bridgers(module, hf_text(), 2, SMALL)
    assert trace(module) == before
    attach_bridgers(Net().eval(), hf_text(), 2, SMALL)


def test_a_text_tower_that_goes_on_with_shorter_texts_is_not_taken_by_halves() -> None:
    config = transformers.FunnelConfig(
        vocab_size=64, block_sizes=[2, 2], d_model=32, n_head=2, d_head=16, d_inner=48
    )
    module = transformers.FunnelBaseModel(config)
    with pytest.raises(ValueError, match=r"(?s)are ambiguous.*blocks\.1\.1"):
        attach_bridgers(hf_vision(), module, 2, SMALL)


def test_two_blocks_are_a_tower() -> None:
    blocks = find_text_tower(ernie(num_hidden_layers=2)).blocks
    assert [block.name for block in blocks] == ["encoder.layer.0", "encoder.layer.1"]


def test_two_containers_are_none_where_there_are_blocks() -> None:
    from torchvision.models import squeezenet1_1

    tower = find_vision_tower(squeezenet1_1())  # features and classifier
    assert [block.name for block in tower.blocks][-2:] == ["features.11", "features.12"]


@pytest.mark.parametrize("stages", [2, [(1, 1), (3, 2)]])
def test_maps_keep_their_memory_order(stages: Any) -> None:
    module = Net().to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    encoder = attach_bridgers(module, hf_text(), stages, SMALL)
    orders: list[bool] = []
    for block in module.blocks[1:]:
        block.register_forward_pre_hook(
            lambda _, args: orders.append(args[0].is_contiguous(memory_format=torch.channels_last))
        )
    pixels = images(2, 64).to(memory_format=torch.channels_last)
    with torch.no_grad():
        fresh = encoder(pixels, ids(2))
        with encoder.disable():
            assert same(fresh, encoder(pixels, ids(2)))
        changed(encoder)(pixels, ids(2))
    assert orders and all(orders)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_modules_that_cannot_be_stopped_between_blocks_are_refused() -> None:
    traced = torch.jit.trace(Net().eval(), images(2, 64))
    with pytest.raises(TypeError, match="pass the module that it was made of"):
        attach_bridgers(traced, hf_text(), 2, SMALL)
    with pytest.raises(TypeError, match="pass model._orig_mod"):
        attach_bridgers(torch.compile(Net()), hf_text(), 2, SMALL)


def test_a_whole_that_no_family_knows_is_asked_for_its_half() -> None:
    vision = {**SMALL_BERT, "image_size": 32, "patch_size": 8}
    config = transformers.BlipConfig(
        text_config={**SMALL_BERT, "vocab_size": 64, "encoder_hidden_size": 32},
        vision_config=vision,
    )
    with pytest.raises(TypeError, match="of a whole model that no family knows, pass its text"):
        attach_bridgers(hf_vision(), transformers.BlipModel(config), 2, SMALL)


def test_the_error_at_a_models_own_size_is_shown() -> None:
    class Picky(nn.Module):
        image_size = 80

        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Linear(3, 8)

        def forward(self, pixels: Tensor) -> Tensor:
            if pixels.shape[-1] == self.image_size:
                raise KeyError("the telling one")
            raise RuntimeError(f"size {pixels.shape[-1]} does not match")

    with pytest.raises(TypeError, match="the telling one"):
        attach_bridgers(Picky(), hf_text(), 2, SMALL)


class Words(nn.Module):
    """A text tower of one length, which may take whole masks, or texts without padding, only."""

    def __init__(self, whole_masks: bool = False, no_padding: bool = False) -> None:
        super().__init__()
        self.words, self.whole_masks, self.no_padding = (
            nn.Embedding(64, 32),
            whole_masks,
            no_padding,
        )
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32)) for _ in range(3)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if input_ids.shape[1] != 16:
            raise RuntimeError("16 tokens, please")
        if self.whole_masks and attention_mask is not None and not attention_mask.all():
            raise RuntimeError("whole masks, please")
        if self.no_padding and not input_ids.all():
            raise RuntimeError("no padding, please")
        result: Tensor = self.blocks(self.words(input_ids))
        return result


def test_a_text_tower_that_pads_by_itself_takes_a_length_that_it_leaves() -> None:
    config = transformers.LongformerConfig(
        **SMALL_BERT, vocab_size=64, max_position_embeddings=40, attention_window=8
    )
    module = transformers.LongformerModel(config).eval()
    with pytest.raises(TypeError, match="had 7 tokens. If the encoder pads texts by itself, `max"):
        attach_bridgers(hf_vision(), module, 2, SMALL)
    encoder = attach_bridgers(hf_vision(), generic_text(module, max_length=16), 2, SMALL)
    assert len(encoder.text.blocks) == 3 and encoder(images(2), ids(2)).tokens.shape[1] == 16


@pytest.mark.parametrize("whole_masks", [False, True])
def test_a_text_tower_of_one_length_is_called_as_it_takes_padding(whole_masks: bool) -> None:
    encoder = attach_bridgers(hf_vision(), Words(whole_masks), 2, SMALL)
    assert encoder(images(2), ids(2)).tokens.shape[1] == 16
    with pytest.raises(ValueError, match="and none with padding .*no padding, please"):
        attach_bridgers(hf_vision(), Words(whole_masks, no_padding=True), 2, SMALL)
