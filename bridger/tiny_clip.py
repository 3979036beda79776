"""The embedded towers: a CLIP of a few million parameters for the embedded scenes."""

from __future__ import annotations

from torch import nn

from bridger.known_towers import EMBEDDED, embedded_config, embedded_inputs
from bridger.processing import Processor
from bridger.tower_source import remember

TINY_ADAPTER = EMBEDDED.with_name("tiny_adapter")
SHIPPED = {"tiny": TINY_ADAPTER, "tiny-heads": EMBEDDED.with_name("tiny_heads")}
"""The adapters in the package by name: masks for sentences; classes, boxes and label maps."""


def load_tiny_clip() -> tuple[nn.Module, nn.Module, Processor]:
    """Load Tiny CLIP, the offline twin of `open_clip.create_model`.

    Returns:
        The vision tower, the text tower (the whole CLIP, which holds the vision tower), and
        the processor that belongs to them.

    Raises:
        ValueError: the weights in the package are not those of its config.
    """
    import open_clip
    from safetensors.torch import load_file

    clip = open_clip.CLIP(**embedded_config()["model_cfg"])
    found = clip.load_state_dict(load_file(EMBEDDED / "open_clip_model.safetensors"), strict=False)
    # BatchNorm's step counters are of no use to frozen towers and are not shipped.
    missing = [name for name in found.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or found.unexpected_keys:
        raise ValueError(
            f"the weights in {EMBEDDED} do not fit its config (missing: {missing}, unexpected: "
            f"{found.unexpected_keys}); install bridger-peft again"
        )
    for tower in (clip, clip.visual):
        remember(tower, "tiny")
    pictures, sentences = embedded_inputs()
    return clip.visual, clip.eval(), Processor(*pictures, *sentences)
