"""Towers of timm, of torchvision, and those that are nested in another library's model."""

from __future__ import annotations

import copy
import functools
import pickle
import re
from typing import Any

import families_timm
import families_torchvision
import pytest
import timm
import torch
import torch.nn.functional as F
from families_timm import FOUR, WIDTHS, staged, timm_model, vit
from helpers_conformance import SMALL, changed, features, same
from helpers_families import VisionRow
from helpers_towers import JOINT, Watch, fill, hf_text, ids, images, open_clip_vit
from torch import Tensor, nn

from bridger import attach_bridgers
from bridger.towers import VisionTower, find_vision_tower
from bridger.towers.base import state_of
from bridger.towers.pre_logits import PreLogitsVisionTower
from bridger.towers.views import view_changing

ALL = {row.name: row for row in [*families_timm.ROWS, *families_torchvision.ROWS]}
ROWS = pytest.mark.parametrize("row", ALL.values(), ids=[*ALL])
TIMM = pytest.mark.parametrize(
    "name", [name for name in ALL if name.startswith("timm/") and "Distilled" not in name]
)


@functools.cache
def _built(name: str) -> nn.Module:
    """Build each row once; tests leave modules as they found them."""
    return ALL[name].build()


@functools.cache
def _text() -> nn.Module:
    return hf_text()


def _tower(row: VisionRow) -> tuple[Any, VisionTower, Tensor]:
    module = _built(row.name)
    return module, find_vision_tower(module), images(2, *row.image_size)


def _features_of(whole: Any, pixels: Tensor) -> Tensor:
    """Return a dual encoder's own vision features, of transformers 4 or 5."""
    found = whole.get_image_features(pixels)
    features: Tensor = getattr(found, "pooler_output", found)
    return features


def _classified(module: Any, feature: Tensor) -> Tensor:
    """Run what comes behind the feature in the library's own classifier."""
    if type(module).__name__ == "VisionTransformerDistilled":
        return (module.head(feature[0]) + module.head_dist(feature[1])) / 2
    if hasattr(module, "get_classifier"):
        return module.get_classifier()(feature)
    heads = getattr(module, "heads", None)
    last = [part for part in (heads or module).modules() if isinstance(part, nn.Linear)][-1]
    return last(feature)


@ROWS
def test_every_class_is_found_and_its_blocks_fire_once_in_order(row: VisionRow) -> None:
    module, tower, pixels = _tower(row)
    assert [module.get_submodule(block.name) for block in tower.blocks] == [
        block.module for block in tower.blocks
    ]
    order: list[int] = []
    with Watch(tower, lambda index, output: order.append(index)) as states, torch.no_grad():
        tower.call(pixels, {})
    assert order == [*range(len(tower.blocks))] and len(order) == len(states) >= 4


@ROWS
def test_maps_have_the_declared_widths_strides_and_grids_at_every_size(row: VisionRow) -> None:
    _, tower, _ = _tower(row)
    for size in (row.image_size, *row.other_sizes):
        with Watch(tower) as states, torch.no_grad():
            tower.check_input(images(1, *size))
            tower.call(images(1, *size), {})
        for index, (block, state) in enumerate(zip(tower.blocks, states, strict=True)):
            stride = block.stride or 0
            expected = (1, block.width, size[0] // stride, size[1] // stride)
            assert tower.read_map(index, state, size).shape == expected
        assert tower.map_grid(size) == expected[2:]
    if not row.other_sizes:
        with pytest.raises(ValueError, match=r"64 x 64 pixels only, found 64 x 96: call .*size"):
            tower.check_input(images(1, 64, 96))


@ROWS
def test_the_call_is_the_models_own_forward_up_to_its_classifier(row: VisionRow) -> None:
    module, tower, pixels = _tower(row)
    with torch.no_grad():
        result, pooled = tower.call(pixels, {}), tower.pooled(tower.call(pixels, {}))
        if hasattr(module, "get_image_features"):
            assert torch.equal(result, _features_of(module, pixels))
            return
        own = module(pixels)
        if isinstance(own, dict):  # a getter of maps
            assert pooled is None and all(torch.equal(own[key], result[key]) for key in own)
            return
        assert pooled is not None and pooled.shape == (2, tower.pooled_width)
        if hasattr(module, "forward_head"):
            features = module.forward_features(pixels)
            assert torch.equal(pooled, module.forward_head(features, pre_logits=True))
        if not isinstance(tower, PreLogitsVisionTower) or not tower.classifiers:
            assert torch.equal(result, own)
        elif len(tower.classifiers) == 1:
            assert own.shape[1] in (7, 24) and torch.equal(_classified(module, result), own)


def test_a_distilled_vit_pools_the_mean_of_its_two_tokens() -> None:
    module: Any = _built("timm/VisionTransformerDistilled")
    tower, pixels = find_vision_tower(module), images(2, 64)
    with torch.no_grad():
        tokens, pooled = module.forward_features(pixels), tower.pooled(tower.call(pixels, {}))
    assert tower.prefix == 2 and pooled is not None  # type: ignore[attr-defined]
    assert torch.equal(pooled, (tokens[:, 0] + tokens[:, 1]) / 2)


@ROWS
def test_states_are_read_and_written_without_a_trace(row: VisionRow) -> None:
    _, tower, pixels = _tower(row)
    size = row.image_size
    seen: list[tuple[Tensor, Tensor]] = []

    def same_again(index: int, output: Any) -> Any:
        state = state_of(output)
        seen.append((state, state.clone()))
        return tower.write_map(index, output, tower.read_map(index, output, size))

    with torch.no_grad():
        expected = tower.call(pixels, {})
        with Watch(tower, same_again):
            found = tower.call(pixels, {})
    assert all(torch.equal(state, copied) for state, copied in seen)
    for a, b in zip(_tensors(found), _tensors(expected), strict=True):
        assert torch.equal(a, b)


@ROWS
def test_a_changed_map_of_any_block_reaches_the_output(row: VisionRow) -> None:
    _, tower, pixels = _tower(row)
    size = row.image_size
    with torch.no_grad():
        expected = _tensors(tower.call(pixels, {}))
    # A class token has read its last patch in the last block.
    inner = getattr(tower, "inner", tower)
    blocks = len(tower.blocks) - bool(getattr(inner, "prefix", 0))
    for chosen in range(blocks):

        def change(index: int, output: Any, chosen: int = chosen) -> Any:
            if index != chosen:
                return None
            old = tower.read_map(index, output, size)
            new = tower.write_map(index, output, old + torch.randn_like(old))
            assert state_of(new).shape == state_of(output).shape
            assert state_of(new).stride() == state_of(output).stride()
            return new

        with Watch(tower, change), torch.no_grad():
            found = _tensors(tower.call(pixels, {}))
        assert not torch.equal(found[-1], expected[-1])


def _tensors(result: Any) -> list[Tensor]:
    return [*result.values()] if isinstance(result, dict) else [result]


@ROWS
def test_bridged_towers_start_as_they_were_and_train(row: VisionRow) -> None:
    vision, tower, pixels = _tower(row)
    plain = attach_bridgers(vision, _text(), 2, None)
    bridged = attach_bridgers(vision, _text(), 2, SMALL)
    try:
        with torch.no_grad():
            assert same(bridged(pixels, ids()), plain(pixels, ids()))
        changed(bridged)
        out = bridged(pixels, torch.stack([ids(), ids(seed=1)], dim=1))
        assert [m.shape[1] for m in out.maps] == [*bridged.spec.map_widths]
        assert out.pooled is None or out.pooled.shape == (4, tower.pooled_width)
        assert bridged.spec.joint == (tower.joint_width == JOINT)
        sum(tensor.square().sum() for tensor in features(out)).backward()
        assert bridged.bridgers is not None
        for name, parameter in bridged.bridgers.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        assert not any(parameter.grad is not None for parameter in vision.parameters())
    finally:
        bridged.detach()
        plain.detach()


@TIMM
def test_timms_dense_map_is_the_head_on_pictures_of_one_patch(name: str) -> None:
    """What `forward_head` makes of each cell alone, after the norm that precedes the pool."""
    module: Any = _built(name)
    tower = find_vision_tower(module)
    dense = tower.dense_projection()
    if "Staged" in type(tower).__name__:
        assert dense is None
        return
    size = ALL[name].image_size
    with Watch(tower) as states, torch.no_grad():
        features = module.forward_features(images(1, *size))
        last = tower.read_map(len(tower.blocks) - 1, states[-1], size)
        assert dense is not None
        found = dense(last, {})
        prefix = getattr(tower, "prefix", None)
        if prefix is not None:
            cells = features[:, prefix:].flatten(0, 1)[:, None]
            # Mean pools skip the prefix, class pools take it: the cell stands in both places.
            skip = module.global_pool == "avg" or getattr(module, "pool_include_prefix", 1) == 0
            cells = cells.repeat(1, 1 + prefix, 1) if skip and "Eva pool" not in name else cells
        elif "Swin" in name:
            cells = features.flatten(0, 2)[:, None, None]
        else:
            cells = features.permute(0, 2, 3, 1).flatten(0, 2)[:, :, None, None]
        expected = module.forward_head(cells, pre_logits=True)
    assert found.shape == (1, dense.width, *last.shape[2:])
    torch.testing.assert_close(found[0].flatten(1).T, expected, atol=1e-5, rtol=1e-4)
    assert not [*dense.parameters()] and not dense.state_dict()


@pytest.mark.parametrize(
    "name",
    ["timm/VisionTransformer mean", "timm/RegNet", "timm/FastVit", "timm/SwinTransformer any size"],
)
def test_linear_mean_pools_are_the_mean_of_the_dense_map(name: str) -> None:
    row = ALL[name]
    _, tower, pixels = _tower(row)
    with Watch(tower) as states, torch.no_grad():
        pooled = tower.pooled(tower.call(pixels, {}))
        dense = tower.dense_projection()
        assert dense is not None and pooled is not None
        last = tower.read_map(len(states) - 1, states[-1], row.image_size)
        found = dense(last, {}).mean((2, 3))
    torch.testing.assert_close(found, pooled, atol=1e-5, rtol=1e-4)


def _torchvision_dense(name: str, last: Tensor) -> Tensor | None:
    model: Any = _built(name)
    cells = last.movedim(1, -1)
    if "VisionTransformer" in name:
        cells = model.encoder.ln(cells)
        hidden = getattr(model.heads, "pre_logits", None)
        return (cells if hidden is None else hidden(cells).tanh()).movedim(-1, 1)
    if "Swin" in name:
        return model.norm(cells).movedim(-1, 1)
    if "ConvNeXt" in name:
        norm = model.classifier[0]
        cells = F.layer_norm(cells, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        return cells.movedim(-1, 1)
    return model.features[-1](last) if "Net" in name and hasattr(model, "features") else None


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("torchvision/")])
def test_torchvisions_dense_map_is_what_runs_before_its_pool(name: str) -> None:
    _, tower, _ = _tower(ALL[name])
    last = torch.randn(2, tower.blocks[-1].width, 2, 3)
    dense = tower.dense_projection()
    with torch.no_grad():
        expected = _torchvision_dense(name, last)
        assert (dense is None) == (expected is None)
        if dense is not None and expected is not None:
            assert expected.shape == (2, dense.width, 2, 3)
            torch.testing.assert_close(dense(last, {}), expected)
    assert tower.joint_width is None


@pytest.mark.parametrize("name", [name for name in ALL if "TimmModel" in name or "Dual" in name])
def test_nested_towers_project_every_cell_like_the_pooled_feature(name: str) -> None:
    module, tower, pixels = _tower(ALL[name])
    inner: Any = tower.inner  # type: ignore[attr-defined]
    dense, own = tower.dense_projection(), inner.dense_projection()
    with Watch(tower) as states, torch.no_grad():
        feature = inner.pooled(inner.call(pixels, {}))
        outer: Any = getattr(module, "visual_projection", None) or nn.Sequential(
            module.trunk.get_classifier(), module.head
        )
        assert torch.equal(outer(feature), tower.pooled(tower.call(pixels, {})))  # type: ignore[arg-type]
        last = tower.read_map(len(tower.blocks) - 1, states[-1], (64, 64))
        assert dense is not None and own is not None
        expected = outer(own(last, {}).movedim(1, -1)).movedim(-1, 1)
        torch.testing.assert_close(dense(last, {}), expected)
    assert dense.width == tower.joint_width == tower.pooled_width
    assert tower.describe()["inner"] == inner.describe()
    assert not dense.state_dict()


def test_nested_towers_are_the_same_alone_or_in_a_whole() -> None:
    from open_clip.model import CustomTextCLIP

    vision = dict(timm_model_name="test_vit", timm_pool="", timm_proj="linear", image_size=64)
    text = dict(context_length=12, vocab_size=64, width=32, heads=2, layers=2)
    whole: Any = fill(CustomTextCLIP(JOINT, vision, text))
    whole.visual.set_input_size(64)
    tower, alone = find_vision_tower(whole), find_vision_tower(whole.visual)
    assert tower.describe() == alone.describe() and tower.module is whole.visual
    assert tower.blocks[0].name == f"visual.{alone.blocks[0].name}"
    table = whole.visual.trunk.pos_embed
    (name,) = tower.position_names()
    assert name == "trunk.pos_embed" and alone.position_names() == (name,)
    with torch.no_grad():
        plain = tower.pooled(tower.call(images(1, 64), {}))
        assert torch.equal(plain, whole.encode_image(images(1, 64)))  # type: ignore[arg-type]
        moved = tower.pooled(tower.call(images(1, 64), {name: table + 1}))
        table += 1
        assert torch.equal(moved, whole.encode_image(images(1, 64)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", [n for n in ALL if re.match("timm/(Vision|Eva)", n) and ALL[n].other_sizes]
)
def test_a_timm_vit_at_another_size_equals_one_that_was_set_to_it(name: str) -> None:
    row = ALL[name]
    tower = find_vision_tower(_built(name))
    for size in row.other_sizes:
        resized: Any = copy.deepcopy(_built(name))
        resized.set_input_size(size)
        again = find_vision_tower(resized)
        pixels = images(1, *size)
        with torch.no_grad():
            expected = again.call(pixels, {})
            torch.testing.assert_close(tower.call(pixels, {}), expected, atol=1e-6, rtol=1e-5)
        assert tower.map_grid(size) == again.map_grid(size)
    assert getattr(_built(name).patch_embed, "flatten", True) == (
        not getattr(_built(name), "dynamic_img_size", False)
    )


def test_sizes_between_patches_drop_the_rest_of_the_picture() -> None:
    for name in ("timm/VisionTransformer", "torchvision/VisionTransformer"):
        tower = find_vision_tower(_built(name))
        assert tower.map_grid((70, 100)) == (4, 6)
        with torch.no_grad():
            whole = tower.call(images(1, 70, 100), {})
            assert torch.allclose(
                whole, tower.call(images(1, 70, 100)[..., :64, :96], {}), atol=1e-5
            )


@pytest.mark.parametrize(
    "name",
    [n for n in ALL if re.match("(timm|torchvision)/.*(Net|Conv|FastVit|Pyramid|Getter)", n)],
)
def test_maps_of_odd_sizes_are_rounded_as_the_family_rounds(name: str) -> None:
    _, tower, _ = _tower(ALL[name])
    with Watch(tower) as states, torch.no_grad():
        tower.call(images(1, 70, 100), {})
    last = tower.read_map(len(states) - 1, states[-1], (70, 100))
    assert tower.map_grid((70, 100)) == tuple(last.shape[2:])


def test_torchvisions_vit_resizes_positions_bicubically() -> None:
    model: Any = copy.deepcopy(_built("torchvision/VisionTransformer with a hidden layer"))
    tower, pixels = find_vision_tower(model), images(1, 96)
    with torch.no_grad():
        found = tower.call(pixels, {})
        table = model.encoder.pos_embedding
        cells = table[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
        cells = F.interpolate(cells, (6, 6), mode="bicubic", align_corners=False)
        cells = cells.permute(0, 2, 3, 1).flatten(1, 2)
        model.encoder.pos_embedding = nn.Parameter(torch.cat([table[:, :1], cells], dim=1))
        model.image_size = 96
        torch.testing.assert_close(_classified(model, found), model(pixels))


@ROWS
def test_positions_that_stand_in_are_read(row: VisionRow) -> None:
    _, tower, pixels = _tower(row)
    names = tower.position_names()
    assert bool(names) == bool(
        re.search(
            "VisionTransformer$|VisionTransformer |Distilled|Beit|Eva|TimmModel (V|S)|Dual",
            row.name,
        )
        or row.name in ("torchvision/SwinTransformer", "timm/SwinTransformer")
        or row.name == "timm/SwinTransformer any size"
    )
    with torch.no_grad():
        plain = tower.call(pixels, {})
        for name in names[:2]:
            own = tower.module.get_parameter(name)
            assert torch.equal(tower.call(pixels, {name: own.clone()}), plain)
            changed = tower.call(pixels, {name: own + torch.randn_like(own)})
            assert not torch.allclose(changed, plain, atol=1e-4), name


@pytest.mark.parametrize("name", ["timm/VisionTransformer CLIP", "torchvision/VisionTransformer"])
def test_positions_learn_at_other_sizes(name: str) -> None:
    tower = find_vision_tower(_built(name))
    (table,) = tower.position_names()
    own = tower.module.get_parameter(table).detach().clone().requires_grad_()
    tower.call(images(1, 64, 96), {table: own}).sum().backward()
    assert own.grad is not None and (own.grad != 0).any(dim=2).all()


@pytest.mark.parametrize(
    "name",
    ["timm/VisionTransformer SigLIP", "timm/ConvNeXt", "timm/SwinTransformer any size"]
    + ["torchvision/VisionTransformer", "torchvision/SwinTransformer", "open_clip/TimmModel ViT"],
)
def test_towers_in_bfloat16_take_float32_pictures(name: str) -> None:
    tower = find_vision_tower(copy.deepcopy(_built(name)).bfloat16())
    for size in ((64, 64), (64, 96)):
        with Watch(tower) as states, torch.no_grad():
            pooled = tower.pooled(tower.call(images(1, *size), {}))
            assert pooled is not None and pooled.dtype == torch.bfloat16
            last = tower.read_map(len(tower.blocks) - 1, states[-1], size)
            written = tower.write_map(len(tower.blocks) - 1, states[-1], last.float())
            assert written.dtype == torch.bfloat16
            dense = tower.dense_projection()
            assert dense is not None and dense(last, {}).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hiera_tiny_224", "timm Hiera is not supported: its tokens lie window by window"),
        ("naflexvit_base_patch16_gap", "timm NaFlexVit is not supported: .*several shapes"),
    ],
)
def test_models_whose_tokens_are_no_map_are_refused_with_the_reason(name: str, words: str) -> None:
    import timm

    small = dict(embed_dim=16) if "hiera" in name else dict(embed_dim=16, num_heads=2, depth=1)
    with pytest.raises(ValueError, match=words):
        find_vision_tower(timm.create_model(name, pretrained=False, **small))


def test_timm_models_without_stages_of_their_own_are_not_taken_for_staged() -> None:
    tower = find_vision_tower(timm_model("test_convnext", features_only=True))
    assert tower.library == "generic"
    with pytest.raises(TypeError, match="no vision tower is known .*timm Staged"):
        find_vision_tower(nn.Identity())


def test_a_model_that_names_no_stages_is_refused() -> None:
    module: Any = copy.deepcopy(_built("timm/ConvNeXt"))
    for info in ([], [{**module.feature_info[1], "module": "stages.1.blocks.0"}] * 2):
        module.feature_info = info
        with pytest.raises(ValueError, match="ConvNeXt.feature_info names no stages"):
            find_vision_tower(module)


def test_oblong_patches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must have square patches, found \(16, 8\)"):
        find_vision_tower(vit("vit_tiny_patch16_224", patch_size=(16, 8))())


def test_stages_that_are_no_maps_are_refused_when_they_are_read() -> None:
    _, tower, _ = _tower(ALL["timm/ResNet"])
    with pytest.raises(RuntimeError, match=r"'layer1' of timm ResNet .*\(2, 16, 16\); a map"):
        tower.read_map(0, torch.zeros(2, 16, 16), (64, 64))
    _, swin, _ = _tower(ALL["timm/SwinTransformer"])
    with pytest.raises(RuntimeError, match="a map .* of 12 channels was expected"):
        swin.read_map(0, torch.zeros(2, 12, 16, 16), (64, 64))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "levit_128s",
            r"'stages.0' of timm Staged .*\(3, 196, 128\); a map.*If modules of this Levit",
        ),
        # timm 1.0.24 offers no stages of it, so it is read off a trial.
        ("coat_lite_tiny", "'serial_blocks1' of timm Staged ran 0 times|CoaT are ambiguous"),
        ("selecsls42b", "'features.1' of timm Staged ran and returned no tensor"),
    ],
)
def test_stages_that_are_no_maps_are_refused_when_attaching(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attach_bridgers(timm_model(name), _text())


def test_a_model_of_one_size_whose_class_is_unknown_says_which() -> None:
    for size in (64, 96):
        model = timm_model("visformer_tiny", img_size=size, embed_dim=32, depth=1, num_heads=2)
        encoder = attach_bridgers(model, _text(), 2, SMALL)
        assert encoder.vision.image_size == (size, size)
        with pytest.raises(ValueError, match=f"pictures of {size} x {size} pixels( only|, found)"):
            encoder(images(1, 64, 128), ids(1))
        encoder(images(1, size), ids(1))
    assert find_vision_tower(_built("timm/Staged ByobNet")).image_size is None


def test_what_a_block_hands_on_beside_its_map_is_there_for_every_expression() -> None:
    small: Any = dict(img_size=64, base_dims=(8, 8, 8), depth=(1, 1, 1), heads=(2, 4, 8))
    model = timm_model("pit_ti_224", **small)  # whose class token is not in its maps
    bridged = changed(attach_bridgers(model, _text(), 2, SMALL)).eval()
    with torch.no_grad():
        together = bridged(images(2, 64), torch.stack([ids(2), ids(2).flip(0)], dim=1))
        alone = bridged(images(2, 64), ids(2).flip(0))
    for one, other in zip(features(together), features(alone), strict=True):
        torch.testing.assert_close(one[1::2], other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["timm/ResNet", "timm/EfficientNet", "timm/MobileNetV3"])
def test_activation_checkpointing_that_skips_stages_is_named(name: str) -> None:
    module: Any = copy.deepcopy(_built(name))
    tower = find_vision_tower(module)
    module.set_grad_checkpointing(True)
    with pytest.raises(RuntimeError, match=r"without the stages.*set_grad_checkpointing\(False\)"):
        tower.call(images(1, 64), {})
    module.set_grad_checkpointing(False)
    assert tower.call(images(1, 64), {}).isfinite().all()


@pytest.mark.parametrize(
    "name", ["timm/ConvNeXt", "timm/SwinTransformer", "timm/RegNet", "timm/VisionTransformer"]
)
def test_other_activation_checkpointing_may_stay_on(name: str) -> None:
    module: Any = copy.deepcopy(_built(name))
    with torch.no_grad():
        expected = find_vision_tower(module).call(images(1, 64), {})
    module.set_grad_checkpointing(True)
    bridged = attach_bridgers(module, _text(), 2, SMALL)
    out = changed(bridged)(images(1, 64), ids(1))
    sum(tensor.square().sum() for tensor in features(out)).backward()
    assert bridged.bridgers is not None
    assert all(p.grad is not None for p in bridged.bridgers.parameters())
    with torch.no_grad(), bridged.disable():
        assert torch.equal(bridged(images(1, 64), ids(1)).pooled, expected)  # type: ignore[arg-type]
    bridged.detach()


def test_windows_of_maxvit_must_tile_and_coatnet_has_one_size() -> None:
    _, tower, _ = _tower(ALL["timm/MaxxVit"])
    with pytest.raises(ValueError, match="multiples of 64 and 64 pixels, found 64 x 96: call"):
        tower.check_input(images(1, 64, 96))
    if not timm.is_model("test_coatnet"):
        pytest.skip("timm 1.0.24 has no small CoAtNet")
    coatnet = find_vision_tower(timm_model("test_coatnet", num_classes=0))
    assert coatnet.image_size == (160, 160)
    with pytest.raises(ValueError, match="160 x 160 pixels only, found 64 x 64: create"):
        coatnet.check_input(images(1, 64))
    coatnet.check_input(images(1, 160))


def test_models_that_do_not_pool_have_no_pooled_feature() -> None:
    for build in (
        vit("vit_tiny_patch16_224", global_pool="", class_token=False),
        staged("resnet18", layers=FOUR, channels=WIDTHS, global_pool=""),
    ):
        tower = find_vision_tower(build())
        assert tower.pooled_width is None
        assert tower.pooled(tower.call(images(1, 64), {})) is None
    _, siglip, _ = _tower(ALL["timm/VisionTransformer SigLIP"])
    assert siglip.joint_width == 32 and not siglip.prefix  # type: ignore[attr-defined]


def test_a_pool_in_open_clips_wrapper_is_refused() -> None:
    from open_clip.timm_model import TimmModel

    model: Any = TimmModel("test_resnet", 24, image_size=160, pool="avg", proj="")
    model.head.add_module("pool", nn.AvgPool2d(5))  # in the place of timm_pool="rot_attn"
    with pytest.raises(ValueError, match="pool of its own .AvgPool2d. .*timm_pool"):
        find_vision_tower(model)
    model.head = nn.Sequential()
    model.trunk.reset_classifier(0, global_pool="")
    with pytest.raises(ValueError, match="reads the pooled feature .*itself: pass that ResNet"):
        find_vision_tower(model)


def test_peft_wrapped_models_are_known_by_what_they_wrap() -> None:
    peft = pytest.importorskip("peft")
    module = copy.deepcopy(_built("timm/VisionTransformer"))
    wrapped = peft.get_peft_model(module, peft.LoraConfig(target_modules=["qkv"]))
    tower = find_vision_tower(wrapped)
    assert wrapped.get_submodule(tower.blocks[1].name) is tower.blocks[1].module
    assert tower.blocks[1].name == "base_model.model.blocks.1"
    with torch.no_grad():
        assert torch.equal(module.head(tower.call(images(1, 64), {})), wrapped(images(1, 64)))  # type: ignore[operator]


@pytest.mark.parametrize("name", ["ResNet", "RegNet", "ConvNeXt", "MobileNetV3"])
@pytest.mark.parametrize("kept", [False, True])
def test_a_classifier_that_peft_wraps_is_still_left_out(name: str, kept: bool) -> None:
    peft = pytest.importorskip("peft")
    module: Any = copy.deepcopy(_built(f"torchvision/{name}"))
    plain = find_vision_tower(module)
    (classifier,) = plain.classifiers  # type: ignore[attr-defined]
    expected = plain.pooled(plain.call(images(2, 64), {}))
    inner = [n for n, m in module.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1][-1]
    options: dict[str, Any] = dict(target_modules=[inner, *([] if kept else [classifier])])
    options |= dict(modules_to_save=[classifier]) if kept else {}
    peft.get_peft_model(module, peft.LoraConfig(r=2, **options))
    wrapped = find_vision_tower(module)
    pooled = wrapped.pooled(wrapped.call(images(2, 64), {}))
    assert pooled is not None and expected is not None
    assert wrapped.describe() == plain.describe()
    assert pooled.shape == (2, wrapped.pooled_width)
    torch.testing.assert_close(pooled, expected)


def test_bridged_wrappers_live_on_in_copies() -> None:
    for name in ("open_clip/TimmModel SigLIP", "timm/ConvNeXt", "torchvision/SwinTransformer"):
        bridged = changed(attach_bridgers(_built(name), _text(), 2, SMALL)).eval()
        twin = pickle.loads(pickle.dumps(bridged))
        with torch.no_grad():
            assert same(twin(images(1, 64), ids(1)), bridged(images(1, 64), ids(1)))
        bridged.detach()
        assert "trunk.patch_embed" not in "".join(bridged.adapter_state_dict())


def test_a_whole_dual_encoder_stands_on_the_vision_side() -> None:
    whole: Any = _built("transformers/VisionTextDualEncoderModel")
    tower = find_vision_tower(whole)
    assert tower.label() == "transformers VisionTextDualEncoder"
    with torch.no_grad():
        own = _features_of(whole, images(2, 64))
        assert torch.equal(tower.call(images(2, 64), {}), own)
        assert not torch.equal(tower.call(images(2, 64, 96), {}), own)


@pytest.mark.parametrize("pool_type", ["tok", "avg"])
@pytest.mark.parametrize("output_dim", [24, 48])
def test_cocas_dense_map_is_its_pool_on_pictures_of_one_patch(
    pool_type: str, output_dim: int
) -> None:
    from open_clip.transformer import VisionTransformer

    visual: Any = fill(
        VisionTransformer(
            32,
            8,
            48,
            4,
            3,
            2.0,
            attentional_pool=True,
            attn_pooler_queries=5,
            attn_pooler_heads=2,
            output_dim=output_dim,
            pool_type=pool_type,
            output_tokens=True,
        )
    )
    tower, pixels = find_vision_tower(visual), images(2, 32)
    assert tower.joint_width == tower.pooled_width == output_dim
    with Watch(tower) as states, torch.no_grad():
        pooled = tower.pooled(tower.call(pixels, {}))
        assert torch.equal(pooled, visual(pixels)[0])  # type: ignore[arg-type]
        dense = tower.dense_projection()
        assert dense is not None
        found = dense(tower.read_map(3, states[-1], (32, 32)), {})
        cells = states[-1][:, 1:].flatten(0, 1)[:, None]
        queries = visual.ln_post(visual.attn_pool(cells)) @ visual.proj
    assert queries.shape == (32, 5, output_dim)
    torch.testing.assert_close(queries, queries[:, :1].expand_as(queries), atol=1e-5, rtol=1e-4)
    expected = queries[:, 0].reshape(2, 4, 4, output_dim).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_an_open_clip_vit_that_does_not_pool_has_a_dense_map_only() -> None:
    visual: Any = open_clip_vit(vision=dict(pool_type="none")).visual
    tower = find_vision_tower(visual)
    assert tower.pooled_width is None and tower.joint_width == JOINT
    with Watch(tower) as states, torch.no_grad():
        result = tower.call(images(1, 32), {})
        dense = tower.dense_projection()
        assert tower.pooled(result) is None and dense is not None
        found = dense(tower.read_map(3, states[-1], (32, 32)), {})
    assert torch.allclose(found.flatten(2).mT, result[:, 1:], atol=1e-6)


def test_views_change_children_and_attributes_and_leave_the_original_alone() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    view = view_changing(module, {"0": nn.Identity(), "1.p": 0.25})
    x = torch.randn(1, 2)
    assert torch.equal(view.eval()(x), x) and view[1].p == 0.25  # type: ignore[index]
    assert isinstance(module[0], nn.Linear) and module[1].p == 0.5
    assert view_changing(module, {}) is module
