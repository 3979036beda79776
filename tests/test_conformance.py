"""Every class of towers held to the same invariants.

A class is one row in a `families_*.py`; it stands opposite to a small partner of the other side.
`python -m pytest tests/test_conformance.py --towers-table docs/towers.md` writes the outcome.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_conformance import (
    Subject,
    changed,
    close,
    features,
    forwards,
    gradients,
    replayed,
    same,
    trace,
)
from helpers_families import Row, all_rows

from bridger import BridgedModel
from bridger.heads import ReferringSegmentationHead
from bridger.recomputing import recomputes
from bridger.tower_peft import tuned_parameters
from bridger.towers.base import state_of

INVARIANTS: dict[str, str] = {}
"""Title of a column by name of the invariant, in the order in which they are tested."""


def _parameters(name: str) -> list[Any]:
    parameters = []
    for row in all_rows():
        marks: list[Any] = [] if row.fast else [pytest.mark.slow]
        if name in row.exceptions:
            marks.append(pytest.mark.xfail(reason=row.exceptions[name], strict=True))
        parameters.append(pytest.param(row, id=row.name, marks=marks))
    return parameters


def test_every_row_has_a_name_of_its_own() -> None:
    names = [row.name for row in all_rows()]
    assert [name for name in sorted(set(names)) if names.count(name) > 1] == []


def invariant(title: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: hold every row to this, but for the exceptions that it declares itself."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        name = test.__name__.removeprefix("test_")
        INVARIANTS[name] = title
        return pytest.mark.parametrize("row", _parameters(name))(test)

    return decorate


@invariant("towers keep their bits")
def test_untouched(row: Row) -> None:
    subject = Subject(row)
    subject.vision.train()
    next(subject.text.parameters()).requires_grad_(False)
    before = trace(subject.vision), trace(subject.text)
    bits = copy.deepcopy((subject.vision.state_dict(), subject.text.state_dict()))
    # Two encoders on the same towers; the second leaves last.
    first = changed(subject.attach(trainable=["positions"]))
    second = changed(subject.attach(1), seed=2)
    for encoder in (first, second):
        encoder.train()
        sum(t.sum() for t in features(encoder(*subject.batch()))).backward()
    towers = (subject.vision, subject.text)
    assert not any(p.grad is not None for tower in towers for p in tower.parameters())
    assert not any(module.training for module in first.towers.modules())
    first.detach()
    second.detach()
    for state, tower in zip(bits, towers, strict=True):
        now = tower.state_dict()
        assert all(torch.equal(state[key], now[key]) for key in state)
    assert (trace(subject.vision), trace(subject.text)) == before


@invariant("own output while attached")
def test_alone(row: Row) -> None:
    subject = Subject(row)
    with torch.no_grad():
        reader = subject.attach(config=None)
        pixels, words = subject.batch()
        ids, mask = reader.text.prepare(words)

        def alone() -> list[torch.Tensor]:
            pooled = reader.vision.pooled(reader.vision.call(pixels, {}))
            said = state_of(reader.text.call(ids, mask, {}))
            return [tensor for tensor in (pooled, said) if tensor is not None]

        before = alone()
        changed(subject.attach())(pixels, words)
        after = alone()
    assert before
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@invariant("fresh Bridgers change nothing, others both towers")
def test_identity(row: Row) -> None:
    subject = Subject(row)
    batch, bridged = subject.batch(), subject.attach().eval()
    with torch.no_grad():
        fresh = bridged(*batch)
        with bridged.disable():
            assert same(bridged(*batch), fresh)
        assert same(subject.attach(config=None)(*batch), fresh)
        acting = changed(bridged)(*batch)
    assert not any(
        torch.equal(a, b) for a, b in zip(features(acting), features(fresh), strict=True)
    )


@invariant("gradients")
def test_gradients(row: Row) -> None:
    subject = Subject(row)
    bridged = changed(subject.attach(trainable=["positions"]))
    sum(t.square().sum() for t in features(bridged(*subject.batch()))).backward()
    owned = {k: p for k, p in bridged.named_parameters() if not k.startswith("towers.")}
    assert owned
    assert not [k for k, p in owned.items() if p.requires_grad and p.grad is None]
    tuned = set(tuned_parameters(bridged.towers))  # peft's
    assert all((p.grad is not None) == (p in tuned) for p in bridged.towers.parameters())


@invariant("equal to a replay")
def test_replay(row: Row) -> None:
    subject = Subject(row)
    bridged = changed(subject.attach()).eval()
    with torch.no_grad():
        expected = replayed(bridged, *subject.batch())
        assert all(
            torch.equal(a, b)
            for a, b in zip(features(bridged(*subject.batch())), expected, strict=True)
        )


@invariant("shapes known beforehand")
def test_spec(row: Row) -> None:
    subject = Subject(row)
    for stages in (1, 2):
        bridged = subject.attach(stages)
        spec, out = bridged.spec, bridged(*subject.batch())
        for found, width, stride in zip(out.maps, spec.map_widths, spec.map_strides, strict=True):
            cells = [-(-side // stride) for side in out.image_size]
            assert tuple(found.shape) == (2, width, *cells)
        assert out.tokens.shape[-1] == spec.token_width
        assert tuple(out.sentence.shape) == (2, spec.sentence_width)
        assert out.token_mask.dtype == torch.bool
        assert out.token_mask.shape == out.tokens.shape[:2]
        bridged.detach()


@invariant("alone as in a batch")
def test_batch(row: Row) -> None:
    subject = Subject(row)
    bridged = changed(subject.attach()).eval()
    pixels, words = subject.batch(3)
    with torch.no_grad():
        together = bridged(pixels, words)
        for i in range(3):
            length = int(together.token_mask[i].sum())
            alone = bridged(pixels[i : i + 1], words[i : i + 1, :length])
            for a, b in zip(
                [*alone.maps, alone.sentence], [*together.maps, together.sentence], strict=True
            ):
                close(a[0], b[i])
            close(alone.tokens[0, :length], together.tokens[i, :length])


@invariant("other picture sizes")
def test_sizes(row: Row) -> None:
    subject = Subject(row)
    if not subject.other_sizes:
        pytest.skip("takes its native size only")
    bridged = changed(subject.attach()).eval()
    for size in subject.other_sizes:
        pixels, words = subject.batch(size=size)
        with torch.no_grad():
            out = bridged(pixels, words)
            turned = bridged(pixels.flip(0), words.flip(0))
        assert out.image_size == size
        for found, stride in zip(out.maps, bridged.spec.map_strides, strict=True):
            cells = [side / stride for side in size]
            assert all(abs(n - c) < 1 for n, c in zip(found.shape[-2:], cells, strict=True))
        for a, b in zip(features(turned), features(out), strict=True):
            close(a.flip(0), b)


@invariant("N expressions")
def test_expressions(row: Row) -> None:
    subject = Subject(row)
    bridged = changed(subject.attach()).eval()
    pixels, _ = subject.batch()
    words = torch.stack([subject.batch(seed=i)[1] for i in range(3)], dim=1)
    ragged = torch.tensor([[True, True, False], [True, True, True]])
    with torch.no_grad():
        together = bridged(pixels, words)
        alone = [bridged(pixels, words[:, n]) for n in range(3)]
        padded = bridged(pixels, words, expression_mask=ragged)
    assert together.num_expressions == 3
    for row_number, tensors in enumerate(zip(*map(features, alone), strict=True)):
        expected = torch.stack(tensors, dim=1).flatten(0, 1)
        close(features(together)[row_number], expected)
        real = ragged.flatten()
        close(features(padded)[row_number][real], expected[real])


@invariant("activation checkpointing")
def test_checkpointing(row: Row) -> None:
    subject = Subject(row)
    before = trace(subject.vision), trace(subject.text)
    bridged = changed(subject.attach(trainable=["positions"])).train()
    expected, plain = gradients(bridged, subject.batch()), forwards(bridged, subject.batch())
    bridged.activation_checkpointing_enable()
    found, twice = gradients(bridged, subject.batch()), forwards(bridged, subject.batch())
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert twice["bridgers"] > plain["bridgers"]
    towers = (bridged.vision, bridged.text)
    switches = [any(map(recomputes, tower.module.modules())) for tower in towers]
    for tower, switched in zip(("vision", "text"), switches, strict=True):
        assert (twice[tower] > plain[tower]) == (switched and plain[tower] > 0)
    bridged.eval().detach()
    assert (trace(subject.vision), trace(subject.text)) == before
    if not any(switches):
        pytest.skip("neither library offers any")


@invariant("autocast")
def test_autocast(row: Row) -> None:
    subject = Subject(row)
    bridged = changed(subject.attach(trainable=["positions"]))
    with torch.no_grad():
        exact = features(bridged.eval()(*subject.batch()))
    with torch.autocast("cpu", torch.bfloat16):
        out = features(bridged(*subject.batch()))
        sum(t.float().square().sum() for t in out).backward()
    for a, b in zip(out, exact, strict=True):
        assert (a.float() - b).norm() < 0.1 * b.norm()
    grads = [p.grad for p in bridged.parameters() if p.grad is not None]
    assert grads and all(bool(torch.isfinite(grad).all()) for grad in grads)


@invariant("towers in bfloat16")
def test_half(row: Row) -> None:
    subject = Subject(row)
    bridged = changed(subject.attach()).eval()
    with torch.no_grad():
        exact = features(bridged(*subject.batch()))
        halved = features(bridged.bfloat16()(*subject.batch()))
    assert bridged.bridgers is not None
    assert all(p.dtype == torch.float32 for p in bridged.bridgers.parameters())
    for a, b in zip(halved, exact, strict=True):
        assert (a.float() - b).norm() < 0.1 * b.norm()


@invariant("save and load")
def test_saving(row: Row, tmp_path: Path) -> None:
    subject, head = Subject(row), {"width": 32, "num_layers": 1, "num_heads": 2}
    bridged = changed(subject.attach(trainable=["positions"]))
    model = bridged.with_head(ReferringSegmentationHead, **head).eval()
    model.save_pretrained(tmp_path)
    fresh = Subject(row)
    again = BridgedModel.from_pretrained(tmp_path, fresh.vision, fresh.text)
    with torch.no_grad():
        assert torch.equal(model(*subject.batch()).logits, again(*subject.batch()).logits)


@invariant("copy and pickle")
def test_copies(row: Row) -> None:
    subject = Subject(row)
    left = subject.attach()
    left.detach()
    flags = [p.requires_grad for p in left.towers.parameters()]
    bridged = changed(subject.attach()).eval()
    with torch.no_grad():
        expected = bridged(*subject.batch())
        for twin in (copy.deepcopy(bridged), pickle.loads(pickle.dumps(bridged))):
            assert same(twin(*subject.batch()), expected)
            changed(twin, seed=7)
            assert not same(twin(*subject.batch()), expected)
            assert same(bridged(*subject.batch()), expected)
            twin.detach()
            assert [p.requires_grad for p in twin.towers.parameters()] == flags
