"""Fork, the interpreter's end, the compiler, and transformers' own towers."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers_lockstep import (
    STAGES,
    Pair,
    inputs,
    results_and_gradients,
    run_python,
    same,
)
from torch import Tensor, nn

from bridger.lockstep import StageError, StageHooks, run_lockstep

SLOW = pytest.mark.slow

pytestmark = pytest.mark.usefixtures("next_forward_is_right")


# Fork, exit.


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no fork here")
def test_fork() -> None:
    """Idle workers, in the middle of a forward, and from a DataLoader's worker."""
    run_python("""
import os, signal, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import torch
torch.set_num_threads(1)
from helpers_lockstep import Pair, inputs, same
pair, (x, y) = Pair(), inputs()
expected = list(pair(x, y))

def fork(in_child):
    child = os.fork()
    if child == 0:
        signal.alarm(200)
        try:
            ok = in_child()
        except BaseException as error:
            print(repr(error), flush=True)
            ok = False
        os._exit(0 if ok else 1)
    return os.waitpid(child, 0)[1]

right = lambda: same(list(pair(x, y)), expected)
assert fork(right) == 0
statuses = []
plain = pair.bridge
def bridge(stage, v, t):
    pair.bridge = plain
    statuses.append(fork(right))
    return plain(stage, v, t)
pair.bridge = bridge
assert right() and statuses == [0, 0, 0]

# In a tower.
handle = pair.vision.blocks[2].register_forward_pre_hook(lambda *_: statuses.append(fork(alone)))
alone = lambda: (handle.remove(), right())[1]
assert right() and statuses == [0, 0, 0, 0]
handle.remove()

# A child that goes on with its parent's forward gets an error and does not hang.
parent, failed = os.getpid(), []
def go_on(stage, v, t):
    child = os.fork() if stage == 1 else 1
    if child == 0:
        signal.alarm(200)
    elif stage == 1:
        failed.append(os.waitpid(child, 0)[1])
    return plain(stage, v, t)
pair.bridge = go_on
try:
    ok = right()
except RuntimeError as error:
    pair.bridge = plain
    os._exit(0 if os.getpid() != parent and "forked" in str(error) and right() else 1)
assert os.getpid() == parent and ok and failed == [0]
pair.bridge = plain

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return pair(x, y)[0].detach()
loader = torch.utils.data.DataLoader(Data(), batch_size=None, num_workers=2, timeout=200,
                                     multiprocessing_context="fork")
assert all(torch.equal(got, expected[0]) for got in loader)
assert right()
""")


ENDINGS = {
    "idle workers": "",
    "exit": "raise SystemExit(0)",
    "atexit": "import atexit; atexit.register(lambda: print(pair(x, y)[0].sum()))",
    "exit from the bridge": "pair.bridge = lambda *_: sys.exit(0); pair(x, y)",
    "paused workers": """
reached = threading.Event()
pair.bridge = lambda *_: (reached.set(), threading.Event().wait())
threading.Thread(target=pair, args=(x, y), daemon=True).start()
reached.wait()
""",
}


@SLOW
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_interpreter_ends(ending: str) -> None:
    out = run_python(f"""
import sys, threading
from helpers_lockstep import Pair, inputs
pair, (x, y) = Pair(), inputs()
pair(x, y)
{ENDINGS[ending]}
""")
    assert ("tensor" in out) == (ending == "atexit")


def test_a_forward_at_shutdown_raises(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sys.is_finalizing", lambda: True)
        with pytest.raises(RuntimeError, match="while the interpreter shuts down"):
            pair(*inputs())


@SLOW
def test_a_forward_in_del_at_shutdown_does_not_hang() -> None:
    run_python("""
from helpers_lockstep import Pair, inputs
class Late:
    def __init__(self):
        self.pair, self.inputs = Pair(), inputs()
        self.pair(*self.inputs)
    def __del__(self):
        self.pair(*self.inputs)
import builtins
builtins.late = Late()  # dies in finalization
""")


# The compiler.


@pytest.mark.slow
def test_import_does_not_load_the_compiler() -> None:
    run_python("""
import sys, torch
before = "torch._dynamo" in sys.modules
import bridger.lockstep
assert ("torch._dynamo" in sys.modules) == before
""")


@pytest.mark.slow
@pytest.mark.parametrize(
    "what", ["blocks", *(pytest.param(w, marks=SLOW) for w in ("forwards", "towers", "model"))]
)
def test_torch_compile(what: str) -> None:
    import torch._dynamo
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    pair, (x, _) = Pair(), inputs()
    expected = results_and_gradients(pair, pair.interleaved)
    alone = pair.vision(x)
    model: Callable[..., Any] = pair
    towers = (pair.vision, pair.text)
    if what == "towers":
        for tower in towers:
            tower.compile(backend="aot_eager")
    elif what == "model":
        model = torch.compile(pair, backend="aot_eager")
    for block in [block for tower in towers for block in tower.blocks]:
        if what == "blocks":
            block.compile(backend="aot_eager")
        elif what == "forwards":
            block.forward = torch.compile(block.forward, backend="aot_eager")
    # By default compiled code does not notice whether a block has hooks: see the next test.
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=what != "towers"):
        results = results_and_gradients(pair, model)
    for got, want in zip(results, expected, strict=True):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(pair.vision(x), alone)
    if what in ("blocks", "forwards"):
        assert not counters["graph_break"] and counters["stats"]["unique_graphs"] < 8


@SLOW
def test_a_compiled_tower_that_forgets_its_hooks_is_an_error() -> None:
    torch.compiler.reset()
    pair, (x, y) = Pair(), inputs()
    expected = pair.interleaved(x, y)
    pair.vision.compile(backend="aot_eager")
    try:
        torch.testing.assert_close(pair(x, y), expected)
    except StageError as error:
        assert "compile its blocks" in str(error)
    torch.compiler.reset()
    pair.vision._compiled_call_impl = None


# transformers' own towers.


@SLOW
@pytest.mark.parametrize("checkpointing", [False, True])
def test_transformers_clip(checkpointing: bool) -> None:
    transformers = pytest.importorskip("transformers")
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2)
    vision = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(image_size=32, patch_size=8, **small)
    )
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(vocab_size=50, max_position_embeddings=8, **small)
    )
    if checkpointing:
        for model in (vision, text):
            model.train()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # its newer name came with 5.x
                model.gradient_checkpointing_enable({"use_reentrant": False})
    layers = [
        next(m for n, m in tower.named_modules() if n.endswith("encoder.layers"))
        for tower in (vision, text)
    ]
    hooks = [
        StageHooks([blocks[i] for i in STAGES], [f"layers.{i}" for i in STAGES], name)
        for blocks, name in zip(layers, ("vision", "text"), strict=True)
    ]
    bridges = nn.ModuleList(nn.Linear(16, 16) for _ in STAGES)
    pixels, ids = torch.randn(2, 3, 32, 32), torch.randint(0, 50, (2, 8))

    def mix(stage: int, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return v + bridges[stage](t.mean(1, keepdim=True)), t + bridges[stage](v[:, :1])

    def by_recording() -> tuple[Tensor, Tensor]:
        """Without lockstep: each round takes the other tower's states from the round before."""
        states: dict[tuple[int, int], Tensor] = {}

        def hook(side: int, stage: int, known: int, out: Tensor) -> Tensor | None:
            if stage == known:
                states[side, stage] = out
            if stage >= known:
                return None
            return mix(stage, *((out, states[1, stage]) if side == 0 else (states[0, stage], out)))[
                side
            ]

        for known in range(len(STAGES) + 1):
            results = []
            for side, (blocks, run) in enumerate(zip(layers, runs, strict=True)):
                handles = [
                    blocks[i].register_forward_hook(
                        lambda m, a, out, what=(side, stage, known): hook(*what, out)
                    )
                    for stage, i in enumerate(STAGES)
                ]
                results.append(run())
                for handle in handles:
                    handle.remove()
        return results[0], results[1]

    runs = [
        lambda: vision(pixel_values=pixels).last_hidden_state,
        lambda: text(input_ids=ids).last_hidden_state,
    ]

    def gradients(results: tuple[Tensor, Tensor]) -> list[Tensor | None]:
        modules = nn.ModuleList([vision, text, bridges])
        modules.zero_grad()
        (results[0].square().mean() + results[1].pow(3).mean()).backward()
        return [None if p.grad is None else p.grad.clone() for p in modules.parameters()]

    got = run_lockstep((hooks[0], runs[0]), (hooks[1], runs[1]), mix)
    got_gradients = gradients(got)
    want = by_recording()
    assert same(list(got), list(want))
    for mine, theirs in zip(got_gradients, gradients(want), strict=True):
        torch.testing.assert_close(mine, theirs)
