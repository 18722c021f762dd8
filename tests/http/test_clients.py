#!/usr/bin/env python3
"""Clients that are slow, half-close, pipeline, send too much or garbage, or leave: each may hurt itself alone."""
import json
import os
import random
import socket
import threading
import time

import harness
from harness import PROMPT, generate, read_all, read_texts, request_bytes, reset

server = harness.Server("--max-num-seqs", "4", "--http-timeout", "1", "--max-body-bytes", "64Ki", "--max-connections", "40")

COMPLETIONS = "/v1/completions"
LONG = {"prompt": PROMPT, "max_tokens": 200 if harness.SANITIZED else 600, "ignore_eos": True, "temperature": 0}
SHORT = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0}
expected = generate("-p", PROMPT, "-n", "12", "--temp", "0")[0]


def still_well():
    assert server.complete(**SHORT)["choices"][0]["text"] == expected


def cancelled_within(seconds, leave, body):
    """A long request whose client leaves is out of the engine soon."""
    server.idle()
    before = server.metric("request_success_total", 'finished_reason="abort"')
    connection = server.connect()
    connection.sendall(request_bytes(COMPLETIONS, body))
    server.wait_until(lambda: server.metric("num_requests_running") == 1)
    begin = time.monotonic()
    leave(connection)
    server.wait_until(lambda: server.metric("num_requests_running") == 0)
    took = time.monotonic() - begin
    assert took < seconds, f"{took:.2f} s"
    assert server.metric("request_success_total", 'finished_reason="abort"') == before + 1
    server.idle()


SOON = 10 if harness.SANITIZED else 0.5


def test_client_leaves_before_the_answer():
    cancelled_within(SOON, lambda c: c.close(), LONG)


def test_client_resets_before_the_answer():
    cancelled_within(SOON, reset, LONG)


def test_client_leaves_the_stream():
    cancelled_within(SOON, lambda c: c.close(), {**LONG, "stream": True})


def test_client_resets_the_stream():
    cancelled_within(SOON, reset, {**LONG, "stream": True})


def test_client_half_closes():
    """Shutting down the sending side counts as leaving."""
    for stream in (False, True):
        cancelled_within(SOON, lambda c: c.shutdown(socket.SHUT_WR), {**LONG, "stream": stream})


def test_client_leaves_the_queue():
    """Cancelled before their first step."""
    running = [server.stream(COMPLETIONS, LONG) for _ in range(4)]
    waiting = [server.connect() for _ in range(6)]
    for connection in waiting:
        connection.sendall(request_bytes(COMPLETIONS, LONG))
    server.wait_until(lambda: server.metric("num_requests_waiting") == 6)
    for connection in waiting[:3]:
        connection.close()
    for connection in waiting[3:]:
        reset(connection)
    server.wait_until(lambda: server.metric("num_requests_waiting") == 0)
    assert server.metric("num_requests_running") == 4
    for stream in running:
        stream.close()
    server.idle()


def test_leaving_at_random_points():
    chance = random.Random(1)
    for i in range(60 if harness.SANITIZED else 150):
        data = request_bytes(COMPLETIONS, {**LONG, "stream": chance.random() < 0.5, "n": chance.choice([1, 3])})
        connection = server.connect()
        connection.sendall(data[:chance.randrange(len(data) + 1)] if chance.random() < 0.3 else data)
        if chance.random() < 0.5:
            time.sleep(chance.random() * 0.01)
        (reset if chance.random() < 0.5 else socket.socket.close)(connection)
        if i % 50 == 0:
            still_well()
    server.idle()
    still_well()


def test_slow_reader():
    """What it does not take waits in the engine; another client's stream is not held up, and its own text is whole."""
    n = 100 if harness.SANITIZED else 400
    whole = generate("-p", PROMPT, "-n", str(n), "--temp", "0", "--ignore-eos")[0]
    body = {**LONG, "max_tokens": n, "stream": True, "logprobs": 20}
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(request_bytes(COMPLETIONS, body, "Connection: close\r\n"))
        server.wait_until(lambda: server.metric("num_requests_running") == 1)
        still_well()
        server.idle()
        data = b""
        while piece := connection.recv(4096):  # slowly, but within the time limit
            data += piece
            time.sleep(0.0005)
    lines = [line for line in data.split(b"\n") if line.startswith(b"data: {")]
    text = "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines)
    assert text == whole, (len(text), len(whole))


def test_reader_that_stops():
    """It is closed after --http-timeout, and what it asked for is forgotten."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        # More than the kernel's buffers take: 20 log probabilities for each token of 8 answers.
        connection.sendall(request_bytes(COMPLETIONS, {**LONG, "stream": True, "logprobs": 20, "n": 8}))
        server.wait_until(lambda: server.metric("num_requests_running") > 0)
        server.idle()
        server.wait_until(lambda: server.metric("http_requests_active") == 1)
    still_well()


def test_answers_longer_than_the_timeout():
    """--http-timeout is about what stands still, not about answers that take long, or wait for their turn."""
    long = {**LONG, "n": 4}
    begin = time.monotonic()
    stream = server.stream(COMPLETIONS, long)
    with server.connect() as waiting:
        waiting.sendall(request_bytes(COMPLETIONS, long, "Connection: close\r\n"))
        text, _, _ = read_texts(stream)
        assert time.monotonic() - begin > 1.2, "too fast to show anything: ask for more"
        data = read_all(waiting)
    assert b" 200 OK" in data[:40]
    assert [c["text"] for c in json.loads(data.split(b"\r\n\r\n", 1)[1])["choices"]] == [text[i] for i in range(4)]


def test_slow_sender():
    """A byte at a time works; one that stands still is closed."""
    with server.connect() as connection:
        for byte in request_bytes(COMPLETIONS, SHORT, "Connection: close\r\n"):
            connection.sendall(bytes([byte]))
        assert json.dumps(expected)[1:-1].encode() in read_all(connection)
    with server.connect() as connection:
        connection.sendall(request_bytes(COMPLETIONS, SHORT)[:60])
        begin = time.monotonic()
        assert read_all(connection) == b""
        assert 0.5 < time.monotonic() - begin < 20
    still_well()


def test_pipelining():
    """Answers come in the order of the requests, also behind streams."""
    one = request_bytes(COMPLETIONS, SHORT)
    stream = request_bytes(COMPLETIONS, {**SHORT, "stream": True})
    last = b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(one + stream + one + stream + last)
        data = read_all(connection)
    assert data.count(b"HTTP/1.1 200 OK") == 5 and data.count(b"data: [DONE]") == 2
    assert data.count(json.dumps(expected)[1:-1].encode()) == 2 and data.rstrip().endswith(b"}")
    still_well()


def test_pipelining_and_leaving():
    """More requests behind one that is never answered, in one packet and in several."""
    for several in (False, True):
        for _ in range(20):
            connection = server.connect()
            connection.sendall(request_bytes(COMPLETIONS, {**LONG, "stream": several}))
            if several:
                time.sleep(0.01)
            connection.sendall(request_bytes(COMPLETIONS, SHORT) * 5)
            reset(connection)
    server.idle()
    still_well()


def test_flood_behind_a_stream():
    """What a client sends while it is answered is bounded, and answered when its turn comes."""
    with server.connect() as connection:
        connection.sendall(request_bytes(COMPLETIONS, {**SHORT, "stream": True}))
        connection.settimeout(5)
        sent = 0
        try:
            while sent < 32 << 20:
                sent += connection.send(b"x" * 65536)
        except OSError:
            pass
        reset(connection)
    still_well()


def test_too_large():
    status, _, _ = server.post(COMPLETIONS, {"prompt": "x" * 70000})
    assert status == 413
    with server.connect() as connection:  # announced, and never sent
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert b"200 OK" not in read_all(connection)
    with server.connect() as connection:  # in chunks, whose sum is not announced
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(64):
                connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            connection.sendall(b"0\r\n\r\n")
        except OSError:
            pass
        assert b"200 OK" not in read_all(connection)
    with server.connect() as connection:  # headers
        try:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-Long: " + b"x" * 200000 + b"\r\n\r\n")
        except OSError:
            pass
        assert b"200 OK" not in read_all(connection)
    still_well()


def test_two_lengths():
    """Refused, and what follows is not read as a request."""
    data = request_bytes(COMPLETIONS, SHORT, "Content-Length: 3\r\n")
    with server.connect() as connection:
        connection.sendall(data + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400 ") and b"Content-Length" in answer and answer.count(b"HTTP/1.1 ") == 1
    still_well()


def test_chunked_body():
    body = json.dumps(SHORT).encode()
    with server.connect() as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        for i in range(0, len(body), 7):
            connection.sendall(b"%x\r\n%s\r\n" % (len(body[i:i + 7]), body[i:i + 7]))
        connection.sendall(b"0\r\n\r\n")
        assert json.dumps(expected)[1:-1].encode() in read_all(connection)


def test_http_1_0():
    """No chunks: the stream ends with the connection."""
    body = json.dumps({**SHORT, "stream": True})
    for keep in ("", "Connection: keep-alive\r\n"):
        with server.connect() as connection:
            connection.sendall(f"POST /v1/completions HTTP/1.0\r\n{keep}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            data = read_all(connection)
        assert b"chunked" not in data and data.endswith(b"data: [DONE]\n\n")


def test_expect_continue():
    data = request_bytes(COMPLETIONS, SHORT, "Expect: 100-continue\r\nConnection: close\r\n")
    head, body = data.split(b"\r\n\r\n")
    with server.connect() as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(body)
        assert b"HTTP/1.1 200 OK" in read_all(connection)


def test_garbage():
    chance = random.Random(2)
    good = request_bytes(COMPLETIONS, SHORT)
    pieces = [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n\r\n", b"POST\r\n\r\n",
              b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /%00%ff%zz HTTP/1.1\r\nHost: \x00\r\n\r\n",
              b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\nhello",
              b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
              b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n"]
    pieces += [os.urandom(chance.randrange(1, 3000)) for _ in range(20)]
    for _ in range(60):  # good requests with bytes changed
        data = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        pieces.append(bytes(data))
    for piece in pieces:
        with server.connect(5) as connection:
            connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            read_all(connection)
    server.idle()
    still_well()


def test_too_many_connections():
    """Beyond --max-connections they wait until others close, and are served then."""
    idle = [server.connect() for _ in range(100)]
    extra = [server.connect() for _ in range(10)]
    for connection in extra:
        connection.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    for connection in idle:
        connection.close()
    for connection in extra:
        assert b"200 OK" in read_all(connection)
        connection.close()
    still_well()


def test_keep_alive():
    """Many requests on one connection, good and bad."""
    import http.client
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=harness.PATIENCE)
    for i in range(50):
        body = SHORT if i % 2 else {"prompt": 5}
        connection.request("POST", COMPLETIONS, json.dumps(body))
        answer = connection.getresponse()
        assert answer.status == (200 if i % 2 else 400)
        answer.read()
    connection.close()


def test_good_and_bad_at_once():
    """Garbage beside good load: each stream's text stays its own."""
    prompts = [f"{PROMPT} {name}" for name in ("Tim", "Tom", "Ann", "Sue")]
    texts = generate(*[w for p in prompts for w in ("-p", p)], "-n", "30", "--temp", "0")
    wrong, stop = [], threading.Event()

    def good(i):
        for _ in range(5):
            text, _, _ = read_texts(server.stream(COMPLETIONS, {"prompt": prompts[i], "max_tokens": 30, "temperature": 0}))
            if text[0] != texts[i]:
                wrong.append((i, text[0]))

    def bad(seed):
        chance = random.Random(seed)
        while not stop.is_set():
            connection = server.connect()
            data = request_bytes(COMPLETIONS, {**LONG, "stream": True})
            connection.sendall(data if chance.random() < 0.5 else bytes(b ^ (chance.random() < 0.05) for b in data))
            time.sleep(chance.random() * 0.02)
            reset(connection)

    threads = [threading.Thread(target=good, args=(i,)) for i in range(4)]
    noise = [threading.Thread(target=bad, args=(i,)) for i in range(2)]
    for thread in threads + noise:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    for thread in noise:
        thread.join()
    assert not wrong, wrong[:1]
    server.idle()


def test_zz_ends_well():
    server.idle()
    server.stop()


if __name__ == "__main__":
    harness.main(globals())
