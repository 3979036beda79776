"""Pretrains Tiny CLIP, the embedded pair of towers, on pictures with captions.

Tiny CLIP is to bridger's scenes what CLIP is to COCO: an open_clip CLIP of 2.3 million parameters
(a ModifiedResNet and a Transformer), trained with CLIP's contrastive loss on single objects and
small scenes with captions, never on masks, and frozen from then on. It learns in two stages: names
and colours from many small pictures, then places, sizes and relations from full ones. One command,
from nothing to the files in the package; a run that was stopped goes on with --resume:

    python examples/pretrain_tiny_clip.py
    python examples/pretrain_tiny_clip.py --evaluate
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_clip_batches import NAMES, SCENES, Batch, Recipe, make_batch
from tiny_clip_captions import Captioner
from tiny_clip_tokenizer import CONTEXT_LENGTH, build_tokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from bridger.data.painting import paint, paint_background
from bridger.data.sprites import kinds

OUT = Path(__file__).parent.parent / "bridger" / "assets" / "tiny_clip"
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
# Pictures for evaluation come from other seeds than those for training.
EVALUATION_SEED = 1_000_003


@dataclass(frozen=True)
class Stage:
    """A part of the training with a schedule of its own.

    Attributes:
        recipe: what its batches are made of.
        steps: its batches.
        learning_rate: at its peak.
        context_length: tokens of a caption.
    """

    recipe: Recipe
    steps: int
    learning_rate: float
    context_length: int


STAGES = (
    Stage(NAMES, steps=2200, learning_rate=2e-3, context_length=12),
    Stage(SCENES, steps=1500, learning_rate=1e-3, context_length=CONTEXT_LENGTH),
)
IMAGE_SIZE = STAGES[-1].recipe.image_size


def model_config(
    vocab_size: int, image_size: int = IMAGE_SIZE, context_length: int = CONTEXT_LENGTH
) -> dict[str, Any]:
    """The configuration that open_clip reads, preprocessing included."""
    return {
        "model_cfg": {
            "embed_dim": 192,
            "vision_cfg": {"layers": [2, 2, 3, 1], "width": 16, "image_size": image_size},
            "text_cfg": {
                "context_length": context_length,
                "vocab_size": vocab_size,
                "width": 128,
                "heads": 4,
                "layers": 3,
            },
        },
        "preprocess_cfg": {
            "mean": list(MEAN),
            "std": list(STD),
            "size": [image_size, image_size],
        },
    }


def build_model(vocab_size: int, **sizes: int) -> nn.Module:
    """The untrained pair."""
    import open_clip

    model = open_clip.CLIP(**model_config(vocab_size, **sizes)["model_cfg"])
    return model.to(memory_format=torch.channels_last)


def continue_from(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Loads the weights of an earlier stage, whose pictures and captions may be smaller."""
    image, text = "visual.attnpool.positional_embedding", "positional_embedding"
    fresh = model.state_dict()
    before, rows = weights[image], len(fresh[image])
    old, new = (math.isqrt(count - 1) for count in (len(before), rows))
    grid = F.interpolate(before[1:].T.reshape(1, -1, old, old), size=(new, new), mode="bilinear")
    known, places = weights[text], fresh[text].clone()
    places[: len(known)] = known
    resized = {image: torch.cat([before[:1], grid.flatten(2)[0].T]), text: places}
    model.load_state_dict({**weights, **resized})


class Batches(Dataset[Batch]):
    """Batches by number, each made anew from the seed."""

    def __init__(self, recipe: Recipe, seed: int, steps: range) -> None:
        self.recipe, self.seed, self.steps = recipe, seed, steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> Batch:
        return make_batch(self.recipe, self.seed, self.steps[index])


def to_pixels(images: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 to normalised (B, 3, H, W), channels last in memory."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


def to_ids(tokenizer: Any, captions: list[str], length: int = CONTEXT_LENGTH) -> Tensor:
    """Sentences to (B, L) ids, padded or cut to the tower's length."""
    return tokenizer(
        captions,
        padding="max_length",
        truncation=True,
        max_length=length,
        return_tensors="pt",
    )["input_ids"]


def contrastive_loss(
    model: nn.Module, pixels: Tensor, ids: Tensor, ignore: Tensor, bf16: bool
) -> Tensor:
    """CLIP's loss in both directions, without the pairs that may be true by chance."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        image, text, scale = model(pixels, ids)
    # ignore[i, j] speaks of caption i and picture j; pictures are the rows here.
    logits = (scale.float() * image.float() @ text.float().T).masked_fill(ignore.T, -1e4)
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def make_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """AdamW; no decay on vectors (norms, biases) and the temperature."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8)


def learning_rate_at(step: int, steps: int, warmup: int = 100) -> float:
    """Linear warmup, then cosine, as a share of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(args: argparse.Namespace, tokenizer: Any) -> nn.Module:
    """All stages, or what is left of them; gives the model that the last one trained."""
    state = load_checkpoint(args) or {"stage": 0, "step": 0}
    for number, stage in list(enumerate(STAGES))[state["stage"] :]:
        model = build_model(
            len(tokenizer),
            image_size=stage.recipe.image_size,
            context_length=stage.context_length,
        )
        if number > state["stage"]:
            state["step"] = 0
        if "model" in state:
            continue_from(model, state["model"])
        print(f"stage {number}: {sum(p.numel() for p in model.parameters()):,} parameters")
        state = train_stage(args, number, model, tokenizer, state)
    return model


def train_stage(
    args: argparse.Namespace, number: int, model: nn.Module, tokenizer: Any, state: dict[str, Any]
) -> dict[str, Any]:
    """One stage from `state` on; writes a checkpoint every few minutes and at the end."""
    stage, optimizer = STAGES[number], make_optimizer(model)
    if state["step"]:
        optimizer.load_state_dict(state["optimizer"])
    steps = range(state["step"], stage.steps)
    # The workers only paint (numpy and Pillow), which survives the fork of a process with
    # OpenMP threads.
    loader = DataLoader(
        Batches(stage.recipe, args.seed + number, steps),
        batch_size=None,
        num_workers=args.workers,
        prefetch_factor=4 if args.workers else None,
    )
    saved, mean_loss = time.monotonic(), None
    model.train()
    bar = tqdm(loader, initial=steps.start, total=stage.steps, unit="batch", mininterval=20)
    for step, batch in zip(steps, bar, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * learning_rate_at(step, stage.steps)
        ids = to_ids(tokenizer, batch.captions, stage.context_length)
        ignore = torch.from_numpy(batch.ignore)
        loss = contrastive_loss(model, to_pixels(batch.images), ids, ignore, args.bf16)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))  # as CLIP was trained
        value = loss.item()
        mean_loss = value if mean_loss is None else 0.98 * mean_loss + 0.02 * value
        bar.set_postfix(loss=f"{mean_loss:.3f}", refresh=False)
        if time.monotonic() - saved > args.save_every or step + 1 == stage.steps:
            state = {"stage": number, "step": step + 1, "model": model.state_dict()}
            save_checkpoint(args.checkpoint, {**state, "optimizer": optimizer.state_dict()})
            saved = time.monotonic()
    return state


def load_checkpoint(args: argparse.Namespace) -> dict[str, Any] | None:
    """What --resume goes on from, or None."""
    if not args.resume or not args.checkpoint.exists():
        return None
    state: dict[str, Any] = torch.load(args.checkpoint, weights_only=True)
    return state


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes all that --resume needs; a crash leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def export(model: nn.Module, tokenizer: Any, out: Path) -> None:
    """Writes the pair in open_clip's own layout, weights in float16, and its tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.half().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")  # no loader asks for it, and it says nothing
    }
    save_file(weights, out / "open_clip_model.safetensors", metadata={"format": "pt"})
    config = json.dumps(model_config(len(tokenizer)), indent=2)
    (out / "open_clip_config.json").write_text(config + "\n")
    build_tokenizer().save_pretrained(out)  # a used one would remember its last call's lengths
    print(f"wrote {out}: {sum(f.stat().st_size for f in out.iterdir()) / 1e6:.2f} MB")


@torch.inference_mode()
def name_accuracy(model: nn.Module, tokenizer: Any, per_kind: int = 8) -> tuple[float, list[str]]:
    """Zero-shot top-1 among all names on single objects with unseen backgrounds and places.

    Returns:
        The accuracy, and the names that are most often missed.
    """
    names = [kind.name for kind in kinds()]
    text = model.encode_text(to_ids(tokenizer, [f"the {name}" for name in names]), normalize=True)
    right = np.zeros(len(names))
    for round_number in range(per_kind):
        captioner = Captioner(np.random.default_rng((EVALUATION_SEED, round_number)))
        images = []
        for kind in kinds():
            spot = captioner.place(kind, 0.5, 0.5, captioner.size(1), jitter=0.5)
            background = paint_background(captioner.rng, IMAGE_SIZE, IMAGE_SIZE)
            images.append(paint([spot], background)[0])
        image = model.encode_image(to_pixels(np.stack(images)), normalize=True)
        right += ((image @ text.T).argmax(1) == torch.arange(len(names))).numpy()
    worst = [f"{names[i]} {right[i] / per_kind:.2f}" for i in np.argsort(right)[:12]]
    return float(right.mean() / per_kind), worst


@torch.inference_mode()
def group_accuracy(model: nn.Module, tokenizer: Any, groups: int = 50) -> dict[str, float]:
    """How often a picture finds its own caption among those of its group, by sort.

    The pictures of a group show the same objects, so names do not help; chance is one over the
    size of the group, which is given in the keys.
    """
    results: dict[str, float] = {}
    for sort in SCENES.groups:
        captioner = Captioner(np.random.default_rng((EVALUATION_SEED, 99, len(sort))))
        right: dict[int, list[bool]] = defaultdict(list)
        for _ in range(groups):
            group = getattr(captioner, sort)()
            if len(group) < 2:
                continue
            canvas = paint_background(captioner.rng, IMAGE_SIZE, IMAGE_SIZE)
            images = np.stack([paint(list(example.placements), canvas)[0] for example in group])
            image = model.encode_image(to_pixels(images), normalize=True)
            ids = to_ids(tokenizer, [example.caption for example in group])
            best = (image @ model.encode_text(ids, normalize=True).T).argmax(1)
            right[len(group)] += (best == torch.arange(len(group))).tolist()
        results.update({f"{sort} (of {n})": float(np.mean(r)) for n, r in right.items()})
    return results


def evaluate(tokenizer: Any, out: Path) -> None:
    """Prints the figures of the weights that are in the package."""
    model = build_model(len(tokenizer)).eval()
    model.load_state_dict(load_file(out / "open_clip_model.safetensors"))
    accuracy, worst = name_accuracy(model, tokenizer)
    print(f"zero-shot top-1 among {len(kinds())} names: {accuracy:.3f}")
    print("most often missed:", ", ".join(worst))
    for sort, value in group_accuracy(model, tokenizer).items():
        print(f"own caption within the group, {sort}: {value:.3f}")


def main() -> None:
    """Parses the command line; trains, writes and evaluates."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes that paint pictures")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    parser.add_argument("--bf16", action="store_true", help="only on CPUs with AVX-512 and bf16")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the finished pair")
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/tiny_clip/checkpoint.pt"))
    parser.add_argument("--save-every", type=float, default=120, help="seconds")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--evaluate", action="store_true", help="only print the figures of --out")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    if args.evaluate:
        return evaluate(tokenizer, args.out)
    model = train(args, tokenizer)
    export(model, tokenizer, args.out)
    return evaluate(tokenizer, args.out)


if __name__ == "__main__":
    main()
