"""A model's adapter on disk and on the Hub: how it is saved, shared, and comes back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bridger import checkpoint, head_files, hub
from bridger._etris_layout import ReleasedLayout
from bridger.managed_heads import ManagedHeads
from bridger.named_towers.names import check_name
from bridger.named_towers.of_adapter import load_towers_of
from bridger.processing import Processor
from bridger.towers import TextTower, VisionTower

if TYPE_CHECKING:
    from bridger.model import BridgedModel


class SavedModel(ManagedHeads):
    """Saving and loading, as `BridgedModel` has them."""

    processor: Processor | None
    etris_layout: ReleasedLayout | None

    @property
    def tower_source(self) -> str | None:
        """The name by which `bridger.load_towers` makes the towers; saved with the adapter.

        It is known for towers that came from there, and for models of transformers that were
        loaded by a name and are as they were loaded. Set it for others, so that
        `from_pretrained(folder)` needs no towers: `model.tower_source =
        "open_clip:ViT-B-16:laion2b_s34b_b88k"`. A name of another form is a ValueError; whether
        it makes these towers is not tried.
        """
        return self.encoder.tower_source

    @tower_source.setter
    def tower_source(self, name: str | None) -> None:
        self.encoder.tower_source = None if name is None else check_name(name)

    def adapter_state_dict(self) -> dict[str, Tensor]:
        """Return what is saved: Bridgers, heads, the adapter's tower tensors, peft's layers."""
        heads = self._modules["heads"].state_dict(prefix="heads.")  # type: ignore[union-attr]
        return {**self.encoder.adapter_state_dict(), **heads}

    def save_pretrained(
        self, folder: str | os.PathLike[str], dtype: torch.dtype | None = None
    ) -> None:
        """Write the adapter (never the towers) to a folder; see `bridger.checkpoint`.

        Args:
            folder: made where there is none.
            dtype: of the numbers on disk, such as torch.float16 for sharing at half the size;
                None keeps the model's own. They come back as float32.
        """
        checkpoint.save(self, folder, dtype)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        vision_model: nn.Module | VisionTower | None = None,
        text_model: nn.Module | TextTower | None = None,
        *,
        towers: str | None = None,
        heads: Sequence[str] | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        download: bool | None = None,
        trust_remote_code: bool = False,
    ) -> BridgedModel:
        """Attach a saved adapter to the towers that it was made for.

        Args:
            name: a folder written by `save_pretrained`, the Hub's "user/name", or the name of an
                adapter in the package ("tiny", "tiny-heads").
            vision_model: the vision tower, as for `attach_bridgers`. None: both are loaded as the
                adapter says.
            text_model: the text tower.
            towers: their name in place of what the adapter says; see `bridger.load_towers`.
            heads: names of the heads to load; None: all.
            revision: branch, tag or commit on the Hub; None: main.
            token: of the Hub, for the adapter; None: the one that is logged in, which towers in
                private repositories need.
            download: whether the towers' weights may be downloaded. None: yes up to a gigabyte;
                above it a terminal is asked, and without one they are refused.
            trust_remote_code: whether code that a model of transformers brings along may be run.

        Returns:
            The model in eval mode.

        Raises:
            FileNotFoundError: there is no adapter of that name, here or on the Hub.
            OSError: the Hub cannot be reached, or a download was refused.
            TypeError: one tower without the other, or towers of both kinds.
            ValueError: the adapter does not say which towers it is for, is for other towers, has
                no such head, or its files do not fit together; every mismatch is named, and the
                towers are left as they were.
        """
        if (vision_model is None) != (text_model is None) or (vision_model and towers):
            raise TypeError("pass both towers, or towers= their name, or neither")
        folder = hub.find_adapter(name, revision=revision, token=token)
        processor = None
        if vision_model is None or text_model is None:
            vision_model, text_model, processor = load_towers_of(
                folder, towers, download=download, trust_remote_code=trust_remote_code
            )
        model = checkpoint.load(folder, vision_model, text_model, heads)
        model.processor = model.processor or processor
        return model

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Save the adapter with a model card and put it on the Hub.

        Args:
            repo_id: "user/name"; made where there is none.
            **options: `private`, `revision`, `commit_message`, `token`, `dtype`, and of the card
                `licence`, `figures`, `picture`, `overwrite`; see `bridger.hub.push`.

        Returns:
            The address of what was pushed.

        Raises:
            PermissionError: the token is wrong, or may not write there.
            ConnectionError: the Hub cannot be reached, or the connection broke; the same call
                sends what is missing.
            ValueError: the id is none, or options of the card do not fit the adapter.
        """
        return hub.push(self, repo_id, **options)

    def save_head(self, folder: str | os.PathLike[str], name: str) -> None:
        """Write one head to a folder of its own, without the Bridgers that it was trained with.

        Its numbers mean something on the features of these Bridgers. `load_head` therefore warns
        where others stand; save the adapter with `save_pretrained` to keep both together.

        Args:
            folder: made where there is none.
            name: of the head.

        Raises:
            NotADirectoryError: `folder` is a file.
            ValueError: there is no head of that name.
        """
        head_files.save(self, folder, self.head_name(name))

    def load_head(
        self, folder: str | os.PathLike[str], name: str | None = None, saved_as: str | None = None
    ) -> None:
        """Put a saved head on the features, with its loss weight.

        Args:
            folder: written by `save_head`, or by `save_pretrained`, whose other parts are not read.
            name: what the head is called here; None: as it was.
            saved_as: which of the folder's heads; None: the only one.

        Warns:
            UserWarning: the towers or Bridgers here, or the options by which they stand together,
                are others than the head was trained with; it says which.

        Raises:
            FileNotFoundError: the folder holds no head.
            ValueError: the folder's head is none or not the only one, its name is taken, it was
                built for other widths, or its files do not fit together.
        """
        name, head, weight = head_files.load(self, folder, name, saved_as)
        self._take_on(name, head)
        self.loss_weights[name] = weight
