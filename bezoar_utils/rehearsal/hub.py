"""A hub on 127.0.0.1: the few routes that huggingface_hub and datasets use, over a folder of stand-in files.

The study's own download code runs against it unchanged: listings, pinned revisions, ranges, hashes. A revision that is not
the pinned one is refused, as the real hub would.
"""

import hashlib
import json
import re
import urllib.parse
from pathlib import Path

from ..calls.local_server import Handler
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
    names = [(p, str(p.relative_to(folder))) for p in sorted(folder.rglob("*"))]
    return [_entry(p, folder) for p, name in names if name.startswith(within) and (paths is None or name in paths)]


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


def handler_for(repositories: Repositories) -> type[Handler]:
    """A server's handler that answers as the hub does for these repositories."""
    return type("HubHandler", (HubHandler,), {"repositories": repositories})


class HubHandler(Handler):
    repositories: Repositories

    def do_GET(self):
        path, sent = urllib.parse.unquote(self.path.partition("?")[0]), self.received()
        try:
            if match := TREE.fullmatch(path):
                self.send_entries(*match.groups(), sent)
            elif match := INFORMATION.fullmatch(path):
                self.send_information(*match.groups())
            elif match := FILE.fullmatch(path):
                *repository, name = match.groups()
                self.send_file(*self.repositories.find(*repository), name)
            else:
                raise LookupError("EntryNotFound")
        except LookupError as missing:
            word = missing.args[0]
            self.tell(404, headers={"X-Error-Code": word, "X-Error-Message": f"{word}: {path}"})

    do_HEAD = do_POST = do_GET

    def send_entries(self, kind, name: str, route: str, revision: str, within, sent: bytes) -> None:
        folder, _ = self.repositories.find(kind, name, revision)
        self.tell(200, entries(folder, within or "", _requested_paths(sent) if route == "paths-info" else None))

    def send_information(self, kind, name: str, revision) -> None:
        folder, sha = self.repositories.find(kind, name, revision)
        siblings = [{"rfilename": e["path"]} for e in entries(folder) if e["type"] == "file"]
        self.tell(200, {"id": name, "sha": sha, "siblings": siblings, "private": False, "gated": False, "tags": []})

    def send_file(self, folder: Path, revision: str, name: str) -> None:
        path = (folder / name).resolve()
        if not (path.is_file() and path.is_relative_to(folder.resolve())):
            raise LookupError("EntryNotFound")
        self.send_data(path.read_bytes(), revision)

    def send_data(self, data: bytes, revision: str) -> None:
        """A file at its revision, or the range of it that the request names."""
        digest = hashlib.sha256(data).hexdigest()
        headers = {"ETag": f'"{digest}"', "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
        headers |= {"X-Repo-Commit": revision}
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
            self.tell(206, data[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"})
        else:
            self.tell(200, data, headers)


def _requested_paths(sent: bytes) -> list[str]:
    """The paths of a paths-info request, which comes as JSON or as a form."""
    text = sent.decode()
    paths = json.loads(text)["paths"] if text.startswith("{") else urllib.parse.parse_qs(text).get("paths", [])
    return [paths] if isinstance(paths, str) else paths
