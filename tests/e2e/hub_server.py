#!/usr/bin/env python3
"""An imitation of a model hub for test_hub.c, on 127.0.0.1, with the standard library alone.

usage: tests/e2e/hub_server.py FOLDER

Serves three ports: the hub, a CDN where it sends large files, and the hub once more over TLS (certificate hub_server.pem).
Writes "HUB CDN TLS" to FOLDER/ports when it listens, and a JSON line for each request to FOLDER/log when it is answered.
Ends when its standard input does.

The name of a repository says how it behaves: org/BEHAVIOUR-anything. Its main branch is the commit sha1("org/...:main");
GET /_move/org/NAME moves it on, so that only config.json changes. What each behaviour does stands where it is looked for: behaviour_of.
"""
import functools
import hashlib
import http.server
import json
import os
import random
import socket
import ssl
import struct
import sys
import threading
import time
import urllib.parse

MIB = 1 << 20
TOKEN = "hf_secret"
SIZES = {  # of weights, where several pieces matter
    "plain": 20 * MIB + 123, "norange": 20 * MIB + 123, "fickle": 20 * MIB, "wrongrange": 9 * MIB, "big": 48 * MIB,
    "duo": 24 * MIB,
}
HERE = os.path.dirname(os.path.abspath(__file__))
DEMO = os.path.join(HERE, "..", "..", "demo")

lock = threading.Lock()
counts = {}  # (what, key) -> how often
moved = {}  # repository -> how often its branch has moved
blobs = {}  # sha256 -> bytes
ports = {}
log_file = None


def count(what, key):
    """How often this happened before."""
    with lock:
        counts[what, key] = counts.get((what, key), 0) + 1
        return counts[what, key] - 1


def made_up(name, size):
    return random.Random(name).randbytes(size)


def git_hash(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def commit_of(repo):
    return hashlib.sha1(f"{repo}:main{moved.get(repo, 0) or ''}".encode()).hexdigest()


def behaviour_of(repo):
    return repo.split("/")[1].split("-")[0]


# ---- repositories ----


@functools.lru_cache(maxsize=None)
def files_of(repo, commit):
    """{name: (bytes, is_lfs)}; weights are made of the name, so that no two repositories share them."""
    kind = behaviour_of(repo)
    if kind == "demo":
        names = sorted(os.listdir(DEMO))
        data = {name: open(os.path.join(DEMO, name), "rb").read() for name in names}
        return {name: (data[name], name.endswith(".safetensors")) for name in names}
    text = {
        "config.json": json.dumps({"repo": repo, "commit": commit}).encode(),
        "generation_config.json": b"{}",
        "tokenizer.json": made_up(repo + "tokenizer", 5000),
        "tokenizer_config.json": b"",
        "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
        "additional_chat_templates/deep/no.jinja": b"no",
        "README.md": b"# not wanted",
        "pytorch_model.bin": b"not wanted",
    }
    files = {name: (data, name == "tokenizer.json") for name, data in text.items()}
    size = SIZES.get(kind, 300000)
    if kind in ("sharded", "evilindex", "lackingindex"):
        shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
        for i, name in enumerate(shards):
            files[name] = (made_up(repo + name, [9 * MIB, 100, 0][i]), True)
        weight_map = {f"tensor{i}": shards[i % 3] for i in range(9)}
        if kind == "evilindex":
            weight_map["tensor1"] = "../../evil.safetensors"
        if kind == "lackingindex":
            weight_map["tensor1"] = "model-00004-of-00003.safetensors"
        files["model.safetensors.index.json"] = (json.dumps({"weight_map": weight_map}).encode(), False)
        files["model-00009-of-00009.safetensors"] = (b"not wanted", True)
    elif kind != "noweights":
        files["model.safetensors"] = (made_up(repo, size), True)
    if kind == "noconfig":
        del files["config.json"]
    return files


@functools.lru_cache(maxsize=None)
def hashes_of(repo, commit, name):
    """(SHA-256, git's hash) of a file."""
    data = files_of(repo, commit)[name][0]
    return hashlib.sha256(data).hexdigest(), git_hash(data)


def listing(repo, commit):
    kind = behaviour_of(repo)
    siblings = []
    for name, (data, is_lfs) in files_of(repo, commit).items():
        sha256, git = hashes_of(repo, commit, name)
        entry = {"rfilename": name, "size": len(data), "blobId": git}
        if is_lfs:
            entry["blobId"] = git_hash(b"pointer to " + sha256.encode())
            entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
        if kind == "nometa":
            entry = {"rfilename": name}
        if name == "model.safetensors" and kind in ("liar", "liarmore", "huge"):
            size = {"liar": len(data) - 1000, "liarmore": len(data) + 1000, "huge": 1 << 45}[kind]
            entry["size"] = entry["lfs"]["size"] = size
        siblings.append(entry)
    if kind == "evilname":
        names = ("../evil", "/tmp/lockstep-evil", "additional_chat_templates/../../evil.jinja", "a/../b")
        siblings += [{"rfilename": name, "size": 4, "blobId": git_hash(b"evil")} for name in names]
    if kind == "evilhash":
        siblings[0]["blobId"] = "../../evil"
    sha = {"evilcommit": "../../../evil", "othercommit": "f" * 40}.get(kind, commit)
    # What else there is holds numbers beyond 64 bits.
    return {"id": repo, "sha": sha, "siblings": siblings, "config": {"model_max_length": 10**30}}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def log(self, **what):
        with lock:
            entry = {"server": self.server.name, "method": self.command, "path": self.path,
                     "token": self.headers.get("Authorization", ""), **what}
            log_file.write(json.dumps(entry) + "\n")
            log_file.flush()

    def head(self, status, headers=(), length=0):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, str(value))
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def refuse(self, status, code=None, message=None, **headers):
        self.log(status=status)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if code:
            headers["X-Error-Code"] = code
        if message:
            headers["X-Error-Message"] = message
        self.head(status, headers)

    def do_GET(self):
        try:
            path = urllib.parse.urlsplit(self.path).path
            parts = [urllib.parse.unquote(part) for part in path.split("/")[1:]]
            if self.server.name == "cdn":
                self.serve_blob(parts)
            elif parts[0] == "_move":
                moved["/".join(parts[1:])] = 1
                self.head(200)
            elif parts[:2] == ["api", "models"] and parts[4:5] == ["revision"]:
                self.serve_listing("/".join(parts[2:4]), parts[5])
            elif len(parts) >= 5 and parts[2] == "resolve":
                self.serve_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            else:
                self.refuse(200 if path == "/" else 404)
        except (ConnectionError, ssl.SSLError):
            self.close_connection = True

    do_HEAD = do_GET

    def allowed(self, repo, key):
        """False if it has refused."""
        kind = behaviour_of(repo)
        if kind == "private" and self.headers.get("Authorization") != "Bearer " + TOKEN:
            known = "Authorization" in self.headers
            self.refuse(401, *(() if known else ("RepoNotFound", "Repository not found")),
                        **({"X_Error_Message": "Invalid credentials in Authorization header"} if known else {}))
        elif kind == "gated":
            self.refuse(403, "GatedRepo", "Access to this model is restricted")
        elif kind == "absent":
            self.refuse(404, "RepoNotFound", "Repository not found")
        elif kind == "busy" and count("busy", key) == 0:
            self.refuse(429, Retry_After=1)
        elif kind == "alwaysbusy":
            self.refuse(429)
        elif kind == "flaky" and count("flaky", key) < 2:
            self.refuse(503)
        elif kind == "broken":
            self.refuse(500, None, "it \x1b[31mhurts")
        else:
            return True
        return False

    def serve_listing(self, repo, revision):
        commit = commit_of(repo)
        known = revision in ("main", "refs/pr/1", commit)
        if behaviour_of(repo) == "renamed" and not repo.endswith("-new"):
            self.refuse(307, Location=f"/api/models/{repo}-new/revision/{revision}?blobs=true")
        elif behaviour_of(repo) == "loop":
            self.refuse(302, Location=self.path)
        elif behaviour_of(repo) == "downgrade":
            self.refuse(302, Location=f"http://127.0.0.1:{ports['hub']}{self.path}")
        elif behaviour_of(repo) == "scheme":
            self.refuse(302, Location="file:///etc/passwd")
        elif self.allowed(repo, self.path):
            if not known:
                self.refuse(404, "RevisionNotFound", "Invalid rev id")
                return
            body = json.dumps(listing(repo, commit)).encode()
            if behaviour_of(repo) == "garbage":
                body = b"<html>please log in to the hotel's network</html>"
            self.log(status=200)
            self.head(200, {"Content-Type": "application/json"}, len(body))
            self.wfile.write(body)

    def serve_file(self, repo, commit, name):
        kind = behaviour_of(repo)
        commit = commit_of(repo) if commit == "main" else commit
        files = files_of(repo, commit)
        if kind == "renamed" and not repo.endswith("-new"):
            self.refuse(307, Location=f"/{repo}-new/resolve/{commit}/{name}")
            return
        if not self.allowed(repo, self.path):
            return
        if name not in files or (kind == "lost" and name == "model.safetensors"):
            self.refuse(404, "EntryNotFound", "Entry not found")
            return
        data, is_lfs = files[name]
        sha256, git = hashes_of(repo, commit, name)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git}"'}
        if is_lfs:
            headers |= {"X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": len(data), "ETag": '"not-this-one"'}
            with lock:
                blobs[sha256] = data
            if kind != "direct":
                n = count("signed", self.path)
                self.log(status=302)
                self.head(302, headers | {"Location": f"http://127.0.0.1:{ports['cdn']}/{repo}/{sha256}?signature={n}"})
                return
        self.send(data, kind, headers, self.path)

    def serve_blob(self, parts):
        repo, sha256 = "/".join(parts[:2]), parts[2]
        kind = behaviour_of(repo)
        data = blobs[sha256]
        if kind == "expires" and len(data) > 5000 and count("expires", self.path) > 0:
            self.refuse(403)
            return
        self.send(data, kind, {"ETag": '"cdn-thing"'}, f"{repo}/{sha256}")

    def send(self, data, kind, headers, key):
        """The bytes, or what the behaviour makes of them. The log says from where and how many were sent."""
        first, last, status = 0, len(data) - 1, 200
        kind = kind if len(data) > 5000 else "small"  # only weights are sent in strange ways
        wanted = self.headers.get("Range")
        fickle = kind == "fickle" and count("fickle", key) > 0
        if wanted and not fickle and kind not in ("norange", "wholetruncated"):
            a, b = wanted.removeprefix("bytes=").split("-")
            first, last = int(a), min(int(b or last), last)
            if first > last:
                self.refuse(416)
                return
            status = 206
            headers = headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
            if kind == "wrongrange":
                headers["Content-Range"] = f"bytes {first + 1}-{last + 1}/{len(data) + 9}"
        body = data[first:last + 1]
        n = count("sent", key)
        if kind == "corrupt" and n == 0 or kind == "alwayscorrupt":
            body = body[:10] + bytes([body[10] ^ 1]) + body[11:]
        sent, cut = 0, None
        breaks = {"truncated": 2, "reset": 2, "wholetruncated": 2, "slow": 1, "alwaystruncated": 1000}  # times
        if n < breaks.get(kind, 0):
            cut = 0 if kind == "alwaystruncated" else len(body) // 2
        self.head(status, headers, len(body))
        if self.command == "HEAD":
            self.log(status=status)
            return
        try:
            while sent < len(body) and sent != cut:
                n_chunk = min(64 * 1024, (cut if cut is not None else len(body)) - sent)
                self.wfile.write(body[sent:sent + n_chunk])
                sent += n_chunk
                if kind in ("big", "duo"):
                    time.sleep(0.004)
        finally:
            self.log(status=status, first=first, sent=sent)
        if cut is not None:
            self.close_connection = True
            if kind == "slow":
                time.sleep(3)
            if kind == "reset":  # not an end but an error
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                os.close(self.connection.detach())


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, name, context=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.name = name
        if context:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        ports[name] = self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def main():
    global log_file
    folder = sys.argv[1]
    log_file = open(os.path.join(folder, "log"), "w", encoding="utf-8")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(os.path.join(HERE, "hub_server.pem"))
    Server("hub"), Server("cdn"), Server("tls", context)
    with open(os.path.join(folder, "ports.new"), "w", encoding="utf-8") as file:
        file.write(f"{ports['hub']} {ports['cdn']} {ports['tls']}\n")
    os.rename(os.path.join(folder, "ports.new"), os.path.join(folder, "ports"))
    sys.stdin.read()


if __name__ == "__main__":
    main()
