"""What the tests of `lockstep serve` share: a server of their own, clients, and a runner.

A test program defines functions test_*, each with a docstring or a telling name, and ends with `harness.main(globals())`. Every
server listens on a port that the system chose; none outlives its test. Only Python's standard library is used.
"""
import contextlib
import http.client
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback

BIN = os.environ.get("LS_BIN", "build/lockstep")
SANITIZED = os.environ.get("LS_SAN", "") != ""
PATIENCE = 120 if SANITIZED else 30  # seconds, for what takes a fraction of one
PROMPT = "Once upon a time, there was a little dog named"


class Skip(Exception):
    pass


# ---- The server ----


class Server:
    """lockstep serve demo, ready. stop() asserts that it ended well."""

    def __init__(self, *args, model="demo", wait=True, env=None):
        words = [BIN, "serve", model, "--port", "0", "--threads", "1", *args]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LOCKSTEP_")}
        environment.update({"LOCKSTEP_DEVICE": "cpu", **(env or {})})
        self.log, self.port = [], None
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        env=environment, text=True)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.wait_for(r"listening on https?://.*:(\d+)")
        self.port = int(self.find(r"listening on https?://.*:(\d+)")[1])
        if wait:
            self.wait_for(r"ready after")

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line)

    def find(self, pattern):
        return next((m for m in (re.search(pattern, line) for line in list(self.log)) if m), None)

    def wait_for(self, pattern):
        until = time.monotonic() + PATIENCE
        while not self.find(pattern):
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.kill()
                self.reader.join(5)
                raise AssertionError(f"no '{pattern}' from the server:\n{''.join(self.log)}")
            time.sleep(0.005)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is None:
            self.stop()
        elif self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            print("".join(self.log))

    def stop(self, expect=0):
        """SIGTERM, the end, and nothing that a sanitizer found."""
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(PATIENCE)
        self.reader.join(5)
        log = "".join(self.log)
        assert code == expect, f"exit code {code}, not {expect}:\n{log}"
        assert "Sanitizer" not in log and "runtime error" not in log, log

    # ---- clients ----

    def connect(self, timeout=PATIENCE):
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def call(self, method, path, body=None, headers=None):
        """(status, headers, body as text or JSON)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        text = body if isinstance(body, (str, bytes, type(None))) else json.dumps(body)
        connection.request(method, path, text, headers or {})
        answer = connection.getresponse()
        data = answer.read().decode()
        with contextlib.suppress(ValueError):
            data = json.loads(data)
        result = answer.status, {k.lower(): v for k, v in answer.getheaders()}, data
        connection.close()
        return result

    def get(self, path, headers=None):
        return self.call("GET", path, headers=headers)

    def post(self, path, body, headers=None):
        return self.call("POST", path, body, headers)

    def complete(self, **fields):
        status, _, body = self.post("/v1/completions", {"prompt": PROMPT, "temperature": 0, "max_tokens": 16, **fields})
        assert status == 200, body
        return body

    def chat(self, content="Tell me a story.", **fields):
        messages = [{"role": "user", "content": content}]
        status, _, body = self.post("/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 16, **fields})
        assert status == 200, body
        return body

    def ask(self, path, body):
        """A connection that an answer will come on."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("POST", path, json.dumps(body))
        return connection

    def stream(self, path, body):
        return Stream(self.ask(path, {"stream": True, **body}))

    def refused(self, path, body, status=400, param=None, code=None, word=""):
        """An error in OpenAI's shape."""
        got, _, answer = self.post(path, body)
        assert got == status, (got, answer)
        error = answer["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        assert error["param"] == param and (code is None or error["code"] == code) and word in error["message"], error
        return error

    def metric(self, name, labels=""):
        status, _, text = self.get("/metrics")
        assert status == 200
        match = re.search(rf"^lockstep:{name}{{[^}}]*{labels}[^}}]*}} (\S+)$", text, re.M)
        assert match, f"no metric {name}"
        return float(match[1])

    def wait_until(self, condition):
        until = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < until, "waited too long"
            time.sleep(0.01)

    def idle(self):
        """Nothing runs, nothing waits, and every page of the cache is free or can be taken."""
        self.wait_until(lambda: self.metric("num_requests_running") == 0 and self.metric("num_requests_waiting") == 0
                        and self.metric("kv_cache_usage_perc") == 0)


class Stream:
    """A stream of server-sent events: iterate over its chunks."""

    def __init__(self, connection):
        self.connection = connection
        self.answer = connection.getresponse()
        assert self.answer.status == 200, self.answer.read()
        assert self.answer.getheader("Content-Type").startswith("text/event-stream")
        self.done = False

    def __iter__(self):
        while line := self.answer.readline():
            if line == b"\n":
                continue
            assert line.startswith(b"data: "), line
            if line == b"data: [DONE]\n":
                assert self.answer.read() == b"\n"
                self.done = True
                break
            yield json.loads(line[6:])
        self.connection.close()

    def close(self):
        self.answer.close()
        self.connection.close()


def read_texts(stream):
    """Text, finish reason and usage by index of the choice."""
    text, finish, usage = {}, {}, None
    for chunk in stream:
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            i = choice["index"]
            piece = choice["text"] if "text" in choice else choice["delta"].get("content", "")
            assert i not in finish, "a chunk behind the last one"
            text[i] = text.get(i, "") + piece
            if choice["finish_reason"]:
                finish[i] = choice["finish_reason"]
    assert stream.done and set(finish) == set(text)
    return text, finish, usage


def generate(*args):
    """The texts of `lockstep generate --json`."""
    words = [BIN, "generate", "-m", "demo", "--device", "cpu", "--threads", "1", "--json", "--timeline", "none", *args]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=True)
    return [json.loads(line)["text"] for line in done.stdout.splitlines()]


def request_bytes(path, body, more=""):
    text = body if isinstance(body, str) else json.dumps(body)
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text.encode())}\r\n{more}\r\n{text}".encode()


def reset(connection):
    """Closes with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def read_all(connection):
    """What comes until the server closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            data += piece
    return data


# ---- The runner ----


def main(names):
    tests = [(n, f) for n, f in names.items() if n.startswith("test_") and callable(f)]
    if os.environ.get("LS_CANARY") == "1":
        tests.append(("test_canary", lambda: (_ for _ in ()).throw(AssertionError("as asked"))))
    passed = failed = skipped = 0
    for name, test in tests:
        begin = time.monotonic()
        try:
            test()
            word = "ok"
            passed += 1
        except Skip as why:
            word = f"skipped: {why}"
            skipped += 1
        except Exception:
            word = "FAILED"
            failed += 1
            traceback.print_exc(file=sys.stdout)
        print(f"{word:<8} {name} ({time.monotonic() - begin:.2f} s)", flush=True)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(1 if failed else 0)
