"""A server on this machine that speaks as much of the Hugging Face Hub's API as the real client uses.

Reading, also of data sets: the repository's information, its files by HEAD and GET with Range. Writing: making a
repository, the question how to upload, Git LFS batches, commits.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from local_server import listening


@dataclass
class Hub:
    """`repositories` maps ORG/NAME to its files. Files that end in .safetensors, .bin or .model are in LFS."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    listed_extra: list[str] = field(default_factory=list)
    corrupt: bool = False
    stalled: threading.Event | None = None
    later: dict[str, bytes] = field(default_factory=dict)  # files that every repository gets once it was listed
    stopping: threading.Event = field(default_factory=threading.Event)
    status: int | None = None
    requests: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)

    def commit(self, repository: str) -> str:
        files = self.repositories[repository]
        text = "".join(f"{name}{hashlib.sha1(data).hexdigest()}" for name, data in sorted(files.items()))
        return hashlib.sha1(text.encode()).hexdigest()


def is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".model"))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def hub_serving() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._route("HEAD")

        def do_GET(self) -> None:
            self._route("GET")

        def do_POST(self) -> None:
            self._route("POST")

        def do_PUT(self) -> None:
            self._route("PUT")

        # -------------------------------------------------------------- answers

        def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            for name, text in ({"Content-Type": "application/json"} | (headers or {})).items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def _error(self, status: int, code: str) -> None:
            self._json({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code})

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline().strip(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        # -------------------------------------------------------------- routes

        def _route(self, method: str) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{method} {path}")
            hub.tokens.append(self.headers.get("Authorization"))
            if hub.status is not None:
                self._error(hub.status, "ServerError")
                return
            for pattern, answer in (
                (r"/api/(?:models|datasets)/([\w.-]+/[\w.-]+)(?:/revision/(.+))?", self._info),
                (r"/api/(?:models|datasets)/([\w.-]+/[\w.-]+)/tree/([^/]+)/?(.*)", self._tree),
                (r"/(?:datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", self._file),
                (r"/api/repos/create", self._create),
                (r"/api/validate-yaml", self._validate),
                (r"/api/models/([\w.-]+/[\w.-]+)/preupload/(.+)", self._preupload),
                (r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", self._batch),
                (r"/lfs/([0-9a-f]{64})", self._object),
                (r"/api/models/([\w.-]+/[\w.-]+)/commit/(.+)", self._commit),
            ):
                if match := re.fullmatch(pattern, path):
                    answer(*match.groups())
                    return
            self._error(404, "EntryNotFound")

        def _allowed(self, repository: str) -> bool:
            if repository not in hub.repositories or (repository in hub.private and not hub.tokens[-1]):
                self._error(401, "RepoNotFound")
                return False
            return True

        def _revision(self, repository: str, revision: str | None) -> bool:
            if revision not in (None, "main", hub.commit(repository)):
                self._error(404, "RevisionNotFound")
                return False
            return True

        def _info(self, repository: str, revision: str | None) -> None:
            if not (self._allowed(repository) and self._revision(repository, revision)):
                return
            siblings: list[dict[str, Any]] = []
            for name, data in hub.repositories[repository].items():
                entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
                if is_lfs(name):
                    entry["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 130}
                siblings.append(entry)
            siblings += [{"rfilename": name, "size": 1, "blobId": "0" * 40} for name in hub.listed_extra]
            self._json(
                {"id": repository, "modelId": repository, "sha": hub.commit(repository), "siblings": siblings}
                | {"private": repository in hub.private, "tags": [], "downloads": 0, "likes": 0}
            )
            hub.repositories[repository] |= hub.later

        def _tree(self, repository: str, revision: str, folder: str) -> None:
            if not (self._allowed(repository) and self._revision(repository, revision)):
                return
            start = f"{folder}/" if folder else ""
            is_deep = "recursive=true" in urlsplit(self.path).query.lower()
            files = {name: data for name, data in hub.repositories[repository].items() if name.startswith(start)}
            if folder and not files:
                self._error(404, "EntryNotFound")
                return
            entries: list[dict[str, Any]] = []
            for name, data in files.items():
                inner, _, below = name.removeprefix(start).partition("/")
                if below and not is_deep:
                    entry = {"type": "directory", "path": start + inner, "oid": "0" * 40, "size": 0}
                    entries += [entry] if entry not in entries else []
                    continue
                entry = {"type": "file", "path": name, "size": len(data), "oid": git_hash(data)}
                if is_lfs(name):
                    entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 130}
                entries.append(entry)
            self._json(entries)

        def _file(self, repository: str, revision: str, name: str) -> None:
            if not (self._allowed(repository) and self._revision(repository, revision)):
                return
            if repository in hub.gated:
                self._error(403, "GatedRepo")
                return
            data = hub.repositories[repository].get(name)
            if data is None:
                self._error(404, "EntryNotFound")
                return
            etag = sha256(data) if is_lfs(name) else git_hash(data)
            first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            start, size = int(first), len(data)
            data = data[: int(last) + 1] if last else data
            self.send_response(206 if start or last else 200)
            self.send_header("X-Repo-Commit", hub.commit(repository))
            self.send_header("ETag", f'"{etag}"')
            self.send_header("Accept-Ranges", "bytes")
            if start or last:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{size}")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            if self.command == "GET":
                body = bytearray(data[start:])
                if hub.stalled and name == "model.safetensors":
                    self.wfile.write(body[: len(body) // 2])
                    self.wfile.flush()
                    hub.stalled.set()
                    hub.stopping.wait()
                    return
                if hub.corrupt and name == "model.safetensors":
                    body[len(body) // 2] ^= 1
                self.wfile.write(body)

        def _create(self) -> None:
            wanted = json.loads(self._body())
            repository = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            if not hub.tokens[-1]:
                self._error(401, "Unauthorized")
                return
            if repository in hub.repositories:
                self._json({"url": f"{hub.url}/{repository}", "error": "exists"}, 409)
                return
            hub.repositories[repository] = {}
            if wanted.get("private") or wanted.get("visibility") == "private":
                hub.private.add(repository)
            self._json({"url": f"{hub.url}/{repository}", "name": repository, "id": "1"})

        def _validate(self) -> None:
            self._body()
            self._json({"errors": [], "warnings": []})

        def _preupload(self, repository: str, revision: str) -> None:
            files = json.loads(self._body())["files"]
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if is_lfs(f["path"]) else "regular", "shouldIgnore": False}
                for f in files
            ]
            self._json({"files": modes, "commitOid": hub.commit(repository)})

        def _batch(self, repository: str) -> None:
            wanted = json.loads(self._body())["objects"]
            objects = [
                {
                    "oid": one["oid"],
                    "size": one["size"],
                    "authenticated": True,
                    "actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}},
                }
                for one in wanted
            ]
            self._json(
                {"transfer": "basic", "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"}
            )

        def _object(self, digest: str) -> None:
            data = self._body()
            if sha256(data) != digest:
                self._error(400, "BadHash")
                return
            hub.objects[digest] = data
            self._json({})

        def _commit(self, repository: str, revision: str) -> None:
            files = hub.repositories[repository]
            for line in self._body().splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
            oid = hub.commit(repository)
            self._json(
                {
                    "success": True,
                    "commitOid": oid,
                    "commitUrl": f"{hub.url}/{repository}/commit/{oid}",
                    "hookOutput": "",
                }
            )

    with listening(Handler, hub.stopping) as hub.url:
        yield hub
