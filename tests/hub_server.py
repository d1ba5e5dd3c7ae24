"""A server on 127.0.0.1 that speaks as much of the Hub's protocol as pushes and downloads need."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_for_tests_only"
LARGE = (".safetensors", ".bin", ".parquet", ".png")  # what goes by Git LFS; the Hub decides by its .gitattributes


class Hub(ThreadingHTTPServer):
    """
    repos: {"models/user/name": [commit, ...]}, newest last; a commit is `{"oid", "title", "files": {path: content}}`.
    objects: {SHA-256: content} of Git LFS.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.objects, self.lock = {}, {}, threading.Lock()
        self.private = set()
        self.requests = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, name: str, revision: str) -> dict | None:
        commits = self.repos.get(name, [])
        return (
            commits[-1] if revision == "main" and commits else next((c for c in commits if c["oid"] == revision), None)
        )


@contextlib.contextmanager
def serve():
    """A `Hub` while the block runs."""
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield hub
        hub.shutdown()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def do_GET(self):  # noqa: N802
        self._route()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _route(self):
        path, body = unquote(urlsplit(self.path).path), self._body()
        self.server.requests.append(f"{self.command} {path}")
        if self.command in ("POST", "PUT") and not path.startswith(("/objects", "/api/validate-yaml")):
            if self.headers.get("Authorization") not in (f"Bearer {TOKEN}", None) and "git/info" not in path:
                return self._say(401, {"error": "Invalid credentials"})
            if self.headers.get("Authorization") is None and "paths-info" not in path:
                return self._say(401, {"error": "Unauthorized"})
        for pattern, method in ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                with self.server.lock:
                    return getattr(self, method)(body, **found.groupdict())
        self._say(404, {"error": f"Not in this test double: {self.command} {path}"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _say(self, status: int, content, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def whoami(self, body):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._say(401, {"error": "Invalid username or password."})
        self._say(
            200, {"type": "user", "name": "user", "fullname": "user", "orgs": [], "auth": {"type": "access_token"}}
        )

    def create(self, body):
        wanted = json.loads(body)
        kind = wanted.get("type") or "model"
        repo_id = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
        name = f"{kind}s/{repo_id}"
        if wanted.get("organization") not in ("user", None):
            return self._say(403, {"error": "You don't have the rights to create a repository there."})
        url = f"{self.server.url}/{repo_id if kind == 'model' else name}"
        if name in self.server.repos:
            return self._say(409, {"error": "You already created this repository", "url": url})
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.server.private.add(name)
        first = {"oid": hashlib.sha1(name.encode()).hexdigest(), "title": "initial commit", "files": {}}
        self.server.repos[name] = [{**first, "files": {".gitattributes": b"*.safetensors filter=lfs\n"}}]
        self._say(200, {"url": url, "name": repo_id})

    def validate(self, body):
        self._say(200, {"errors": [], "warnings": []})

    def preupload(self, body, name, revision):
        if self.server.commit(name, revision) is None:
            return self._missing(name)
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular", "shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]
        self._say(200, {"files": files})

    def batch(self, body, name):
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.server.url}/objects/{o['oid']}", "header": {}}}}
            for o in json.loads(body)["objects"]
        ]
        self._say(200, {"transfer": "basic", "objects": objects})

    def put_object(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return self._say(422, {"error": "another content than announced"})
        self.server.objects[oid] = body
        self._say(200, {})

    def push(self, body, name, revision):
        current = self.server.commit(name, revision)
        if current is None:
            return self._missing(name)
        files, title = dict(current["files"]), ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
        oid = hashlib.sha1(f"{name} {len(self.server.repos[name])} {body!r}".encode()).hexdigest()
        self.server.repos[name].append({"oid": oid, "title": title, "files": files})
        url = f"{self.server.url}/{name.removeprefix('models/')}/commit/{oid}"
        self._say(200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def info(self, body, name, revision=None):
        commit = self.server.commit(name, revision or "main")
        if commit is None:
            return self._missing(name, is_revision=name in self.server.repos)
        self._say(200, {
            "id": name.split("/", 1)[1], "sha": commit["oid"], "private": name in self.server.private, "tags": [],
            "pipeline_tag": "audio-classification", "downloads": 0,
            "siblings": [{"rfilename": path} for path in commit["files"]],
        })  # fmt: skip

    def tree(self, body, name, revision, folder=""):
        commit = self.server.commit(name, revision)
        is_recursive = "true" in str(parse_qs(urlsplit(self.path).query).get("recursive")).lower()
        prefix = f"{folder}/" if folder else ""
        inside = [path for path in (commit or {"files": {}})["files"] if path.startswith(prefix)]
        if commit is None or not inside:
            return self._missing(name, is_entry=commit is not None)
        files = [path for path in inside if is_recursive or "/" not in path.removeprefix(prefix)]
        folders = {prefix + path.removeprefix(prefix).split("/")[0] for path in inside} - set(files)
        entries = [{"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders)]
        self._say(200, entries + [self._entry(commit, path) for path in files])

    def paths_info(self, body, name, revision):
        commit = self.server.commit(name, revision)
        if commit is None:
            return self._missing(name)
        form = json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())
        self._say(200, [self._entry(commit, path) for path in form.get("paths", []) if path in commit["files"]])

    def _entry(self, commit, path) -> dict:
        content = commit["files"][path]
        entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return {**entry, "lfs": lfs} if path.endswith(LARGE) else entry

    def resolve(self, body, name, revision, path):
        name = name if name.startswith("datasets/") else f"models/{name}"
        commit = self.server.commit(name, revision)
        if commit is None:
            return self._missing(name, is_revision=name in self.server.repos)
        if path not in commit["files"]:
            return self._missing(name, is_entry=True)
        content = commit["files"][path]
        digest = hashlib.sha256(content) if path.endswith(LARGE) else hashlib.sha1(content)
        headers = {"X_Repo_Commit": commit["oid"], "ETag": f'"{digest.hexdigest()}"'}
        first = int(re.match(r"bytes=(\d+)", self.headers.get("Range", "bytes=0"))[1])
        if first:
            headers["Content_Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self._say(206 if first else 200, content[first:], **headers)

    def _missing(self, name, *, is_entry=False, is_revision=False):
        code = "EntryNotFound" if is_entry else "RevisionNotFound" if is_revision else "RepoNotFound"
        self._say(404, {"error": f"{code}: {name}"}, X_Error_Code=code, X_Error_Message=code)


REPO = r"(?P<name>(models|datasets)/[^/]+/[^/]+)"
ROUTES = [
    (r"GET /api/whoami-v2", "whoami"),
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"POST /api/{REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
    (r"POST /(?P<name>.+)\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /objects/(?P<oid>\w+)", "put_object"),
    (rf"POST /api/{REPO}/commit/(?P<revision>[^/]+)", "push"),
    (rf"GET /api/{REPO}", "info"),
    (rf"GET /api/{REPO}/revision/(?P<revision>[^/]+)", "info"),
    (rf"GET /api/{REPO}/tree/(?P<revision>[^/]+)", "tree"),
    (rf"GET /api/{REPO}/tree/(?P<revision>[^/]+)/(?P<folder>.+)", "tree"),
    (rf"POST /api/{REPO}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    (r"(GET|HEAD) /(?P<name>(datasets/)?[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]  # fmt: skip
