"""Every way to give a tower: what is found, what is refused, in which dtypes it runs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers
from helpers_families import TextRow, VisionRow, all_rows
from helpers_towers import (
    CONTEXT,
    TEXT_MODULES,
    VISION_MODULES,
    Watch,
    hf_clip,
    hf_text,
    hf_vision,
    ids,
    images,
    open_clip_resnet,
    open_clip_vit,
)
from torch import Tensor, nn

from bridger.towers import (
    TextTower,
    TokenVisionTower,
    VisionTower,
    find_text_tower,
    find_vision_tower,
    register_tower,
    registered_towers,
)
from bridger.towers.views import resize_positions, tensor_at

VISION = pytest.mark.parametrize("kind", VISION_MODULES)
TEXT = pytest.mark.parametrize("kind", TEXT_MODULES)


def _vision(kind: str) -> tuple[nn.Module, VisionTower, Tensor]:
    given = VISION_MODULES[kind]()
    tower = find_vision_tower(given)
    assert tower.image_size is not None
    return given, tower, images(2, *tower.image_size)


def test_every_registered_family_is_tested_here() -> None:
    rows = all_rows()
    vision = [*VISION_MODULES.values(), *(r.build for r in rows if isinstance(r, VisionRow))]
    assert {type(find_vision_tower(build())) for build in vision} == set(
        registered_towers("vision")
    )
    text = [*TEXT_MODULES.values(), *(r.build for r in rows if isinstance(r, TextRow))]
    expected = set(registered_towers("text"))
    if not hasattr(transformers, "NomicBertModel"):  # which came with 5.x
        expected = {family for family in expected if family.family != "NomicBert"}
    assert {type(find_text_tower(build())) for build in text} == expected


@VISION
def test_vision_blocks_are_named_in_order_below_what_was_given(kind: str) -> None:
    given, tower, pixels = _vision(kind)
    assert [given.get_submodule(block.name) for block in tower.blocks] == [
        block.module for block in tower.blocks
    ]
    with Watch(tower) as states:
        tower.call(pixels, {})
    assert len(states) == len(tower.blocks) == 4
    for index, (block, state) in enumerate(zip(tower.blocks, states, strict=True)):
        shape = tower.read_map(index, state, (pixels.shape[2], pixels.shape[3])).shape
        assert shape[1] == block.width and block.stride == pixels.shape[2] // shape[2]


@TEXT
def test_text_blocks_are_named_in_order_below_what_was_given(kind: str) -> None:
    given = TEXT_MODULES[kind]()
    tower = find_text_tower(given)
    with Watch(tower) as states:
        tower.call(*tower.prepare(ids()), {})
    assert len(states) == len(tower.blocks) == 4
    for index, (block, state) in enumerate(zip(tower.blocks, states, strict=True)):
        assert given.get_submodule(block.name) is block.module and block.stride is None
        assert tower.read_tokens(index, state).shape == (2, CONTEXT, block.width)


@pytest.mark.parametrize("side", ["vision", "text"])
def test_descriptions_are_json_and_the_same_alone_or_in_a_whole(side: str) -> None:
    find: Any = find_vision_tower if side == "vision" else find_text_tower
    for build in (VISION_MODULES if side == "vision" else TEXT_MODULES).values():
        description = find(build()).describe()
        assert json.loads(json.dumps(description)) == description
        assert {"library", "class", "name", "num_blocks", "widths"} <= set(description)
    clip, hf = open_clip_vit(custom=True), hf_clip()
    alone, hf_alone = (clip.visual, hf_vision()) if side == "vision" else (clip.text, hf_text())
    assert find(clip).describe() == find(alone).describe()
    assert find(hf).describe() == find(hf_alone).describe()
    assert find(hf).position_names() == find(hf_alone).position_names()


def test_whole_models_name_their_parts() -> None:
    clip, custom, hf = open_clip_vit(), open_clip_vit(custom=True), hf_clip()
    assert find_vision_tower(clip).module is clip.visual
    assert find_text_tower(clip).module is clip
    assert find_text_tower(custom).module is custom.text
    assert find_vision_tower(hf).module is hf and find_text_tower(hf).module is hf


def test_the_checkpoint_a_tower_came_from_is_remembered() -> None:
    model = hf_vision()
    model.config._name_or_path = "someone/clip"
    assert find_vision_tower(model).describe()["name"] == "someone/clip"
    assert find_vision_tower(hf_vision()).describe()["name"] is None


def test_peft_wrapped_towers_are_known_by_what_they_wrap() -> None:
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(hf_vision(), peft.LoraConfig(target_modules=["q_proj"]))
    tower = find_vision_tower(wrapped)
    assert tower.blocks[1].name.startswith("base_model.model.")
    assert wrapped.get_submodule(tower.blocks[1].name) is tower.blocks[1].module
    assert torch.equal(tower.pooled(tower.call(images(), {})), wrapped(images()).image_embeds)


def test_towers_on_the_wrong_side_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="expected a vision tower, found the text tower .*CLIPText"):
        find_vision_tower(hf_text())
    with pytest.raises(TypeError, match="expected a vision tower, found the text tower .*TextTr"):
        find_vision_tower(open_clip_vit(custom=True).text)
    with pytest.raises(TypeError, match="expected a text tower, found the vision tower .*ResNet"):
        find_text_tower(open_clip_resnet().visual)
    with pytest.raises(TypeError, match="pass the vision tower first"):
        find_text_tower(hf_vision())


def test_unknown_modules_are_refused_with_what_is_known() -> None:
    with pytest.raises(TypeError, match="torch.nn.modules.linear.Linear; known: open_clip Mod"):
        find_vision_tower(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="known: open_clip .*TextTransformer, .* CLIPText"):
        find_text_tower(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="must be a torch.nn.Module, found str"):
        find_text_tower("openai/clip-vit-base-patch16")  # type: ignore[arg-type]


def test_a_class_of_the_same_name_from_elsewhere_is_not_taken() -> None:
    class VisionTransformer(nn.Module):
        pass

    with pytest.raises(TypeError, match="no vision tower is known"):
        find_vision_tower(VisionTransformer())


@pytest.mark.parametrize("find", [find_vision_tower, find_text_tower])
def test_towers_on_the_meta_device_are_refused_by_name(find: Any) -> None:
    with pytest.raises(ValueError, match="tower CLIP is on the meta device .*holds no numbers"):
        find(open_clip_vit().to("meta"))


@pytest.mark.parametrize(
    ("vision", "words"),
    [
        (dict(attentional_pool="parallel", attn_pooler_heads=3), "'parallel' .*untested"),
        (dict(attentional_pool="cascade", attn_pooler_heads=3), "'cascade' .*untested"),
    ],
)
def test_vits_built_in_unknown_ways_are_refused(vision: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        find_vision_tower(open_clip_vit(vision=vision))


def test_vits_with_oblong_patches_or_stray_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="square patches, found .16, 8."):
        find_vision_tower(open_clip_vit(patch_size=(16, 8)))  # type: ignore[arg-type]
    visual = open_clip_vit().visual
    visual.positional_embedding = nn.Parameter(torch.zeros(26, 48))
    with pytest.raises(ValueError, match="26 position rows for a grid of 4 x 4"):
        find_vision_tower(visual)


def test_a_resnet_without_its_pool_is_refused() -> None:
    visual = open_clip_resnet().visual
    visual.attnpool = nn.Identity()
    with pytest.raises(ValueError, match="AttentionPool2d as attnpool, found Identity"):
        find_vision_tower(visual)


def test_text_towers_built_in_unknown_ways_are_refused() -> None:
    with pytest.raises(ValueError, match="pool_type='none' has no sentence"):
        find_text_tower(open_clip_vit(text=dict(pool_type="none")))


def test_patch_dropout_is_refused_in_train_mode_only() -> None:
    tower = find_vision_tower(open_clip_vit(vision=dict(patch_dropout=0.5)))
    tower.call(images(), {})
    tower.module.train()
    with pytest.raises(RuntimeError, match="drops patches in train mode"):
        tower.call(images(), {})


def test_a_state_that_is_no_grid_is_refused() -> None:
    tower = find_vision_tower(hf_vision())
    with pytest.raises(RuntimeError, match="1 . 4.4 tokens were expected"):
        tower.read_map(1, torch.zeros(2, 9, 48), (32, 32))


def test_registering_checks_side_base_class_and_name() -> None:
    with pytest.raises(ValueError, match="'vision' or 'text', found 'audio'"):
        register_tower("audio")
    family = registered_towers("vision")[0]
    with pytest.raises(ValueError, match="already a vision tower for"):
        register_tower("vision")(family)
    with pytest.raises(TypeError, match="must derive from TextTower"):
        register_tower("text")(family)


@pytest.mark.parametrize("kind", ["open_clip_vit", "open_clip_resnet", "hf_clip_vision_projection"])
def test_towers_in_bfloat16_take_float32_pictures(kind: str) -> None:
    given = VISION_MODULES[kind]().bfloat16()
    tower = find_vision_tower(given)
    (name,) = tower.position_names()
    tensors = {name: tensor_at(tower.module, name).float().requires_grad_()}
    for pixels in (images(1, *tower.image_size or (0, 0)), images(1, 96, 64)):
        with Watch(tower) as states:
            pooled = tower.pooled(tower.call(pixels, tensors))
        assert pooled is not None and pooled.dtype == torch.bfloat16
        size = (pixels.shape[2], pixels.shape[3])
        last = tower.read_map(3, states[-1], size)
        assert tower.write_map(3, states[-1], last.float()).dtype == torch.bfloat16
        dense = tower.dense_projection()
        assert dense is not None and dense(last, {}).dtype == torch.bfloat16


def test_open_clips_mixed_precision_runs() -> None:
    from open_clip.model import convert_weights_to_lp

    for build in (open_clip_vit, open_clip_resnet):
        clip = build()
        convert_weights_to_lp(clip, torch.bfloat16)
        vision, text = find_vision_tower(clip), find_text_tower(clip)
        size = vision.image_size or (0, 0)
        with Watch(vision) as states:
            vision.call(images(1, *size), {})
        dense = vision.dense_projection(connect=build is open_clip_resnet)
        assert dense is not None
        last = dense(vision.read_map(3, states[-1], size), {})
        assert last.isfinite().all() and last.dtype == torch.bfloat16
        prepared = text.prepare(ids(length=7))
        assert text.call(*prepared, {}).isfinite().all()


def test_families_are_plain_classes_over_shared_bases() -> None:
    assert all(issubclass(family, VisionTower) for family in registered_towers("vision"))
    assert all(issubclass(family, TextTower) for family in registered_towers("text"))
    tower = find_vision_tower(open_clip_vit())
    assert isinstance(tower, TokenVisionTower) and not isinstance(tower, nn.Module)
    table = tensor_at(tower.module, "positional_embedding")
    assert resize_positions(table, (4, 4), tower.map_grid((32, 32)), 1) is table
