"""The command line on a real terminal, wide and narrow, and in pipes: progress, Ctrl-C, exit codes.

Every command here is a process of its own.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_hub import hub_server
from helpers_terminal import BRIDGER, ENVIRONMENT, Shown, in_pipe, on_terminal

from bridger.data.scenes import write_scenes
from bridger.tiny_clip import TINY_ADAPTER

pytestmark = pytest.mark.slow

QUICK = ["--set", "head.width=64", "--set", "head.num_layers=1", "--set", "batch_size=2"]
NO_ROOM = "No space left on device"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scenes and a picture."""
    folder = tmp_path_factory.mktemp("place")
    write_scenes(folder / "scenes", {"train": 6, "val": 3, "testA": 2}, size=64)
    made = in_pipe(["data", "picture", "picture.png"], folder)
    assert made.returncode == 0, made.stderr
    return folder


def one_line_in_place(shown: Shown, start: str, columns: int) -> str:
    """Check that a bar was drawn over and over in one line; return what it says in the end."""
    assert shown.most_redrawn > 1
    begun = [line for line in shown.lines if line.startswith(start)]
    assert len(begun) == 1, shown.text
    assert len(begun[0]) < columns
    return begun[0]


def plain(text: str) -> bool:
    """Whether a text has neither carriage returns nor codes for terminals."""
    return "\r" not in text and "\x1b" not in text and "\b" not in text


# Terminals.


@pytest.mark.parametrize("columns", [80, 40])
def test_evaluations_have_a_bar_for_each_split(place: Path, columns: int) -> None:
    shown = on_terminal(["evaluate", "tiny", "--data", "scenes"], place, columns=columns)
    assert shown.code == 0, shown.text
    for split in ("val: ", "testA: "):
        line = one_line_in_place(shown, split, columns)
        assert ", mIoU so far " in line and line.count("/") == 1
    assert "mIoU in percent by object size:" in shown.text


@pytest.mark.parametrize("columns", [80, 40])
def test_predict_and_scenes_say_what_they_did(place: Path, columns: int) -> None:
    shown = on_terminal(["predict", "picture.png", "the owl"], place, columns=columns)
    assert shown.code == 0 and shown.text.startswith("the owl: score "), shown.text
    assert shown.raw.count("\r") == shown.raw.count("\r\n")  # nothing is drawn over
    name = f"made-{columns}"
    counts = ["--train", "2", "--val", "1", "--testA", "0", "--testB", "0"]
    shown = on_terminal(["data", "scenes", name, *counts], place, columns=columns)
    assert shown.code == 0 and shown.lines[0] == "making 3 scenes"
    assert "  train: 2 pictures" in shown.text


@pytest.mark.parametrize("columns", [80, 40])
def test_ctrl_c_in_training_saves_and_says_how_to_go_on(place: Path, columns: int) -> None:
    out = f"trained-{columns}"
    argv = ["train", "--data", "scenes", "--out", out, "--steps", "40", *QUICK]
    options = ["--validation", "none", "--device", "cpu", "--set", "evaluations=1"]
    shown = on_terminal([*argv, *options], place, columns=columns, interrupt_at=" 3/40")
    assert shown.code == 130, shown.text
    assert "stopping after this step" in shown.raw
    said = "".join(shown.lines)[-400:]  # as it was before the terminal wrapped it
    command = (
        f"bridger train --data scenes --out {out} --validation none --device cpu --resume".split()
    )
    assert f"bridger: interrupted; go on with `{shlex.join(command)}`" in said
    assert "Traceback" not in shown.raw
    (checkpoint,) = (place / out / "checkpoints").glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    assert 3 <= step < 40

    shown = on_terminal(command[1:], place, columns=columns)
    assert shown.code == 0, shown.text
    assert "40/40" in one_line_in_place(shown, "100%|", columns)
    assert (place / out / "bridger.safetensors").is_file()
    history = json.loads((place / out / "history.json").read_text())
    assert max(entry["step"] for entry in history) == 40


def test_training_shows_time_before_anything_else_goes(place: Path) -> None:
    argv = ["train", "--data", "scenes", "--steps", "12", *QUICK, "--validation", "none"]
    for columns, loss in ((80, True), (40, False)):
        shown = on_terminal([*argv, "--out", f"bar-{columns}"], place, columns=columns)
        assert shown.code == 0, shown.text
        line = one_line_in_place(shown, "100%|", columns)
        assert line.endswith("]")
        frames = [frame for frame in shown.raw.split("\r") if " s left" in frame]
        assert frames and all(frame.endswith(" s left]") for frame in frames)  # nothing is cut
        assert all(("loss " in frame) == loss for frame in frames)


def test_the_quickstart_is_interrupted_and_the_same_command_goes_on(tmp_path: Path) -> None:
    argv = ["quickstart", "--short", "--steps", "8", "--out", "quick"]
    shown = on_terminal(argv, tmp_path, columns=40, interrupt_at=" 2/8")
    assert shown.code == 130, shown.text
    assert shown.lines[-2] == "bridger: interrupted; the same command"[:40] or (
        "bridger: interrupted; the same command goes on" in "".join(shown.lines)
    )
    assert list((tmp_path / "quick" / "checkpoints").glob("checkpoint-*"))
    shown = on_terminal(argv, tmp_path, columns=80)
    assert shown.code == 0 and "going on from the last checkpoint" in shown.text, shown.text
    for start in ("100%|", "val: ", "testA: ", "testB: "):
        one_line_in_place(shown, start, 80)
    tried = [line.strip() for line in "\n".join(shown.lines).splitlines()]
    assert tried.index("bridger inspect quick") > tried.index("try next:")
    assert "bridger demo quick" in tried and "bridger push quick USER/NAME" in tried


def test_ctrl_c_elsewhere_leaves_nothing_behind(place: Path) -> None:
    shown = on_terminal(
        ["evaluate", "tiny", "--data", "scenes"], place, columns=60, interrupt_at="val: "
    )
    assert shown.code == 130 and shown.lines[-2] == "bridger: interrupted", shown.text
    # The echo of ^C may have gone on to the next line, in which the bar is drawn once more.
    assert "Traceback" not in shown.raw and shown.text.count("val: ") <= 2, shown.text
    argv = ["data", "scenes", "many", "--train", "5000"]
    shown = on_terminal(argv, place, columns=60, interrupt_at="making")
    assert shown.code == 130 and shown.lines[-2] == "bridger: interrupted", shown.text
    assert not list((place / "many").rglob("*.p"))


def test_errors_end_the_bar_s_line(place: Path) -> None:
    data = place / "broken"
    write_scenes(data, {"val": 3}, size=64)
    last = sorted((data / "images" / "train2014").iterdir())[-1]
    last.write_bytes(b"no picture")
    argv = ["evaluate", "tiny", "--data", data.name, "--batch-size", "1"]
    shown = on_terminal(argv, place, columns=80)
    assert shown.code == 1, shown.text
    one_line_in_place(shown, "val: ", 80)
    (start,) = (i for i, line in enumerate(shown.lines) if "error: " in line)
    said = "".join(shown.lines[start:])
    assert said.startswith("bridger evaluate: error: ") and last.name in said
    assert "Traceback" not in shown.raw
    shown = on_terminal([*argv, "--debug"], place)
    assert shown.code == 1 and "Traceback (most recent call last)" in shown.raw


# Pipes.


def test_in_a_pipe_progress_is_a_few_plain_lines(place: Path) -> None:
    done = in_pipe(["evaluate", "tiny", "--data", "scenes"], place)
    assert done.returncode == 0 and plain(done.stdout + done.stderr), done.stderr
    told = done.stderr.splitlines()
    assert len([line for line in told if line.startswith("val: ")]) <= 11
    assert all(line.startswith(("val: ", "testA: ")) for line in told), done.stderr
    assert "so far" not in done.stdout

    argv = ["train", "--data", "scenes", "--out", "piped", "--steps", "60", *QUICK]
    done = in_pipe([*argv, "--set", "evaluations=2"], place)
    assert done.returncode == 0 and plain(done.stdout + done.stderr), done.stderr
    told = done.stderr.splitlines()
    steps = [line for line in told if line.startswith("step ") and "validation" not in line]
    assert 15 <= len(steps) <= 25 and "kept step" in told[-1]
    assert all(line.startswith(("step ", "kept step ")) for line in told), done.stderr
    assert done.stdout.splitlines()[-4:] == [
        "next:",
        "  bridger evaluate piped --data scenes",
        "  bridger demo piped",
        "  bridger push piped USER/NAME",
    ]


def test_in_a_pipe_the_quickstart_goes_through(tmp_path: Path) -> None:
    argv = ["quickstart", "--short", "--steps", "2", "--out", "quick", "--json", "-"]
    done = in_pipe(argv, tmp_path)
    assert done.returncode == 0 and plain(done.stdout + done.stderr), done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "quick/metrics.json").read_text())
    assert "try next:" in done.stderr


def test_json_on_stdout_stands_alone(place: Path) -> None:
    for argv, key in (
        (["predict", "picture.png", "the owl"], "found"),
        (["inspect", "tiny"], "parts"),
        (["recipes", "quickstart"], "towers"),
        (["evaluate", "tiny", "--data", "scenes", "--split", "val"], "results"),
        (["data", "check", "scenes", "--quick"], "problems"),
    ):
        done = in_pipe([*argv, "--json", "-"], place)
        assert done.returncode == 0 and key in json.loads(done.stdout), done.stderr
        assert done.stderr
        assert not (place / "-").exists()
    done = in_pipe(["inspect", "nothing", "--json", "-"], place)
    assert (done.returncode, done.stdout) == (1, "") and "error: " in done.stderr


def test_what_is_wrong_with_data_is_json_too(place: Path) -> None:
    data = place / "wrong"
    write_scenes(data, {"train": 1, "val": 1}, size=64)
    next((data / "images" / "train2014").iterdir()).unlink()
    done = in_pipe(["data", "check", "wrong", "--json", "-"], place)
    assert done.returncode == 1 and json.loads(done.stdout)["problems"], done.stderr
    assert done.stderr.splitlines()[-1].startswith("bridger data check: error: one kind of problem")


def in_shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `bridger` is ours; the exit codes of its parts come last."""
    own = f'bridger() {{ {shlex.join(BRIDGER)} "$@"; }}; {command}; echo codes ${{PIPESTATUS[@]}}'
    return subprocess.run(
        ["bash", "-c", own], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("command", "first"),
    [
        ("bridger recipes | head -1", "detris-b"),
        ("bridger recipes | true", ""),
        ("bridger inspect tiny --json - | true", ""),
        ("bridger evaluate tiny --data scenes --split val 2>&1 | head -1", "val: "),
        ("bridger inspect nothing 2>&1 | true", ""),
    ],
)
def test_readers_may_leave(place: Path, command: str, first: str) -> None:
    done = in_shell(command, place)
    *lines, codes = done.stdout.splitlines()
    # What fits into the pipe may have been written before the reader left.
    assert codes == "codes 1 0" or ("head" in command and codes == "codes 0 0"), done.stdout
    assert "".join(lines).startswith(first), done.stdout
    assert len(lines) == bool(first) and "Error" not in done.stderr + done.stdout


def test_a_full_disk_is_an_error(place: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    for command in ("bridger inspect tiny >/dev/full", "bridger inspect tiny --json /dev/full"):
        done = in_shell(command, place)
        assert "codes 1" in done.stdout and NO_ROOM in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"LANG": "C", "LC_ALL": ""}, "der Löwe: score "),
        ({"LC_ALL": "POSIX"}, "der Löwe: score "),
        ({"PYTHONIOENCODING": "ascii"}, r"der L\xf6we: score "),
        ({"PYTHONIOENCODING": "latin-1"}, "der L"),
    ],
)
def test_words_need_no_locale(place: Path, environment: dict[str, str], shown: str) -> None:
    argv = ["predict", "picture.png", "der Löwe", "--json", "p.json"]
    environment = {"PYTHONUTF8": "", **environment}
    done = subprocess.run(
        [*BRIDGER, *argv], cwd=place, env={**ENVIRONMENT, **environment}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(errors="replace").startswith(shown)
    assert json.loads((place / "p.json").read_text())["found"][0]["words"] == "der Löwe"
    terminal = on_terminal(argv, place, environment=environment)
    assert terminal.code == 0 and terminal.text.startswith("der L")


@pytest.fixture
def hub_environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    with hub_server() as hub:
        hub.repos["anna/owls"] = _repository()
        yield hub.environment(tmp_path / "home")


def _repository() -> object:
    from helpers_hub import Repo

    repository = Repo()
    files = {path.name: path.read_bytes() for path in TINY_ADAPTER.iterdir() if path.is_file()}
    repository.commit(files, "main", "first")
    return repository


def test_downloads_leave_nothing_among_the_results(
    hub_environment: dict[str, str], place: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [*BRIDGER, "inspect", "anna/owls"],
        cwd=place,
        env={**ENVIRONMENT, **hub_environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.startswith("anna/owls: adapter of bridger")
    environment = {**hub_environment, "HF_HOME": str(tmp_path / "another")}
    shown = on_terminal(["inspect", "anna/owls"], place, environment=environment)
    assert shown.code == 0 and "\x1b" not in shown.raw, shown.raw
    assert shown.lines[0].startswith("anna/owls: adapter of bridger")
    assert shown.text.count("from the Hub") == 1
