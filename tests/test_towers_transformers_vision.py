"""Vision towers of transformers: found, called, read and written, dense, bridged, or refused."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families_transformers_vision import ROWS, TEXT, VIT, build, whole
from helpers_conformance import Subject, changed, features, same
from helpers_families import VisionRow
from helpers_towers import Watch, images
from torch import Tensor, nn

from bridger.towers import VisionTower, find_vision_tower
from bridger.towers.base import state_of
from bridger.towers.views import tensor_at

EACH = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
SIZE = (64, 64)


@functools.cache
def _tower(name: str) -> tuple[nn.Module, VisionTower]:
    row = next(row for row in ROWS if row.name == name)
    given = row.build()
    return given, find_vision_tower(given)


def _of(name: str) -> tuple[Any, VisionTower]:
    return _tower(f"transformers/{name}")


def _own_result(given: Any, pixels: Tensor) -> Any:
    """Call the vision model as a user would, past the head of a task."""
    core = given
    if type(given).__name__.endswith("ForImageClassification"):
        core = getattr(given, given.base_model_prefix)
    if hasattr(core, "get_image_features"):
        return core.get_image_features(pixels)
    return core(pixels)


def _own_feature(given: Any, pixels: Tensor) -> Tensor:
    result = _own_result(given, pixels)
    if isinstance(result, Tensor):
        return result
    if result.get("image_embeds") is not None:
        return result["image_embeds"]
    pooled: Tensor = result["pooler_output"]
    return pooled.flatten(1)


NO_POOLER = {
    "IJepaModel": lambda last: last.mean(1),
    "ViTMSNModel": lambda last: last[:, 0],
    "ViTForImageClassification": lambda last: last[:, 0],
    "Data2VecVisionModel": lambda last: last[:, 1:].mean(1),
}
"""What these models' own classifiers do with the last state."""


@EACH
def test_blocks_run_once_in_order_and_give_maps_of_the_declared_shapes(row: VisionRow) -> None:
    given, tower = _tower(row.name)
    assert [given.get_submodule(block.name) for block in tower.blocks] == [
        block.module for block in tower.blocks
    ]
    order: list[int] = []
    pixels = images(2, *SIZE)
    with torch.no_grad(), Watch(tower, lambda index, output: order.append(index)) as states:
        tower.call(pixels, {})
    assert order == [*range(len(tower.blocks))] and len(order) >= 3
    for index, (block, state) in enumerate(zip(tower.blocks, states, strict=True)):
        assert block.stride is not None
        cells = SIZE[0] // block.stride
        assert tower.read_map(index, state, SIZE).shape == (2, block.width, cells, cells)
    assert tower.map_grid(SIZE) == (cells, cells)


@EACH
def test_the_call_is_the_models_own_and_so_is_its_feature(row: VisionRow) -> None:
    given, tower = _tower(row.name)
    pixels = images(2, *SIZE)
    with torch.no_grad():
        pooled = tower.pooled(tower.call(pixels, {}))
        name = row.name.partition("/")[2]
        if name in NO_POOLER:
            expected = NO_POOLER[name](_own_result(given, pixels).last_hidden_state)
        else:
            expected = _own_feature(given, pixels)
    assert pooled is not None and torch.equal(pooled, expected)
    assert pooled.shape == (2, tower.pooled_width)


@EACH
def test_position_tables_are_named_and_act(row: VisionRow) -> None:
    _, tower = _tower(row.name)
    pixels = images(2, *SIZE)
    own = {name: tensor_at(tower.module, name) for name in tower.position_names()}
    without = ("DINOv3", "FocalNet", "ConvNext", "ResNet", "RegNet", "Swinv2", "Beit", "Data2Vec")
    assert bool(own) == (not row.name.partition("/")[2].startswith(without))
    with torch.no_grad():
        plain = tower.pooled(tower.call(pixels, {}))
        same_bits = tower.pooled(tower.call(pixels, {n: t.clone() for n, t in own.items()}))
        assert plain is not None and same_bits is not None and torch.equal(plain, same_bits)
        for name, table in own.items():
            moved = tower.pooled(tower.call(pixels, {name: table + torch.randn_like(table)}))
            assert moved is not None and not torch.equal(moved, plain), name


@EACH
def test_writing_what_was_read_changes_no_bit_and_what_is_written_acts(row: VisionRow) -> None:
    _, tower = _tower(row.name)
    pixels = images(2, *SIZE)
    with torch.no_grad():
        expected = tower.pooled(tower.call(pixels, {}))
        assert expected is not None

        def again(index: int, output: Any) -> Any:
            return tower.write_map(index, output, tower.read_map(index, output, SIZE))

        with Watch(tower, again):
            pooled = tower.pooled(tower.call(pixels, {}))
        assert pooled is not None and torch.equal(pooled, expected)
        for wanted in range(len(tower.blocks)):

            def moved(index: int, output: Any, wanted: int = wanted) -> Any:
                old = tower.read_map(index, output, SIZE)
                new = old + torch.randn(1, *old.shape[1:])
                return tower.write_map(index, output, new) if index == wanted else None

            with Watch(tower, moved):
                pooled = tower.pooled(tower.call(pixels, {}))
            # What the last block says of the patches does not reach the class token.
            reaches = wanted < len(tower.blocks) - 1 or not _reads_class_token(tower)
            assert pooled is not None and torch.equal(pooled, expected) != reaches


def _reads_class_token(tower: Any) -> bool:
    return bool(getattr(tower, "prefix", 0)) and tower.pools == "first"


@EACH
def test_every_tensor_of_a_written_output_is_of_the_new_state(row: VisionRow) -> None:
    _, tower = _tower(row.name)
    outputs: list[Any] = []
    with torch.no_grad(), Watch(tower, lambda index, output: outputs.append(output)):
        tower.call(images(2, *SIZE), {})
    for index, output in enumerate(outputs):
        kept, old = state_of(output).clone(), tower.read_map(index, output, SIZE)
        written = tower.write_map(index, output, (old + 1).double().repeat_interleave(3, 0))
        assert type(written) is type(output) and torch.equal(state_of(output), kept)
        assert state_of(written).dtype == kept.dtype
        new = tower.read_map(index, written, SIZE)
        assert torch.equal(new, (old + 1).repeat_interleave(3, 0))
        if isinstance(output, tuple):
            assert len(written) == len(output)
            for before, after in zip(output[1:], written[1:], strict=True):
                if not isinstance(before, Tensor):
                    assert after is before or after == before
                elif before.ndim == 4:  # the state once more, as a map
                    assert torch.equal(before, old) and torch.equal(after, new)
                elif before.shape == kept.shape and before is output[0]:
                    assert after is written[0]


@EACH
@pytest.mark.parametrize("size", [(64, 96), (96, 64), (70, 100)])
def test_oblong_pictures_give_oblong_maps_in_raster_order(
    row: VisionRow, size: tuple[int, int]
) -> None:
    _, tower = _tower(row.name)
    tower.check_input(images(1, *size))
    pixels = images(1, *size)
    corner = pixels.clone()
    corner[:, :, -size[0] // 4 :, : size[1] // 4] += 5
    with torch.no_grad():
        with Watch(tower) as states:
            tower.call(pixels, {})
        with Watch(tower) as others:
            tower.call(corner, {})
    for index, block in enumerate(tower.blocks):
        found, other = (tower.read_map(index, s[index], size) for s in (states, others))
        up = row.name.partition("/")[2].startswith(("Swin", "FocalNet", "ResNet", "RegNet"))
        stride = block.stride or 1
        grid = [-(-side // stride) if up else side // stride for side in size]
        assert list(found.shape) == [1, block.width, *grid]
    assert tower.map_grid(size) == tuple(grid)
    # The first block has seen least: what changed most lies where the picture was changed.
    first = (tower.read_map(0, others[0], size) - tower.read_map(0, states[0], size)).norm(dim=1)
    y, x = divmod(int(first.argmax()), first.shape[2])
    assert y >= first.shape[1] // 2 and x < first.shape[2] / 2


def _last_map(tower: VisionTower, size: tuple[int, int] = SIZE) -> Tensor:
    with torch.no_grad(), Watch(tower) as states:
        tower.call(images(2, *size), {})
    return tower.read_map(len(tower.blocks) - 1, states[-1], size)


@EACH
def test_dense_maps_follow_the_models_own_last_state(row: VisionRow) -> None:
    given, tower = _tower(row.name)
    size = (64, 96)
    dense = tower.dense_projection()
    name = row.name.partition("/")[2]
    if name.startswith(("ResNet", "RegNet", "Data2Vec")):
        assert dense is None
        return
    assert dense is not None and not [*dense.parameters()] and not dense.state_dict()
    last = _last_map(tower, size)
    with torch.no_grad():
        found = dense(last, {})
    grid = last.shape[2:]
    assert found.shape == (2, dense.width, *grid)
    assert dense.width == (tower.joint_width or tower.blocks[-1].width)
    core: Any = tower.module
    tokens = last.flatten(2).transpose(1, 2)
    with torch.no_grad():
        if name.startswith("Siglip"):
            expected = _value_path(getattr(core, "vision_model", core), tokens)
        elif "CLIP" in name.upper():
            inner = getattr(core, "vision_model", core)
            expected = inner.post_layernorm(tokens)
            if tower.joint_width is not None:
                expected = core.visual_projection(expected)
        elif name.startswith("Beit"):
            norm = core.pooler.layernorm
            expected = F.layer_norm(tokens, (32,), norm.weight, norm.bias, norm.eps)
        elif name.startswith("ConvNext"):
            norm = core.layernorm
            expected = F.layer_norm(tokens, (32,), norm.weight, norm.bias, norm.eps)
        else:  # the model's own normed tokens, behind its class and register tokens
            pixels = images(2, *size)
            options = {"interpolate_pos_encoding": True} if _interpolates(name) else {}
            own = core(pixels, **options).last_hidden_state
            expected = own[:, own.shape[1] - tokens.shape[1] :]
    assert torch.allclose(found.flatten(2).transpose(1, 2), expected, atol=1e-5)


def _interpolates(name: str) -> bool:
    return name.startswith(("ViT", "DeiT", "IJepa", "Blip", "InstructBlip"))


def _value_path(core: Any, tokens: Tensor) -> Tensor:
    """SigLIP's pool on every patch alone: the value, without a query and a key."""
    h, head = core.post_layernorm(tokens), core.head
    weight, bias = head.attention.in_proj_weight[-32:], head.attention.in_proj_bias[-32:]
    value = head.attention.out_proj(F.linear(h, weight, bias))
    result: Tensor = value + head.mlp(head.layernorm(value))
    return result


def test_siglips_dense_map_is_what_its_pool_says_of_one_patch() -> None:
    _, tower = _of("SiglipVisionModel")
    core: Any = getattr(tower.module, "vision_model", tower.module)
    last, dense = _last_map(tower)[:, :, 1:2, 2:3], tower.dense_projection()
    assert dense is not None
    with torch.no_grad():
        pooled = core.head(core.post_layernorm(last.flatten(2).transpose(1, 2)))
        assert torch.allclose(dense(last, {})[:, :, 0, 0], pooled, atol=1e-6)


@pytest.mark.parametrize("name", ["SiglipVisionModel", "AltCLIPModel", "SwinModel", "BeitModel"])
def test_dense_maps_use_the_adapters_tensors(name: str) -> None:
    _, tower = _of(name)
    dense, last = tower.dense_projection(), _last_map(tower)
    assert dense is not None
    path = getattr(dense, "head", None) or getattr(dense, "projection", None)
    path = f"{path}.layernorm" if "head" in str(path) else path or dense.norm
    weight = tensor_at(tower.module, f"{path}.weight").detach()
    own = (2 * weight).requires_grad_()
    found = dense(last, {f"{path}.weight": own})
    assert not torch.allclose(found, dense(last, {}), atol=1e-3)
    found.square().sum().backward()
    assert own.grad is not None and own.grad.abs().sum() > 0


@pytest.mark.slow
@EACH
def test_bridged_they_change_nothing_at_first_and_teach_every_parameter_later(
    row: VisionRow,
) -> None:
    subject = Subject(row)
    bridged = subject.attach(2).eval()
    with torch.no_grad():
        fresh = bridged(*subject.batch())
        assert same(fresh, subject.attach(2, None)(*subject.batch()))
    changed(bridged)
    out = bridged(*subject.batch())
    spec = bridged.spec
    assert [m.shape[1] for m in out.maps] == [*spec.map_widths]
    sum(t.square().sum() for t in features(out)).backward()
    assert bridged.bridgers is not None
    grads = [p.grad for p in bridged.bridgers.parameters()]
    assert grads and all(g is not None and bool(g.isfinite().all()) for g in grads)
    assert all(p.grad is None for p in bridged.towers.parameters())


@pytest.mark.parametrize("name", ["SiglipModel", "AltCLIPModel", "ChineseCLIPModel"])
def test_towers_in_wholes_are_described_as_alone(name: str) -> None:
    alone = {"SiglipModel": "SiglipVisionModel"}.get(name)
    given, tower = _of(name)
    assert tower.joint_width == tower.pooled_width == (32 if alone else 24)
    if alone is not None:
        assert tower.describe() == _of(alone)[1].describe()
        assert tower.module is given.vision_model
        assert tower.blocks[0].name.startswith("vision_model.")
    else:
        assert tower.module is given
        inner = find_vision_tower(given.vision_model)
        assert inner.describe()["class"] == tower.describe()["class"]
        assert inner.joint_width is None and inner.pooled_width == 32


@pytest.mark.parametrize(
    "name",
    ["ViTForImageClassification", "SwinForImageClassification", "CLIPForImageClassification"],
)
def test_models_with_a_classifier_are_known_by_what_they_wrap(name: str) -> None:
    if name.startswith("CLIP"):
        given: Any = whole(name)()
        plain = given.vision_model
    else:
        given = _of(name)[0]
        plain = given.base_model
    tower = find_vision_tower(given)
    assert tower.module is plain
    assert tower.describe() == find_vision_tower(plain).describe()
    given.config._name_or_path, plain.config._name_or_path = "someone/else", ""
    assert find_vision_tower(given).name == (given.config._name_or_path or None)


def test_a_checkpoints_name_is_found_in_the_whole() -> None:
    given: Any = whole("SiglipModel", None)()
    assert find_vision_tower(given).name is None
    given.config._name_or_path = "someone/siglip"
    assert find_vision_tower(given).name == "someone/siglip"


@pytest.mark.parametrize("name", ["ViTModel", "BeitModel", "SwinModel", "ResNetModel"])
def test_towers_in_bfloat16_take_float32_pictures(name: str) -> None:
    tower = find_vision_tower(build(name).bfloat16())
    with torch.no_grad():
        pooled = tower.pooled(tower.call(images(1, *SIZE), {}))
    assert pooled is not None and pooled.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["ViTModel", "SwinModel", "Swinv2Model", "ConvNextModel"])
def test_configs_that_ask_for_tuples_or_hidden_states_do_not_matter(name: str) -> None:
    given: Any = build(name)
    given.config.output_hidden_states = True
    # With return_dict=False, transformers 5.24's own Swin and ConvNeXt fail in any hands.
    given.config.return_dict = name not in ("ViTModel", "Swinv2Model")
    tower = find_vision_tower(given)
    hooks = [len(module._forward_hooks) for module in given.modules()]
    with torch.no_grad():
        pooled = tower.pooled(tower.call(images(2, *SIZE), {}))
        expected = _of(name)[1].pooled(_of(name)[1].call(images(2, *SIZE), {}))
    assert pooled is not None and expected is not None and torch.equal(pooled, expected)
    assert [len(module._forward_hooks) for module in given.modules()] == hooks


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ViTModel", dict(image_size=(32, 64), patch_size=16)),
        ("BeitModel", dict(use_absolute_position_embeddings=True)),
        ("BeitModel", dict(use_relative_position_bias=True)),
        ("BeitModel", dict(use_shared_relative_position_bias=True)),
        ("Data2VecVisionModel", dict(use_relative_position_bias=True)),
        ("SwinModel", dict(use_absolute_embeddings=True)),
    ],
)
def test_other_kinds_of_positions_are_named_and_resized(name: str, changes: Any) -> None:
    import transformers

    if name == "SwinModel" and transformers.__version__.startswith("4."):
        pytest.skip("its table has a row too many there, and the model fails in any hands")
    given: Any = build(name, **changes)
    tower = find_vision_tower(given)
    assert tower.image_size is not None
    names = tower.position_names()
    pixels = images(2, *tower.image_size)
    with torch.no_grad():
        assert torch.equal(_own_last(given(pixels)), _own_last(tower.call(pixels, {})))
    table = tensor_at(tower.module, names[0]).detach().clone().requires_grad_()
    size = tower.image_size if name == "ViTModel" else (64, 96)
    with Watch(tower) as states:
        pooled = tower.pooled(tower.call(images(1, *size), {names[0]: table}))
    assert tower.read_map(0, states[0], size).shape[0] == 1
    assert pooled is not None
    pooled.square().sum().backward()
    assert table.grad is not None and table.grad.abs().sum() > 0


def _own_last(result: Any) -> Tensor:
    last: Tensor = result.last_hidden_state
    return last


@pytest.mark.parametrize("mean", [False, True])
def test_beit_reads_the_class_token_or_the_patches(mean: bool) -> None:
    for name in ("BeitModel", "Data2VecVisionModel"):
        given: Any = build(name, use_mean_pooling=mean)
        tower = find_vision_tower(given)
        result = tower.call(images(2, *SIZE), {})
        last, pooled = result.last_hidden_state, tower.pooled(result)
        expected = last[:, 1:].mean(1) if mean else last[:, 0]
        if mean and name == "BeitModel":
            expected = given.pooler.layernorm(expected)
        assert pooled is not None and torch.equal(pooled, expected)
        assert (tower.dense_projection() is None) == (mean and name != "BeitModel")


def test_siglip_without_its_head_is_the_mean_of_its_patches() -> None:
    tower = find_vision_tower(build("SiglipVisionModel", vision_use_head=False))
    pixels = images(2, *SIZE)
    with torch.no_grad():
        result = tower.call(pixels, {})
        dense, last = tower.dense_projection(), _last_map(tower)
        assert dense is not None and tower.joint_width is None
        pooled = tower.pooled(result)
        assert pooled is not None and torch.equal(pooled, result.last_hidden_state.mean(1))
        assert torch.allclose(dense(last, {}).mean((2, 3)), pooled, atol=1e-5)


@pytest.mark.parametrize("name", ["ResNetModel", "RegNetModel"])
def test_strides_of_the_first_stage_are_read_from_the_config(name: str) -> None:
    for first in (False, True):
        tower = find_vision_tower(build(name, downsample_in_first_stage=first))
        with torch.no_grad(), Watch(tower) as states:
            tower.call(images(1, *SIZE), {})
        assert [64 // state.shape[2] for state in states] == [b.stride for b in tower.blocks]


def _siglip2(name: str) -> nn.Module:
    import transformers

    cls = getattr(transformers, name)
    vision = {k: v for k, v in VIT.items() if k != "image_size"}
    config: Any = dict(**vision, num_patches=16)
    if name != "Siglip2VisionModel":
        config = dict(vision_config=config, text_config=TEXT)
    model: nn.Module = cls(cls.config_class(**config))
    return model


@pytest.mark.parametrize("name", ["Siglip2VisionModel", "Siglip2Model"])
def test_naflex_is_refused_with_the_way_out(name: str) -> None:
    words = f"{name} of transformers gives no map: .*NaFlex .*load as SiglipVisionModel"
    with pytest.raises(ValueError, match=words):
        find_vision_tower(_siglip2(name))


@pytest.mark.parametrize("name", ["ViTMAEModel", "ViTMAEForPreTraining"])
def test_masked_autoencoders_are_refused_with_the_way_out(name: str) -> None:
    changes = dict(decoder_num_attention_heads=2, decoder_hidden_size=32) if "For" in name else {}
    with pytest.raises(ValueError, match=f"{name} .*shuffles its patches .*ViTModel.from_pretr"):
        find_vision_tower(build(name, **changes))


def test_oblong_patches_and_unknown_versions_are_refused() -> None:
    with pytest.raises(ValueError, match="ViT must have square patches, found 16 x 8"):
        find_vision_tower(build("ViTModel", patch_size=(16, 8), image_size=(64, 64)))
    model: Any = build("ViTModel")
    (blocks,) = (n for n, m in model.named_modules() if isinstance(m, nn.ModuleList))
    owner = model.get_submodule(blocks.rpartition(".")[0])
    owner.renamed = owner._modules.pop(blocks.rpartition(".")[2])
    with pytest.raises(ValueError, match="have layers or encoder.layer, but this ViTModel has not"):
        find_vision_tower(model)


def test_pictures_smaller_than_a_cell_are_refused() -> None:
    for name, words in (("ViTModel", "16 pixels"), ("ConvNextModel", "32 pixels")):
        with pytest.raises(ValueError, match=f"too small for .* one cell per {words}"):
            _of(name)[1].check_input(images(1, 15, 15))


def test_swin_neither_changes_nor_takes_pictures_smaller_than_its_windows() -> None:
    given: Any = build("SwinModel")
    tower = find_vision_tower(given)
    large = images(1, 128, 128)
    with torch.no_grad():
        expected = given(large).pooler_output
        # Here the last map is one window, which the model's own forward never shifts again.
        tower.call(images(1, *SIZE), {})
        assert torch.equal(given(large).pooler_output, expected)
        pooled = tower.pooled(tower.call(large, {}))
        assert pooled is not None and torch.equal(pooled, expected)
        given(images(1, *SIZE))
        assert not torch.equal(given(large).pooler_output, expected)
    tower.check_input(images(1, 64, 49))
    with pytest.raises(ValueError, match="64 x 48 pixels are too small .* 4 x 4 .* least 49 pix"):
        tower.check_input(images(1, 64, 48))
    find_vision_tower(build("Swinv2Model")).check_input(images(1, 64, 20))


def test_patches_that_do_not_reach_the_grid_are_named() -> None:
    _, tower = _of("SwinModel")
    with pytest.raises(RuntimeError, match=r"block 'encoder.layers.1' .* 0 \+ 4\*6 tokens"):
        tower.read_map(1, (torch.zeros(2, 9, 32), None), (64, 96))


def test_models_put_together_from_any_two_are_not_taken_for_their_vision_half() -> None:
    import transformers

    clip: Any = whole("CLIPModel")()
    pair = transformers.VisionTextDualEncoderModel(
        vision_model=build("CLIPVisionModel"), text_model=clip.text_model
    )
    family = type(find_vision_tower(clip))
    assert family.matches(pair.vision_model) and family.matches(clip)
    assert not family.matches(pair)


def test_hiera_is_refused_since_its_tokens_are_no_map() -> None:
    from transformers import HieraConfig, HieraModel

    model = HieraModel(HieraConfig(embed_dim=8, depths=[1] * 4, num_heads=[1, 2, 4, 8]))
    with pytest.raises(TypeError, match="HieraModel.*window by window"):
        find_vision_tower(model)
