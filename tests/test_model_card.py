"""Model cards: what they say is true, what they show runs, and nothing private is in them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers_hub import hub_server
from PIL import Image
from safetensors.torch import load_file

from bridger import BridgedModel, attach_bridgers, load_tiny_clip
from bridger.cards.facts import facts_of
from bridger.cards.signature import is_own_text
from bridger.cards.text import text as text_of
from bridger.data.scenes import make_scene
from bridger.heads import DetectionHead, ReferringSegmentationHead
from bridger.hub import push_folder
from bridger.model_card import write_card
from bridger.named_towers.origins import origins_of
from bridger.tiny_clip import SHIPPED

Run = Callable[..., tuple[int, str, str]]
EVALUATED: Mapping[str, Any] = {
    "adapter": "/home/anna/secret/my-adapter",
    "data": "/home/anna/secret/data",
    "head": "head",
    "task": "referring_segmentation",
    "results": [
        {
            "dataset": "refcoco",
            "split": "val",
            "sentences": sentences,
            "refs": 2,
            "expressions": count,
            "threshold": 0.35,
            "metrics": {"mIoU": 0.61234, "P@0.5": 0.7},
            "intervals": {"level": 0.95, "resampled": "pictures", "mIoU": [0.58, 0.64321]},
            "loss": 0.1,
        }
        for sentences, count in (("every", 6), ("first", 2))
    ],
}


@pytest.fixture
def owls(tmp_path: Path) -> Path:
    """A copy of the shipped adapter."""
    return Path(shutil.copytree(SHIPPED["tiny"], tmp_path / "owls"))


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """A copy of the shipped adapter of three heads."""
    return Path(shutil.copytree(SHIPPED["tiny-heads"], tmp_path / "several"))


def split(card: Path) -> tuple[dict[str, Any], str]:
    """Return a card's metadata and its text."""
    found = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card.read_text(), re.DOTALL)
    assert found
    return yaml.safe_load(found[1]), found[2]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)\n```", text, re.DOTALL)


def edit(folder: Path, changes: Mapping[str, Any]) -> None:
    """Save an adapter anew with another config."""
    from bridger.adapter_files import ADAPTER_FILES, read, write

    config, tensors = read(folder)
    write(folder, ADAPTER_FILES, {**config, **changes}, tensors)


# Metadata.


def test_metadata_of_an_adapter(owls: Path) -> None:
    about, _ = split(write_card(owls, "anna/owls", licence="apache-2.0"))
    assert about["library_name"] == "bridger"
    assert about["license"] == "apache-2.0"
    assert about["pipeline_tag"] == "image-segmentation"
    assert {"bridger", "adapter", "referring-segmentation"} <= set(about["tags"])
    assert not {"base_model", "datasets", "model-index"} & set(about)


def test_metadata_of_several_heads(several: Path) -> None:
    about, _ = split(write_card(several, "anna/several"))
    assert about["pipeline_tag"] == "image-segmentation"
    assert {"zero-shot-object-detection", "zero-shot-image-classification"} <= set(about["tags"])
    assert "license" not in about


def test_base_models_and_data_are_those_on_the_hub(owls: Path) -> None:
    edit(owls, {"tower_source": "open_clip:ViT-B-16-quickgelu:openai@416"})
    recipe = json.loads((owls / "recipe.json").read_text())
    (owls / "recipe.json").write_text(
        json.dumps({**recipe, "datasets": ["refcoco", "refcoco+", "grefcoco"]})
    )
    about, text = split(write_card(owls, "anna/owls"))
    assert about["base_model"] == ["timm/vit_base_patch16_clip_224.openai"]
    assert about["base_model_relation"] == "adapter"
    assert about["datasets"] == ["jxu124/refcoco", "jxu124/refcocoplus"]
    assert "Trained on refcoco, refcoco+, grefcoco." in text
    assert "[timm/vit_base_patch16_clip_224.openai](https://huggingface.co/timm/" in text
    assert 'from_pretrained("anna/owls")' in text


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("tiny", [("tiny", None, False)]),
        (
            "transformers:openai/clip-vit-base-patch16@0a1b",
            [("transformers:openai/clip-vit-base-patch16@0a1b", "openai/clip-vit-base-patch16", 0)],
        ),
        (
            "timm:convnext_base:fb_in22k@224,transformers:roberta-base",
            [
                ("timm:convnext_base:fb_in22k@224", "timm/convnext_base.fb_in22k", False),
                ("transformers:roberta-base", "roberta-base", False),
            ],
        ),
        ("open_clip:RN50", [("open_clip:RN50", None, False)]),
        ("open_clip:RN50:/home/anna/w.pt@224", [("open_clip:RN50:FILE@224", None, True)]),
        ("transformers:/home/anna/clip", [("transformers:FOLDER", None, True)]),
        ("etris:/home/anna/best.pth@17", [("etris:FILE", None, True)]),
        (
            "torchvision:resnet50:IMAGENET1K_V2,tiny",
            [("torchvision:resnet50:IMAGENET1K_V2", None, False), ("tiny", None, False)],
        ),
    ],
)
def test_where_towers_come_from(name: str, found: list[tuple[str, str | None, bool]]) -> None:
    assert [tuple(origin) for origin in origins_of(name)] == found


def test_figures_become_a_model_index_and_a_table(owls: Path, tmp_path: Path) -> None:
    edit(owls, {"tower_source": "open_clip:ViT-B-16:openai"})
    file = tmp_path / "figures.json"
    file.write_text(json.dumps(EVALUATED))
    about, text = split(write_card(owls, "anna/owls", figures=file))
    (model,) = about["model-index"]
    assert model["name"] == "owls"
    configs = {result["dataset"]["config"] for result in model["results"]}
    assert configs == {"every", "first"}
    result = model["results"][0]
    assert result["task"]["type"] == "image-segmentation"
    assert result["dataset"]["type"] == "jxu124/refcoco"
    assert [(m["type"], m["value"]) for m in result["metrics"]] == [("mIoU", 61.23), ("P@0.5", 70)]
    assert "| refcoco | val | 6 sentences | 61.23 [58.00, 64.32] | 70.00 |" in text
    assert "| refcoco | val | 2 sentences, the first of each object | 61.23" in text
    assert "95 % bootstrap intervals" in text
    same = write_card(owls, "anna/owls", figures=EVALUATED).read_text()
    assert same == write_card(owls, "anna/owls", figures=[file]).read_text()


def test_scenes_are_never_called_by_a_published_data_set(owls: Path) -> None:
    recipe = json.loads((owls / "recipe.json").read_text())
    (owls / "recipe.json").write_text(json.dumps({**recipe, "datasets": ["refcoco"]}))
    card = write_card(owls, "anna/owls", figures=EVALUATED)
    about, text = split(card)
    assert {r["dataset"]["name"] for r in about["model-index"][0]["results"]} == {"scenes"}
    assert "| scenes | val | 6 sentences |" in text
    assert "jxu124" not in card.read_text()


def test_figures_that_are_none_are_refused(several: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"task": "x"}')
    with pytest.raises(ValueError, match="not what `bridger evaluate ADAPTER --json` writes"):
        write_card(several, "anna/several", figures=other)
    other.write_text("{")
    with pytest.raises(ValueError, match="other.json is not JSON"):
        write_card(several, "anna/several", figures=other)
    with pytest.raises(ValueError, match="a head for referring_segmentation; this adapter has"):
        write_card(several, "anna/several", figures=EVALUATED)
    with pytest.raises(FileNotFoundError):
        write_card(several, "anna/several", figures=tmp_path / "none.json")
    assert not (several / "README.md").exists()


@pytest.mark.parametrize(
    ("results", "said"),
    [
        (None, '"results" of the figures must be a list, found None'),
        ([3], "result 0 of the figures must be a JSON object, found 3"),
        (
            [{"metrics": {"mIoU": 0.5}}],
            r"result 0 of the figures lacks \['dataset', 'split', 'pict",
        ),
        ([{"metrics": None}], r"lacks \['metrics'\]"),
        (
            [{"metrics": {}}, {"metrics": [1]}],
            '"metrics" of result 1 of the figures must be a JSON',
        ),
        ([{"metrics": {"mIoU": None}}], "metric 'mIoU' of result 0 .*must be a number, found None"),
        ([{"metrics": {"mIoU": float("nan")}}], "metric 'mIoU' of .* found nan"),
    ],
)
def test_records_that_lack_something_are_told(owls: Path, results: Any, said: str) -> None:
    whole = {"dataset": "refcoco", "split": "val", "expressions": 6}
    if "dataset" not in said and isinstance(results, list):
        results = [{**whole, **each} if isinstance(each, dict) else each for each in results]
    with pytest.raises(ValueError, match=said):
        write_card(owls, "anna/owls", figures={**EVALUATED, "results": results})
    assert not (owls / "README.md").exists()


@pytest.mark.slow
def test_what_evaluate_writes_is_what_a_card_reads(
    owls: Path, scenes: Path, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    assert run("evaluate", owls, "--data", scenes, "--json", file)[0] == 0
    about, text = split(write_card(owls, "anna/owls", figures=file))
    results = json.loads(file.read_text())["results"]
    shown = [r["dataset"]["split"] for r in about["model-index"][0]["results"]]
    assert shown == [result["split"] for result in results]
    for result in results:
        assert f"{100 * result['metrics']['mIoU']:.2f} [" in text


# Text.


def test_sizes_are_those_of_the_files(owls: Path) -> None:
    _, text = split(write_card(owls, "anna/owls"))
    tensors = load_file(owls / "bridger.safetensors")
    for part in ("bridgers", "heads"):
        count = sum(t.numel() for name, t in tensors.items() if name.startswith(f"{part}."))
        assert f" | {count:,} |" in text
    vision, words, _ = load_tiny_clip()
    frozen = sum(p.numel() for p in words.parameters())  # the whole CLIP
    whole = sum(t.numel() for t in tensors.values())
    assert f"| the towers, not in here | {frozen:,} |" in text
    size = (owls / "bridger.safetensors").stat().st_size
    share = 100 * whole / (whole + frozen)
    assert f"{size / 1e6:.2f} MB, {whole:,} numbers: {share:.2f} % of it and the towers" in text


@pytest.mark.slow
def test_what_it_holds_is_said(owls: Path, several: Path) -> None:
    _, text = split(write_card(owls, "anna/owls", licence="mit"))
    for said in (
        "| vision | open_clip | ModifiedResNet |",
        "Stages, as (vision block, text block): (1, 0), (2, 1), (3, 2).",
        "`hidden_dim=64`",
        "**head** (`referring_segmentation`): Segments the object that each expression means.",
        '"steps": 8000',
        "The towers were frozen.",
        "photographs mean nothing to them",
        "## Licence\n\nmit.",
    ):
        assert said in text
    _, text = split(write_card(several, "anna/several"))
    assert "None: the towers are read and not changed." in text
    assert "Trained on 40 classes: monkey, elephant," in text and "and 20 more." in text
    assert "How it was trained was not said." in text
    assert "No figures were given" in text
    assert "None is named: ask whoever shared it" in text


def test_tower_tensors_and_layers_of_peft_are_said(tmp_path: Path) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    vision, words, _ = load_tiny_clip()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["c_fc"]), words.transformer)
    encoder = attach_bridgers(vision, words, trainable="positions")
    model = encoder.with_head(ReferringSegmentationHead)
    model.save_pretrained(tmp_path)
    _, text = split(write_card(tmp_path, "anna/owls", model=model))
    assert "The towers were frozen, but for copies of `positions` that are in here; layers" in text
    assert "layers of peft (LORA) stand in them." in text


def test_it_renders(several: Path) -> None:
    markdown = pytest.importorskip("markdown")
    figures = {
        **EVALUATED,
        "task": "detection",
        "results": [
            {"dataset": "coco", "split": "a|b", "pictures": 5, "metrics": {"mAP": 0.5}},
        ],
    }
    _, text = split(write_card(several, "anna/several", figures=figures))
    html = markdown.markdown(text, extensions=["tables", "fenced_code", "md_in_html"])
    assert html.count("<table>") == 3
    assert "<td>a|b</td>" in html
    for leftover in ("```", "| ---", "**", "]("):
        assert leftover not in re.sub(r"<details>.*?</details>", "", html, flags=re.DOTALL)
    assert (
        '<img alt="What it finds in a drawn scene from bridger' in html and 'src="card.png"' in html
    )


def test_huggingface_hub_reads_it(owls: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(write_card(owls, "anna/owls", licence="mit", figures=EVALUATED))
    assert card.data.license == "mit" and card.data.library_name == "bridger"
    assert card.data.eval_results and len(card.data.eval_results) == 4
    assert card.data.eval_results[0].metric_value == 61.23


# What it shows runs.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "tiny-heads"])
def test_its_code_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    Image.fromarray(make_scene("val", 0).image).save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    with hub_server() as hub:
        hub.use(monkeypatch, tmp_path / "home")
        push_folder(name, "anna/owls")
        hub.use(monkeypatch, tmp_path / "elsewhere")
        text = hub.repos["anna/owls"].files()["README.md"].decode()
        (code,) = blocks(text, "python")
        exec(compile(code, "README.md", "exec"), {})
        seen = set(re.findall(r"seen[\w-]*\.png", code))
        assert len(seen) == len(BridgedModel.from_pretrained(name).heads)
        for file in seen:
            Image.open(file).verify()
        install, shell = blocks(text, "bash")
        assert install == "pip install bridger-peft"
        Path("seen.png").unlink(missing_ok=True)
        command, *argv = shlex.split(shell)
        assert command == "bridger"
        assert run(*argv)[0] == 0
        Image.open("seen.png").verify()


def test_towers_of_ones_own_are_asked_for(owls: Path) -> None:
    (owls / "recipe.json").unlink()
    _, text = split(write_card(owls, "anna/owls"))
    (code,) = blocks(text, "python")
    assert 'from_pretrained("anna/owls", towers="NAME")' in code
    assert "Where they come from was not said" in text
    assert "--towers NAME" in text


def test_its_line_for_the_shell_says_what_it_means_whatever_is_named(several: Path) -> None:
    config = json.loads((several / "bridger_config.json").read_text())
    heads = {"my head; $(id)": config["heads"]["detection"], **config["heads"]}
    classes = ['o\'hare "$HOME"', "`id` & cat"]
    heads["my head; $(id)"]["config"]["classes"] = classes
    edit(several, {"heads": heads})
    facts = facts_of(several, "anna/several", None, None, None)
    _, shell = blocks(text_of(facts, None, ""), "bash")
    argv = shlex.split(shell)
    assert argv[:5] == ["bridger", "predict", "picture.jpg", *classes]
    assert argv[argv.index("--head") + 1] == "my head; $(id)"


# Nothing private.


def test_no_path_of_this_machine_is_in_it(tmp_path: Path) -> None:
    secret = tmp_path / "anna-smith"
    folder = secret / "runs" / "best"
    shutil.copytree(SHIPPED["tiny"], folder)
    for name in (
        f"open_clip:ViT-B-16:{secret}/weights.pt@224",
        f"transformers:{secret}/clip",
        f"etris:{secret}/best.pth@17",
        f"timm:resnet50:{secret}/weights.pth,transformers:{secret}/bert",
    ):
        config = json.loads((folder / "bridger_config.json").read_text())
        towers = config["towers"]
        towers["vision"]["name"] = f"{secret}/clip"
        edit(folder, {"tower_source": name, "towers": towers})
        recipe = json.loads((folder / "recipe.json").read_text())
        (folder / "recipe.json").write_text(json.dumps({**recipe, "towers": name}))
        card = write_card(folder, "anna/owls", figures=EVALUATED).read_text()
        for word in ("anna-smith", "secret", str(Path.home()), os.sep + "tmp"):
            assert word not in card
        assert "a local file of whoever shared this" in card


def test_a_picture_loses_what_a_camera_wrote(owls: Path, tmp_path: Path) -> None:
    photo = Image.new("RGB", (40, 20), "red")
    exif = photo.getexif()
    exif[0x010F], exif[0x0112] = "Anna's camera", 6  # make; turned by a quarter
    photo.save(tmp_path / "photo.jpg", exif=exif)
    for picture in (tmp_path / "photo.jpg", str(tmp_path / "photo.jpg"), photo):
        card = write_card(owls, "anna/owls", picture=picture)
        assert b"camera" not in (owls / "card.png").read_bytes()
        assert "![What it finds](card.png)" in card.read_text()
    write_card(owls, "anna/owls", picture=tmp_path / "photo.jpg")
    assert Image.open(owls / "card.png").size == (20, 40)


# Whose it is.


def test_a_card_of_ones_own_is_not_written_over(owls: Path) -> None:
    card = owls / "README.md"
    card.write_text("mine\n")
    assert is_own_text(card)
    with pytest.raises(FileExistsError, match="was not written by bridger, or was changed since"):
        write_card(owls, "anna/owls")
    assert card.read_text() == "mine\n"
    write_card(owls, "anna/owls", overwrite=True)
    assert not is_own_text(card)
    write_card(owls, "anna/owls", licence="mit")
    assert not is_own_text(card)
    card.write_text(card.read_text().replace("mit", "MIT"))
    assert is_own_text(card)
    with pytest.raises(FileExistsError):
        write_card(owls, "anna/owls")


def test_a_picture_of_ones_own_is_not_touched(owls: Path, tmp_path: Path) -> None:
    mine, other = owls / "card.png", Image.new("RGB", (8, 4), "blue")
    Image.new("RGB", (30, 20), "red").save(mine)
    before = mine.read_bytes()
    for _ in range(2):
        text = write_card(owls, "anna/owls").read_text()
        assert mine.read_bytes() == before and "![What it finds](card.png)" in text
        with pytest.raises(FileExistsError, match="card.png is not a picture of bridger's"):
            write_card(owls, "anna/owls", picture=other)
    write_card(owls, "anna/owls", picture=other, overwrite=True)
    write_card(owls, "anna/owls", licence="mit")  # what was given stays
    assert Image.open(mine).size == (8, 4)
    write_card(owls, "anna/owls", picture=Image.new("RGB", (5, 4)))
    assert Image.open(mine).size == (5, 4)


def test_a_scene_goes_with_what_drew_it(owls: Path) -> None:
    write_card(owls, "anna/owls")
    assert (owls / "card.png").is_file()
    edit(owls, {"tower_source": "open_clip:ViT-B-16:openai"})
    assert "card.png" not in write_card(owls, "anna/owls").read_text()
    assert not (owls / "card.png").exists()


def test_what_no_card_can_be_made_of(owls: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no adapter"):
        write_card(tmp_path, "anna/owls")
    with pytest.raises(ValueError, match="identifier, such as apache-2.0"):
        write_card(owls, "anna/owls", licence="Apache 2.0")
    with pytest.raises(FileNotFoundError):
        write_card(owls, "anna/owls", picture=tmp_path / "none.png")
    assert not (owls / "README.md").exists()


def test_heads_of_others_are_named(owls: Path) -> None:
    config = json.loads((owls / "bridger_config.json").read_text())
    config["heads"]["head"]["type"] = "counting_of_another_package"
    edit(owls, {"heads": config["heads"]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        about, text = split(write_card(owls, "anna/owls"))
    assert "pipeline_tag" not in about
    assert "Its package must be imported before it is loaded." in text
    assert not (owls / "card.png").exists()


def test_an_adapter_without_heads_gives_features(tmp_path: Path) -> None:
    vision, words, _ = load_tiny_clip()
    model = BridgedModel(attach_bridgers(vision, words, config="paper"), {})
    model.save_pretrained(tmp_path)
    about, text = split(write_card(tmp_path, "anna/owls", model=model))
    assert about["pipeline_tag"] == "image-feature-extraction"
    assert "An adapter for features" in text
    (code,) = blocks(text, "python")
    assert code.endswith('model = BridgedModel.from_pretrained("anna/owls")')


def test_the_picture_is_made_of_any_head_on_the_embedded_towers(tmp_path: Path) -> None:
    vision, words, _ = load_tiny_clip()
    encoder = attach_bridgers(vision, words, config=None)
    model = BridgedModel.build(
        encoder, {"boxes": (DetectionHead, {}), "masks": (ReferringSegmentationHead, {})}
    )
    model.save_pretrained(tmp_path)
    text = write_card(tmp_path, "anna/owls", model=model).read_text()
    assert "a drawn scene from bridger's own set, no photograph: detection, referring" in text
    width, height = Image.open(tmp_path / "card.png").size
    assert width == 2 * 512 and height >= 512
