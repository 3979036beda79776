"""Labels of heads that find boxes: checked, and made into the targets of every row for FCOS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bridger.heads.pairs import Pairs

NEVER = -1e4
"""A logit whose focal loss and score are exactly 0, in the loss and in results, and no nan."""

ROUNDING = 0.5  # pixels that a box may reach out of its picture
DTYPES = {"boxes": "float", "labels": "int64", "crowd": "bool"}


@dataclass(frozen=True)
class Boxes:
    """The labels of one picture.

    Attributes:
        boxes: (n, 4) float32, x0 y0 x1 y1 in pixels of the input.
        labels: (n,) int64, 0 to K - 1.
        crowd: (n,) bool, boxes around many objects: neither objects nor background.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor


def check_boxes(labels: Any, images: int, classes: int, image_size: tuple[int, int]) -> list[Boxes]:
    """Read the labels of B pictures.

    Args:
        labels: a list of B dicts {"boxes": (n, 4) float, "labels": (n,) int64, "crowd": (n,) bool,
            optional}; n may be 0. COCO's other keys ("area", "image_id") are not read.
        images: B.
        classes: K.
        image_size: (H, W) of the input.

    Returns:
        B labels on the CPU: choosing rows from them there waits for no other device.

    Raises:
        TypeError: a key of a dict holds no tensor.
        ValueError: they have another form, crowds are called otherwise, a box lies outside of the
            picture or has no area, or a label is no class; the message names the picture and the
            box.
    """
    if not isinstance(labels, Sequence) or len(labels) != images:
        found = f"{len(labels)} of them" if isinstance(labels, Sequence) else type(labels).__name__
        raise ValueError(
            f"labels must be a list of {images} dicts, one for each picture, with 'boxes' (n, 4) "
            f"and 'labels' (n,), found {found}"
        )
    return [
        _check_picture(f"labels of picture {i}", given, classes, image_size)
        for i, given in enumerate(labels)
    ]


def _check_picture(where: str, given: Any, classes: int, image_size: tuple[int, int]) -> Boxes:
    if not isinstance(given, Mapping) or not {"boxes", "labels"} <= set(given):
        found = sorted(given) if isinstance(given, Mapping) else type(given).__name__
        raise ValueError(f"{where} must be a dict with 'boxes' and 'labels', found {found}")
    if "iscrowd" in given:
        raise ValueError(
            f"{where}: COCO's 'iscrowd' is called 'crowd' here and is bool: pass "
            f"'crowd': iscrowd.bool(), or a crowd would be learned as an object"
        )
    parts = {name: given[name] for name in DTYPES if name in given}
    for name, value in parts.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{where}: {name!r} must be a tensor of {DTYPES[name]}, found "
                f"{type(value).__name__}; make it one by torch.as_tensor"
            )
    n = len(parts["boxes"]) if parts["boxes"].ndim else "n"
    for name, value in parts.items():
        expected, found = f"({n}, 4)" if name == "boxes" else f"({n},)", str(tuple(value.shape))
        if found != expected:
            raise ValueError(f"{where}: {name!r} must have shape {expected}, found {found}")
    boxes, labels, crowd = parts["boxes"], parts["labels"], parts.get("crowd")
    if crowd is None:
        crowd = torch.zeros(len(boxes), dtype=torch.bool)
    if not boxes.is_floating_point() or labels.dtype != torch.int64 or crowd.dtype != torch.bool:
        raise ValueError(
            f"{where}: 'boxes' must be float, 'labels' int64 and 'crowd' bool, found "
            f"{boxes.dtype}, {labels.dtype} and {crowd.dtype}"
        )
    checked = Boxes(boxes.to("cpu", torch.float32), labels.cpu(), crowd.cpu())
    _check_numbers(where, checked.boxes, checked.labels, classes, image_size)
    return checked


def _check_numbers(
    where: str, boxes: Tensor, labels: Tensor, classes: int, image_size: tuple[int, int]
) -> None:
    height, width = image_size
    edges = boxes.new_tensor([width, height]) + ROUNDING
    wrong = {
        "has no area (it is x0 y0 x1 y1, with x0 < x1 and y0 < y1)": ~(
            boxes[:, :2] < boxes[:, 2:]
        ).all(dim=1),
        f"reaches out of the picture, which is {width} x {height} pixels": ~(
            (boxes[:, :2] >= -ROUNDING) & (boxes[:, 2:] <= edges)
        ).all(dim=1),
        f"has a label that is none of 0 to {classes - 1}": (labels < 0) | (labels >= classes),
    }
    for what, bad in wrong.items():
        if bad.any():
            i = int(bad.nonzero()[0])
            raise ValueError(
                f"{where}: box {i}, {boxes[i].tolist()} with label {int(labels[i])}, {what}"
            )


def row_targets(
    pictures: Sequence[Boxes], pairs: Pairs, real: Tensor, device: torch.device
) -> list[dict[str, Tensor]]:
    """Return the targets of all B*S rows: every row is an image to FCOS, with classes of its own.

    Args:
        pictures: B labels, on the CPU.
        pairs: which row asks for which class.
        real: (B, S) bool, on the CPU, false at rows that are padding: they have no targets.
        device: where the targets go.

    Returns:
        For each row "boxes" (n, 4) of the classes that it mentions, "labels" (n,), their slots,
        and "crowd_boxes", "crowd_labels" likewise.

    Raises:
        ValueError: a picture has a label whose rows are all padding.
    """
    slot_of = pairs.slot_of.cpu()
    asked = []
    for i, picture in enumerate(pictures):
        slots = slot_of[:, picture.labels].masked_fill(~real[i, :, None], -1)  # (S, n)
        if (unasked := (slots < 0).all(dim=0)).any():
            box = int(unasked.nonzero()[0])
            raise ValueError(
                f"labels of picture {i}: box {box} has label {int(picture.labels[box])}, about "
                f"which the picture is not asked: expression_mask is false there"
            )
        asked.append(slots)
    objects, crowds = (_split_by_row(pictures, asked, crowd, device) for crowd in (False, True))
    return [
        {"boxes": boxes, "labels": labels, "crowd_boxes": crowd_boxes, "crowd_labels": crowd_labels}
        for (boxes, labels), (crowd_boxes, crowd_labels) in zip(objects, crowds, strict=True)
    ]


def _split_by_row(
    pictures: Sequence[Boxes], asked: Sequence[Tensor], crowd: bool, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the boxes and slots of every row, moved to the device all at once.

    Args:
        pictures: B labels.
        asked: of each picture the slots (S, n) of its boxes, -1 in rows that do not ask for them.
        crowd: whether crowds are wanted, or objects.
        device: where they go.
    """
    boxes, labels, counts = [], [], []
    for picture, slots in zip(pictures, asked, strict=True):
        rows, wanted = ((slots >= 0) & (picture.crowd == crowd)).nonzero(as_tuple=True)
        boxes.append(picture.boxes[wanted])
        labels.append(slots[rows, wanted])
        counts.append(rows.bincount(minlength=len(slots)))
    sizes = torch.cat(counts).tolist()
    moved = (torch.split(torch.cat(parts).to(device), sizes) for parts in (boxes, labels))
    return zip(*moved, strict=True)


class SparingCrowds(nn.Module):
    """Torchvision's losses of FCOS, where cells inside a crowd are not told to be background.

    A crowd's cells score for its class as they like, but for those that are matched to an object
    of it. It stands as head in torchvision's FCOS, which does the matching.

    Args:
        parts: torchvision's FCOSHead.
    """

    def __init__(self, parts: nn.Module) -> None:
        super().__init__()
        self.parts: Any = parts

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Compute them, with torchvision's arguments and `row_targets`."""
        if any(len(target["crowd_boxes"]) for target in targets):
            logits = head_outputs["cls_logits"]
            spared = torch.zeros_like(logits, dtype=torch.bool)
            for row, (target, squares, matched) in enumerate(
                zip(targets, anchors, matched_idxs, strict=True)
            ):
                middles = (squares[:, None, :2] + squares[:, None, 2:]) / 2  # (A, 1, 2)
                crowds = target["crowd_boxes"]
                inside = ((middles > crowds[:, :2]) & (middles < crowds[:, 2:])).all(dim=2)
                for box, slot in enumerate(target["crowd_labels"].tolist()):
                    spared[row, :, slot] |= inside[:, box]
                cells = (matched >= 0).nonzero()[:, 0]
                spared[row, cells, target["labels"][matched[cells]]] = False
            head_outputs = {**head_outputs, "cls_logits": logits.masked_fill(spared, NEVER)}
        losses: dict[str, Tensor] = self.parts.compute_loss(
            targets, head_outputs, anchors, matched_idxs
        )
        return losses
