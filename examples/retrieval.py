"""Features for retrieval: which scene does a sentence mean, which sentence belongs to a scene?

    python examples/retrieval.py --scenes 40

Prints recall@k in both directions, by three scores of a scene and a sentence:

- towers: the cosine of what the two towers say on their own. Every scene and every sentence is run
  once, and the frozen pair was trained for just this;
- Bridgers: the cosine of the same features of the bridged towers. They depend on the pair, so each
  pair is run, and the shipped adapter never learned to rank: it was trained for masks;
- mask: how sure the head is of the mask that it finds, the mean probability inside.

An adapter for retrieval would be trained on it. What this shows is where the features are, and that
bridged ones are no better at ranking merely for being bridged.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from bridger import BridgedModel
from bridger.data.scenes import Scene, make_scene
from bridger.predictions.side_by_side import beside, stacked

WAYS, KS = ("scene", "sentence"), (1, 5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--adapter", default="tiny", help="a folder, or an id on the Hub")
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--out", default="retrieval.png")
    args = parser.parse_args()

    model = BridgedModel.from_pretrained(args.adapter)
    scenes, kinds, sentences = named_scenes(args.scenes)
    right = torch.tensor([[kind in shown(scene) for scene in scenes] for kind in kinds])
    pixels, _ = model.processor.images([scene.image for scene in scenes])
    words = model.processor.text(sentences)  # input_ids and attention_mask, (N, L) each

    with torch.no_grad(), model.disable():  # scene i beside sentence i: neither sees the other
        features = model.encode(pixels, **words)
        towers = cosines(features.sentence[:, None], features.pooled[None])
    bridged, masks = torch.empty_like(towers), torch.empty_like(towers)
    for number, scene in enumerate(scenes):  # all sentences about one scene share its prefix
        with torch.no_grad():
            asked = {name: tensor[None] for name, tensor in words.items()}  # (1, N, L)
            features = model.encode(pixels[number, None], **asked)
        bridged[:, number] = cosines(features.sentence, features.pooled)
        masks[:, number] = torch.from_numpy(model.predict(scene.image, sentences).scores)

    print(f"{len(scenes)} scenes, {len(sentences)} sentences; recall in percent\n")
    columns = "".join(f"{f'find {way} @{k}':>18}" for way in WAYS for k in KS)
    print(f"{'score':10}{columns}")
    for name, scores in (("towers", towers), ("Bridgers", bridged), ("mask", masks)):
        figures = [recall(*pair, k) for pair in ((scores, right), (scores.T, right.T)) for k in KS]
        print(f"{name:10}" + "".join(f"{100 * figure:18.1f}" for figure in figures))
    chance = [right.float().mean(), 1 - (1 - right.float().mean()) ** 5] * 2
    print(f"{'(chance)':10}" + "".join(f"{100 * float(figure):18.1f}" for figure in chance))
    draw(scenes, towers, right).save(args.out)
    print(f"\nwrote {args.out}: the five best scenes by the towers; green ones show what was named")


def named_scenes(count: int) -> tuple[list[Scene], list[str], list[str]]:
    """Return scenes, and for each the kind of thing that a sentence names in it."""
    scenes, kinds, sentences = [], [], []
    number = 0
    while len(scenes) < count:
        scene, number = make_scene("val", number), number + 1
        for said in scene.expressions:
            kind = scene.objects[said.target].kind.name
            if said.kind == "name" and kind not in kinds:
                scenes.append(scene)
                kinds.append(kind)
                sentences.append(said.sentence)
                break
    return scenes, kinds, sentences


def shown(scene: Scene) -> set[str]:
    """Return the kinds of things in a scene."""
    return {thing.kind.name for thing in scene.objects}


def cosines(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a, b, dim=-1)


def recall(scores: Tensor, right: Tensor, k: int) -> float:
    """Return the share of rows in which one of the k best columns is right."""
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return right.gather(1, best).any(dim=1).float().mean().item()


def draw(scenes: list[Scene], scores: Tensor, right: Tensor) -> Image.Image:
    """Draw the best five scenes for each of four sentences."""
    rows = []
    for row in range(min(4, len(scenes))):
        best = scores[row].topk(min(5, len(scenes))).indices.tolist()
        tiles = [Image.fromarray(scenes[i].image) for i in best]
        colours = ["limegreen" if right[row, i] else "dimgray" for i in best]
        rows.append(beside([ImageOps.expand(t, 6, c) for t, c in zip(tiles, colours, strict=True)]))
    return stacked(rows)


if __name__ == "__main__":
    main()
