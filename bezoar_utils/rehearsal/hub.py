"""A hub on 127.0.0.1: the few routes that huggingface_hub and datasets use, over a folder of stand-in files.

The study's own download code runs against it unchanged: listings, pinned revisions, ranges, hashes. A revision that is not
the pinned one is refused, as the real hub would.
"""

import hashlib
import json
import re
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ..study import files

REPOSITORY = r"(?:(models|datasets)/)?([\w.-]+/[\w.-]+)"
INFORMATION = re.compile(rf"/api/{REPOSITORY}(?:/revision/([^/]+))?")
TREE = re.compile(rf"/api/{REPOSITORY}/(tree|paths-info)/([^/]+)(?:/(.*))?")
FILE = re.compile(rf"/{REPOSITORY}/resolve/([^/]+)/(.+)")


class Repositories:
    """Folders `<root>/<models or datasets>/<owner>/<name>`, each at one revision of 40 hex digits, which is its main too."""

    def __init__(self, root: Path):
        self.root, self.revisions = root, {}

    def add(self, kind: str, name: str, revision: str) -> Path:
        """The folder to put a repository's files into."""
        self.revisions[kind, name] = revision
        folder = self.root / kind / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def find(self, kind: str | None, name: str, revision: str | None) -> tuple[Path, str]:
        """(folder, its revision). Raises LookupError with the hub's own word for what is missing."""
        kind = kind or "models"
        if (kind, name) not in self.revisions:
            raise LookupError("RepoNotFound")
        if revision not in (None, "main", self.revisions[kind, name]):
            raise LookupError("RevisionNotFound")
        return self.root / kind / name, self.revisions[kind, name]


def entries(folder: Path, within: str = "", paths: list[str] | None = None) -> list[dict]:
    """What the hub tells of a repository's files and folders: type, path, size and hashes."""
    found = [p for p in sorted(folder.rglob("*")) if str(p.relative_to(folder)).startswith(within)]
    if paths is not None:
        found = [p for p in found if str(p.relative_to(folder)) in paths]
    return [_entry(p, folder) for p in found]


def _entry(path: Path, folder: Path) -> dict:
    name = str(path.relative_to(folder))
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    size, digest = path.stat().st_size, files.sha256_file(path)
    return {
        "type": "file",
        "path": name,
        "oid": digest[:40],
        "size": size,
        "lfs": {"oid": digest, "size": size, "pointerSize": 134},
    }


def handler_for(repositories: Repositories) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self):
            self.answer(urllib.parse.unquote(self.path.partition("?")[0]))

        do_HEAD = do_POST = do_GET

        def answer(self, path: str) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                if match := TREE.fullmatch(path):
                    kind, name, what, revision, within = match.groups()
                    folder, _ = repositories.find(kind, name, revision)
                    self.tell(entries(folder, within or "", _asked_paths(sent) if what == "paths-info" else None))
                elif match := INFORMATION.fullmatch(path):
                    folder, sha = repositories.find(*match.groups())
                    siblings = [{"rfilename": e["path"]} for e in entries(folder) if e["type"] == "file"]
                    self.tell({"id": match[2], "sha": sha, "siblings": siblings, "private": False, "gated": False, "tags": []})
                elif match := FILE.fullmatch(path):
                    *repository, name = match.groups()
                    self.send_file(*repositories.find(*repository), name)
                else:
                    raise LookupError("EntryNotFound")
            except LookupError as missing:
                self.send_response(404)
                self.finish_headers({"X-Error-Code": str(missing.args[0]), "X-Error-Message": f"{missing.args[0]}: {path}"}, b"")

        def send_file(self, folder: Path, revision: str, name: str) -> None:
            path = (folder / name).resolve()
            if not (path.is_file() and path.is_relative_to(folder.resolve())):
                raise LookupError("EntryNotFound")
            data = path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            headers = {
                "ETag": f'"{digest}"',
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(data)),
                "X-Repo-Commit": revision,
            }
            if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
                headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
                self.send_response(206)
                self.finish_headers(headers, data[first : last + 1])
            else:
                self.send_response(200)
                self.finish_headers(headers, data)

        def tell(self, what) -> None:
            self.send_response(200)
            self.finish_headers({"Content-Type": "application/json"}, json.dumps(what).encode())

        def finish_headers(self, headers: dict[str, str], data: bytes) -> None:
            for name, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *_):
            pass

    return Handler


def _asked_paths(sent: bytes) -> list[str]:
    """The paths of a paths-info request, which comes as JSON or as a form."""
    text = sent.decode()
    asked = json.loads(text)["paths"] if text.startswith("{") else urllib.parse.parse_qs(text).get("paths", [])
    return [asked] if isinstance(asked, str) else asked


def open_hub(repositories: Repositories) -> ThreadingHTTPServer:
    return ThreadingHTTPServer(("127.0.0.1", 0), handler_for(repositories))
