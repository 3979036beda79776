"""Parts of Bridgers that options leave out or replace, and options that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_bridgers import RAGGED, Weights, attend, make_stack, norm
from helpers_conformance import (
    SMALL,
    close,
)
from helpers_towers import PAIRS, ids
from torch import Tensor, nn

from bridger import BridgerConfig, attach_bridgers
from bridger.bridgers import Bridger, BridgerStack, Interactor
from bridger.bridgers import interactor as interactor_module
from bridger.bridgers.zoom import Size

# --- Equality with an independent computation ---------------------------------------------------


@pytest.mark.parametrize("self_attention", [False, True])
@pytest.mark.parametrize("ffn_dim", [0, 6])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_parts_of_the_interactor_that_are_off_are_identities(
    self_attention: bool, ffn_dim: int, pre_norm: bool
) -> None:
    config = SMALL.replace(self_attention=self_attention, ffn_dim=ffn_dim, pre_norm=pre_norm)
    interactor, w = interactor_of(config)
    v, t = torch.randn(2, 6, 16), torch.randn(2, 5, 16)

    def add(at: str, x: Tensor, branch: Any) -> Tensor:
        return x + branch(norm(w, at, x)) if pre_norm else norm(w, at, x + branch(x))

    def itself(at: str, x: Tensor, own: Tensor | None) -> Tensor:
        if not self_attention:
            return x
        return add(f"{at}norm_self.", x, lambda h: attend(w, f"{at}self_attn.", h, h, 2, own))

    def other(at: str, x: Tensor, y: Tensor, read: Tensor | None) -> Tensor:
        y = norm(w, f"{at}norm_other.", y) if pre_norm else y
        x = add(f"{at}norm_cross.", x, lambda h: attend(w, f"{at}cross_attn.", h, y, 2, read))
        if not ffn_dim:
            return x

        def feed_forward(h: Tensor) -> Tensor:
            inner = (h @ w[f"{at}ffn_up.weight"].T + w[f"{at}ffn_up.bias"]).relu()
            return inner @ w[f"{at}ffn_down.weight"].T + w[f"{at}ffn_down.bias"]

        return add(f"{at}norm_ffn.", x, feed_forward)

    v_self, t_self = itself("vision.", v, None), itself("text.", t, RAGGED)
    found = interactor(v, t, RAGGED, (2, 3))
    close(found[0], other("vision.", v_self, t_self, RAGGED))
    close(found[1], other("text.", t_self, v_self, None))


def test_the_dense_interactor_equals_its_equations() -> None:
    interactor, w = interactor_of(SMALL.replace(interactor="dense"))
    v, t = torch.randn(2, 6, 16), torch.randn(2, 5, 16)

    def convolve(at: str, x: Tensor) -> Tensor:
        kernel = w[at + "0.weight"]
        x = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
        mean, var = w[at + "1.running_mean"], w[at + "1.running_var"]
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return (x * w[at + "1.weight"][:, None, None] + w[at + "1.bias"][:, None, None]).relu()

    x = v.relu()
    cells = x.mT.unflatten(2, (2, 3))
    near = convolve("near.", cells)
    middle = convolve("middle.1.", convolve("middle.0.", torch.cat([cells, near], 1)))
    wide = convolve("wide.1.", convolve("wide.0.", torch.cat([cells, near, middle], 1)))
    assert [y.shape[1] for y in (near, middle, wide)] == [8, 4, 4]
    assert [w[f"{part}.1.0.weight"].shape[-1] for part in ("middle", "wide")] == [3, 5]
    seen = x + torch.cat([near, middle, wide], 1).flatten(2).mT
    found = interactor(v, t, RAGGED, (2, 3))
    close(found[0], x + attend(w, "vision.", seen, t, 2, RAGGED))
    close(found[1], t + attend(w, "text.", t, seen, 2, None))


def interactor_of(config: BridgerConfig) -> tuple[nn.Module, Weights]:
    """The interactor of a Bridger with random numbers, and these."""
    interactor = make_stack(config, [6], [16]).stages[0].interactor
    return interactor, interactor.state_dict()


@pytest.mark.parametrize("zoom", ["strided", "pointwise", "convolution", "transposed"])
@pytest.mark.parametrize(("stride", "shrinks"), [(8, True), (32, False)])
def test_each_half_of_the_zoom_layer_may_be_pointwise(
    zoom: str, stride: int, shrinks: bool
) -> None:
    bridger = Bridger(SMALL.replace(zoom=zoom), 6, stride, 12, 0, 1)
    assert bridger.vision_out is not None
    zooms = [bridger.vision_in, bridger.vision_out]
    shrinking, enlarging = zooms if shrinks else reversed(zooms)
    assert type(shrinking.conv) is nn.Conv2d and type(enlarging.conv) is nn.ConvTranspose2d
    strided = {"strided": "ab", "pointwise": "", "convolution": "a", "transposed": "b"}[zoom]
    assert shrinking.conv.kernel_size[0] == (2 if "a" in strided else 1)
    assert enlarging.conv.kernel_size[0] == (2 if "b" in strided else 1)
    small, large = (
        torch.randn(1, z.conv.in_channels, n, n) for z, n in ((enlarging, 3), (shrinking, 6))
    )
    for layer, x, size in ((shrinking, large, (3, 3)), (enlarging, small, (6, 6))):
        layer.conv.weight.data.normal_()
        if layer.kernel == 1:  # a resize of what the 1x1 convolution gives
            weight = layer.conv.weight[..., 0, 0]
            weight = weight if layer is shrinking else weight.mT
            expected = F.interpolate(
                torch.einsum("oc,bchw->bohw", weight, x), size, mode="bilinear"
            )
            close(layer(x, size), expected)


# --- What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"skip": [0, 0]}, r"skip must be a tuple of different stages.*not \(0, 0\)"),
        ({"skip": 1}, "skip must be a tuple of different stages"),
        ({"skip": [-1]}, "counted from 0"),
        ({"skip": [True]}, "skip must be a tuple"),
        ({"skip": ["layer2"]}, "skip must be a tuple"),
        ({"self_attention": 1}, "self_attention must be True or False"),
        ({"ffn_dim": True}, "ffn_dim must be a whole number, 0 or more"),
        ({"zoom": "convolutions"}, "did you mean 'convolution'"),
        ({"direction": "to_texts"}, "did you mean 'to_text'"),
    ],
)
def test_bad_options_say_what_was_wrong(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SMALL.replace(**changes)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (SMALL.replace(skip=(0, 3)), r"not there, \[3\]: there are 3, 0 to 2"),
        (SMALL.replace(skip=(0, 1, 2)), "leaves none of the 3 stages to bridge.*config=None"),
        (SMALL.replace(interactor="dense", hidden_dim=2), "'dense' needs hidden_dim >= 4, found 2"),
    ],
)
def test_configs_that_do_not_fit_the_stages(config: BridgerConfig, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attach_bridgers(*PAIRS["open_clip_vit"](), 3, config)


def test_texts_that_are_finished_cannot_be_written_to() -> None:
    stages = [(1, None), (3, None)]
    with pytest.raises(ValueError, match="read the finished text"):
        attach_bridgers(*PAIRS["open_clip_vit"](), stages, SMALL.replace(direction="to_text"))
    encoder = attach_bridgers(*PAIRS["open_clip_vit"](), 2, SMALL.replace(direction="to_text"))
    with pytest.raises(ValueError, match="Bridgers write to the text"):
        encoder.read_text(ids(2))


def test_interactors_that_always_update_the_map_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interactor_module, "_INTERACTORS", dict(interactor_module._INTERACTORS))

    @interactor_module.register_interactor("stubborn")
    class Stubborn(Interactor):
        def __init__(self, config: BridgerConfig, updates_text: bool = True) -> None:
            super().__init__(config, updates_text)

        def forward(
            self, vision: Tensor, text: Tensor, token_mask: Tensor | None, size: Size
        ) -> tuple[Tensor, Tensor]:
            return vision, text

    BridgerStack(BridgerConfig(interactor="stubborn"), [8], [16], [12])
    with pytest.raises(TypeError, match="takes no updates_vision.*leaves the map as it is"):
        BridgerStack(BridgerConfig(interactor="stubborn", direction="to_text"), [8], [16], [12])
