"""What a hub answers: listings, headers and files, without a network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote

import huggingface_hub
from huggingface_hub import constants

from mistral_chat.models.pulling import Wish, pull

from ...mistral_chat.hub_server import COMMIT, git_sha1, sha256
from ..mutation import NUMBERS, changed_bytes, changed_value, odd_value, to_json
from ..target import Target, require
from ..tiny import paths_in, write_chat_gguf, write_chat_huggingface

REPOSITORY = "org/tiny"
ADDRESSES = (
    REPOSITORY, f"{REPOSITORY}@v1", f"{REPOSITORY}:m.gguf", f"{REPOSITORY}/folder/m.gguf",
    "https://huggingface.co/org/tiny/blob/main/m.gguf", "org/tiny:Q4",
)  # fmt: skip
LARGE = 2000
"""Bytes from which on a file is said to be kept by LFS."""
COMMITS: tuple[Any, ...] = (
    "..", "../../out", "../../../../../out", "/OUTSIDE/out", "", "a/b", "main", COMMIT[:7],
    "C" * 40, "\x00", 5, None, "x" * 300,
)  # fmt: skip
FILES = (
    "../out.json", "../../../../../../out/model.safetensors", "/OUTSIDE/out.json", "..", ".", "",
    "config.json/x", "x" * 300, "\x00", "\ud800", "folder/config.json", "CONFIG.JSON",
    "model-1-of-1.safetensors", "a\\b", "tokenizer.model.v9", "origin.json", "config.json",
)  # fmt: skip
STATUSES = (200, 204, 206, 301, 302, 400, 401, 403, 404, 416, 418, 429, 500, 503)
HEADERS = {
    "ETag": ('""', "x", "W/\"x\"", '"' + "0" * 64 + '"', ""),
    "Content-Length": ("0", "-1", "x", "1", "9" * 30, ""),
    "Content-Range": ("bytes 0-0/1", "x", "bytes */*", ""),
    "X-Repo-Commit": ("..", "", "x", "\xe9"),
    "X-Linked-Size": ("0", "-5", "x", "9" * 30),
    "X-Linked-Etag": ("", "x"),
    "Location": ("/", "..", "https://elsewhere.example/x", "http://[", "file:///etc/passwd", ""),
    "Content-Type": ("text/html", "application/json; charset=nonsense", ""),
    "Content-Encoding": ("gzip", "br", "nonsense"),
    "X-Error-Code": ("GatedRepo", "EntryNotFound", "RevisionNotFound", "x"),
    "X-Error-Message": ("", "x" * 5000, "[red]x"),
}  # fmt: skip


def listing(files: Mapping[str, bytes]) -> dict[str, Any]:
    """What the hub tells of a repository."""
    siblings = []
    for name, content in files.items():
        entry: dict[str, Any] = {
            "rfilename": name, "size": len(content), "blobId": git_sha1(content)
        }  # fmt: skip
        if len(content) > LARGE:
            entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
        siblings.append(entry)
    return {
        "id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": siblings, "tags": [],
        "private": False, "gated": False, "downloads": 1, "likes": 0, "pipeline_tag": None,
    }  # fmt: skip


def changed_listing(random: Random, told: dict[str, Any]) -> Any:
    """A listing with other names, sizes, digests or commits."""
    told = copy.deepcopy(told)
    entry, kind = random.choice(told["siblings"]), random.randrange(9)
    if kind == 0:
        told["sha"] = random.choice(COMMITS)
    elif kind == 1:
        entry["rfilename"] = random.choice(FILES)
    elif kind == 2:
        told["siblings"].append({**entry, "rfilename": random.choice(FILES)})
    elif kind == 3:
        entry["size"] = random.choice((*NUMBERS, None, "5", 1.5))
    elif kind == 4:
        entry["blobId"] = random.choice((None, "", "x", "0" * 40, 5, "../" * 9))
    elif kind == 5:
        lfs = entry.get("lfs") or {"sha256": "0" * 64, "size": 1, "pointerSize": 1}
        entry["lfs"] = {**lfs, random.choice(list(lfs)): odd_value(random)}
    elif kind == 6:
        told["siblings"] = random.choice((None, [], {}, [None], [[]], told["siblings"] * 2))
    else:
        return changed_value(random, told)
    return told


class Hub(Target):
    """A model is pulled from a hub that errs or lies; nothing is written elsewhere."""

    name = "hub"
    short = 80
    system_errors = ()

    def make(self) -> None:
        folder = write_chat_huggingface(self.folder / "model", shards=2)
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        gguf = write_chat_gguf(self.folder / "m.gguf").read_bytes()
        self.files |= {"m.gguf": gguf, "folder/m.gguf": gguf, "README.md": b"A model."}

    def start(self) -> None:
        # The library's own HTTP library, whichever it is.
        error = huggingface_hub.errors.HTTPError  # type: ignore[attr-defined]
        self.http: Any = __import__(error.__module__.partition(".")[0])
        constants.HF_HUB_CACHE = str(self.folder / "hub")

    def case(self, random: Random, scratch: Path) -> None:
        home = scratch / "a" / "b" / "home"
        paths = paths_in(home)
        transport = self.http.MockTransport(self._answers(random, scratch))

        def client() -> Any:
            return self.http.Client(transport=transport, follow_redirects=True)

        huggingface_hub.set_client_factory(client)
        force = random.random() < 0.2
        try:
            with patch("time.sleep"):  # which is between one try and the next
                pulled = pull(
                    random.choice(ADDRESSES), Wish(force=force), paths, lambda *told: None
                )
            place = Path(pulled.path).resolve()
            require(place.is_relative_to(paths.models.resolve()), f"it lies at {place}")
        finally:
            huggingface_hub.close_session()
            files = [path for path in scratch.rglob("*") if path.is_file()]
            allowed = (paths.models, paths.data / "pulls")
            outside = [file for file in files if not any(map(file.is_relative_to, allowed))]
            require(not outside, f"{outside[:1]} was written")

    def _answers(self, random: Random, outside: Path) -> Callable[[Any], Any]:
        """What answers requests; of all but the first kind it may get something wrong."""
        told: Any = listing(self.files)
        if random.random() < 0.7:
            told = changed_listing(random, told)
        record = to_json(told, random).replace(b"/OUTSIDE", str(outside).encode())
        faulty = random.random() < 0.5

        def answer(request: Any) -> Any:
            path = unquote(request.url.path)
            if path.startswith("/api/"):
                status, body = 200, record
                headers = {"Content-Type": "application/json"}
            else:
                status, headers, body = self._file(path, request)
            if faulty and random.random() < 0.3:
                status = random.choice((status, status, *STATUSES))
                name = random.choice(list(HEADERS))
                headers[name] = random.choice(HEADERS[name])
                if random.random() < 0.4:
                    body = changed_bytes(random, body)
            if request.method == "HEAD":
                return self.http.Response(status, headers=headers, request=request)
            if "Content-Length" in headers and headers["Content-Length"] != str(len(body)):
                stream = iter([body])
                return self.http.Response(status, headers=headers, content=stream)
            return self.http.Response(status, headers=headers, content=body)

        return answer

    def _file(self, path: str, request: Any) -> tuple[int, dict[str, str], bytes]:
        name = path.partition("/resolve/")[2].partition("/")[2]
        content = self.files.get(name)
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        digest = sha256(content) if len(content) > LARGE else git_sha1(content)
        span = request.headers.get("Range")
        start = int(span.removeprefix("bytes=").split("-")[0]) if span else 0
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        headers["Content-Length"] = str(len(content) - start)
        if span:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return 206 if span else 200, headers, content[start:]


TARGET = Hub
