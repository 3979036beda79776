"""The bridged encoder held to the same invariants on every pair of towers."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from helpers_conformance import SMALL, changed, features, same, trace
from helpers_towers import PAIRS, ids, images, pictures
from torch import Tensor, nn

from bridger import BridgedEncoder, BridgedFeatures, attach_bridgers
from bridger.freezing import hold, release
from bridger.heads import ReferringSegmentationHead


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.fixture(params=sorted(PAIRS))
def pair(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_towers_called_alone_never_notice(pair: str) -> None:
    vision, text = PAIRS[pair]()
    vision.train()
    next(text.parameters()).requires_grad_(False)
    before = trace(vision), trace(text)
    bits = copy.deepcopy((vision.state_dict(), text.state_dict()))
    first = changed(attach_bridgers(vision, text, 2, SMALL, trainable=["positions"]))
    second = changed(attach_bridgers(vision, text, 1, SMALL), seed=2)
    for encoder in (first, second):
        encoder.train()
        out = encoder(pictures(pair, 2), ids(2))
        sum(tensor.sum() for tensor in features(out)).backward()
    assert not any(p.grad is not None for p in [*vision.parameters(), *text.parameters()])
    assert not any(m.training for m in [*vision.modules(), *text.modules()])
    first.detach()
    first.detach()
    second.detach()
    for state, now in zip(bits, (vision.state_dict(), text.state_dict()), strict=True):
        assert all(torch.equal(state[k], now[k]) for k in state)
    assert (trace(vision), trace(text)) == before
    with pytest.raises(RuntimeError, match="detached"):
        first(pictures(pair, 2), ids(2))


def test_own_output_of_towers_is_the_same_bits_while_attached(pair: str) -> None:
    vision, text = PAIRS[pair]()
    plain = attach_bridgers(vision, text, 2, config=None)
    x, words = pictures(pair, 2), ids(2)

    def alone() -> list[Tensor]:
        tower = plain.vision
        return [plain.vision.pooled(tower.call(x, {})), plain.text.call(words, None, {})]  # type: ignore[list-item]

    with torch.no_grad():
        before = alone()
        bridged = changed(attach_bridgers(vision, text, 2, SMALL, trainable=["positions"]))
        bridged(x, words)
        after = alone()
    for a, b in zip(before, after, strict=True):
        if isinstance(a, Tensor):
            assert torch.equal(a, b)


def test_fresh_bridgers_change_nothing_and_others_change_both_towers(pair: str) -> None:
    vision, text = PAIRS[pair]()
    x, words = pictures(pair, 2), ids(2)
    bridged = attach_bridgers(vision, text, 2, SMALL).eval()
    with torch.no_grad():
        fresh = bridged(x, words)
        with bridged.disable():
            disabled = bridged(x, words)
        plain = attach_bridgers(vision, text, 2, config=None)(x, words)
        assert same(fresh, disabled) and same(fresh, plain)
        acting = changed(bridged)(x, words)
        assert not any(
            torch.equal(a, b) for a, b in zip(features(acting), features(fresh), strict=True)
        )
        with bridged.disable():
            assert same(bridged(x, words), plain)


def test_gradients_reach_every_bridger_parameter_and_no_tower(pair: str) -> None:
    vision, text = PAIRS[pair]()
    bridged = changed(attach_bridgers(vision, text, 2, SMALL, trainable=["positions"]))
    out = bridged(pictures(pair, 2), ids(2))
    sum(tensor.square().sum() for tensor in features(out)).backward()
    owned = {k: p for k, p in bridged.named_parameters() if not k.startswith("towers.")}
    missing = [k for k, p in owned.items() if p.requires_grad and p.grad is None]
    assert owned and not missing
    assert all(p.grad is None for p in bridged.towers.parameters())


def test_spec_tells_the_shapes_before_any_forward(pair: str) -> None:
    vision, text = PAIRS[pair]()
    for stages in (1, 2, [(0, 0), (2, 1)]):
        bridged = attach_bridgers(vision, text, stages, SMALL)
        spec = bridged.spec
        x, words = pictures(pair, 2), ids(2)
        out = bridged(x, words)
        height, width = out.image_size
        assert (height, width) == tuple(x.shape[-2:])
        for found, channels, stride in zip(
            out.maps, spec.map_widths, spec.map_strides, strict=True
        ):
            assert tuple(found.shape) == (2, channels, height // stride, width // stride)
        assert out.tokens.shape[-1] == spec.token_width
        assert tuple(out.sentence.shape) == (2, spec.sentence_width)
        assert out.token_mask.dtype == torch.bool and out.token_mask.shape == out.tokens.shape[:2]
        bridged.detach()


def test_many_expressions_in_one_call_equal_many_calls(pair: str) -> None:
    vision, text = PAIRS[pair]()
    bridged = changed(attach_bridgers(vision, text, 2, SMALL)).eval()
    x = pictures(pair, 2)
    words = torch.stack([ids(2, seed=i) for i in range(3)], dim=1)
    with torch.no_grad():
        together = bridged(x, words)
        alone = [bridged(x, words[:, n]) for n in range(3)]
        ragged = torch.tensor([[True, True, False], [True, True, True]])
        garbage = words.clone()
        garbage[0, 2] = 0
        padded = bridged(x, garbage, expression_mask=ragged)
    assert together.num_expressions == 3
    for row, tensors in enumerate(zip(*(features(a) for a in alone), strict=True)):
        expected = torch.stack(tensors, dim=1).flatten(0, 1)
        close(features(together)[row], expected)
        real = ragged.flatten()
        close(features(padded)[row][real], expected[real])


def test_a_sentence_alone_equals_itself_in_a_padded_batch(pair: str) -> None:
    vision, text = PAIRS[pair]()
    bridged = changed(attach_bridgers(vision, text, 2, SMALL)).eval()
    x, words = pictures(pair, 3), ids(3)
    with torch.no_grad():
        batch = bridged(x, words)
        for row in range(3):
            length = int(batch.token_mask[row].sum())
            alone = bridged(x[row : row + 1], words[row : row + 1, :length])
            for a, b in zip(
                [*alone.maps, alone.sentence], [*batch.maps, batch.sentence], strict=True
            ):
                close(a[0], b[row])
            close(alone.tokens[0, :length], batch.tokens[row, :length])


def test_a_copied_and_a_pickled_encoder_live_on_their_own(pair: str) -> None:
    vision, text = PAIRS[pair]()
    vision.train()
    bridged = changed(attach_bridgers(vision, text, 2, SMALL)).eval()
    x, words = pictures(pair, 1), ids(1)
    with torch.no_grad():
        expected = bridged(x, words)
        for twin in (copy.deepcopy(bridged), pickle.loads(pickle.dumps(bridged))):
            assert same(twin(x, words), expected)
            changed(twin, seed=7)
            assert not same(twin(x, words), expected) and same(bridged(x, words), expected)
            twin.detach()
            assert twin.vision.module.training
            assert all(p.requires_grad for p in twin.towers.parameters())
    assert not vision.training


def test_threads_share_one_encoder() -> None:
    bridged = changed(attach_bridgers(*PAIRS["open_clip_vit"](), 2, SMALL)).eval()
    batches = [(images(2, 32, seed=i), ids(2, seed=i)) for i in range(4)]
    with torch.no_grad():
        expected = [bridged(*batch) for batch in batches]
    found: dict[int, list[BridgedFeatures]] = {}

    def work(i: int) -> None:
        with torch.no_grad():
            found[i] = [bridged(*batches[i]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(out, expected[i]) for i in range(4) for out in found[i])


def test_300_forwards_grow_neither_threads_nor_memory() -> None:
    bridged = changed(attach_bridgers(*PAIRS["open_clip_vit"](), 2, SMALL)).eval()
    x, words = images(1, 32), ids(1)
    with torch.no_grad():
        bridged(x, words)
        gc.collect()
        threads, objects = threading.active_count(), len(gc.get_objects())
        for _ in range(300):
            bridged(x, words)
        gc.collect()
    assert threading.active_count() == threads
    assert len(gc.get_objects()) < objects + 300


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_towers_keep_adapters_in_float32(dtype: torch.dtype) -> None:
    bridged = changed(attach_bridgers(*PAIRS["open_clip_vit"](), 2, SMALL)).eval()
    bridged = bridged.half() if dtype == torch.float16 else bridged.bfloat16()
    assert next(bridged.vision.module.parameters()).dtype == dtype
    assert bridged.bridgers is not None
    assert all(p.dtype == torch.float32 for p in bridged.bridgers.parameters())
    with torch.no_grad():
        out = bridged(images(2, 32), ids(2))
    assert all(torch.isfinite(tensor).all() for tensor in features(out))
    bridged._cast(dtype, adapters=True)
    assert all(p.dtype == dtype for p in bridged.bridgers.parameters())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input_ids": ids(3)}, "2 images"),
        ({"input_ids": ids(2)[0]}, r"\(B, L\) or \(B, N, L\)"),
        ({"attention_mask": torch.ones(2, 3)}, "attention_mask must have the shape"),
        ({"expression_mask": torch.ones(2, 1)}, "goes with input_ids of shape"),
        (
            {"input_ids": torch.stack([ids(2)] * 2, 1), "expression_mask": torch.ones(2, 3)},
            "must be",
        ),
        (
            {
                "input_ids": torch.stack([ids(2)] * 2, 1),
                "expression_mask": torch.eye(2)[[0, 0]] * 0,
            },
            "no real expression",
        ),
        ({"pixel_values": images(2, 32)[:, :1]}, "3"),
    ],
)
def test_bad_inputs_say_what_was_expected(change: dict[str, Tensor], words: str) -> None:
    bridged = attach_bridgers(*PAIRS["open_clip_vit"](), 2, SMALL)
    given = {"pixel_values": images(2, 32), "input_ids": ids(2), **change}
    with pytest.raises(ValueError, match=words):
        bridged(**given)


def test_unknown_presets_and_patterns_leave_the_towers_alone() -> None:
    vision, text = PAIRS["open_clip_vit"]()
    before = trace(text)
    with pytest.raises(ValueError, match="paper"):
        attach_bridgers(vision, text, 2, "papre")
    with pytest.raises(ValueError, match="positions"):
        attach_bridgers(vision, text, 2, SMALL, trainable=["vision.nothing*"])
    with pytest.raises(ValueError, match="blocks"):
        attach_bridgers(vision, text, 99, SMALL)
    assert trace(text) == before


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"config": {}}, "config must be a BridgerConfig"),
        ({"config": 3}, "config must be a BridgerConfig"),
        ({"trainable": None}, "trainable must be a pattern"),
        ({"trainable": [3]}, "trainable must be a pattern"),
        ({"word_length": "x"}, "word_length must be a whole number"),
        ({"word_length": True}, "word_length must be a whole number"),
    ],
)
def test_options_of_another_type_are_refused(option: dict[str, object], words: str) -> None:
    vision, text = PAIRS["open_clip_vit"]()
    before = trace(text)
    with pytest.raises(TypeError, match=words):
        attach_bridgers(vision, text, 2, **option)  # type: ignore[arg-type]
    assert trace(text) == before


def test_one_pattern_need_not_be_a_list() -> None:
    one = attach_bridgers(*PAIRS["open_clip_vit"](), 2, SMALL, trainable="positions")
    many = attach_bridgers(*PAIRS["open_clip_vit"](), 2, SMALL, trainable=["positions"])
    assert one.trainable == many.trainable == ("positions",)
    assert list(one.tower_tensors) == list(many.tower_tensors)


def test_a_whole_clip_on_the_text_side_is_registered_once() -> None:
    vision, clip = PAIRS["open_clip_vit"]()
    bridged = attach_bridgers(vision, clip, 2, SMALL)
    count = sum(p.numel() for p in bridged.towers.parameters())
    assert count == sum(p.numel() for p in clip.parameters())
    assert len(bridged.towers.state_dict()) == len(clip.state_dict())


@pytest.mark.slow
def test_compiled_blocks_give_close_results_and_gradients() -> None:
    x, words = images(2, 32), ids(2)
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        bridged = changed(attach_bridgers(*PAIRS["open_clip_vit"](), 2, SMALL)).eval()
        assert bridged.bridgers is not None
        if compiled:
            for block in [*bridged.vision.blocks, *bridged.text.blocks]:
                block.module.compile(backend="aot_eager")
            bridged.bridgers.compile(backend="aot_eager")
        out = bridged(x, words)
        sum(tensor.square().sum() for tensor in features(out)).backward()
        results.append([*features(out), *(p.grad for p in bridged.bridgers.parameters())])
    for a, b in zip(*results, strict=True):
        close(b, a)


# What an encoder leaves behind.


def test_an_encoder_that_is_dropped_leaves_the_towers_as_they_were(pair: str) -> None:
    vision, text = PAIRS[pair]()
    vision.train()
    before = trace(vision), trace(text)
    bridged = changed(attach_bridgers(vision, text, 2, SMALL, trainable=["positions"]))
    sum(t.sum() for t in features(bridged(pictures(pair, 2), ids(2)))).backward()
    assert (trace(vision), trace(text)) != before
    del bridged
    assert (trace(vision), trace(text)) == before


def test_dropped_encoders_leave_one_by_one() -> None:
    vision, text = PAIRS["open_clip_vit"]()
    before = trace(text)
    first, second = (attach_bridgers(vision, text, 2, SMALL) for _ in range(2))
    first.detach()
    del first  # not a second time
    held = trace(text)
    assert held != before and not any(p.requires_grad for p in text.parameters())
    twin = copy.copy(second)
    del second
    assert trace(text) == held
    with torch.no_grad():
        twin(images(2, 32), ids(2))
    del twin
    assert trace(text) == before


def test_an_encoder_in_a_cycle_is_detached_by_the_collector() -> None:
    class Owner:
        def __init__(self, encoder: BridgedEncoder) -> None:
            self.encoder, self.itself = encoder, self

    vision, text = PAIRS["open_clip_vit"]()
    before = trace(text)
    gc.disable()
    try:
        Owner(attach_bridgers(vision, text, 2, SMALL))
        assert trace(text) != before
        gc.collect()
    finally:
        gc.enable()
    assert trace(text) == before


def test_a_holder_that_leaves_in_the_midst_of_an_attach_is_counted_right() -> None:
    class Collecting(nn.Linear):
        """Stands for a garbage collection: the next write lets go of what held the modules."""

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if leaving:
                release(leaving.pop())

    leaving: list[list[nn.Module]] = []
    modules = [nn.Linear(2, 2), Collecting(2, 2), nn.Linear(2, 2)]
    hold(modules)
    leaving.append(modules)
    hold(modules)
    assert not leaving and not any(module.training for module in modules)
    release(modules)
    assert all(module.training and module.weight.requires_grad for module in modules)


def test_a_head_that_cannot_be_built_costs_the_chain_alone() -> None:
    vision, text = PAIRS["open_clip_vit"]()
    before = trace(text)
    with contextlib.suppress(ValueError):
        attach_bridgers(vision, text, 2, SMALL).with_head(ReferringSegmentationHead, width=65)
    assert trace(text) == before
    bridged = attach_bridgers(vision, text, 2, SMALL)
    with contextlib.suppress(ValueError):
        bridged.with_head(ReferringSegmentationHead, width=65)
    bridged.with_head(ReferringSegmentationHead, width=64)(images(2, 32), ids(2))


@pytest.mark.slow
def test_the_interpreter_ends_quietly_with_an_encoder_attached() -> None:
    code = (
        "from helpers_towers import PAIRS, ids, images; from bridger import attach_bridgers;"
        "e = attach_bridgers(*PAIRS['open_clip_vit'](), 2); e.itself = [e];"
        "e(images(2, 32), ids(2))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# Without Bridgers.


def test_disabling_acts_in_its_own_thread_alone() -> None:
    bridged = changed(attach_bridgers(*PAIRS["open_clip_vit"](), 2, SMALL)).eval()
    x, words = images(2, 32), ids(2)
    found = []

    def run() -> None:
        with torch.no_grad():
            found.append(bridged(x, words))

    run()
    with bridged.disable():
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        run()
        twin = copy.deepcopy(bridged)
        assert twin.enabled and pickle.loads(pickle.dumps(bridged)).enabled
    acting, elsewhere, disabled = found
    assert same(elsewhere, acting) and not same(disabled, acting)


def test_disabling_is_nested_and_closed_in_any_order() -> None:
    bridged = attach_bridgers(*PAIRS["open_clip_vit"](), 2, SMALL)
    other = attach_bridgers(*PAIRS["open_clip_vit"](), 2, SMALL)
    first, second = bridged.disable(), bridged.disable()
    first.__enter__()
    second.__enter__()
    assert other.enabled
    first.__exit__(None, None, None)
    assert not bridged.enabled
    second.__exit__(None, None, None)
    assert bridged.enabled
    with pytest.raises(RuntimeError, match="lost"), bridged.disable():
        raise RuntimeError("lost")
    assert bridged.enabled
