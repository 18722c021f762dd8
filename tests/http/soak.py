#!/usr/bin/env python3
"""Clients that come and go at random points, and garbage, beside clients whose answers must be right.

    make soak SAN=address SOAK="--seconds 600 --disconnects 10000 --seed 1"

It ends when the seconds are over and so many clients have left. What must hold: every answer is the text of `lockstep generate`, none
is lost, garbage gets an error or nothing, the server lives; afterwards every page and file descriptor is given back, and the process
ends with 0 and no report of a sanitizer. The cache is small, so requests are set aside and computed again all the time.
"""
import argparse
import json
import os
import random
import socket
import sys
import threading
import time

import harness
from harness import generate, read_texts, request_bytes, reset

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SERVER = ("--max-num-seqs", "8", "--kv-cache-memory-bytes", "4Mi", "--max-body-bytes", "64Ki",
          "--max-connections", "64", "--http-timeout", "20")
PROMPTS = ("Once upon a time, there was a little dog named", "Tom and Ann went to the", "The sun", "A bird sat in a tree. It was sad because")
SAMPLED = ("--temp", "0.9", "--top-p", "0.95", "--seed", "7")


class Case:
    """A request and the texts that answer it."""

    def __init__(self, path, body, texts):
        self.path, self.body, self.texts = path, body, texts


def completion_cases():
    cases = []
    for n in (1, 12, 30, 90):
        words = ("-n", str(n), "--ignore-eos", *[w for p in PROMPTS for w in ("-p", p)])
        fields = {"max_tokens": n, "ignore_eos": True}
        for prompt, text in zip(PROMPTS, generate(*words, "--temp", "0")):
            cases.append(Case(COMPLETIONS, {**fields, "prompt": prompt, "temperature": 0}, [text]))
        texts = generate(*words, *SAMPLED, "--num-return-sequences", "2")
        for i, prompt in enumerate(PROMPTS):
            body = {**fields, "prompt": prompt, "temperature": 0.9, "top_p": 0.95, "seed": 7, "n": 2}
            cases.append(Case(COMPLETIONS, body, texts[2 * i:2 * i + 2]))
    return cases


def chat_cases(server):
    """What the server answers while it is alone: `generate` has no chats."""
    cases = []
    for content in ("Tell me a story.", "Who are you?"):
        body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 30}
        cases.append(Case(CHAT, body, [server.chat(content, max_tokens=30)["choices"][0]["message"]["content"]]))
    return cases


class Soak:
    def __init__(self, server, seconds, disconnects, seed):
        self.server, self.seconds, self.disconnects, self.seed = server, seconds, disconnects, seed
        self.cases = completion_cases() + chat_cases(server)
        self.lock, self.over, self.problems, self.begin = threading.Lock(), threading.Event(), [], 0.0
        self.count = {"answers": 0, "streams": 0, "left": 0, "garbage": 0, "errors": 0}

    def add(self, name):
        with self.lock:
            self.count[name] += 1

    def has_left_enough(self):
        with self.lock:
            return self.count["left"] >= self.disconnects

    def is_ahead(self):
        """Clients leave all the time, not all at once."""
        with self.lock:
            return self.count["left"] * self.seconds >= (time.monotonic() - self.begin) * self.disconnects

    # ---- Clients ----

    def good(self, chance):
        """One answer, whole or as a stream, on a connection of its own."""
        case = chance.choice(self.cases)
        stream = chance.random() < 0.6
        connection = self.server.ask(case.path, {**case.body, "stream": stream})
        if stream:
            got, _, _ = read_texts(harness.Stream(connection))
            texts = [got[i] for i in range(len(case.texts))]
        else:
            answer = connection.getresponse()
            body = json.loads(answer.read())
            assert answer.status == 200, body
            texts = [c["text"] if "text" in c else c["message"]["content"] for c in sorted(body["choices"], key=lambda c: c["index"])]
            connection.close()
        assert texts == case.texts, (case.body, texts, case.texts)
        self.add("streams" if stream else "answers")

    def leaver(self, chance):
        """Goes away while it sends, while it waits or while it is told."""
        case = chance.choice(self.cases)
        data = request_bytes(case.path, {**case.body, "stream": chance.random() < 0.7})
        with self.server.connect() as connection:
            point = chance.random()
            if point < 0.1:
                pass  # a connection, and no word
            elif point < 0.35:
                connection.sendall(data[:chance.randrange(len(data))])
            else:
                connection.sendall(data * (3 if point > 0.95 else 1))  # some send more behind it
                if point > 0.6:
                    connection.settimeout(chance.random() * 0.1)
                    try:
                        connection.recv(chance.randrange(1, 2000))
                    except OSError:
                        pass
                else:
                    time.sleep(chance.random() ** 3 * 0.2)
            how = chance.random()
            if how < 0.5:
                reset(connection)
            elif how < 0.6:
                connection.shutdown(socket.SHUT_WR)
        self.add("left")

    def garbage(self, chance):
        """Bytes that were changed, cut or made up, and JSON that means nothing: an error, or no answer at all."""
        case = chance.choice(self.cases)
        kind = chance.random()
        if kind < 0.4:
            data = bytearray(request_bytes(case.path, case.body))
            for _ in range(chance.randrange(1, 8)):
                data[chance.randrange(len(data))] = chance.randrange(256)
        elif kind < 0.5:
            data = chance.randbytes(chance.randrange(1, 4000))
        elif kind < 0.6:
            data = request_bytes(case.path, "[" * chance.randrange(1, 5000))
        else:
            body = dict(case.body)
            for _ in range(chance.randrange(1, 4)):
                body[chance.choice([*body, "stop", "logit_bias", "stream_options", "logprobs", "min_p", "x"])] = chance.choice(
                    [None, True, -1, 1e308, 2**63 - 1, "", "\x00", [], {}, [[[]]], {"a": "b"}, "x" * 3000, [1, "x"], float("nan")])
            body["max_tokens"] = chance.choice([8, 8, 8, -1, "8"])
            data = request_bytes(case.path, body)
        with self.server.connect() as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                head = connection.recv(65536)
            except OSError:
                head = b""
        status = head.split(b" ")[1] if b" " in head else b""
        assert head == b"" or status[:1] in (b"2", b"4") or status in (b"501", b"505"), (bytes(data), head)
        self.add("errors" if status[:1] == b"4" else "garbage")

    # ---- The run ----

    def repeat(self, client, number):
        chance = random.Random(f"{self.seed} {client.__name__} {number}")
        while not self.over.is_set():
            if client == self.garbage or (client == self.leaver and self.is_ahead()):
                self.over.wait(chance.random() * 0.1)
            if client == self.leaver and (self.is_ahead() or self.has_left_enough()):
                continue
            try:
                client(chance)
            except Exception as why:  # whatever it is, it must not have happened
                with self.lock:
                    self.problems.append(f"{client.__name__} {number}: {why!r}"[:3000])
                self.over.set()

    def files(self):
        return len(os.listdir(f"/proc/{self.server.process.pid}/fd"))

    def memory_mb(self):
        with open(f"/proc/{self.server.process.pid}/status", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024

    def run(self, say=lambda text: None):
        server = self.server
        server.idle()
        files, self.begin, told = self.files(), time.monotonic(), 0.0
        clients = [(self.good, 6), (self.leaver, 3), (self.garbage, 2)]
        threads = [threading.Thread(target=self.repeat, args=(client, i)) for client, n in clients for i in range(n)]
        for thread in threads:
            thread.start()
        while not self.over.wait(0.1):
            passed = time.monotonic() - self.begin
            if passed >= self.seconds and self.has_left_enough():
                break
            if server.process.poll() is not None:
                self.problems.append(f"the server has ended with {server.process.returncode}")
                break
            if passed - told >= 30:
                told = passed
                say(f"{passed:.0f} s: {self.count}, {self.memory_mb():.0f} MB")
        self.over.set()
        for thread in threads:
            thread.join()
        assert not self.problems, "\n".join(self.problems) + "\n" + "".join(server.log)
        server.idle()
        server.wait_until(lambda: self.files() <= files + 1)  # + 1: the connection of the metrics
        assert server.metric("http_requests_active") == 1
        self.count["preempted"] = int(server.metric("num_preemptions_total"))
        self.count["aborted"] = int(server.metric("request_success_total", 'finished_reason="abort"'))
        self.count["seconds"] = round(time.monotonic() - self.begin)
        return self.count


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--disconnects", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    with harness.Server(*SERVER) as server:
        count = Soak(server, args.seconds, args.disconnects, args.seed).run(lambda text: print(text, flush=True))
    print("good: " + ", ".join(f"{n} {name}" for name, n in count.items()))


if __name__ == "__main__":
    sys.exit(main())
