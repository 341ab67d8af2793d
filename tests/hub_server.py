"""A stand-in for the Hugging Face Hub on loopback, for tests.

It speaks the part of the protocol that `huggingface_hub` uses to publish and to read model repos, from memory: no git,
no Xet, no rate limits of its own, no checks of metadata beyond `model-index` having a name. Answers follow what the
client library expects of the real Hub; whether the real Hub has changed since, no test here can tell.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN, READ_TOKEN = "hf_write", "hf_read"
"""Of `user`, who may write to `user/...`, and of somebody who may only read what is public."""

LFS_ENDINGS = (".safetensors", ".png", ".onnx")


@dataclass
class Repo:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    """Branch, or `refs/pr/N`, to commit."""
    messages: list[str] = field(default_factory=list)

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)

    def commit(self, files: dict[str, bytes], ref: str, message: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {ref} {sorted(files)}".encode()).hexdigest()
        self.commits[oid], self.refs[ref] = files, oid
        self.messages.append(message)
        return oid


@dataclass
class Fault:
    method: str
    path: str
    """Regular expression."""
    status: int
    """Answer with this; 0 cuts the connection, half-way through the body of a download."""
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.reset()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def reset(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        """Contents of large files by SHA-256, kept across commits as the Hub does."""
        self.faults: list[Fault] = []
        self.log: list[str] = []
        """Method, path and range of every request."""

    def fail(self, method: str, path: str, status: int, times: int = 1, **headers: str) -> None:
        """Let the next `times` matching requests fail."""
        self.faults.append(Fault(method, path, status, times, {k.replace("_", "-"): v for k, v in headers.items()}))

    def fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and fault.method == method and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None

    def count(self, method: str, path: str) -> int:
        return sum(bool(re.search(f"^{method} .*{path}", line)) for line in self.log)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that break are part of the tests."""


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", **body: Any) -> None:
        self.status, self.headers, self.body = status, {}, body | {"error": message or code}
        if code:
            self.headers["X-Error-Code"] = code
        if message:
            self.headers["X-Error-Message"] = message


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def respond(self, method: str) -> None:
        parts = urlsplit(self.path)
        path, self.query = parts.path, parse_qs(parts.query)
        self.server.log.append(f"{method} {self.path} {self.headers.get('Range', '')}")
        fault = self.server.fault(method, self.path)
        if fault and not fault.status and method != "GET":
            self.close_connection = True  # without an answer
            self.connection.close()
            return
        self.body = self.read_body()
        self.cut = fault is not None and not fault.status
        try:
            if fault and fault.status:
                refused = Refused(fault.status, message="injected")
                refused.headers |= fault.headers
                raise refused
            for verb, pattern, answer in ROUTES:
                found = re.fullmatch(pattern, path)
                if verb == method and found:
                    answer(self, *map(unquote, found.groups()))
                    return
            raise Refused(404, "EntryNotFound", f"the stand-in has no {method} {path}")
        except Refused as error:
            self.send(error.status, error.body, error.headers)

    def do_GET(self) -> None:
        self.respond("GET")

    def do_HEAD(self) -> None:
        self.respond("HEAD")

    def do_POST(self) -> None:
        self.respond("POST")

    def do_PUT(self) -> None:
        self.respond("PUT")

    def read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def send(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.cut:
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.wfile.write(data)

    def repo(self, name: str, write: bool = False) -> Repo:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", TOKEN, READ_TOKEN):
            raise Refused(401, message="Invalid credentials in Authorization header")
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and token != TOKEN):
            raise Refused(404 if token else 401, "RepoNotFound", "Repository not found")
        if write and token != TOKEN:
            raise Refused(403, message="you don't have the right to write here")
        return repo

    def files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repo = self.repo(name)
        oid = repo.resolve(revision)
        if oid is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid, repo.commits[oid]


def create_repo(handler: Handler) -> None:
    asked = json.loads(handler.body)
    name = f"{asked['organization'] or 'user'}/{asked['name']}"
    if handler.headers.get("Authorization") != f"Bearer {TOKEN}":
        raise Refused(401, message="Invalid username or password.")
    if not name.startswith("user/"):
        raise Refused(403, message=f"You don't have the rights to create a model under {asked['organization']}")
    url = f"{handler.server.url}/{name}"
    if name in handler.server.repos:
        raise Refused(409, message="You already created this model repo", url=url)
    private = asked.get("private") or asked.get("visibility") == "private"
    handler.server.repos[name] = repo = Repo(bool(private))
    repo.commit({".gitattributes": b"*.safetensors filter=lfs"}, "main", "initial commit")
    handler.send(200, {"url": url, "name": name})


def validate_yaml(handler: Handler) -> None:
    text = json.loads(handler.body)["content"]
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    try:
        data = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError as error:
        raise Refused(400, errors=[{"message": str(error)}], warnings=[]) from error
    errors = ["model-index needs a name"] if any("name" not in item for item in data.get("model-index", [])) else []
    if errors:
        raise Refused(400, errors=[{"message": message} for message in errors], warnings=[])
    handler.send(200, {"errors": [], "warnings": [] if data else [{"message": "empty or missing yaml metadata"}]})


def preupload(handler: Handler, name: str, revision: str) -> None:
    handler.repo(name, write=not handler.query.get("create_pr"))
    _, files = handler.files(name, revision)
    answer = []
    for asked in json.loads(handler.body)["files"]:
        path = asked["path"]
        lfs = path.endswith(LFS_ENDINGS)
        oid = None
        if path in files:
            oid = hashlib.sha256(files[path]).hexdigest() if lfs else git_hash(files[path])
        mode = "lfs" if lfs else "regular"
        answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    handler.send(200, {"files": answer})


def lfs_batch(handler: Handler, name: str) -> None:
    handler.repo(name)
    objects = []
    for asked in json.loads(handler.body)["objects"]:
        entry: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in handler.server.objects:
            entry["actions"] = {"upload": {"href": f"{handler.server.url}/lfs/{asked['oid']}"}}
        objects.append(entry)
    handler.send(200, {"transfer": "basic", "objects": objects})


def lfs_put(handler: Handler, oid: str) -> None:
    if hashlib.sha256(handler.body).hexdigest() != oid:
        raise Refused(400, message="the content is not what its SHA-256 promised")
    handler.server.objects[oid] = handler.body
    handler.send(200)


def commit(handler: Handler, name: str, revision: str) -> None:
    as_pr = bool(handler.query.get("create_pr"))
    repo = handler.repo(name, write=not as_pr)
    parent, files = handler.files(name, revision)
    lines = [json.loads(line) for line in handler.body.splitlines()]
    header = lines[0]["value"]
    if header.get("parentCommit") not in (None, parent):
        raise Refused(412, message="A commit has happened since. Please refresh and try again.")
    files = dict(files)
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            if value["oid"] not in handler.server.objects:
                raise Refused(400, message=f"{value['path']} was not uploaded")
            files[value["path"]] = handler.server.objects[value["oid"]]
        else:
            raise Refused(400, message=f"the stand-in can't commit {line['key']}")
    number = sum(ref.startswith("refs/pr/") for ref in repo.refs) + 1
    ref = f"refs/pr/{number}" if as_pr else revision
    oid = repo.commit(files, ref, header["summary"])
    url = f"{handler.server.url}/{name}"
    pull_request = f"{url}/discussions/{number}" if as_pr else None
    handler.send(200, {"commitUrl": f"{url}/commit/{oid}", "commitOid": oid, "pullRequestUrl": pull_request})


def create_branch(handler: Handler, name: str, branch: str) -> None:
    repo = handler.repo(name, write=True)
    if branch in repo.refs:
        raise Refused(409, message=f"Reference already exists: {branch}")
    repo.refs[branch] = repo.refs["main"]
    handler.send(200, {})


def model_info(handler: Handler, name: str, revision: str = "main") -> None:
    oid, files = handler.files(name, revision)
    repo = handler.repo(name)
    siblings = [{"rfilename": path} for path in files]
    handler.send(200, {"id": name, "modelId": name, "sha": oid, "private": repo.private, "siblings": siblings})


def tree(handler: Handler, name: str, revision: str) -> None:
    _, files = handler.files(name, revision)
    handler.send(200, [describe(path, data) for path, data in files.items()])


def paths_info(handler: Handler, name: str, revision: str) -> None:
    _, files = handler.files(name, revision)
    asked = parse_qs(handler.body.decode()).get("paths", [])
    handler.send(200, [describe(path, files[path]) for path in asked if path in files])


def describe(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_hash(data)}
    if path.endswith(LFS_ENDINGS):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


def resolve(handler: Handler, name: str, revision: str, path: str) -> None:
    oid, files = handler.files(name, revision)
    headers = {"X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
    if path not in files:
        refused = Refused(404, "EntryNotFound", "Entry not found")
        refused.headers |= headers
        raise refused
    data = files[path]
    headers["ETag"] = f'"{hashlib.sha256(data).hexdigest() if path.endswith(LFS_ENDINGS) else git_hash(data)}"'
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
    if found:
        start, end = int(found[1]), int(found[2] or len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        handler.send(206, data[start : end + 1], headers)
    else:
        handler.send(200, data, headers)


def whoami(handler: Handler) -> None:
    if handler.headers.get("Authorization") != f"Bearer {TOKEN}":
        raise Refused(401, message="Invalid credentials in Authorization header")
    handler.send(200, {"type": "user", "name": "user", "orgs": []})


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


NAME, REVISION = r"([\w.-]+/[\w.-]+)", r"([^/]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", "/api/repos/create", create_repo),
    ("POST", "/api/validate-yaml", validate_yaml),
    ("GET", "/api/whoami-v2", whoami),
    ("POST", f"/api/models/{NAME}/preupload/{REVISION}", preupload),
    ("POST", f"/api/models/{NAME}/commit/{REVISION}", commit),
    ("POST", f"/api/models/{NAME}/branch/{REVISION}", create_branch),
    ("POST", f"/api/models/{NAME}/paths-info/{REVISION}", paths_info),
    ("GET", f"/api/models/{NAME}/revision/{REVISION}", model_info),
    ("GET", f"/api/models/{NAME}/tree/{REVISION}", tree),
    ("GET", f"/api/models/{NAME}", model_info),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", r"/lfs/(\w+)", lfs_put),
    ("HEAD", f"/{NAME}/resolve/{REVISION}/(.+)", resolve),
    ("GET", f"/{NAME}/resolve/{REVISION}/(.+)", resolve),
]
