"""A stand-in of the Hugging Face hub on this machine: repositories in memory, over its HTTP API."""

import base64
import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mfm_jax.storage import hub

LARGE = 64 << 10
"""Bytes from which on a file is sent by the protocol of Git LFS."""
TOKEN = "hf_of_this_test"


@dataclass
class Repository:
    """The commits of a repository, each with all its files, and its branches."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        text = f"{len(self.commits)} {sorted((n, digest(b)) for n, b in files.items())}"
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        return commit

    def files(self, revision: str) -> dict[str, bytes]:
        return self.commits.get(self.branches.get(revision, revision), {})


class Hub(ThreadingHTTPServer):
    """The server; `asked` lists the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = defaultdict(Repository)
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut: dict[str, int] = {}  # bytes after which the next answer with a file ends
        self.absent: set[str] = set()  # names of files that are answered with an error

    def put(self, name: str, folder: Path, branch: str = "main") -> str:
        """Commit a folder of files."""
        files = {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in folder.rglob("*")
            if file.is_file()
        }
        return self.repositories[name].commit(branch, files)


class Handler(BaseHTTPRequestHandler):
    """Answers what the hub's library asks to read and to write repositories."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_) -> None:
        """Print nothing."""

    def answer(self, content=None, status=200, **headers) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", headers.pop("length", len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def repository(self, name: str) -> Repository | None:
        found = self.server.repositories.get(name)
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if found is None or (found.private and not allowed):
            self.refuse(401, "RepoNotFound")
            return None
        return found

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        begin = f" from {self.begin()}" if self.begin() else ""
        self.server.asked.append(f"{self.command} {url.path}{begin}")
        if parts[:2] == ["api", "models"]:
            self.tell("/".join(parts[2:4]), parts[4:])
        elif len(parts) < 5:
            self.refuse(404, "NoSuchPage")
        else:
            self.give("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def tell(self, name: str, rest: list[str]) -> None:
        if (found := self.repository(name)) is None:
            return
        revision = rest[1] if len(rest) > 1 else "main"
        commit = found.branches.get(revision, revision)
        if commit not in found.commits:
            self.refuse(404, "RevisionNotFound")
        elif rest[:1] == ["tree"]:
            files = found.commits[commit]
            listed = [{"type": "file", "path": n, "size": len(b)} for n, b in files.items()]
            self.answer([{**file, "oid": digest(files[file["path"]])} for file in listed])
        else:
            siblings = [{"rfilename": path} for path in found.commits[commit]]
            told = {"_id": "1", "id": name, "private": found.private, "siblings": siblings}
            self.answer({**told, "sha": commit, "tags": [], "downloads": 0})

    def give(self, name: str, revision: str, path: str) -> None:
        if (found := self.repository(name)) is None:
            return
        commit = found.branches.get(revision, revision)
        if commit not in found.commits:
            self.refuse(404, "RevisionNotFound")
        elif path in self.server.absent:
            self.refuse(500, "Broken")
        elif path not in found.commits[commit]:
            self.answer(None, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        else:
            self.give_file(found.commits[commit][path], path, commit)

    def give_file(self, data: bytes, path: str, commit: str) -> None:
        about = {"ETag": f'"{digest(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        begin, size = self.begin(), len(data)
        if begin:
            about["Content-Range"] = f"bytes {begin}-{size - 1}/{size}"
        self.send_response(206 if begin else 200)
        for header, value in (about | {"Content-Length": str(size - begin)}).items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            end = self.server.cut.pop(path, size)
            self.wfile.write(data[begin:end])
            self.close_connection = end < size

    def begin(self) -> int:
        """The first byte that is asked for."""
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def do_PUT(self) -> None:
        data = self.body()
        self.server.asked.append(f"PUT {self.path}")
        self.server.blobs[digest(data)] = data
        self.answer({})

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        parts, data = [unquote(part) for part in url.path.strip("/").split("/")], self.body()
        self.server.asked.append(f"POST {url.path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refuse(401, "Unauthorized")
        elif parts == ["api", "validate-yaml"]:
            self.answer({"errors": [], "warnings": []})
        elif parts == ["api", "repos", "create"]:
            self.create(json.loads(data))
        elif parts[-1] == "batch":
            self.answer({"objects": [self.place(each) for each in json.loads(data)["objects"]]})
        else:
            self.write("/".join(parts[2:4]), *parts[4:6], data)

    def create(self, asked: dict) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        there = name in self.server.repositories
        if not there:
            new = Repository(asked.get("visibility") == "private")
            new.commit("main", {".gitattributes": b""})
            self.server.repositories[name] = new
        self.answer({"url": f"{self.server.url}/{name}"}, 409 if there else 200)

    def place(self, asked: dict) -> dict:
        if asked["oid"] in self.server.blobs:
            return asked
        href = f"{self.server.url}/lfs/{asked['oid']}"
        return {**asked, "actions": {"upload": {"href": href}}}

    def write(self, name: str, what: str, branch: str, data: bytes) -> None:
        if (found := self.repository(name)) is None:
            return
        if what == "branch":
            there = branch in found.branches
            found.branches.setdefault(branch, found.branches["main"])
            self.answer({}, 409 if there else 200)
        elif what == "preupload":
            self.answer({"files": [self.mode(file) for file in json.loads(data)["files"]]})
        else:
            files = dict(found.files(branch))
            for line in data.splitlines():
                self.change(files, **json.loads(line))
            commit = found.commit(branch, files)
            self.answer({"commitUrl": f"{self.server.url}/{name}", "commitOid": commit})

    def mode(self, file: dict) -> dict:
        mode = "lfs" if file["size"] >= LARGE else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}

    def change(self, files: dict[str, bytes], key: str, value: dict) -> None:
        if key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            files[value["path"]] = self.server.blobs[value["oid"]]
        elif key == "deletedFile":
            del files[value["path"]]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Start a hub."""
    server = Hub()
    threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def use(url: str, cache: Path, monkeypatch) -> None:
    """Let the hub's library, which reads its environment when it is imported, use a server."""
    from huggingface_hub import constants

    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    forget()


def forget() -> None:
    """Forget what this process has found in a hub."""
    for function in (hub._bundle, hub.complete):
        function.cache_clear()
