"""Vision towers: their own feature, other sizes, states read and written, dense maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from helpers_towers import (
    JOINT,
    VISION_MODULES,
    Watch,
    fill,
    hf_clip,
    hf_vision,
    ids,
    images,
    open_clip_resnet,
    open_clip_vit,
)
from torch import Tensor, nn

from bridger.towers import (
    VisionTower,
    find_text_tower,
    find_vision_tower,
)
from bridger.towers.dense import NormProjection, SpatialAttentionPool
from bridger.towers.views import tensor_at

VISION = pytest.mark.parametrize("kind", VISION_MODULES)


def _vision(kind: str) -> tuple[nn.Module, VisionTower, Tensor]:
    given = VISION_MODULES[kind]()
    tower = find_vision_tower(given)
    assert tower.image_size is not None
    return given, tower, images(2, *tower.image_size)


def _own_image_feature(given: Any, pixels: Tensor) -> Tensor:
    """Return the image feature as the library's user would ask for it."""
    if hasattr(given, "encode_image"):
        return given.encode_image(pixels)
    if hasattr(given, "get_image_features"):
        features = given.get_image_features(pixels)
        return features if isinstance(features, Tensor) else features.pooler_output
    result = given(pixels)
    if isinstance(result, Tensor):
        return result
    key = "image_embeds"
    return result[key] if key in result else result.pooler_output


@VISION
def test_with_nothing_to_replace_the_call_is_the_towers_own(kind: str) -> None:
    given, tower, pixels = _vision(kind)
    pooled = tower.pooled(tower.call(pixels, {}))
    assert pooled is not None and torch.equal(pooled, _own_image_feature(given, pixels))
    assert pooled.shape == (2, tower.pooled_width)
    if tower.joint_width is not None:
        assert tower.joint_width == tower.pooled_width == JOINT


@VISION
def test_equal_tensors_standing_in_change_no_bit(kind: str) -> None:
    given, tower, pixels = _vision(kind)
    tensors = {name: tensor_at(tower.module, name).clone() for name in tower.position_names()}
    pooled = tower.pooled(tower.call(pixels, tensors))
    assert pooled is not None and torch.equal(pooled, _own_image_feature(given, pixels))


@VISION
@pytest.mark.parametrize("size", [(64, 96), (96, 64), (100, 70)])
def test_other_sizes_run_with_bicubically_resized_positions(
    kind: str, size: tuple[int, int]
) -> None:
    given, tower, _ = _vision(kind)
    pixels = images(2, *size)
    pooled = tower.pooled(tower.call(pixels, {}))
    cell = 32 if "resnet" in kind else 8
    grid = (size[0] // cell, size[1] // cell)
    assert tower.map_grid(size) == grid
    (name,) = tower.position_names()
    table = tensor_at(tower.module, name)
    side = int((len(table) - 1) ** 0.5)
    cells = table[1:].T.reshape(1, -1, side, side)
    cells = F.interpolate(cells, grid, mode="bicubic", align_corners=False, antialias=False)
    resized = torch.cat([table[:1], cells.flatten(2)[0].T])
    expected = _image_feature_with_positions(given, pixels, name, resized, grid)
    assert pooled is not None and torch.allclose(pooled, expected, atol=1e-5)


def _image_feature_with_positions(
    given: Any, pixels: Tensor, name: str, table: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Run a copy whose own table has been replaced for good, as a user would resize it."""
    if hasattr(given, "config"):  # transformers: the embeddings are added by hand
        core = getattr(given, "vision_model", given)
        patch = core.embeddings.patch_embedding
        x = rearrange(patch(pixels), "b c h w -> b (h w) c")
        x = torch.cat([core.embeddings.class_embedding.expand(len(x), 1, -1), x], dim=1) + table
        x = core.encoder(inputs_embeds=core.pre_layrnorm(x)).last_hidden_state[:, 0]
        x = core.post_layernorm(x)
        return given.visual_projection(x) if hasattr(given, "visual_projection") else x
    visual = getattr(given, "visual", given)
    owner = visual.get_submodule(name.rpartition(".")[0])
    owner.positional_embedding = nn.Parameter(table.detach())
    return visual(pixels)


def test_resized_positions_keep_gradients_and_native_shapes() -> None:
    for build, size in [
        (open_clip_vit, (40, 48)),
        (open_clip_resnet, (96, 64)),
        (hf_clip, (40, 48)),
    ]:
        tower = find_vision_tower(build())  # type: ignore[operator]
        (name,) = tower.position_names()
        table = tensor_at(tower.module, name).detach().clone().requires_grad_()
        pooled = tower.pooled(tower.call(images(1, *size), {name: table}))
        assert pooled is not None
        pooled.sum().backward()
        assert table.grad is not None and (table.grad != 0).any(dim=1).all()
        with pytest.raises(ValueError, match=rf"{name}.* must have the tower's own shape"):
            tower.call(images(1, *size), {name: torch.zeros(7, 7)})


@VISION
def test_a_trained_tensor_changes_the_call_and_nothing_else(kind: str) -> None:
    given, tower, pixels = _vision(kind)
    before = _own_image_feature(given, pixels)
    order = [*given.state_dict()]
    (name,) = tower.position_names()
    table = tensor_at(tower.module, name)
    changed = tower.pooled(tower.call(pixels, {name: table + torch.randn_like(table)}))
    assert changed is not None and not torch.allclose(changed, before, atol=1e-3)
    assert torch.equal(_own_image_feature(given, pixels), before)
    assert tensor_at(tower.module, name) is table and [*given.state_dict()] == order


def test_sizes_between_patches_drop_the_rest_of_the_picture() -> None:
    for given in (open_clip_vit().visual, hf_vision()):
        tower = find_vision_tower(given)
        pixels = images(1, 45, 39)
        with Watch(tower) as states:
            whole = tower.pooled(tower.call(pixels, {}))
        assert tower.read_map(0, states[0], (45, 39)).shape[2:] == (5, 4)
        cropped = tower.pooled(tower.call(pixels[:, :, :40, :32], {}))
        assert whole is not None and torch.allclose(whole, cropped, atol=1e-6)


def test_maps_are_row_major() -> None:
    for given in (open_clip_vit().visual, hf_vision()):
        tower = find_vision_tower(given)
        state = torch.arange(1 + 4 * 6.0).reshape(1, -1, 1)
        tokens = tower.read_map(0, state, (32, 48))
        assert torch.equal(tokens[0, 0], torch.arange(1, 25.0).reshape(4, 6))


@VISION
def test_bad_pictures_are_named(kind: str) -> None:
    _, tower, pixels = _vision(kind)
    tower.check_input(pixels)
    tower.check_input(images(1, 33, 47))
    for bad, words in [
        (pixels[0], r"must be \(B, 3, H, W\), found \(3, "),
        (pixels[:, :1], r"three channels, found \(2, 1, "),
        (pixels[:0], r"at least one picture"),
        (pixels.to(torch.uint8), "floating-point, found torch.uint8: scale and normalise"),
        (images(1, 7, 40), "7 x 40 pixels are too small for .* one cell per (8|32) pixels"),
    ]:
        with pytest.raises(ValueError, match=words):
            tower.check_input(bad)
    with pytest.raises(ValueError, match="found list"):
        tower.check_input([1])  # type: ignore[arg-type]


@VISION
def test_writing_what_was_read_changes_no_bit(kind: str) -> None:
    _, tower, pixels = _vision(kind)
    size = (pixels.shape[2], pixels.shape[3])
    expected = tower.pooled(tower.call(pixels, {}))

    def same(index: int, output: Any) -> Any:
        return tower.write_map(index, output, tower.read_map(index, output, size))

    with Watch(tower, same):
        pooled = tower.pooled(tower.call(pixels, {}))
    assert pooled is not None and expected is not None and torch.equal(pooled, expected)


@VISION
def test_written_maps_are_new_tensors_of_the_states_dtype(kind: str) -> None:
    _, tower, pixels = _vision(kind)
    size = (pixels.shape[2], pixels.shape[3])
    with Watch(tower) as states:
        tower.call(pixels, {})
    for index, state in enumerate(states):
        kept = state.clone()
        old = tower.read_map(index, state, size)
        written = tower.write_map(index, state, (old + 1).double())
        assert written.dtype == state.dtype and torch.equal(state, kept)
        assert torch.allclose(tower.read_map(index, written, size), old + 1)
        assert written.data_ptr() != state.data_ptr()
        for bad in (old[:, :-1], old[:, :, :, :-1], old[:1], old.repeat(2, 1, 1, 1)[:3]):
            with pytest.raises(ValueError, match=f"block '{tower.blocks[index].name}'"):
                tower.write_map(index, state, bad)


@VISION
def test_a_map_may_grow_to_several_expressions_per_image(kind: str) -> None:
    _, tower, pixels = _vision(kind)
    size = (pixels.shape[2], pixels.shape[3])
    shift = torch.randn(6, 1, 1, 1)

    def grow(index: int, output: Any) -> Any:
        old = tower.read_map(index, output, size)
        return (
            tower.write_map(index, output, old.repeat_interleave(3, 0) + shift)
            if index == 1
            else None
        )

    with Watch(tower, grow):
        together = tower.pooled(tower.call(pixels, {}))
    assert together is not None and together.shape[0] == 6
    for row in range(6):

        def one(index: int, output: Any, row: int = row) -> Any:
            old = tower.read_map(index, output, size)
            return tower.write_map(index, output, old + shift[row]) if index == 1 else None

        with Watch(tower, one):
            alone = tower.pooled(tower.call(pixels[row // 3 : row // 3 + 1], {}))
        assert alone is not None and torch.allclose(together[row], alone[0], atol=1e-5)


@VISION
def test_tuples_around_a_state_are_kept(kind: str) -> None:
    _, tower, pixels = _vision(kind)
    size = (pixels.shape[2], pixels.shape[3])
    with Watch(tower) as states:
        tower.call(pixels, {})
    wrapped = (states[0], "more", None)
    old = tower.read_map(0, wrapped, size)
    written = tower.write_map(0, wrapped, old + 1)
    assert written[1:] == ("more", None)
    assert torch.equal(tower.read_map(0, written, size), old + 1)


@pytest.mark.parametrize("kind", [kind for kind in VISION_MODULES if "resnet" not in kind])
def test_every_patch_is_projected_like_the_pooled_token(kind: str) -> None:
    _, tower, pixels = _vision(kind)
    with Watch(tower) as states:
        pooled = tower.pooled(tower.call(pixels, {}))
    dense = tower.dense_projection()
    assert (
        isinstance(dense, NormProjection) and not [*dense.parameters()] and not dense.state_dict()
    )
    assert pooled is not None and dense.width == pooled.shape[1]
    tokens = dense.project(states[-1], {})
    assert torch.allclose(tokens[:, 0], pooled, atol=1e-6)
    dense_map = dense(tower.read_map(3, states[-1], (32, 32)), {})
    assert dense_map.shape == (2, dense.width, 4, 4)
    assert torch.equal(dense_map[1, :, 2, 3], tokens[1, 1 + 2 * 4 + 3])


@pytest.mark.parametrize("final_ln_after_pool", [False, True])
def test_a_mean_pooled_vit_is_the_mean_of_its_dense_map(final_ln_after_pool: bool) -> None:
    vision = dict(pool_type="avg", final_ln_after_pool=final_ln_after_pool)
    tower = find_vision_tower(open_clip_vit(vision=vision))
    with Watch(tower) as states:
        pooled = tower.pooled(tower.call(images(), {}))
    dense = tower.dense_projection()
    assert pooled is not None and isinstance(dense, NormProjection)
    if final_ln_after_pool:  # the norm is not linear: patches are normed one by one
        assert torch.allclose(dense.project(states[-1][:, 1:].mean(1), {}), pooled, atol=1e-6)
    else:
        dense_map = dense(tower.read_map(3, states[-1], (32, 32)), {})
        assert torch.allclose(dense_map.mean((2, 3)), pooled, atol=1e-6)


def test_a_vit_without_projection_is_dense_in_its_own_width() -> None:
    visual = open_clip_vit().visual
    visual.proj = None
    tower = find_vision_tower(visual)
    assert (tower.joint_width, tower.pooled_width) == (None, 48)
    dense = tower.dense_projection()
    assert dense is not None and dense(torch.randn(1, 48, 2, 3), {}).shape == (1, 48, 2, 3)


def test_towers_that_return_tokens_too_pool_the_same() -> None:
    plain = open_clip_vit(custom=True)
    both = open_clip_vit(
        custom=True, vision=dict(output_tokens=True), text=dict(output_tokens=True)
    )
    vision, text = find_vision_tower(both), find_text_tower(both)
    assert torch.equal(vision.pooled(vision.call(images(), {})), plain.visual(images()))
    prepared = text.prepare(ids())
    result = text.call(*prepared, {})
    assert torch.equal(text.sentence(result[1], prepared[0], result), plain.text(ids()))


def _attention_pool(pool: Any, tokens: Tensor) -> Tensor:
    """Every position as query, by torch's own multi-head attention: (L, B, C) to (L, B, joint)."""
    return F.multi_head_attention_forward(
        query=tokens,
        key=tokens,
        value=tokens,
        embed_dim_to_check=tokens.shape[-1],
        num_heads=pool.num_heads,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        use_separate_proj_weight=True,
        training=False,
        need_weights=False,
    )[0]


def test_the_spatial_pool_attends_like_the_towers_own_pool() -> None:
    visual = open_clip_resnet().visual
    tower = find_vision_tower(visual)
    with Watch(tower) as states:
        pooled = tower.pooled(tower.call(images(2, 64), {}))
    patches = rearrange(states[-1], "b c h w -> b (h w) c")
    tokens = torch.cat([patches.mean(1, keepdim=True), patches], dim=1)
    tokens = tokens + visual.attnpool.positional_embedding
    attended = SpatialAttentionPool.attend(tokens, visual.attnpool)
    assert pooled is not None and torch.allclose(attended[:, 0], pooled, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
@pytest.mark.parametrize("connect", [False, True])
def test_the_spatial_pool_equals_torchs_attention(size: tuple[int, int], connect: bool) -> None:
    visual = open_clip_resnet().visual
    tower = find_vision_tower(visual)
    height, width = tower.map_grid(size)
    dense = tower.dense_projection(connect=connect)
    assert isinstance(dense, SpatialAttentionPool) and dense.width == JOINT
    fill(dense)
    last = torch.randn(2, 256, height, width)
    grid = visual.attnpool.positional_embedding[1:].T.reshape(1, 256, 2, 2)
    grid = F.interpolate(grid, (height, width), mode="bicubic", align_corners=False)
    tokens = rearrange(last + grid, "b c h w -> (h w) b c")
    expected = rearrange(_attention_pool(visual.attnpool, tokens), "(h w) b c -> b c h w", h=height)
    if connect:
        assert dense.connect is not None
        expected = F.relu(expected + dense.connect[1](dense.connect[0](last)))
    assert torch.allclose(dense(last, {}), expected, atol=1e-5)


def test_the_residual_is_frozen_saved_and_stays_in_eval() -> None:
    dense = find_vision_tower(open_clip_resnet()).dense_projection(connect=True)
    assert isinstance(dense, SpatialAttentionPool) and dense.connect is not None
    names = [*dense.state_dict()]
    assert names == [f"connect.{name}" for name in dense.connect.state_dict()]
    assert "connect.0.weight" in names and "connect.1.running_mean" in names
    assert not any(parameter.requires_grad for parameter in dense.parameters())
    dense.train()
    assert dense.training and not dense.connect[1].training
    plain = find_vision_tower(open_clip_resnet()).dense_projection()
    assert plain is not None and not plain.state_dict()
    with pytest.raises(ValueError, match="`connect` exists for CLIP ResNets only"):
        find_vision_tower(open_clip_vit()).dense_projection(connect=True)


@VISION
def test_dense_projections_use_the_adapters_tensors(kind: str) -> None:
    _, tower, _ = _vision(kind)
    dense = tower.dense_projection()
    assert dense is not None
    last = torch.randn(1, tower.blocks[-1].width, 3, 5)
    if isinstance(dense, SpatialAttentionPool):
        name = "attnpool.positional_embedding"
    else:
        name = f"{dense.norm}.weight"  # type: ignore[union-attr]
    own = tensor_at(tower.module, name)
    table = (own + torch.randn_like(own)).detach().requires_grad_()
    assert torch.equal(dense(last, {name: own.clone()}), dense(last, {}))
    changed = dense(last, {name: table})
    assert not torch.allclose(changed, dense(last, {}), atol=1e-3)
    changed.square().sum().backward()
    assert table.grad is not None and table.grad.abs().sum() > 0
