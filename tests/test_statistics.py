"""`trainable="statistics"`: frozen towers whose BatchNorms are in train mode, as released."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers_towers import fill, ids, images, open_clip_resnet, open_clip_vit
from torch import Tensor, nn

from bridger import BridgedEncoder, BridgedModel, BridgerConfig, attach_bridgers
from bridger.heads import ReferringSegmentationHead
from bridger.training.batch_norm import synchronized_batch_norm

SIZE = 64
HEAD = {"width": 32, "num_layers": 1, "num_heads": 2}
SMALL = BridgerConfig.preset("paper", hidden_dim=16, num_heads=2, ffn_dim=16, dropout=0.0)
STAGES = [(1, 1), (2, 2), (3, 3)]


def attach(clip: Any, config: BridgerConfig | None = SMALL, **options: Any) -> BridgedEncoder:
    encoder = attach_bridgers(clip.visual, clip, STAGES, config, trainable="statistics", **options)
    if encoder.bridgers is not None:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in encoder.bridgers.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return encoder


def statistics(module: nn.Module) -> dict[str, Tensor]:
    """Clones of the running statistics below a tower's module."""
    names = ("running_mean", "running_var")
    return {n: b.clone() for n, b in module.named_buffers() if n.rpartition(".")[2] in names}


def owned(encoder: BridgedEncoder) -> dict[str, Tensor]:
    """Clones of the adapter's own, by the tower's names."""
    buffers = encoder.tower_tensors.named_buffers()
    return {n.removeprefix("vision:").replace("/", "."): b.clone() for n, b in buffers}


def by_hand(visual: Any, clip: Any, encoder: BridgedEncoder, pixels: Tensor, words: Tensor) -> Any:
    """The bridged forward as a plain loop over the blocks of towers that are in the modes given."""
    expressions = words.shape[0] // pixels.shape[0]
    length = words.shape[1]
    x = visual.stem(pixels)
    x = visual.layer1(x)
    t = clip.token_embedding(words) + clip.positional_embedding[:length]
    mask, text_mask = clip.attn_mask[:length, :length], torch.ones_like(words, dtype=torch.bool)
    for row, sentence in enumerate(words):
        text_mask[row, int(sentence.argmax()) + 1 :] = False
    carry, maps, block = None, [], 0
    for stage, layer in enumerate((visual.layer2, visual.layer3, visual.layer4)):
        x = layer(x)
        while block <= STAGES[stage][1]:
            t = clip.transformer.resblocks[block](t, attn_mask=mask)
            block += 1
        if encoder.bridgers is not None:
            if stage == 0:  # until then each picture counts once
                x = x.repeat_interleave(expressions, dim=0)
            dx, dt, carry = encoder.bridgers(stage, x, t, text_mask, carry, (SIZE, SIZE))
            x, t = x + dx, t + dt
        maps.append(x if len(x) == len(words) else x.repeat_interleave(expressions, dim=0))
    return maps, clip.ln_final(t)


@pytest.mark.parametrize("expressions", [1, 2])
@pytest.mark.parametrize("config", [SMALL, None])
def test_two_steps_are_those_of_a_loop_over_a_tower_in_train_mode(
    config: BridgerConfig | None, expressions: int
) -> None:
    clip = open_clip_resnet(SIZE)
    other = copy.deepcopy(clip)
    other.visual.train()
    encoder = attach(clip, config).train()
    other_bridgers = copy.deepcopy(encoder.bridgers)
    for step in range(2):
        pixels, words = images(2, SIZE) + step, ids(2 * expressions)
        texts = words.unflatten(0, (2, expressions))
        features = encoder(pixels, texts if expressions > 1 else words)
        encoder.bridgers, kept = other_bridgers, encoder.bridgers  # type: ignore[assignment]
        maps, tokens = by_hand(other.visual, other, encoder, pixels, words)
        encoder.bridgers = kept
        for found, expected in zip(features.maps[:2], maps[:2], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(features.tokens, tokens, rtol=1e-5, atol=1e-5)
    found, expected = owned(encoder), statistics(other.visual)
    assert found.keys() == expected.keys() and len(found) > 20
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(found[name], statistics(clip.visual)[name])


def test_without_bridgers_statistics_are_the_towers_own_to_the_bit() -> None:
    clip = open_clip_resnet(SIZE)
    other = copy.deepcopy(clip).visual.train()
    encoder = attach(clip, None).train()
    for step in range(3):
        with torch.no_grad():
            encoder(images(3, SIZE) * (1 + step), ids(3))
            other(images(3, SIZE) * (1 + step))
    found, expected = owned(encoder), statistics(other)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_users_tower_keeps_modes_statistics_and_counters() -> None:
    clip = open_clip_resnet(SIZE)
    pixels, words = images(2, SIZE), ids(2)
    clip.visual.layer1.train()  # a mode of the user's own, to be restored
    state = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    modes = {name: module.training for name, module in clip.named_modules()}
    with torch.no_grad():
        plain = copy.deepcopy(clip).eval().visual(pixels)
    encoder = attach(clip).train()
    encoder(pixels, words).maps[-1].sum().backward()
    assert not any(module.training for module in clip.modules())
    with torch.no_grad():
        assert torch.equal(clip.visual(pixels), plain)
    assert all(torch.equal(tensor, state[name]) for name, tensor in clip.state_dict().items())
    encoder.detach()
    assert {name: module.training for name, module in clip.named_modules()} == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in clip.state_dict().items())


def test_eval_uses_statistics_and_leaves_them() -> None:
    clip = open_clip_resnet(SIZE)
    encoder = attach(clip, None).train()
    pixels, words = images(2, SIZE), ids(2)
    encoder(pixels, words)
    before = owned(encoder)
    other = copy.deepcopy(clip).visual
    other.load_state_dict({**other.state_dict(), **before})
    with torch.no_grad():
        features = encoder.eval()(pixels, words)
        expected = other.layer2(other.layer1(other.stem(pixels)))
    torch.testing.assert_close(features.maps[0], expected)
    after = owned(encoder)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_they_are_saved_and_loaded(tmp_path: Path) -> None:
    model = attach(open_clip_resnet(SIZE)).with_head(ReferringSegmentationHead, **HEAD).train()
    pixels, words = images(2, SIZE), ids(2)
    labels = (pixels[:, 0] > 0).float()
    model(pixels, words, labels=labels).loss.backward()
    model.save_pretrained(tmp_path)
    clip = open_clip_resnet(SIZE)
    again = BridgedModel.from_pretrained(tmp_path, clip.visual, clip)
    before, after = owned(model.encoder), owned(again.encoder)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    with torch.no_grad():
        assert torch.equal(again(pixels, words).logits, model.eval()(pixels, words).logits)
    # Nothing of them is given to an optimiser, and they are no parameters that DDP would reduce.
    assert "tower_tensors" not in [group["name"] for group in model.parameter_groups()]
    assert not list(model.encoder.tower_tensors.parameters())


def test_disabled_and_other_encoders_move_nothing() -> None:
    clip = open_clip_resnet(SIZE)
    first, second = attach(clip).train(), attach(clip).train()
    neither = attach_bridgers(clip.visual, clip, STAGES, SMALL).train()
    pixels, words = images(2, SIZE), ids(2)
    before = owned(second)
    with torch.no_grad():
        plain = clip.visual.layer2(clip.visual.layer1(clip.visual.stem(pixels)))
        first(pixels, words)
        neither(pixels, words)
        with second.disable():
            assert torch.equal(second(pixels, words).maps[0], plain)
    after, moved = owned(second), owned(first)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(torch.equal(moved[name], before[name]) for name in before)


def test_a_forward_that_fails_moves_nothing() -> None:
    encoder = attach(open_clip_resnet(SIZE)).train()
    before = owned(encoder)

    def fail(*args: Any) -> None:
        raise KeyError("late")

    handle = encoder.vision.module.layer4.register_forward_hook(fail)
    with pytest.raises(KeyError, match="late"):
        encoder(images(2, SIZE), ids(2))
    handle.remove()
    assert all(torch.equal(tensor, before[name]) for name, tensor in owned(encoder).items())


@pytest.mark.parametrize("connect", [False, True])
def test_the_released_residual_follows_the_towers(connect: bool) -> None:
    clip = open_clip_resnet(SIZE)
    encoder = attach(clip, None, connect=connect).train()
    pool: Any = encoder.dense
    pixels, words = images(2, SIZE), ids(2)
    features = encoder(pixels, words)
    if not connect:
        return
    other = copy.deepcopy(clip).visual.train()
    x = other.layer4(other.layer3(other.layer2(other.layer1(other.stem(pixels)))))
    conv, norm = copy.deepcopy(pool.connect)
    norm.reset_running_stats()
    norm.train()
    residual = norm(conv(x))
    assert torch.equal(norm.running_mean, pool.connect[1].running_mean)
    assert torch.equal(norm.running_var, pool.connect[1].running_var)
    plain = attach(copy.deepcopy(clip), None).train()(pixels, words)
    torch.testing.assert_close(features.maps[-1], (plain.maps[-1] + residual).relu())
    before = pool.connect[1].running_mean.clone()
    encoder.eval()(pixels, words)
    encoder.train()
    with encoder.disable():
        encoder(pixels, words)
    assert torch.equal(pool.connect[1].running_mean, before)
    frozen = attach_bridgers(clip.visual, clip, STAGES, None, connect=True).train()
    frozen(pixels, words)
    assert not frozen.dense.connect[1].running_mean.any()


# Other families.


def timm_pair(name: str) -> tuple[Any, Any]:
    timm = pytest.importorskip("timm")
    return fill(timm.create_model(name, num_classes=0)), open_clip_vit()


@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_b0"])
def test_a_norm_behind_the_last_block_moves_once(name: str) -> None:
    # The dense map repeats what the tower's own forward does behind its last block.
    model, clip = timm_pair(name)
    other = copy.deepcopy(model)
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    encoder = attach_bridgers(model, clip, 2, None, trainable="statistics").train()
    with torch.no_grad():
        features = encoder(images(4, SIZE), ids(4))
        state = other.forward_features(images(4, SIZE))
    torch.testing.assert_close(features.maps[-1], state, rtol=1e-5, atol=1e-5)
    found, expected = owned(encoder), statistics(other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("before", [False, True])
def test_recomputing_in_backward_moves_nothing_twice(before: bool) -> None:
    found = []
    for checkpointing in (False, True):
        model, clip = timm_pair("regnetx_002")
        if checkpointing and before:
            model.set_grad_checkpointing(True)
        torch.manual_seed(0)
        encoder = attach_bridgers(model, clip, 2, SMALL, trainable="statistics").train()
        if checkpointing:
            encoder.activation_checkpointing_enable()
        calls = []
        handle = model.s4.b1.register_forward_pre_hook(lambda *args, seen=calls: seen.append(0))
        for step in range(2):
            features = encoder(images(2, SIZE) + step, ids(2))
            features.maps[-1].square().sum().backward()
        handle.remove()
        assert len(calls) == (4 if checkpointing else 2)  # it did recompute
        assert encoder.bridgers is not None
        grads = [p.grad for p in encoder.bridgers.parameters() if p.grad is not None]
        found.append((owned(encoder), grads))
    (plain, plain_grads), (again, again_grads) = found
    assert all(torch.equal(again[name], plain[name]) for name in plain)
    assert len(plain_grads) == len(again_grads) > 0
    for one, two in zip(plain_grads, again_grads, strict=True):
        torch.testing.assert_close(one, two)


def test_a_stand_in_runs_for_every_norm_and_moves_the_statistics() -> None:
    class Halved(nn.BatchNorm2d):
        """Something that is plainly not the tower's own."""

        def forward(self, input: Tensor) -> Tensor:
            assert self.training and self.running_mean is not None
            self.running_mean.mul_(0.5)
            return input

    def stand_in(norm: nn.Module) -> nn.Module:
        assert isinstance(norm, nn.BatchNorm2d)
        return Halved(norm.num_features, norm.eps, norm.momentum)

    encoder = attach(open_clip_resnet(SIZE), None).train()
    encoder.tower_tensors.stand_in = stand_in
    before = owned(encoder)
    encoder(images(2, SIZE), ids(2))
    for name, tensor in owned(encoder).items():
        share = 0.5 if name.endswith("mean") else 1
        assert torch.equal(tensor, share * before[name])
    encoder.tower_tensors.stand_in = None
    encoder(images(2, SIZE), ids(2))
    assert not any(isinstance(module, Halved) for module in encoder.modules())


# Several processes.


def batch_of(rank: int) -> tuple[Tensor, Tensor]:
    return images(4, SIZE).chunk(2)[rank], ids(4).chunk(2)[rank]


def shared_step(rank: int, folder: str) -> None:
    """One of two processes: a training forward on its half of the batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    encoder = attach(open_clip_resnet(SIZE), None, connect=True)
    model = encoder.with_head(ReferringSegmentationHead, **HEAD).train()
    with synchronized_batch_norm(model, torch.device("cpu")):
        features = encoder(*batch_of(rank))
    torch.save((model.adapter_state_dict(), features.maps[-1]), f"{folder}/{rank}.pt")
    assert encoder.tower_tensors.stand_in is None
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_move_them_as_one_with_the_whole_batch(tmp_path: Path) -> None:
    mp.spawn(shared_step, (str(tmp_path),), nprocs=2)
    torch.manual_seed(0)
    encoder = attach(open_clip_resnet(SIZE), None, connect=True)
    model = encoder.with_head(ReferringSegmentationHead, **HEAD).train()
    features = encoder(images(4, SIZE), ids(4))
    expected = {n: t for n, t in model.adapter_state_dict().items() if "running" in n}
    assert any("connect" in n for n in expected) and any("layer3" in n for n in expected)
    for rank in (0, 1):
        found, last_map = torch.load(tmp_path / f"{rank}.pt")
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
        half = features.maps[-1].chunk(2)[rank]
        torch.testing.assert_close(last_map, half, rtol=1e-3, atol=1e-4)


# What cannot be.


def test_towers_in_half_precision_are_refused_in_training_alone() -> None:
    encoder = attach(open_clip_resnet(SIZE)).bfloat16()
    with torch.no_grad():
        encoder.eval()(images(2, SIZE), ids(2))
    with pytest.raises(ValueError, match=r"on a tower in torch.bfloat16: keep .* in float32"):
        encoder.train()(images(2, SIZE), ids(2))
    mixed = attach(open_clip_resnet(SIZE)).train()
    before = owned(mixed)
    with torch.autocast("cpu", torch.bfloat16):
        mixed(images(2, SIZE), ids(2))
    assert not any(torch.equal(t, before[name]) for name, t in owned(mixed).items())


def test_a_norm_without_a_momentum_is_named() -> None:
    clip = open_clip_resnet(SIZE)
    clip.visual.layer1[0].bn1.momentum = None
    with pytest.raises(ValueError, match=r"layer1.0.bn1 .* set its momentum"):
        attach(clip).train()(images(2, SIZE), ids(2))


def test_statistics_named_twice_are_owned_once() -> None:
    clip = open_clip_resnet(SIZE)
    both = attach_bridgers(
        clip.visual, clip, STAGES, SMALL, trainable=["statistics", "positions", "statistics"]
    )
    assert owned(both).keys() == statistics(clip.visual).keys()
    assert len(list(both.tower_tensors.parameters())) == 2
