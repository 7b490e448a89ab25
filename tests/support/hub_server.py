"""A server that speaks as much of the Hugging Face hub's HTTP interface as loading and pushing need, for tests.

Repositories are in memory: commits with parents, branches, files whole or by LFS. `huggingface_hub` itself talks to it,
so what a test proves holds for the real client. See https://huggingface.co/docs/hub/api and git-lfs's batch API.
"""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

USER, TOKEN = "somebody", "hf_token"


@dataclass
class Repository:
    """One repository: its branches, and the files of each commit."""

    private: bool
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)}{message}{sorted(files)}".encode()).hexdigest()
        self.commits[oid], self.messages[oid], self.branches[branch] = files, message, oid
        return oid

    def find(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


class Hub:
    """The server's state, and what was asked of it."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.reject_card: str | None = None
        self.url = ""

    def files(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        repository = self.repositories[repo_id]
        return repository.commits[repository.branches[branch]]


class _Refused(Exception):
    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        try:
            self._route([unquote(part) for part in path.strip("/").split("/")], body)
        except _Refused as error:
            code = {} if error.code is None else {"X-Error-Code": error.code}
            self._send(json.dumps({"error": str(error)}).encode(), status=error.status, headers=code)

    def _send(self, data: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, values: Any) -> None:
        self._send(json.dumps(values).encode())

    @property
    def _is_user(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repository(self, repo_id: str) -> Repository:
        """A repository that may be read; as on the hub, a private one looks missing to others."""
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and not self._is_user):
            raise _Refused(404 if self._is_user else 401, "RepoNotFound", "Repository not found")
        return repository

    def _commit(self, repository: Repository, revision: str) -> str:
        oid = repository.find(revision)
        if oid is None:
            raise _Refused(404, "RevisionNotFound", "Invalid rev id")
        return oid

    def _must_write(self, repo_id: str) -> None:
        if not self._is_user:
            raise _Refused(401, None, "Invalid username or password.")
        if not repo_id.startswith(f"{USER}/"):
            raise _Refused(403, None, "You don't have the rights to create a model under this namespace")

    def _route(self, parts: list[str], body: bytes) -> None:
        match parts:
            case ["api", "validate-yaml"]:
                found = {"errors": [] if self.hub.reject_card is None else [{"message": self.hub.reject_card}]}
                self._send(json.dumps(found).encode(), status=400 if self.hub.reject_card else 200)
            case ["api", "repos", "create"]:
                self._create(json.loads(body))
            case ["api", "models", user, name, *rest]:
                self._api(f"{user}/{name}", rest, body)
            case [user, name, "info", "lfs", "objects", "batch"]:
                self._batch(f"{user}/{name.removesuffix('.git')}", json.loads(body))
            case ["lfs", oid]:
                assert hashlib.sha256(body).hexdigest() == oid
                self.hub.large[oid] = body
                self._send(b"")
            case [user, name, "resolve", revision, *file]:
                self._resolve(self._repository(f"{user}/{name}"), revision, "/".join(file))
            case _:
                raise _Refused(404, None, f"this server knows no {self.command} {self.path}")

    def _create(self, asked: dict[str, Any]) -> None:
        repo_id = f"{asked.get('organization') or USER}/{asked['name']}"
        self._must_write(repo_id)
        if repo_id in self.hub.repositories:
            self._send(json.dumps({"error": "It exists", "url": f"{self.hub.url}/{repo_id}"}).encode(), status=409)
            return
        private = asked.get("private") or asked.get("visibility") == "private"
        repository = self.hub.repositories[repo_id] = Repository(private=bool(private))
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self._json({"url": f"{self.hub.url}/{repo_id}"})

    def _api(self, repo_id: str, rest: list[str], body: bytes) -> None:
        repository = self._repository(repo_id)
        match rest:
            case [] | ["revision", _]:
                oid = self._commit(repository, rest[1] if rest else "main")
                names = [{"rfilename": name} for name in repository.commits[oid]]
                about = {"id": repo_id, "private": repository.private, "gated": repository.gated, "tags": []}
                self._json({**about, "sha": oid, "siblings": names})
            case ["tree", revision]:
                files = repository.commits[self._commit(repository, revision)]
                self._json(
                    [
                        {"type": "file", "path": name, "size": len(data), "oid": _git_oid(data)}
                        | (
                            {"lfs": {"oid": sha, "size": len(data), "pointerSize": 100}}
                            if (sha := self._lfs(data))
                            else {}
                        )
                        for name, data in files.items()
                    ]
                )
            case ["branch", branch]:
                self._must_write(repo_id)
                if branch in repository.branches:
                    raise _Refused(409, None, "Reference already exists")
                repository.branches[branch] = repository.branches["main"]
                self._json({})
            case ["preupload", revision]:
                self._must_write(repo_id)
                files = repository.commits[self._commit(repository, revision)]
                answers: list[dict[str, Any]] = []
                for asked in json.loads(body)["files"]:
                    mode = "lfs" if asked["path"].endswith((".safetensors", ".zip", ".mp4")) else "regular"
                    answer = {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False}
                    if (there := files.get(asked["path"])) is not None:
                        answer["oid"] = self._lfs(there) or _git_oid(there)
                    answers.append(answer)
                self._json({"files": answers})
            case ["commit", revision]:
                self._must_write(repo_id)
                self._json(self._write(repo_id, revision, [json.loads(line) for line in body.splitlines()]))
            case _:
                raise _Refused(404, None, f"this server knows no {self.path}")

    def _write(self, repo_id: str, branch: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        repository = self.hub.repositories[repo_id]
        head = self._commit(repository, branch)
        files, message = dict(repository.commits[head]), ""
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    message = value["summary"]
                    if value.get("parentCommit", head) != head:
                        raise _Refused(412, None, "A commit has happened since.")
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        oid = repository.commit(branch, files, message)
        return {
            "success": True,
            "commitOid": oid,
            "commitUrl": f"{self.hub.url}/{repo_id}/commit/{oid}",
            "hookOutput": "",
        }

    def _batch(self, repo_id: str, asked: dict[str, Any]) -> None:
        self._must_write(repo_id)
        objects: list[dict[str, Any]] = []
        for each in asked["objects"]:
            upload = {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}}
            objects.append({**each, **({} if each["oid"] in self.hub.large else upload)})
        self._send(json.dumps({"transfer": "basic", "objects": objects}).encode())

    def _lfs(self, data: bytes) -> str | None:
        sha = hashlib.sha256(data).hexdigest()
        return sha if sha in self.hub.large else None

    def _resolve(self, repository: Repository, revision: str, name: str) -> None:
        if repository.gated:
            raise _Refused(403, "GatedRepo", "Access to this model is restricted")
        oid = self._commit(repository, revision)
        if (data := repository.commits[oid].get(name)) is None:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        sha, kind = self._lfs(data), "application/octet-stream"
        headers = {"X-Repo-Commit": oid, "ETag": f'"{sha or _git_oid(data)}"', "Content-Type": kind}
        if sha is not None:
            headers |= {"X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(data))}
        self._send(data, headers=headers)


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub on a port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that `huggingface_hub` talks to, logged in, with an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
