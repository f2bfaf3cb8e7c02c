"""The Hugging Face hub on the loopback address: as much of its API as huggingface_hub and LeRobot use.

Data sets are published by a test, or by a client: repository, preupload, LFS batch, objects, commit, tag. Xet, the
hub's own storage, is not spoken, so clients need HF_HUB_DISABLE_XET for `lfs` files; with `has_lfs=False` all files are
in the commits, as the hub has small ones.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from loopback import Answer, Server, file, status

NAME, TOKEN = "lerobot/pusht", "hf_secret"
LICENCES = ("mit", "cc-by-4.0")
COMMIT = re.compile(r"/api/datasets/([^/]+/[^/]+)/(preupload|commit|tag)/([^/]+)")
LARGE = 1000  # bytes of a file that is stored by LFS


def answered(content: Any, code: int = 200, **headers: str) -> Answer:
    return status(code, json.dumps(content).encode(), **headers)


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def online(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let huggingface_hub use a network that holds nothing, and a cache of its own."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "hub"))
    endpoint(monkeypatch, "http://127.0.0.1:1")  # nothing listens there
    monkeypatch.setenv("NO_PROXY", "*")


def endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """As HF_ENDPOINT, which huggingface_hub reads when it is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


class Hub(Server):
    """A server whose `answers` come before what it knows, so that a test can break a request.

    Attributes:
        files: by data set, its files at the newest commit.
        tags: by data set, the commit of each tag.
        private: the data sets that are.
        objects: what LFS holds, by SHA-256.
        commits: (data set, summary, paths added, paths deleted).
    """

    def __init__(self, *, has_lfs: bool = True) -> None:
        super().__init__()
        self.has_lfs = has_lfs
        self.files: dict[str, dict[str, bytes]] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.private: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.commits: list[tuple[str, str, set[str], set[str]]] = []

    def publish(self, files: Mapping[str, bytes], commit: str, name: str = NAME, **changed: Any) -> None:
        """Put a data set on the hub as the newest commit; `changed` sends other bytes than the hub says it has."""
        self.files[name] = dict(files)
        for place in [place for place in self.answers if place.startswith(f"/datasets/{name}/resolve/main/")]:
            del self.answers[place]
        tree = []
        for path, content in files.items():
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
            sha256 = hashlib.sha256(content).hexdigest()
            if len(content) >= LARGE:
                entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
            tree.append(entry)
            sent = changed.get("sent", {}).get(path, content)
            etag = f'"{sha256 if "lfs" in entry else entry["oid"]}"'
            for revision in (commit, "main"):
                answer = file(sent, etag=etag, extra={"X-Repo-Commit": commit})
                self.answers[f"/datasets/{name}/resolve/{revision}/{path}"] = [answer]
        folders = [{"type": "directory", "path": "data", "oid": "0" * 40}]
        siblings = [{"rfilename": path} for path in files]
        is_private = name in self.private
        info = answered({"id": name, "sha": commit, "siblings": siblings, "tags": [], "private": is_private})
        for place in (f"/api/datasets/{name}", *(f"/api/datasets/{name}/revision/{at}" for at in (commit, "main"))):
            self.answers[place] = [info]
        for revision in (commit, "main"):
            self.answers[f"/api/datasets/{name}/tree/{revision}"] = [answered(folders + tree)]

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        if path in self.answers:
            return super().answer(method, path, body)
        # These two need no token: addresses of objects are signed.
        if method == "PUT" and (found := re.fullmatch("/objects/([0-9a-f]{64})", path)):
            assert hashlib.sha256(body).hexdigest() == found[1]
            self.objects[found[1]] = body
            return status(200)
        if path == "/api/validate-yaml":
            licence = re.search(r"^license: (.*)$", json.loads(body)["content"].split("\n---\n")[0], re.MULTILINE)
            is_wrong = licence is not None and licence[1] not in LICENCES
            errors = [{"message": f'"license" must be one of {LICENCES}'}] if is_wrong else []
            return answered({"errors": errors, "warnings": []}, 400 if is_wrong else 200)
        if self.requests[-1][2].get("Authorization", self.requests[-1][2].get("authorization")) != f"Bearer {TOKEN}":
            return answered({"error": "Invalid credentials in Authorization header"}, 401)
        if found := COMMIT.fullmatch(path):
            return self._changed(method, found[1], found[2], found[3], body)
        known = json.loads(body) if body else {}
        if path == "/api/whoami-v2":
            return answered({"type": "user", "name": "me", "orgs": []})
        if path == "/api/repos/create":
            return self._created(f"{known.get('organization') or 'me'}/{known['name']}", known)
        if found := re.fullmatch(r"/datasets/(.*)\.git/info/lfs/objects/batch", path):
            return answered({"transfer": "basic", "objects": [self._object(each) for each in known["objects"]]})
        if found := re.fullmatch(r"/api/datasets/(.*)/refs", path):
            tags = [
                {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": to} for tag, to in self.tags[found[1]].items()
            ]
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": self.commit}
            return answered({"branches": [main], "converts": [], "tags": tags})
        is_there = any(f"/datasets/{name}/" in path for name in self.files)
        return status(404, X_Error_Code="EntryNotFound" if is_there else "RepoNotFound")

    @property
    def commit(self) -> str:
        """The newest one of all data sets."""
        return f"{len(self.commits):040x}"

    def _created(self, name: str, known: Mapping[str, Any]) -> Answer:
        address = {"url": f"{self.url}/datasets/{name}", "name": name, "id": "0"}
        if not name.startswith("me/"):
            return answered({"error": f"You don't have the rights to create a dataset under {name}"}, 403)
        if name in self.files:
            return answered(address | {"error": "You already created this dataset repo"}, 409)
        if known.get("private") or known.get("visibility") == "private":
            self.private.add(name)
        self.tags[name] = {}
        self.publish({".gitattributes": b""}, self.commit, name)
        return answered(address)

    def _object(self, known: Mapping[str, Any]) -> dict[str, Any]:
        upload = {"upload": {"href": f"{self.url}/objects/{known['oid']}", "header": {}}}
        return dict(known) | ({} if known["oid"] in self.objects else {"actions": upload})

    def _changed(self, method: str, name: str, what: str, at: str, body: bytes) -> Answer:
        held = self.files[name]
        if what == "tag" and method == "DELETE":
            has = self.tags[name].pop(at, None)
            return status(200) if has else status(404, X_Error_Code="RevisionNotFound")
        if what == "tag":
            tag = json.loads(body)["tag"]
            self.tags[name][tag] = self.commit
            self.answers[f"/api/datasets/{name}/revision/{tag}"] = self.answers[f"/api/datasets/{name}/revision/main"]
            return status(200)
        if what == "preupload":
            asked = json.loads(body)["files"]
            modes = ["lfs" if self.has_lfs and each["size"] >= LARGE else "regular" for each in asked]
            known = [self.oid(held.get(each["path"]), mode) for each, mode in zip(asked, modes, strict=True)]
            return answered(
                {
                    "files": [
                        {"path": each["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
                        for each, mode, oid in zip(asked, modes, known, strict=True)
                    ]
                }
            )
        lines = [json.loads(line) for line in body.splitlines()]
        added, deleted = dict[str, bytes](), set[str]()
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                added[value["path"]] = self.objects[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                deleted.add(value["path"])
        self.commits.append((name, lines[0]["value"]["summary"], set(added), deleted))
        self.publish({path: x for path, x in held.items() if path not in deleted} | added, self.commit, name)
        return answered(
            {"success": True, "commitUrl": f"{self.url}/datasets/{name}/commit/{self.commit}", "commitOid": self.commit}
        )

    @staticmethod
    def oid(content: bytes | None, mode: str) -> str | None:
        if content is None:
            return None
        return hashlib.sha256(content).hexdigest() if mode == "lfs" else git_oid(content)
