"""Towers by name: sizes, files on this machine, and downloads that fail."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from einops import rearrange
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import Tensor, nn
from torch.nn import functional as F

from bridger import attach_bridgers, load_towers
from bridger.processing import Processor

TEXT = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION: dict[str, dict[str, Any]] = {
    "small-vit": {"image_size": 32, "patch_size": 8, "width": 48, "head_width": 16, "layers": 2},
    "small-resnet": {"image_size": 64, "width": 8, "layers": [1, 1, 1, 1]},
}


@pytest.fixture(autouse=True, scope="module")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two models that open_clip's factory knows by name."""
    folder = tmp_path_factory.mktemp("configs")
    for name, vision in VISION.items():
        config = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": vision, "text_cfg": TEXT}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def save(name: str, path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = open_clip.create_model(name).state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path)
    return tensors


class Tree(nn.Module):
    """A module of these names, which OpenAI's archives hold with three numbers beside them."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        numbers = {n: torch.tensor(7) for n in ("input_resolution", "context_length", "vocab_size")}
        for name, tensor in {**tensors, **numbers}.items():
            owner: nn.Module = self
            *path, leaf = name.split(".")
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner._modules[part]  # type: ignore[assignment]
            owner.register_buffer(leaf, tensor.half() if tensor.is_floating_point() else tensor)

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels


@pytest.mark.parametrize("place", ["weights.pt", "a:b/c@d/weights@2.pt", "weights.pt@9"])
def test_weights_may_lie_in_any_file(place: str, tmp_path: Path) -> None:
    tensors = save("small-vit", tmp_path / place)
    for size in ("", "@48"):
        vision, text, _ = load_towers(f"open_clip:small-vit:{tmp_path / place}{size}")
        assert torch.equal(text.state_dict()["visual.proj"], tensors["visual.proj"])
        assert vision.image_size == ((48, 48) if size else (32, 32))


@pytest.mark.parametrize("name", VISION)
def test_openais_archives_are_read_as_they_are(name: str, tmp_path: Path) -> None:
    tensors = open_clip.create_model(name).state_dict()
    torch.jit.trace(Tree(tensors), torch.zeros(1)).save(tmp_path / "clip.pt")
    _, text, _ = load_towers(f"open_clip:{name}:{tmp_path / 'clip.pt'}")
    found = text.state_dict()
    assert all(torch.equal(found[n], t.half().to(t.dtype)) for n, t in tensors.items())


def test_a_vits_positions_are_resized_as_released(tmp_path: Path) -> None:
    table = save("small-vit", tmp_path / "w.pt")["visual.positional_embedding"]
    vision, text, _ = load_towers(f"open_clip:small-vit:{tmp_path / 'w.pt'}@56")
    cells = rearrange(table[1:], "(h w) c -> 1 c h w", h=4)
    resized = F.interpolate(cells, (7, 7), mode="bicubic", align_corners=False, antialias=False)
    expected = torch.cat([table[:1], rearrange(resized, "1 c h w -> (h w) c")])
    assert torch.equal(vision.positional_embedding, expected)
    assert vision.positional_embedding.requires_grad
    processor = Processor.infer(vision, text)
    assert processor is not None and processor.image_size == (56, 56)
    with torch.no_grad():
        assert vision(torch.randn(1, 3, 56, 56)).shape == (1, 24)
    with pytest.raises(ValueError, match="60 pixels do not split into patches of 8"):
        load_towers("open_clip:small-vit@60")


def test_a_resnets_positions_stay_and_are_resized_in_every_forward(tmp_path: Path) -> None:
    table = save("small-resnet", tmp_path / "w.pt")["visual.attnpool.positional_embedding"]
    vision, text, _ = load_towers(f"open_clip:small-resnet:{tmp_path / 'w.pt'}@128")
    assert torch.equal(vision.attnpool.positional_embedding, table) and len(table) == 1 + 2 * 2
    processor = Processor.infer(vision, text)
    assert processor is not None and processor.image_size == (128, 128)
    encoder = attach_bridgers(vision, text, 2, trainable="positions")
    ids = torch.tensor([[49406, 320, 49407]])
    assert encoder(torch.randn(1, 3, 128, 128), ids).maps[-1].shape[-2:] == (4, 4)
    encoder.detach()


def test_timms_towers_bring_how_they_take_pictures() -> None:
    vision, text, processor = load_towers("timm:resnet10t@96,tiny")
    assert processor is not None and processor.image_size == (96, 96)
    assert processor.mean == (0.485, 0.456, 0.406)
    assert processor.max_length == load_towers("tiny")[2].max_length  # type: ignore[union-attr]
    _, _, native = load_towers("timm:resnet10t,open_clip:small-vit")
    assert native is not None and native.image_size == (176, 176) and native.max_length == 20


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("open_clip:small-vits", "no model 'small-vits': did you mean 'small-vit'"),
        ("open_clip:ViT-B-16:opena", "no weights 'opena' for ViT-B-16.*did you mean 'openai'"),
        ("open_clip:small-vit@big", "whole number of pixels, got 'big'"),
        ("open_clip:small-vit@0", "whole number of pixels, got '0'"),
        ("timm:resnet10t", "a vision tower alone: expected VISION,TEXT"),
        ("clip", "towers 'clip' are unknown; known are tiny"),
        ("tiny,clip", "towers 'tiny,clip' are unknown"),
    ],
)
def test_names_that_mean_nothing_are_refused(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_towers(name)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file .*none.pt$"):
        load_towers(f"open_clip:small-vit:{tmp_path / 'none.pt'}")


@pytest.mark.parametrize(
    ("name", "loader", "local"),
    [
        (
            "open_clip:ViT-B-16-quickgelu:openai@416",
            "open_clip.create_model",
            "as in --set towers=open_clip:ViT-B-16-quickgelu:/path/to/weights.pt@416",
        ),
        (
            "timm:vit_base_patch14_reg4_dinov2:lvd142m@448,tiny",
            "timm.create_model",
            "as in --set towers=timm:vit_base_patch14_reg4_dinov2:/path/to/weights.pt@448",
        ),
        (
            "transformers:openai/clip-vit-base-patch16",
            "transformers.AutoModel.from_pretrained",
            "as in --set towers=transformers:/path/to/folder",
        ),
        (
            "torchvision:resnet18:DEFAULT,tiny",
            "torchvision.models.get_model",
            "connect it to the internet once",
        ),
    ],
)
def test_a_failed_download_is_one_line_that_helps(
    name: str,
    loader: str,
    local: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        logging.getLogger("huggingface_hub").warning("Retrying in 1s")
        try:
            raise LocalEntryNotFoundError("Name or service not known")
        except LocalEntryNotFoundError as error:
            raise RuntimeError("a long story") from error

    monkeypatch.setattr(loader, fail)
    with pytest.raises(OSError, match="are not on this machine, and could not be down") as raised:
        load_towers(name)
    assert str(raised.value).endswith(local) and "\n" not in str(raised.value)
    assert "Retrying" not in caplog.text and logging.root.manager.disable == logging.NOTSET


def test_other_failures_are_told_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("sizes do not fit")

    monkeypatch.setattr("open_clip.create_model", fail)
    with pytest.raises(RuntimeError, match="sizes do not fit"):
        load_towers("open_clip:small-vit")
