"""A small Hub on this machine: the routes of huggingface_hub that sharing an adapter goes through.

    with hub_server() as hub:
        hub.use(monkeypatch, tmp_path / "home")               # huggingface_hub of this process
        subprocess.run(..., env=hub.environment(home))        # or of another one

Two users have tokens: `WRITER` is anna, who writes to "anna/..." and "lab/..."; `READER` is ben.
`hub.repos` holds what was pushed, `hub.requests` what was asked for, and `hub.cut` breaks
connections off in their midst.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

WRITER, READER, WRONG = "hf_anna", "hf_ben", "hf_nobody"
USERS = {WRITER: "anna", READER: "ben"}
OWNERS = {"anna": WRITER, "lab": WRITER, "ben": READER}
LFS = (".safetensors", ".png")  # as .gitattributes of a new repository has it


@dataclass
class Repo:
    """A repository: files by commit, commits by branch or tag."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], branch: str, message: str) -> str:
        seed = f"{len(self.commits)} {branch} {message} {sorted(files)}"
        sha = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[sha], self.refs[branch] = files, sha
        self.messages.append(message)
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a branch, tag or commit by their paths."""
        return self.commits[self.refs.get(revision, revision)]


@dataclass
class Hub:
    """The state of the server, and how to reach it."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    agents: set[str] = field(default_factory=set)
    cuts: list[tuple[str, str]] = field(default_factory=list)

    def cut(self, method: str, part: str) -> None:
        """Break off each transfer by a method ("PUT", "GET", "POST") whose path holds a part."""
        self.cuts.append((method, part))

    def environment(self, home: Path, token: str | None = WRITER) -> dict[str, str]:
        """Return the environment of a process that uses this Hub, with a cache of its own."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        return {**kept, **own, "HF_HUB_OFFLINE": "0", **({"HF_TOKEN": token} if token else {})}

    def use(
        self,
        monkeypatch: pytest.MonkeyPatch,
        home: Path,
        token: str | None = WRITER,
        *,
        offline: bool = False,
    ) -> None:
        """Let huggingface_hub of this process use this Hub; it retries without waiting."""
        from huggingface_hub import constants, file_download, utils

        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        for module in (constants, file_download):
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("time.sleep", lambda _: None)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        # Clients remember whether they are offline.
        getattr(utils, "reset_sessions", getattr(utils, "close_session", lambda: None))()


class Refused(Exception):
    """An answer of the Hub that is an error."""

    def __init__(self, status: int, code: str = "", message: str = "", **answer: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.answer = status, code, message, answer


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        return

    def _answer(self) -> None:
        self.path, query = urlsplit(self.path).path, urlsplit(self.path).query
        self.query = parse_qs(query)
        self.hub.requests.append((self.command, self.path))
        self.hub.agents.add(self.headers.get("User-Agent", ""))
        self.cut = any(self.command == m and part in self.path for m, part in self.hub.cuts)
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length // 2 if self.cut and self.command != "GET" else length)
        if self.cut and self.command != "GET":
            return self._hang_up()
        try:
            self._check_token()
            for method, pattern, route in ROUTES:
                if (found := re.fullmatch(pattern, self.path)) and self.command in method:
                    return route(self, *map(unquote, found.groups()))
            raise Refused(404, message=f"no route {self.command} {self.path}")
        except Refused as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            answer = json.dumps({"error": refused.message, **refused.answer}).encode()
            self.send(answer, refused.status, {k: v for k, v in headers.items() if v})

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: len(body) // 2] if self.cut else body)
        if self.cut:
            self.close_connection = True

    def json(self, answer: Any) -> None:
        self.send(json.dumps(answer).encode(), headers={"Content-Type": "application/json"})

    # Who may do what.

    def _check_token(self) -> None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given and given not in USERS:
            raise Refused(401, message="Invalid credentials in Authorization header")
        self.token = given

    def readable(self, name: str) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and OWNERS.get(name.split("/")[0]) != self.token):
            if not self.token:
                raise Refused(401, message="Invalid username or password.")
            raise Refused(404, "RepoNotFound", "Repository not found")
        return repo

    def writable(self, name: str) -> Repo:
        repo = self.readable(name)
        self.require_owner(name.split("/")[0])
        return repo

    def require_owner(self, namespace: str) -> None:
        if not self.token:
            raise Refused(401, message="Invalid username or password.")
        if OWNERS.get(namespace) != self.token:
            rights = (
                f'You don\'t have the rights to create a model under the namespace "{namespace}"'
            )
            raise Refused(403, message=rights)

    def commit_of(self, repo: Repo, revision: str) -> str:
        sha = repo.refs.get(revision, revision)
        if sha not in repo.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    # Routes.

    def whoami(self) -> None:
        if not self.token:
            raise Refused(401, message="Invalid username or password.")
        self.json({"type": "user", "name": USERS[self.token], "orgs": []})

    def create(self) -> None:
        asked = json.loads(self.body)
        namespace = asked.get("organization") or USERS.get(self.token, "")
        self.require_owner(namespace)
        name = f"{namespace}/{asked['name']}"
        if name in self.hub.repos:
            message = "You already created this model repo"
            raise Refused(409, message=message, url=f"{self.hub.url}/{name}")
        private = asked.get("private") or asked.get("visibility") == "private"
        repo = self.hub.repos[name] = Repo(private=bool(private))
        repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "main", "initial commit")
        self.json({"url": f"{self.hub.url}/{name}", "name": name})

    def validate(self) -> None:
        import yaml

        found = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        if not found or not isinstance(yaml.safe_load(found[1]), dict):
            message = "the metadata are no YAML"
            raise Refused(400, message=message, errors=[{"message": message}], warnings=[])
        self.json({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        self.commit_of(self.writable(name), revision)
        asked = [each["path"] for each in json.loads(self.body)["files"]]
        modes = {path: "lfs" if path.endswith(LFS) else "regular" for path in asked}
        files = [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]
        self.json({"files": files})

    def batch(self, name: str) -> None:
        self.writable(name)
        objects = [
            {
                "oid": each["oid"],
                "size": each["size"],
                **(
                    {}
                    if each["oid"] in self.hub.objects
                    else {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}}
                ),
            }
            for each in json.loads(self.body)["objects"]
        ]
        self.json({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, message="the content does not have this sha256")
        self.hub.objects[oid] = self.body
        self.send(b"")

    def commit(self, name: str, branch: str) -> None:
        repo = self.writable(name)
        files, message = dict(repo.files(self.commit_of(repo, branch))), ""
        for line in self.body.splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(files, branch, message)
        self.json({"commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})

    def info(self, name: str, revision: str = "main") -> None:
        repo = self.readable(name)
        sha = self.commit_of(repo, revision)
        siblings = [
            {"rfilename": path, **(about_blob(path, body) if "blobs" in self.query else {})}
            for path, body in repo.commits[sha].items()
        ]
        about = {"id": name, "modelId": name, "private": repo.private, "tags": []}
        self.json({**about, "sha": sha, "siblings": siblings})

    def tree(self, name: str, revision: str) -> None:
        repo = self.readable(name)
        files = repo.commits[self.commit_of(repo, revision)].items()
        rows = [{"type": "file", "path": p, "size": len(b), "oid": etag(p, b)} for p, b in files]
        self.json(rows)

    def branch(self, name: str, branch: str) -> None:
        repo = self.writable(name)
        if branch in repo.refs:
            raise Refused(409, message="Reference already exists")
        start = (json.loads(self.body) if self.body else {}).get("startingPoint", "main")
        repo.refs[branch] = self.commit_of(repo, start)
        self.send(b"")

    def tag(self, name: str, revision: str) -> None:
        repo = self.writable(name)
        repo.refs[json.loads(self.body)["tag"]] = self.commit_of(repo, revision)
        self.send(b"")

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo = self.readable(name)
        if repo.gated and OWNERS.get(name.split("/")[0]) != self.token:
            raise Refused(403, "GatedRepo", "Access to this model is restricted")
        sha = self.commit_of(repo, revision)
        if path not in repo.commits[sha]:
            raise Refused(404, "EntryNotFound", "Entry not found")
        body, status = repo.commits[sha][path], 200
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag(path, body)}"'}
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(found[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body = body[start:]
        self.send(body, status, headers)


def etag(path: str, content: bytes) -> str:
    """Return what the Hub knows a file's content by: sha256 in LFS, else git's hash."""
    if path.endswith(LFS):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def about_blob(path: str, content: bytes) -> dict[str, Any]:
    """Return what the Hub says of a file where its metadata are asked for."""
    size, name = len(content), etag(path, content)
    lfs = {"lfs": {"sha256": name, "size": size, "pointerSize": 134}} if path.endswith(LFS) else {}
    return {"size": size, "blobId": name, **lfs}


Route = Callable[..., None]
NAME, ONE = r"([^/]+/[^/]+)", r"([^/]+)"
ROUTES: list[tuple[tuple[str, ...], str, Route]] = [
    (("GET",), r"/api/whoami-v2", Handler.whoami),
    (("POST",), r"/api/repos/create", Handler.create),
    (("POST",), r"/api/validate-yaml", Handler.validate),
    (("POST",), rf"/api/models/{NAME}/preupload/{ONE}", Handler.preupload),
    (("POST",), rf"/api/models/{NAME}/commit/{ONE}", Handler.commit),
    (("POST",), rf"/api/models/{NAME}/branch/{ONE}", Handler.branch),
    (("POST",), rf"/api/models/{NAME}/tag/{ONE}", Handler.tag),
    (("GET",), rf"/api/models/{NAME}/tree/{ONE}", Handler.tree),
    (("GET",), rf"/api/models/{NAME}/revision/{ONE}", Handler.info),
    (("GET",), rf"/api/models/{NAME}", Handler.info),
    (("POST",), rf"/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (("PUT",), rf"/lfs/{ONE}", Handler.upload),
    (("GET", "HEAD"), rf"/{NAME}/resolve/{ONE}/(.+)", Handler.resolve),
]


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Run a Hub on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
