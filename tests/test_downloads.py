"""How much a name would download, who is asked, and what is downloaded then."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import timm
import torch
from helpers_hub import Hub, Repo, hub_server
from helpers_towers import PAIRS, hf_clip

from bridger import BridgedModel, attach_bridgers, load_towers
from bridger.heads import ReferringSegmentationHead
from bridger.named_towers import downloads
from bridger.named_towers.downloads import AtUrl, OnHub, allow_download, download_size

NAME = "open_clip:ViT-B-16:openai"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that this process uses, with an empty cache."""
    with hub_server() as server:
        server.use(monkeypatch, tmp_path / "home")
        yield server


def publish(hub: Hub, files: dict[str, int], name: str = "lab/model") -> str:
    """Put files of these sizes on the Hub, in place of those there; return the commit."""
    repo = hub.repos.setdefault(name, Repo())
    return repo.commit({path: bytes(size) for path, size in files.items()}, "main", "files")


SHARDS = {f"model-0000{i}-of-00002.safetensors": 300 * i for i in (1, 2)}


@pytest.mark.parametrize(
    ("files", "size"),
    [
        ({"model.safetensors": 700, "pytorch_model.bin": 800}, 700),
        ({"pytorch_model.bin": 800, "tf_model.h5": 900, "model.onnx": 7}, 800),
        ({**SHARDS, "model.safetensors.index.json": 5, "pytorch_model.bin": 1}, 900),
        ({"pytorch_model-00001-of-00001.bin": 60}, 60),
        ({"README.md": 4}, 0),
    ],
)
def test_only_files_that_are_loaded_count(hub: Hub, files: dict[str, int], size: int) -> None:
    publish(hub, {"config.json": 2, **files})
    assert download_size("transformers:lab/model") == size
    assert download_size("transformers:lab/model,transformers:lab/model#BertModel") == size
    assert download_size("transformers:lab/none") == 0  # loading says what is wrong
    assert download_size("transformers:lab/model@v9") == 0


def test_what_is_cached_does_not_count(hub: Hub) -> None:
    from huggingface_hub import hf_hub_download

    name = "transformers:lab/model"
    first = publish(hub, {"config.json": 2, **SHARDS})
    hf_hub_download("lab/model", "config.json")
    hf_hub_download("lab/model", "model-00001-of-00002.safetensors")
    assert download_size(name) == 600
    with pytest.raises(OSError, match="download=False .* keeps them from being downloaded"):
        allow_download(name, download=False)
    hf_hub_download("lab/model", "model-00002-of-00002.safetensors")
    assert download_size(name) == 0
    allow_download(name, download=False)
    # A new commit with the same weights, and one with others.
    second = publish(hub, {"config.json": 3, **SHARDS})
    assert download_size(name) == 0
    publish(hub, {"config.json": 3, "model.safetensors": 1234})
    assert download_size(name) == 1234
    assert download_size(f"{name}@{second}") == 0
    hub.requests.clear()
    assert download_size(f"{name}@{first}") == 0
    assert not hub.requests  # a commit that is here cannot have changed


def test_without_a_connection_what_is_cached_does(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants, hf_hub_download

    publish(hub, {"config.json": 2, "model.safetensors": 5})
    hf_hub_download("lab/model", "config.json")
    hf_hub_download("lab/model", "model.safetensors")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert download_size("transformers:lab/model") == 0
    with pytest.raises(OSError, match="not on this machine, and could not be downloaded: connect"):
        load_towers("transformers:lab/other", download=None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download_size("transformers:lab/other") == 0


def test_files_on_this_machine_are_not_asked_for(tmp_path: Path) -> None:
    (tmp_path / "w.pt").touch()
    for name in (
        "tiny",
        "open_clip:RN50",
        f"open_clip:RN50:{tmp_path / 'w.pt'}@96",
        f"etris:{tmp_path / 'w.pt'}@17",
        f"timm:resnet10t:{tmp_path / 'w.pt'},transformers:{tmp_path}",
        "torchvision:resnet18,tiny",
    ):
        assert download_size(name) == 0
        allow_download(name, download=False)


class _Heads(BaseHTTPRequestHandler):
    asked: list[str] = []

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        self.send_response(404 if "gone" in self.path else 200)
        if "silent" not in self.path:
            self.send_header("Content-Length", "4321")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def site() -> Iterator[str]:
    """A server that knows how long its files are."""
    with HTTPServer(("127.0.0.1", 0), _Heads) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_files_at_addresses(site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    url = f"{site}/weights.pt"
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: {"url": url})
    kind = SimpleNamespace(verify=lambda _: SimpleNamespace(url=url))
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: kind)
    config = SimpleNamespace(hf_hub_id=None, url=url)
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda _: config)
    places = {
        "open_clip:ViT-B-16:openai": ".cache/clip",
        "torchvision:resnet18:DEFAULT,tiny": "hub/checkpoints",
        "timm:resnet10t:tag,tiny": "hub/checkpoints",
    }
    for name in places:
        assert download_size(name) == 4321
    for name, place in places.items():
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "weights.pt").touch()
        assert download_size(name) == 0
    assert AtUrl(f"{site}/silent", tmp_path / "none").missing_bytes() is None
    assert AtUrl(f"{site}/gone", tmp_path / "none").missing_bytes() is None


def _asked_of_open_clip(model: str, tag: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []

    def fail(repo_id: str, filename: str, **_: Any) -> None:
        asked.append(f"{repo_id}/{filename}")
        raise OSError

    monkeypatch.setattr("open_clip.pretrained.hf_hub_download", fail)
    monkeypatch.setattr(
        "open_clip.pretrained.download_pretrained_from_url", lambda url, **_: asked.append(url)
    )
    try:
        open_clip.pretrained.download_pretrained(open_clip.get_pretrained_cfg(model, tag))
    except FileNotFoundError:
        pass
    return asked


def test_open_clip_asks_for_the_same_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for model, tag in open_clip.list_pretrained():
        if "/" in tag:
            continue
        (found,) = downloads._weights_of(f"open_clip:{model}:{tag}")
        if isinstance(found, OnHub):
            expected = [f"{found.repo_id}/{kind}" for kind in found.kinds]
        else:
            expected = [found.url]
        assert _asked_of_open_clip(model, tag, monkeypatch) == expected


def test_timm_asks_for_the_same_files(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    asked: list[str] = []

    def fail(*args: str, repo_id: str = "", filename: str = "", **_: Any) -> None:
        asked.append("/".join([*args, repo_id, filename]).strip("/").replace("//", "/"))
        raise EntryNotFoundError("none", SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.setattr("timm.models._hub.hf_hub_download", fail)
    names = ("resnet50.a1_in1k", "vit_base_patch14_reg4_dinov2.lvd142m", "mixer_b16_224.goog_in21k")
    for name in names:
        (found,) = downloads._weights_of(f"timm:{name.replace('.', ':')}@448,tiny")
        assert isinstance(found, OnHub)
        asked.clear()
        with pytest.raises(EntryNotFoundError):
            timm.models._hub.load_state_dict_from_hf(found.repo_id)
        assert asked == [f"{found.repo_id}/{kind}" for kind in found.kinds]


class Terminal(io.StringIO):
    """A terminal, or what answers on one."""

    def isatty(self) -> bool:
        return True


def measured(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    weights = SimpleNamespace(missing_bytes=lambda: size, is_here=lambda: False)
    monkeypatch.setattr(downloads, "_weights_of", lambda name: iter([weights]))


@pytest.mark.parametrize(
    ("size", "shown"), [(1_710_000_000, "of 1.71 GB"), (None, "of unknown size")]
)
def test_a_terminal_is_asked_before_gigabytes(
    size: int | None, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, size)
    question = f"the towers {NAME} need a download {shown}"
    for answer, yes in {"y\n": True, "Yes\n": True, "n\n": False, "\n": False, "": False}.items():
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        monkeypatch.setattr(sys, "stderr", err := Terminal())
        if yes:
            allow_download(NAME, None)
        else:
            with pytest.raises(OSError, match=f"^{question}, which was declined$"):
                allow_download(NAME, None)
        assert err.getvalue() == f"{question}; go on? [y/N] "


def test_without_a_terminal_gigabytes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, downloads.LARGE + 1)
    words = rf"^the towers {NAME} need a download of 1.00 GB, and .*download=True \(--download in"
    for stdin, stderr in ((io.StringIO(), Terminal()), (Terminal("y\n"), io.StringIO())):
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stderr", stderr)
        with pytest.raises(OSError, match=words):
            allow_download(NAME, None)
    model = attach_bridgers(*PAIRS["open_clip_vit"]()).with_head(ReferringSegmentationHead)
    model.tower_source = NAME
    model.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=words):
        BridgedModel.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="download=False .* keeps them"):
        BridgedModel.from_pretrained(tmp_path, download=False)
    measured(monkeypatch, downloads.LARGE)
    allow_download(NAME, None)


def test_who_says_yes_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise AssertionError("nothing is measured")

    monkeypatch.setattr(downloads, "_weights_of", fail)
    allow_download(NAME, download=True)


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_in_the_shell(verb: str, tmp_path: Path, run: Any, scenes: Path) -> None:
    model = attach_bridgers(*PAIRS["open_clip_vit"]()).with_head(ReferringSegmentationHead)
    model.tower_source = "timm:resnet50:a1_in1k,tiny"
    model.save_pretrained(tmp_path)
    (tmp_path / "picture.png").write_bytes(next(scenes.rglob("*.jpg")).read_bytes())
    what = {
        "predict": [tmp_path / "picture.png", "the dog", "--adapter", tmp_path],
        "evaluate": [tmp_path, "--data", scenes, "--split", "val"],
    }
    code, out, err = run(verb, *what[verb], "--no-download")
    assert code != 0 and not out
    assert "(--no-download in the shell) keeps them from being downloaded" in err


ROUND_TRIP = """
import sys, warnings
import torch, transformers
from bridger import BridgedModel, attach_bridgers, load_towers
from bridger.heads import ReferringSegmentationHead

folder, step = sys.argv[1:]
pixels, ids = torch.ones(1, 3, 32, 32), torch.tensor([[62, 5, 6, 63]])
if step == "make":
    clip = transformers.CLIPModel.from_pretrained("lab/clip")
    encoder = attach_bridgers(clip, clip, 2)
    again = attach_bridgers(*load_towers("transformers:lab/clip")[:2])
    print(encoder.tower_source, again.tower_source)
    model = encoder.with_head(ReferringSegmentationHead, width=32, num_layers=1, num_heads=2).eval()
    model.save_pretrained(folder)
else:
    options = {"load": {}, "offline": {"download": False}}[step]
    model = BridgedModel.from_pretrained(folder, **options)
    print(model.tower_source)
print(model(pixels, ids).logits.sum().item())
"""


@pytest.mark.slow
def test_a_revision_on_the_hub_stays_the_same(tmp_path: Path) -> None:
    def step(what: str, home: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", ROUND_TRIP, str(tmp_path / "adapter"), what],
            env=server.environment(tmp_path / home),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    def put(seed: int) -> str:
        hf_clip(seed=seed).save_pretrained(tmp_path / str(seed))
        files = {path.name: path.read_bytes() for path in (tmp_path / str(seed)).iterdir()}
        repo = server.repos.setdefault("lab/clip", Repo())
        return repo.commit(files, "main", str(seed))

    with hub_server() as server:
        first = put(0)
        inferred, loaded, answer = step("make", "one")
        assert inferred == f"transformers:lab/clip@{first}#CLIPModel"
        assert loaded == f"transformers:lab/clip@{first}"
        put(1)
        assert step("load", "one") == step("load", "two") == [inferred, answer]
        asked = len(server.requests)
        assert step("offline", "two") == [inferred, answer]
        assert len(server.requests) == asked
