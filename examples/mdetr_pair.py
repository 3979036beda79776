"""MDETR's two encoders, which share no space: torchvision's ResNet-101 and RoBERTa.

    python examples/mdetr_pair.py                              # random weights: shows that it runs
    python examples/mdetr_pair.py --pretrained --steps 2000    # downloads both

Nothing ever aligned this pair, so the head brings projections for the last map and the sentence.
Bridgers sit behind three stages of the net and three layers of the text encoder.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
import torchvision
from transformers import AutoModel, AutoTokenizer, RobertaConfig, RobertaModel

import bridger
from bridger.data import RefCOCO, RefCollator
from bridger.data.scenes import write_scenes
from bridger.heads import ReferringSegmentationHead

STAGES = [("layer2", 3), ("layer3", 7), ("layer4", 11)]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pretrained", action="store_true", help="download both encoders")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--size", type=int, default=224, help="side of the pictures in pixels")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.pretrained:
        vision = torchvision.models.resnet101(weights="IMAGENET1K_V2")
        text = AutoModel.from_pretrained("roberta-base")
        tokenizer = AutoTokenizer.from_pretrained("roberta-base")
    else:
        vision = torchvision.models.resnet101()
        text = RobertaModel(RobertaConfig(max_position_embeddings=514, type_vocab_size=1))
        tokenizer = bridger.load_tiny_clip()[2].words
    model = bridger.attach_bridgers(vision, text, STAGES).with_head(ReferringSegmentationHead)
    model.processor = bridger.Processor(args.size, MEAN, STD, tokenizer, max_length=20)
    print(model.summary((args.size, args.size)))

    folder = tempfile.TemporaryDirectory()
    write_scenes(folder.name, {"train": 2 * args.steps}, size=args.size, seed=0)
    loader = torch.utils.data.DataLoader(
        RefCOCO(folder.name, "train"), batch_size=2, collate_fn=RefCollator(model.processor)
    )
    optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=1e-4)
    model.train()
    for step, batch in zip(range(args.steps), loader, strict=False):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}: loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
