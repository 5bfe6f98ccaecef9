"""A real HTTP server on this machine that speaks the few endpoints of the Hugging Face hub that bundles need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_API = re.compile(r"/api/models/([^/]+/[^/]+)/(preupload|commit|revision)/([^/]+)")


@dataclass(kw_only=True)
class Repository:
    """One repository: its commits, the newest one last."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        """Returns the name of a new commit that adds these files to those of the last."""
        held = {**next(reversed(self.commits.values()), {}), **files}
        name = hashlib.sha1(repr(sorted(held.items())).encode(), usedforsecurity=False).hexdigest()
        self.commits[name] = held
        return name

    def resolve(self, revision: str) -> str | None:
        """Returns the commit of a revision."""
        if revision == "main":
            return next(reversed(self.commits), None)
        return revision if revision in self.commits else None


@dataclass(kw_only=True)
class HubServer:
    """What the server holds, and what it has seen."""

    url: str
    token: str = "hf_secret"
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files by their SHA-256."""
    requests: list[str] = field(default_factory=list)
    """``METHOD path`` of each request."""


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Yields the server while it runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 65536

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def do_HEAD(self) -> None:
            self.file()

        def do_GET(self) -> None:
            self.file()

        def do_PUT(self) -> None:
            self.noted()
            content = self.body()
            oid = self.path.rpartition("/")[2]
            assert hashlib.sha256(content).hexdigest() == oid
            hub.objects[oid] = content
            self.answer(200)

        def do_POST(self) -> None:
            self.noted()
            body = self.body()
            if self.path == "/api/validate-yaml":
                self.answer(200, {"errors": [], "warnings": []})
            elif self.headers.get("Authorization") != f"Bearer {hub.token}":
                self.answer(401, {"error": "Invalid username or password."})
            elif self.path == "/api/repos/create":
                self.create(json.loads(body))
            elif self.path.endswith("/info/lfs/objects/batch"):
                self.batch(json.loads(body))
            else:
                self.write(body)

        def create(self, asked: dict[str, Any]) -> None:
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if name in hub.repositories:
                self.answer(409, {"error": "exists", "url": f"{hub.url}/{name}"})
                return
            hub.repositories[name] = Repository(private=asked.get("private", asked.get("visibility") == "private"))
            self.answer(200, {"url": f"{hub.url}/{name}", "name": name})

        def batch(self, asked: dict[str, Any]) -> None:
            objects = []
            for wanted in asked["objects"]:
                upload = {"href": f"{hub.url}/lfs/{wanted['oid']}"}
                objects.append({**wanted, "actions": {"upload": upload}})
            self.answer(200, {"transfer": "basic", "objects": objects})

        def write(self, body: bytes) -> None:
            match = _API.fullmatch(urlsplit(self.path).path)
            if not match or match[1] not in hub.repositories:
                self.missing("RepoNotFound")
            elif match[2] == "preupload":
                modes = [
                    {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".onnx") else "regular"}
                    for f in json.loads(body)["files"]
                ]
                self.answer(200, {"files": [{**mode, "shouldIgnore": False} for mode in modes]})
            else:
                files = {}
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        files[value["path"]] = hub.objects[value["oid"]]
                oid = hub.repositories[match[1]].commit(files)
                self.answer(200, {"commitUrl": f"{hub.url}/{match[1]}/commit/{oid}", "commitOid": oid})

        def file(self) -> None:
            self.noted()
            match = _RESOLVE.fullmatch(unquote(urlsplit(self.path).path))
            repository = hub.repositories.get(match[1]) if match else None
            known = self.headers.get("Authorization") == f"Bearer {hub.token}"
            if not match or repository is None or (repository.private and not known):
                self.missing("RepoNotFound", 401 if match else 404)
            elif repository.gated:
                self.missing("GatedRepo", 403)
            elif (commit := repository.resolve(match[2])) is None:
                self.missing("RevisionNotFound")
            elif (content := repository.commits[commit].get(match[3])) is None:
                self.missing("EntryNotFound", commit=commit)
            else:
                etag = hashlib.sha256(content).hexdigest()
                self.answer(200, content, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'})

        def missing(self, code: str, status: int = 404, *, commit: str | None = None) -> None:
            more = {"X-Repo-Commit": commit} if commit else {}
            self.answer(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code, **more})

        def noted(self) -> None:
            hub.requests.append(f"{self.command} {urlsplit(self.path).path}")

        def body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def answer(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, text in {**(headers or {}), "Content-Length": str(len(content))}.items():
                self.send_header(name, text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = HubServer(url=f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
