"""The examples of own data and towers, LoRA, retrieval, video, sharing, processes, limits."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
import torch
from helpers_examples import EXAMPLES, run
from helpers_hub import hub_server
from PIL import Image

from bridger import BridgedModel, BridgerConfig, attach_bridgers, load_tiny_clip
from bridger.adapter_files import read, read_saved_config
from bridger.data import RefCOCO
from bridger.data.check import check_data
from bridger.data.scenes import IDS_PER_SPLIT, make_scene, write_scenes
from bridger.heads import ClassificationHead, DetectionHead, SemanticSegmentationHead
from bridger.studies.store import Cases, cases_file, fingerprint

NAMES = ("owl", "taxi")


def names_in(name: str) -> dict[str, Any]:
    """Return what an example defines, without running it."""
    return runpy.run_path(str(EXAMPLES / name))


def test_own_data_are_written_as_a_user_would(tmp_path: Path) -> None:
    names_in("own_data.py")["write_folder"](tmp_path, "train", 3)
    names_in("own_data.py")["write_folder"](tmp_path, "val", 2)
    report = check_data(tmp_path)
    assert not report.problems
    assert {counts.split: counts.pictures for counts in report.splits} == {"train": 3, "val": 2}


@pytest.mark.slow
def test_own_data_become_an_adapter(tmp_path: Path) -> None:
    printed = run("own_data.py", "--pictures", "20", "--steps", "2", folder=tmp_path)
    assert "wrong:" not in printed and re.search(r"^mIoU: \d+\.\d %$", printed, re.MULTILINE)
    made = tmp_path / "own-data"
    assert {path.name for path in made.iterdir()} == {"data", "adapter", "sheet.png", "seen.png"}
    model = BridgedModel.from_pretrained(made / "adapter")
    picture = made / "data" / "pictures" / "val-0000.jpg"
    assert model.predict(picture, "the owl").masks.shape == (1, 128, 128)

    # A folder that is there is taken as it is, and what is wrong in it is said.
    mask = next((made / "data" / "masks").glob("val-0000-*.png"))
    Image.new("L", (128, 128)).save(mask)
    options = ("--data", str(made / "data"), "--out", "again", "--steps", "1")
    assert "wrong: " in run("own_data.py", *options, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "text", "loaded"),
    [
        ("found", "bert", "GenericMaps"),
        ("described", "embedded", "GenericMaps"),
        ("registered", "embedded", "PlainCNNTower"),
    ],
)
def test_own_towers_come_back(way: str, text: str, loaded: str, tmp_path: Path) -> None:
    options = ("--way", way, "--text", text, "--steps", "2")
    printed = run("own_towers.py", *options, folder=tmp_path)
    assert "stages.2 (3 of 3)" in printed and printed.count("IoU ") == 6
    assert f"the vision tower is {loaded}" in printed
    saved = read_saved_config(tmp_path / "own-towers")["towers"]
    assert saved["vision"]["widths"] == [48, 96, 192] and saved["vision"]["strides"] == [4, 8, 16]
    assert (tmp_path / "own_towers.png").is_file()


@pytest.mark.slow
def test_lora_is_saved_with_bridgers_and_merged(tmp_path: Path) -> None:
    printed = run("lora.py", "--steps", "2", "--rank", "2", folder=tmp_path)
    assert re.search(r"bridgers [\d,]+, peft [\d,]+, head", printed)
    (difference,) = re.findall(r"pixel's probability: (\S+)", printed)
    assert float(difference) < 1e-4
    saved = [name for name in read(tmp_path / "with-lora")[1] if "lora_B" in name]
    assert any("visual.layer4" in name for name in saved)
    assert any("transformer.resblocks.0" in name for name in saved)
    assert (tmp_path / "lora.png").is_file()


def test_recall_counts_rows_with_a_right_column_among_the_best() -> None:
    recall = names_in("retrieval.py")["recall"]
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.8, 0.3], [0.1, 0.2, 0.3]])
    right = torch.tensor([[0, 0, 1], [0, 1, 0], [1, 0, 0]]).bool()
    assert [recall(scores, right, k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert recall(scores, right, 5) == 1


@pytest.mark.slow
def test_retrieval_prints_three_scores_beside_chance(tmp_path: Path) -> None:
    printed = run("retrieval.py", "--scenes", "6", folder=tmp_path)
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.strip()}
    for name in ("towers", "Bridgers", "mask", "(chance)"):
        scene_1, scene_5, sentence_1, sentence_5 = map(float, rows[name])
        assert 0 <= scene_1 <= scene_5 <= 100 and 0 <= sentence_1 <= sentence_5 <= 100
    # Six scenes are easy: 8 gave 75 % against 12.5 % by chance.
    assert float(rows["towers"][0]) > float(rows["(chance)"][0])
    assert (tmp_path / "retrieval.png").is_file()


@pytest.mark.slow
def test_attention_is_drawn_and_counted(tmp_path: Path) -> None:
    printed = run("attention.py", "--draw", "1", "--scenes", "4", folder=tmp_path)
    rows = re.findall(r"(looks at|name), stage (\d) .*?([\d.]+) ±", printed)
    assert len(rows) == 6 and "times even attention" in printed
    assert (tmp_path / "attention.png").is_file()


@pytest.mark.slow
def test_video_asks_one_sentence_of_all_frames_and_all_sentences_of_one(tmp_path: Path) -> None:
    printed = run("video.py", "--count", "3", folder=tmp_path)
    assert "3 frames, one sentence" in printed and "one frame, 4 sentences" in printed
    with Image.open(tmp_path / "video.gif") as film:
        assert film.n_frames == 3
    # Frames are read from an animated picture, and from a folder in the order of their names.
    read = names_in("video.py")["read_frames"]
    frames = read(tmp_path / "video.gif")
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(frames):
        frame.save(tmp_path / "frames" / f"{number:04d}.png")
    assert [f.tobytes() for f in read(tmp_path / "frames")] == [f.tobytes() for f in frames]


@pytest.mark.slow
def test_a_server_answers_several_clients_and_says_what_is_wrong(tmp_path: Path) -> None:
    printed = run("serve.py", folder=tmp_path)
    asked, equal = re.findall(r"(\d+) questions of 4 clients at once: (\d+) masks", printed)[0]
    assert asked == equal and int(asked) > 10
    assert (tmp_path / "served.png").is_file()

    example = names_in("serve.py")
    with example["serving"](BridgedModel.from_pretrained("tiny").eval()) as server:
        for body, said, words in (
            (b"no picture", ["the owl"], "cannot identify image"),
            ((tmp_path / "served.png").read_bytes(), [], "at least one sentence"),
        ):
            with pytest.raises(HTTPError) as refused:
                example["ask"](server.url, body, *said)
            assert refused.value.code == 400 and words in json.load(refused.value)["error"]


@pytest.mark.slow
def test_an_adapter_is_shared_in_a_folder(tmp_path: Path) -> None:
    printed = run("share.py", folder=tmp_path)
    assert "found the koala" in printed and "left: ['default']" in printed
    assert printed.count("the koala") == 3  # the one with three heads names classes
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "my-name/my-adapter" in card and "apache-2.0" in card
    whole = sum(p.numel() for p in BridgedModel.from_pretrained("tiny").trainable_parameters())
    assert (tmp_path / "shared" / "bridger.safetensors").stat().st_size < 2.2 * whole


@pytest.mark.slow
def test_an_adapter_is_shared_on_a_hub(tmp_path: Path) -> None:
    with hub_server() as hub:
        env = hub.environment(tmp_path / "home")
        printed = run("share.py", "--hub", "anna/koala", folder=tmp_path, env=env)
        assert f"pushed to {hub.url}/anna/koala" in printed
        assert {"README.md", "bridger.safetensors"} <= set(hub.repos["anna/koala"].files())
        assert hub.repos["anna/koala"].private
    assert "loaded anna/koala: 1 head, towers 'tiny'" in printed
    assert not (tmp_path / "shared").exists()


@pytest.mark.slow
def test_several_processes_run_the_script_of_one(tmp_path: Path) -> None:
    options = ("--steps", "2", "--scenes", "16", "--batch-size", "4")
    alone = run("many_gpus.py", *options, "--out", "alone", folder=tmp_path)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    both = run("many_gpus.py", *options, "--out", "both", folder=tmp_path, launcher=launcher)
    assert "1 processes, 4 of 4 items each" in alone and "2 processes, 2 of 4 items each" in both
    histories = (tmp_path / out / "adapter" / "history.json" for out in ("alone", "both"))
    first, second = (json.loads(path.read_text())[0]["loss"] for path in histories)
    assert first == pytest.approx(second, rel=1e-4)
    config = (tmp_path / "both" / "adapter" / "bridger_config.json").read_text()
    assert config == (tmp_path / "alone" / "adapter" / "bridger_config.json").read_text()


def one_head(folder: Path, head: Any, config: BridgerConfig | None = None) -> str:
    """Save an adapter with one head, random Bridgers among it where there is a config."""
    torch.manual_seed(len(folder.name))
    vision, text, _ = load_tiny_clip()
    model = attach_bridgers(vision, text, stages=2, config=config).with_head(head, classes=NAMES)
    for parameter in model.encoder.bridgers.parameters() if model.encoder.bridgers else ():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_heads_are_combined_that_stand_on_the_same_features(tmp_path: Path) -> None:
    boxes = one_head(tmp_path / "boxes", DetectionHead)
    classes = one_head(tmp_path / "classes", ClassificationHead)
    printed = run("combine_heads.py", boxes, classes, "--out", "all", "--half", folder=tmp_path)
    assert "wrote all: 2 heads" in printed
    model = BridgedModel.from_pretrained(tmp_path / "all")
    assert list(model.heads) == ["detection", "classification"]

    other = one_head(tmp_path / "bridged", SemanticSegmentationHead, BridgerConfig.preset("paper"))
    shutil.rmtree(tmp_path / "all")
    with pytest.raises(AssertionError, match="its Bridgers are others"):
        run("combine_heads.py", other, classes, "--out", "all", folder=tmp_path)
    assert not (tmp_path / "all").exists()


# Where masks go wrong, of runs that are made up.

LIMITS = names_in("limits.py")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, {"testA": 3, "testB": 2}, size=64)
    return folder


def judged(folder: Path, setting: str, scenes: Path, seed: int, share: float) -> Path:
    """Write a run of which every mask covers that share of what is meant, and nothing else."""
    own = folder / f"seed-{seed}"
    own.mkdir(parents=True)
    data = {split: RefCOCO(scenes, split) for split in ("testA", "testB")}
    for split, each in data.items():
        union = np.full(len(list(each.expressions())), 1000)
        cases = Cases(np.zeros_like(union), np.rint(share * union).astype(int), union)
        cases.save(own / cases_file(split))
    result = {
        "setting": setting,
        "seed": seed,
        "splits": dict.fromkeys(data, {}),
        "samples": {"data": {split: fingerprint(each) for split, each in data.items()}},
    }
    (own / "result.json").write_text(json.dumps(result))
    return own


def limits(monkeypatch: pytest.MonkeyPatch, *args: object) -> None:
    monkeypatch.setattr("sys.argv", ["limits.py", *map(str, args)])
    LIMITS["main"]()


def test_objects_of_a_picture_are_those_of_its_scene(scenes: Path) -> None:
    data = RefCOCO(scenes, "testA")
    found = LIMITS["count_objects"](scenes, data)
    expected = []
    for index, number_said in data.expressions():
        number = int(data[index].image_path.stem.rpartition("_")[2])
        scene = make_scene("testA", number % IDS_PER_SPLIT, 0, 64)
        said = data[index].sentences[number_said]
        meant = next(e.target for e in scene.expressions if e.sentence == said)
        kinds = [thing.kind for thing in scene.objects]
        expected.append((kinds.count(kinds[meant]), len(kinds)))
    assert list(zip(found["same"], found["all"], strict=True)) == expected
    assert len(set(expected)) > 2


def test_rows_are_the_folders_of_runs_over_their_seeds(
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = [judged(tmp_path / "aa", "LoRA", scenes, 0, 0.25)]
    runs += [judged(tmp_path / "aa", "called otherwise later", scenes, 1, 0.35)]
    runs += [judged(tmp_path / "bb", "the head alone", scenes, 0, 0.5), tmp_path]
    limits(monkeypatch, *runs, runs[0], "--data", scenes)
    printed = capsys.readouterr().out.splitlines()
    rows = {line.split(" | ")[0]: line.split(" | ")[1:] for line in printed if "+-" in line}
    assert list(rows) == ["| LoRA", "| the head alone"]
    assert {cell.strip(" |") for cell in rows["| LoRA"]} == {"30.0 +- 7.1"}
    assert {cell.strip(" |") for cell in rows["| the head alone"]} == {"50.0 +- nan"}


def test_runs_that_do_not_belong_together_are_refused(
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = [judged(tmp_path / name, "LoRA", scenes, 0, 0.2) for name in ("aa", "bb")]
    runs += [judged(tmp_path / "cc", "Bridgers", scenes, 0, 0.3)]
    with pytest.raises(SystemExit, match=r"called 'LoRA': .*/aa and .*/bb\. .* --settings"):
        limits(monkeypatch, *runs, "--data", scenes)
    limits(monkeypatch, *runs, "--data", scenes, "--settings", "Bridgers")
    limits(monkeypatch, *runs[1:], "--data", scenes)
    assert capsys.readouterr().out.count("| LoRA") == 2  # in both tables of the last
    with pytest.raises(SystemExit, match="no run is of the setting 'IA3'.*'Bridgers', 'LoRA'"):
        limits(monkeypatch, *runs, "--data", scenes, "--settings", "IA3")
    with pytest.raises(SystemExit, match="no folder holds a finished run.* on val"):
        limits(monkeypatch, *runs, "--data", scenes, "--splits", "val")

    others = tmp_path / "other scenes"
    write_scenes(others, {"testA": 3, "testB": 2}, size=64, seed=1)
    with pytest.raises(SystemExit, match="cc/seed-0 was judged on another testA than that in"):
        limits(monkeypatch, runs[2], "--data", others)
