"""Prefixes of towers that are kept: no result changes, and where one could, it is refused."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_conformance import SMALL, Subject, changed, close, features, gradients, same
from helpers_families import Row, all_rows
from helpers_generic import Patches, build
from helpers_one_way import acting
from helpers_towers import PAIRS, fill, hf_clip, ids, images, open_clip_vit, pictures
from torch import Tensor, nn

from bridger import BridgedEncoder, attach_bridgers
from bridger.prefix import PrefixCache
from bridger.prefix.keys import _reduced, row_keys

ROWS = {row.name: row for row in all_rows()}
REFUSED = {
    "transformers/SwinModel": "has a replaced `forward`",
    "transformers/SwinForImageClassification": "has a replaced `forward`",
    "transformers/Swinv2Model": "returns tuple beside its state",
    "transformers/FocalNetModel": "returns tuple beside its state",
    "peft/PromptTuning BertModel": "peft's layer",
    "peft/PromptEncoder ModernBertModel": "peft's layer",
    "peft/PrefixTuning BertModel": "peft's layer",
}
STAGES = [(1, 1), (3, 3)]


def bridged(pair: str = "open_clip_vit", stages: Any = STAGES, **options: Any) -> BridgedEncoder:
    torch.manual_seed(0)
    return changed(attach_bridgers(*PAIRS[pair](), stages, SMALL, **options)).eval()


def cached(encoder: BridgedEncoder, where: Any = "memory", **options: Any) -> PrefixCache:
    encoder.cache_prefix(where, **options)
    assert encoder.prefix_cache is not None
    return encoder.prefix_cache


def counts(cache: PrefixCache) -> tuple[int, int]:
    return cache.hits, cache.misses


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return images(3), ids(3)


class Rows:
    """Counts the rows that run through the insides of a tower's blocks."""

    def __init__(self, tower: Any) -> None:
        self.seen: dict[int, list[int]] = {i: [] for i in range(len(tower.blocks))}
        for index, block in enumerate(tower.blocks):
            inner = next(m for m in block.module.modules() if not list(m.children()))
            inner.register_forward_pre_hook(
                lambda _, args, index=index: self.seen[index].append(len(args[0]))
            )

    def taken(self) -> dict[int, list[int]]:
        seen = {index: rows for index, rows in self.seen.items() if rows}
        self.seen = {index: [] for index in self.seen}
        return seen


# What is computed.


def _rows() -> list[Any]:
    return [
        pytest.param(row, id=row.name, marks=[] if row.fast else [pytest.mark.slow])
        for row in ROWS.values()
        if row.name not in REFUSED
    ]


@pytest.mark.parametrize("row", _rows())
def test_outputs_and_gradients_have_the_same_bits(row: Row) -> None:
    """In the first epoch and in the next ones; nothing is drawn from training's random numbers."""
    subject = Subject(row)
    encoder = changed(subject.attach()).train()
    batch = subject.batch(3)
    plain, expected = encoder.eval()(*batch), gradients(encoder.train(), batch)
    cache = cached(encoder)
    for _ in range(2):
        found = gradients(encoder.train(), batch)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
    assert counts(cache) == (6, 6)
    assert same(encoder.eval()(*batch), plain)


@pytest.mark.parametrize("name", REFUSED)
def test_towers_that_cannot_run_without_their_prefix_say_so(name: str) -> None:
    subject = Subject(ROWS[name])
    encoder = subject.attach().eval()
    with pytest.raises(ValueError, match=REFUSED[name]):
        encoder.cache_prefix("memory")
        encoder(*subject.batch())
    encoder.cache_prefix(None)
    encoder(*subject.batch())


@pytest.mark.parametrize("pair", ["open_clip_vit", "hf_clip_plain"])
def test_blocks_before_the_first_stage_do_not_run_again(pair: str) -> None:
    encoder, pixels, words = bridged(pair), pictures(pair, 3), ids(3)
    cached(encoder)
    encoder(pixels, words)
    towers = Rows(encoder.vision), Rows(encoder.text)
    encoder(pixels, words)
    assert [rows.taken() for rows in towers] == [{2: [3], 3: [3]}] * 2
    # One picture and one sentence are new.
    mixed = torch.cat([images(1, seed=5), pixels[1:]]), torch.cat([ids(1, seed=5), words[1:]])
    found = encoder(*mixed)
    assert [rows.taken() for rows in towers] == [{0: [1], 1: [1], 2: [3], 3: [3]}] * 2
    encoder.cache_prefix(None)
    for a, b in zip(features(found), features(encoder(*mixed)), strict=True):
        close(a, b)


@pytest.mark.slow
def test_what_runs_between_blocks_does_not_run_either() -> None:
    """torchvision's ConvNeXt makes its maps smaller between its stages."""
    subject = Subject(ROWS["torchvision/ConvNeXt"])
    encoder = changed(subject.attach()).eval()
    assert encoder.stages[0][0] == 1
    cached(encoder)
    first = encoder(*subject.batch())
    seen: list[str] = []
    for name, module in encoder.vision.module.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda *_, name=name: seen.append(name))
    assert same(encoder(*subject.batch()), first)
    assert {name.split(".")[1] for name in seen} == {"0", "4", "5", "6", "7"}


def test_expressions_share_what_is_kept_of_their_picture() -> None:
    encoder, pixels = bridged(), images(2)
    words = torch.stack([ids(2, seed=i) for i in range(3)], dim=1)
    real = torch.tensor([[True, True, False], [True, True, True]])
    plain = encoder(pixels, words, expression_mask=real)
    cache = cached(encoder)
    assert same(encoder(pixels, words, expression_mask=real), plain)
    assert counts(cache) == (0, 2 + 6)
    assert same(encoder(pixels, words, expression_mask=real), plain)
    assert counts(cache) == (2 + 6, 2 + 6)


def test_a_text_that_is_finished_first_has_no_prefix() -> None:
    encoder, pixels, words = acting(), images(2, 56), ids(2)
    plain = encoder(pixels, words)
    cache = cached(encoder)
    assert same(encoder(pixels, words), plain) and same(encoder(pixels, words), plain)
    text = encoder.read_text(words)
    asked = encoder(pixels, text=text)
    assert counts(cache) == (4, 2)  # pictures alone
    encoder.cache_prefix(None)
    assert same(asked, encoder(pixels, text=text))


def test_without_bridgers_and_without_a_config(batch: tuple[Tensor, Tensor]) -> None:
    encoder = bridged()
    reader = attach_bridgers(encoder.vision.module, encoder.text.module, STAGES, None)
    acting_out, plain = encoder(*batch), reader(*batch)
    cache = cached(encoder)
    cached(reader)
    for _ in range(2):
        with encoder.disable():
            assert same(encoder(*batch), plain)
        assert same(encoder(*batch), acting_out)
        assert same(reader(*batch), plain)
    assert counts(cache) == (18, 6)  # the same rows, with Bridgers and without


def test_lengths_masks_and_sizes_are_told_apart() -> None:
    pair = PAIRS["hf_clip_plain"]()
    encoder = changed(attach_bridgers(*pair, STAGES, SMALL)).eval()
    cases = [
        (images(2), ids(2), None),
        (images(2), ids(2, 8), None),
        (images(2, 48, 64), ids(2), None),
        (images(2), ids(2), (ids(2) > 0) & (torch.arange(12) < 4)),
    ]
    plain = [encoder(*case) for case in cases]
    cached(encoder)
    for _ in range(2):
        assert all(same(encoder(*case), out) for case, out in zip(cases, plain, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_autocast_and_other_number_types(dtype: torch.dtype, batch: tuple[Tensor, Tensor]) -> None:
    encoder = bridged()
    if dtype is torch.float64:
        encoder, batch = encoder.double(), (batch[0].double(), batch[1])
    plain = encoder(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        cast = encoder(*batch)
    cached(encoder)
    for _ in range(2):
        assert same(encoder(*batch), plain)
        with torch.autocast("cpu", torch.bfloat16):
            assert same(encoder(*batch), cast)


@pytest.mark.slow
def test_compiled_blocks(batch: tuple[Tensor, Tensor]) -> None:
    encoder = bridged()
    expected = gradients(encoder, batch)
    encoder.compile(backend="eager")
    cached(encoder)
    for _ in range(2):
        found = gradients(encoder, batch)
        for name, gradient in found.items():
            close(gradient, expected[name])
    torch._dynamo.reset()


@pytest.mark.parametrize("pair", ["open_clip_vit", "hf_clip_plain"])
def test_with_activation_checkpointing(pair: str, batch: tuple[Tensor, Tensor]) -> None:
    encoder = bridged(pair).train()
    expected = gradients(encoder, batch)
    encoder.activation_checkpointing_enable()
    cache = cached(encoder)
    for _ in range(2):
        found = gradients(encoder, batch)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert counts(cache) == (6, 6)


def test_rows_of_inference_mode_serve_training(batch: tuple[Tensor, Tensor]) -> None:
    encoder = bridged()
    expected = gradients(encoder, batch)
    cache = cached(encoder)
    with torch.inference_mode():
        encoder(*batch)
    found = gradients(encoder, batch)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert counts(cache) == (6, 6)


def test_pictures_that_ask_for_gradients_go_through_the_whole_tower() -> None:
    encoder, words = bridged(), ids(2)
    cache = cached(encoder)
    pixels = images(2).requires_grad_()
    encoder(pixels, words).sentence.sum().backward()
    assert pixels.grad is not None and bool(pixels.grad.any())
    assert counts(cache) == (0, 0)
    with torch.no_grad():
        encoder(pixels, words)
    assert counts(cache) == (0, 4)


def test_threads_share_a_cache() -> None:
    encoder, words = bridged(), ids(2)
    batches = [images(2, seed=i % 3) for i in range(12)]
    with torch.no_grad():
        plain = [encoder(pixels, words) for pixels in batches]
        cache = cached(encoder)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(torch.no_grad()(lambda p: encoder(p, words)), batches))
    assert all(same(a, b) for a, b in zip(found, plain, strict=True))
    assert sum(counts(cache)) == 12 * 4
    assert cache.nbytes == 3 * 2 * 17 * 48 * 4 + 2 * 12 * 32 * 4


# What is kept, and for how long.


def test_a_coarser_type_takes_less_and_decides_the_first_run_too(
    batch: tuple[Tensor, Tensor],
) -> None:
    encoder = bridged()
    plain, sizes = encoder(*batch), []
    for dtype in (None, torch.bfloat16):
        cache = cached(encoder, dtype=dtype)
        first = encoder(*batch)
        assert same(encoder(*batch), first)
        assert same(first, plain) == (dtype is None)
        sizes.append(cache.nbytes)
    assert sizes == [3 * 4 * (17 * 48 + 12 * 32), 3 * 2 * (17 * 48 + 12 * 32)]
    for a, b in zip(features(first), features(plain), strict=True):
        torch.testing.assert_close(a, b, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_what_is_full_keeps_what_it_has(where: str, tmp_path: Path) -> None:
    encoder, words = bridged(), ids(1)
    place = tmp_path if where == "folder" else where
    size = 17 * 48 * 4
    # Files have a header, so that a few bytes more are needed there.
    cache = cached(encoder, place, limit_bytes=2 * size + 2 * 12 * 32 * 4, dtype=torch.float32)
    plain = [encoder(images(1, seed=i), words) for i in range(5)]
    kept = cache.nbytes
    assert size < kept <= cache._store.limit_bytes
    for _ in range(2):
        before = cache.misses
        again = [encoder(images(1, seed=i), words) for i in range(5)]
        assert all(same(a, b) for a, b in zip(again, plain, strict=True))
        assert cache.misses - before == 3  # two pictures and the sentence are there
    assert cache.nbytes == kept


def test_clear_forgets(batch: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    for where in ("memory", tmp_path):
        encoder = bridged()
        cache = cached(encoder, where)
        encoder(*batch)
        assert cache.nbytes > 0
        cache.clear()
        assert cache.nbytes == 0 and counts(cache) == (0, 0)
        encoder(*batch)
        assert counts(cache) == (0, 6)


def _in_place(encoder: BridgedEncoder) -> None:
    with torch.no_grad():
        encoder.vision.blocks[0].module.ln_1.weight.mul_(2)


def _loaded(encoder: BridgedEncoder) -> None:
    encoder.vision.module.load_state_dict(open_clip_vit(seed=3).visual.state_dict())


def _given_data(encoder: BridgedEncoder) -> None:
    weight = encoder.vision.blocks[0].module.ln_1.weight
    weight.data = 2 * weight.data


def _replaced(encoder: BridgedEncoder) -> None:
    encoder.vision.blocks[0].module.ln_1 = fill(nn.LayerNorm(48), seed=9).requires_grad_(False)


@pytest.mark.parametrize("change", [_in_place, _loaded, _given_data, _replaced])
def test_changed_weights_start_anew(
    change: Callable[[BridgedEncoder], None], batch: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    encoder = bridged()
    cache = cached(encoder)
    before = encoder(*batch)
    change(encoder)
    found = encoder(*batch)
    assert counts(cache) == (0, 12)
    encoder.cache_prefix(None)
    assert same(found, encoder(*batch)) and not same(found, before)


def test_weights_behind_the_prefix_may_change(batch: tuple[Tensor, Tensor]) -> None:
    """Those of the towers, and those that the adapter trains in their stead."""
    encoder = bridged(trainable=["text.ln_final.*", "vision.transformer.resblocks.3.ln_1.*"])
    cache = cached(encoder)
    before = encoder(*batch)
    with torch.no_grad():
        encoder.vision.blocks[2].module.ln_1.weight.mul_(2)
        for parameter in encoder.tower_tensors.parameters():
            parameter.mul_(1.5)
    found = encoder(*batch)
    assert counts(cache) == (6, 6)
    encoder.cache_prefix(None)
    assert same(found, encoder(*batch)) and not same(found, before)


def test_copies_have_no_cache(batch: tuple[Tensor, Tensor]) -> None:
    encoder = bridged("hf_clip_plain")
    cached(encoder)
    out = encoder(*batch)
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert twin.prefix_cache is None
        assert same(twin(*batch), out)


# Folders.


def test_a_folder_serves_another_encoder(batch: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    encoder = bridged()
    cached(encoder, tmp_path / "new")
    first = encoder(*batch)
    other = changed(attach_bridgers(*PAIRS["open_clip_vit"](), [(1, 1), (2, 2)], SMALL), seed=1)
    cache = cached(other.eval(), str(tmp_path / "new"))
    assert cache.nbytes > 0
    other(*batch)
    assert counts(cache) == (6, 0)
    again = bridged()
    cached(again, tmp_path / "new")
    assert same(again(*batch), first)
    kept = {path.suffix for path in (tmp_path / "new").glob("*/*")}
    assert kept == {".json", ".safetensors"}


@pytest.mark.slow
def test_a_folder_serves_another_process(batch: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    encoder = bridged()
    cached(encoder, tmp_path)
    sentence = encoder(*batch).sentence.double().sum().item()
    script = (
        "import test_prefix_cache as t; e = t.bridged(); c = t.cached(e, __import__('sys').argv[1])"
        "; out = e(t.images(3), t.ids(3)); print(t.json.dumps([*t.counts(c), "
        "out.sentence.double().sum().item()]))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [6, 0, sentence]


@pytest.mark.parametrize(
    ("make", "differs"),
    [
        (lambda: bridged("hf_clip_plain"), "tower is 'transformers"),
        (lambda: bridged(stages=[(2, 1), (3, 3)]), "block is 'transformer.resblocks.2', there"),
        (
            lambda: changed(attach_bridgers((c := open_clip_vit(seed=1)).visual, c, STAGES, SMALL)),
            "weights is",
        ),
        (lambda: with_gelu(bridged()), "build is"),
    ],
)
def test_a_folder_of_other_towers_is_refused(
    make: Callable[[], BridgedEncoder], differs: str, tmp_path: Path
) -> None:
    cached(bridged(), tmp_path)
    encoder = make()
    with pytest.raises(ValueError, match=rf"made by another \w+ tower: .*{differs}"):
        encoder.cache_prefix(tmp_path)
    assert encoder.prefix_cache is None


def test_folders_of_other_types_and_other_things(
    batch: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    encoder = bridged()
    cached(encoder, tmp_path / "a")
    with pytest.raises(ValueError, match="dtype is 'torch.float16', there 'torch.bfloat16'"):
        encoder.cache_prefix(tmp_path / "a", dtype=torch.float16)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="no prefix cache: give an empty folder"):
        encoder.cache_prefix(tmp_path / "b")
    encoder(*batch)
    encoder.half()
    with pytest.raises(ValueError, match="made by another vision tower: weights is"):
        encoder(*batch)


def test_a_file_that_was_left_empty_is_written_anew(
    batch: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    encoder = bridged()
    cached(encoder, tmp_path)
    first = encoder(*batch)
    broken = sorted(tmp_path.glob("vision/*.safetensors"))[0]
    broken.write_bytes(b"")
    cache = cached(encoder, tmp_path)
    for a, b in zip(features(encoder(*batch)), features(first), strict=True):
        close(a, b)
    assert counts(cache) == (5, 1) and broken.stat().st_size > 0


def with_gelu(encoder: BridgedEncoder) -> BridgedEncoder:
    """Let a tower with the same weights compute something else."""
    for block in encoder.vision.blocks:
        block.module.mlp.gelu = nn.GELU().eval()  # type: ignore[union-attr]
    return encoder


# What is refused.


@pytest.mark.parametrize(
    ("pair", "trainable", "words"),
    [
        ("open_clip_vit", ["positions"], "trains 'positional_embedding' in it"),
        ("hf_clip_plain", ["text.*position_embedding*"], "trains '.*position_embedding.weight'"),
        ("open_clip_vit", ["vision.transformer.resblocks.1.ln_1.*"], "trains 'transformer.resb"),
        ("open_clip_resnet", ["statistics"], "running statistics are trained"),
    ],
)
def test_what_is_trained_in_the_prefix_is_refused(
    pair: str, trainable: list[str], words: str
) -> None:
    encoder = bridged(pair, trainable=trainable)
    with pytest.raises(ValueError, match=f"cannot be kept: .*{words}.*Run without a prefix cache"):
        encoder.cache_prefix("memory")
    assert encoder.prefix_cache is None


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_what_only_a_run_shows_is_refused_by_it(
    mode: Callable[[], Any], batch: tuple[Tensor, Tensor]
) -> None:
    encoder = bridged(trainable=["vision.conv1.*"])
    cached(encoder)
    with mode():
        with encoder.disable():  # then the tower's own tensor acts
            encoder(*batch)
        with pytest.raises(ValueError, match="something trained acts in it"):
            encoder(*batch)


def test_what_the_adapter_owns_is_refused_where_it_is_not_trained_either(
    batch: tuple[Tensor, Tensor],
) -> None:
    encoder = bridged(trainable=["vision.conv1.*"])
    encoder.tower_tensors.requires_grad_(False)
    cached(encoder)
    with pytest.raises(ValueError, match="something trained acts in it"):
        encoder(*batch)


def test_towers_that_change_after_switching_on_are_refused(batch: tuple[Tensor, Tensor]) -> None:
    encoder = bridged()
    cached(encoder)
    encoder(*batch)
    encoder.vision.module.train()
    with pytest.raises(ValueError, match="is in train mode.*call train\\(\\) or eval\\(\\) of the"):
        encoder(*batch)
    encoder.train()
    encoder(*batch)
    encoder.vision.blocks[0].module.ln_1.weight.requires_grad_()
    with pytest.raises(ValueError, match="something trained acts in it"):
        encoder(*batch)


@pytest.mark.parametrize("block", [0, 2])
def test_blocks_that_fsdp_gathers(block: int) -> None:
    """Before the first stage all processes would have to run them together."""
    encoder = bridged()
    encoder.vision.blocks[block].module.unshard = lambda: None  # as `fully_shard` leaves it
    if block == 0:
        with pytest.raises(ValueError, match="FSDP needs all processes"):
            encoder.cache_prefix("memory")
    else:
        cached(encoder)


@pytest.mark.parametrize("block", [1, 2])
def test_layers_of_peft(block: int, batch: tuple[Tensor, Tensor]) -> None:
    peft: Any = pytest.importorskip("peft")
    clip = open_clip_vit()
    config = peft.LoraConfig(target_modules=[f"visual.transformer.resblocks.{block}.mlp.c_fc"])
    config.lora_dropout = 0.5
    peft.inject_adapter_in_model(config, clip)
    encoder = changed(attach_bridgers(clip.visual, clip, STAGES, SMALL)).train()
    if block < 2:
        with pytest.raises(ValueError, match="peft's layer 'transformer.resblocks.1.mlp.c_fc'"):
            encoder.cache_prefix("memory")
        return
    expected = gradients(encoder, batch)
    assert any("lora" in name for name in expected)
    cached(encoder)
    for _ in range(2):
        found = gradients(encoder, batch)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


class Skipping(Patches):
    """A ViT whose pooled feature reads its first layer too."""

    def forward(self, pictures: Tensor) -> Tensor:
        x = first = self.layers[0](self.tokens(pictures))
        for layer in list(self.layers)[1:]:
            x = layer(x)
        pooled: Tensor = self.norm((x + 0.1 * first).mean(dim=1))
        return pooled


def test_towers_that_need_their_first_blocks_elsewhere_are_refused() -> None:
    encoder = attach_bridgers(build(Skipping), hf_clip(), [(2, 1), (3, 3)], SMALL).eval()
    cached(encoder)
    with pytest.raises(ValueError, match=r"needs what it computes before 'layers\.2' elsewhere"):
        encoder(images(2), ids(2))
    # From the first block on there is nothing that it could miss.
    encoder = attach_bridgers(build(Skipping), hf_clip(), [(0, 1), (3, 3)], SMALL).eval()
    plain = encoder(images(2), ids(2))
    cached(encoder)
    assert same(encoder(images(2), ids(2)), plain)


def test_bad_options() -> None:
    encoder = bridged()
    with pytest.raises(ValueError, match="limit_bytes must be a positive integer, got 0"):
        encoder.cache_prefix("memory", limit_bytes=0)
    with pytest.raises(TypeError, match=r"floating-point type, got torch\.int8"):
        encoder.cache_prefix("memory", dtype=torch.int8)


# Keys.


def test_keys_follow_content_alone() -> None:
    a = images(2)
    keys = row_keys([a], "")
    assert len(set(keys)) == 2
    strided = a.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert row_keys([strided], "") == row_keys([a.clone()], "") == keys
    assert row_keys([a.flip(0)], "") == keys[::-1]
    others = [row_keys([a], "autocast"), row_keys([a.bfloat16()], ""), row_keys([a.mT], "")]
    others += [row_keys([a.unflatten(2, (2, 16))], ""), row_keys([a, a], "")]
    assert len({*keys, *(key for other in others for key in other)}) == 2 * 6


def _differing() -> dict[str, Tensor]:
    """Rows that hardly differ, and in ways that weak sums do not see."""
    row = images(1, 8).flatten()
    one_bit, signs, swapped = row.clone(), -row, row.clone()
    one_bit.view(torch.int32)[5] ^= 1
    swapped[[1, 2]] = row[[2, 1]]
    two_signs = row.clone()
    two_signs[:2] *= -1
    return {"row": row, "bit": one_bit, "signs": signs, "swap": swapped, "two": two_signs}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bool])
def test_devices_reduce_rows_as_reliably(dtype: torch.dtype) -> None:
    """What runs on a GPU, on the CPU."""
    if dtype is torch.bool:
        rows = torch.eye(6, dtype=torch.bool)
    else:
        rows = torch.stack(list(_differing().values())).view(torch.int32)
        size = {torch.float64: torch.int32, torch.float16: torch.int16}.get(dtype, torch.int32)
        rows = rows.view(size).view(dtype)
    assert len(set(_reduced(rows))) == len(rows)
    assert _reduced(rows.repeat(3, 1)) == _reduced(rows) * 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(batch: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    encoder = bridged().cuda()
    pixels, words = (tensor.cuda() for tensor in batch)
    assert _reduced(pixels.flatten(1)) == _reduced(batch[0].flatten(1))
    plain = encoder(pixels, words)
    for where in ("memory", tmp_path):
        cache = cached(encoder, where, dtype=torch.float32)
        for _ in range(2):
            for a, b in zip(features(encoder(pixels, words)), features(plain), strict=True):
                close(a, b)
        assert counts(cache) == (6, 6)
