"""Share an adapter: save it, write its card, push it; load it elsewhere by its name.

    python examples/share.py                           # in folders: nothing leaves the machine
    python examples/share.py --hub my-name/my-adapter  # on the Hub, after `hf auth login`

Then several adapters on one pair of towers: loaded beside one another, switched, averaged, let go.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from bridger import BridgedModel
from bridger.data.scene_labels import make_labelled_scene, scene_classes
from bridger.model_card import write_card
from bridger.predictions.side_by_side import beside


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--adapter", default="tiny", help="what is shared")
    parser.add_argument("--hub", metavar="USER/NAME", help="push it there; needs a login")
    parser.add_argument("--public", action="store_true", help="let everybody see it")
    parser.add_argument("--out", type=Path, default=Path("shared"))
    args = parser.parse_args()

    model = BridgedModel.from_pretrained(args.adapter)
    scene, sentence = make_labelled_scene("test", 7, scene_classes()), "the koala"
    picture = model.predict(scene.image, sentence).overlay(scene.image, sentence)
    card = {"licence": "apache-2.0", "picture": picture}

    if args.hub:
        address = model.push_to_hub(args.hub, private=not args.public, dtype=torch.float16, **card)
        print(f"pushed to {address}")
        name = args.hub
    else:
        model.save_pretrained(args.out, dtype=torch.float16)  # half the size on disk
        write_card(args.out, "my-name/my-adapter", model=model, **card)
        name = args.out
        print(f"wrote {args.out}: {', '.join(sorted(path.name for path in args.out.iterdir()))}")

    # Elsewhere: the name is enough, as the adapter says which towers it is for.
    model = BridgedModel.from_pretrained(name)
    print(f"loaded {name}: {len(model.heads)} head, towers {model.tower_source!r}")

    # Several adapters on the same towers. The first one is called "default".
    model.load_adapter("original", args.adapter)
    model.load_adapter("classes", "tiny-heads")
    model.add_weighted_adapter(["default", "original"], [0.5, 0.5], "average")
    seen = []
    for adapter in model.adapter_names:
        started = time.perf_counter()
        model.set_adapter(adapter)
        taken = 1000 * (time.perf_counter() - started)
        head = "detection" if adapter == "classes" else None
        found = model.predict(scene.image, None if head else sentence, head=head)
        seen.append(found.overlay(scene.image))
        said = ", ".join(f"{one['words']} {one['score']:.2f}" for one in found.found()[:3])
        print(f"{adapter}: set in {taken:.1f} ms; found {said}")
    beside(seen).save("share.png")
    print(f"wrote share.png: {', '.join(model.adapter_names)}, from left to right")
    model.set_adapter("default")
    for adapter in ("original", "classes", "average"):
        model.delete_adapter(adapter)
    print(f"left: {model.adapter_names}")


if __name__ == "__main__":
    main()
