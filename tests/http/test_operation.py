#!/usr/bin/env python3
"""Running `lockstep serve`: start, health, drain, keys, TLS, origins, the queue's cap, metrics, the access log, options."""
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time

import harness
from harness import PROMPT, Server, generate, read_all, read_texts, request_bytes

COMPLETIONS = "/v1/completions"
LONG = {"prompt": PROMPT, "max_tokens": 400, "ignore_eos": True, "temperature": 0}
PEM = "tests/e2e/hub_server.pem"


# ---- Start, drain, end ----


def test_starting():
    """It answers before there is a model: here the hub does not answer, so there will be none for a while."""
    with socket.socket() as silent, tempfile.TemporaryDirectory() as cache:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        hub = {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}", "HF_HUB_CACHE": cache, "HF_HUB_OFFLINE": "0"}
        server = Server(model="some/model", wait=False, env=hub)
        status, _, body = server.get("/health")
        assert status == 503 and body == {"status": "starting", "stage": "opening the model", "percent": None}
        status, headers, body = server.post(COMPLETIONS, {"prompt": "x"})
        assert status == 503 and headers["retry-after"] and body["error"]["code"] == "starting"
        assert server.get("/v1/models")[0] == 200 and "uptime_seconds" in server.get("/metrics")[2]
        server.stop()  # nobody was promised an answer
        server = Server(model="some/model", wait=False, env=hub)
        server.process.send_signal(signal.SIGINT)
        server.stop(expect=130)


def test_model_that_cannot_be_opened():
    with tempfile.TemporaryDirectory() as folder:
        words = [harness.BIN, "serve", folder, "--port", "0"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=harness.PATIENCE)
        assert done.returncode == 1 and "config.json" in done.stderr


def test_drain():
    """SIGTERM: what runs is finished, new work is refused, the process ends with 0."""
    expected = generate("-p", PROMPT, "-n", "400", "--temp", "0", "--ignore-eos")[0]
    server = Server("--shutdown-timeout", str(harness.PATIENCE))
    stream = server.stream(COMPLETIONS, LONG)
    whole = []
    waiting = threading.Thread(target=lambda: whole.append(server.complete(**LONG)))
    waiting.start()
    server.wait_until(lambda: server.metric("num_requests_running") == 2)
    server.process.send_signal(signal.SIGTERM)
    server.wait_for("are being finished")
    status, headers, body = server.post(COMPLETIONS, {"prompt": "x"})
    assert status == 503 and body["error"]["code"] == "draining" and headers["connection"] == "close"
    assert server.get("/health")[0] == 503 and server.get("/health")[2]["status"] == "draining"
    assert read_texts(stream)[0][0] == expected
    waiting.join()
    assert whole[0]["choices"][0]["text"] == expected
    server.stop()


def test_drain_has_an_end():
    server = Server("--shutdown-timeout", "1")
    streams = [server.stream(COMPLETIONS, {**LONG, "max_tokens": 2000, "n": 4}) for _ in range(4)]
    refused = []
    waiting = threading.Thread(target=lambda: refused.append(server.post(COMPLETIONS, {**LONG, "max_tokens": 2000, "n": 4})))
    waiting.start()
    server.wait_until(lambda: server.metric("num_requests_running") + server.metric("num_requests_waiting") == 20)
    begin = time.monotonic()
    server.stop(expect=1)
    assert time.monotonic() - begin < harness.PATIENCE / 2
    waiting.join()
    assert refused[0][0] == 503 and "--shutdown-timeout" in refused[0][2]["error"]["message"]
    for stream in streams:  # told why, and that it is the end
        assert "--shutdown-timeout" in [event for event in stream if "error" in event][0]["error"]["message"]


def test_many_choices_beside_slow_work():
    """The loop is kept busy, so that several choices end between two of its looks: each stream is whole all the same. Memory that was
    given back is overwritten, so that whoever still reads it falls."""
    text, stop, wrong = "Once upon a time there was a word. " * 4300, threading.Event(), []
    n, n_streams = 8, 10 if harness.SANITIZED else 40
    with Server("--max-num-seqs", str(n), "--max-model-len", "256", env={"MALLOC_PERTURB_": "165"}) as server:

        def noise():
            while not stop.is_set():
                server.post("/tokenize", {"prompt": text})

        busy = threading.Thread(target=noise)
        busy.start()
        for k in range(n_streams):
            *_, last = server.stream("/v1/chat/completions", {
                "messages": [{"role": "user", "content": "Hi"}], "n": n, "max_tokens": 3 + k % 3, "logprobs": True, "top_logprobs": 20,
                "ignore_eos": True, "stream_options": {"include_usage": True}})
            if last["usage"]["completion_tokens"] != n * (3 + k % 3):
                wrong.append(last)
        stop.set()
        busy.join()
        assert not wrong, wrong[:1]
        assert server.metric("generation_tokens_total") == sum(n * (3 + k % 3) for k in range(n_streams))


def test_streams_do_not_wait_for_long_bodies():
    """While a body of megabytes is read, streams and /health go on."""
    text, times = "Once upon a time there was a word. " * 100000, []
    with Server() as server:
        stream = server.stream(COMPLETIONS, {**LONG, "max_tokens": 2000})
        chunks = iter(stream)
        next(chunks)

        def tokenize():
            begin = time.monotonic()
            assert server.post("/tokenize", {"prompt": text, "return_token_strs": True})[0] == 200
            times.append(time.monotonic() - begin)

        reading = threading.Thread(target=tokenize)
        reading.start()
        longest = before = 0
        begin = time.monotonic()
        while reading.is_alive() and next(chunks, None) is not None:
            now = time.monotonic()
            longest, before = max(longest, now - (before or begin)), now
        assert server.get("/health")[0] == 200
        reading.join()
        stream.close()
        assert longest < times[0] / 3, (longest, times)


def test_interrupted_twice():
    server = Server()
    stream = server.stream(COMPLETIONS, {**LONG, "max_tokens": 2000, "n": 4})
    server.process.send_signal(signal.SIGINT)
    server.wait_for("once more ends it at once")
    server.process.send_signal(signal.SIGINT)
    server.stop(expect=1)
    stream.close()


def test_stalled():
    """A step that takes longer than --stall-timeout: the slowest inner loops and one large step."""
    with Server("--stall-timeout", "1", "--cpu-isa", "ref", "--max-num-batched-tokens", "2048") as server:
        assert server.get("/health")[2]["status"] == "ok"
        answers, n = [], 300
        work = threading.Thread(target=lambda: answers.append(server.complete(prompt=[100] * n, max_tokens=1)))
        work.start()
        server.wait_until(lambda: server.get("/health")[2]["status"] == "stalled" or answers)
        assert not answers, "the step was too short to show anything"
        assert server.get("/health")[0] == 503
        work.join()
        server.wait_until(lambda: server.get("/health")[2]["status"] == "ok")
        assert server.metric("stalls_total") == 1 and answers


def test_engine_that_fails():
    """A step fails for good (an emulated GPU does): clients are told why, /health says dead, and the process ends with 3."""
    emulated = os.path.join(os.path.dirname(harness.BIN), "emulated")
    if not os.path.exists(os.path.join(emulated, "libcuda.so.1")):
        raise harness.Skip("no emulated GPU: tests/cuda/driver/build makes one")
    server = Server("--load-format", "dummy", "--dtype", "f32", "--max-model-len", "64", "--max-num-seqs", "2", env={
        "LOCKSTEP_DEVICE": "cuda", "LD_LIBRARY_PATH": emulated, "LS_EMULATE_FAILS": "0:cuGraphLaunch:4"})
    stream = server.stream(COMPLETIONS, {**LONG, "max_tokens": 40})
    refused = server.post(COMPLETIONS, {**LONG, "max_tokens": 40})
    last = [event for event in stream if "error" in event]
    assert len(last) == 1 and "emulated" in last[0]["error"]["message"], last
    assert refused[0] in (500, 503), refused
    status, _, health = server.get("/health")
    assert status == 503 and health["status"] == "dead" and "emulated" in health["reason"], health
    assert server.post(COMPLETIONS, {"prompt": "x"})[0] == 503
    server.process.wait(harness.PATIENCE)
    server.stop(expect=3)


def test_idle_costs_nothing():
    with Server() as server:
        server.complete()
        before = cpu_seconds(server.process.pid)
        time.sleep(1)
        assert cpu_seconds(server.process.pid) - before < 0.05


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---- Who may call ----


def test_api_keys():
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as file:
        file.write("# the team's\n\n  third \n")
        file.flush()
        with Server("--api-key", "first", "--api-key", "second", "--api-key-file", file.name) as server:
            body = {"prompt": "x", "max_tokens": 1}
            for path in (COMPLETIONS, "/v1/chat/completions", "/tokenize", "/detokenize"):
                for headers in ({}, {"Authorization": "first"}, {"Authorization": "Bearer"}, {"Authorization": "Bearer "},
                                {"Authorization": "Bearer firs"}, {"Authorization": "Bearer firstt"}, {"Authorization": "Basic first"},
                                {"Authorization": "Bearer # the team's"}):
                    status, got, answer = server.post(path, body, headers)
                    assert status == 401 and answer["error"]["code"] == "invalid_api_key", (path, headers, status)
                    assert got["www-authenticate"] == "Bearer"
            for path in ("/v1/models", "/v1/models/demo", "/metrics", "/version", "/nowhere"):
                assert server.get(path)[0] == 401, path
            assert server.get("/health")[0] == 200
            for key in ("first", "second", "third"):
                assert server.post(COMPLETIONS, body, {"Authorization": f"Bearer {key}"})[0] == 200
            assert "third" not in "".join(server.log)


def test_keys_from_a_pipe():
    """As from --api-key-file <(pass show lockstep); more than one piece of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "keys")
        os.mkfifo(path)

        def write():
            with open(path, "w", encoding="ascii") as file:
                file.write("# all of them\n" * 300000 + "last\n")

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        with Server("--api-key-file", path) as server:
            writer.join(harness.PATIENCE)
            assert server.get("/version", {"Authorization": "Bearer last"})[0] == 200 and server.get("/version")[0] == 401


def test_key_from_the_environment():
    with Server(env={"LOCKSTEP_API_KEY": "hidden"}) as server:
        assert server.get("/version")[0] == 401
        assert server.get("/version", {"Authorization": "Bearer hidden"})[0] == 200


def test_tls():
    with Server("--ssl-certfile", PEM, "--ssl-keyfile", PEM) as server:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        expected = generate("-p", PROMPT, "-n", "30", "--temp", "0")[0]
        body = {**LONG, "max_tokens": 30, "ignore_eos": False}
        for stream in (False, True):
            with context.wrap_socket(server.connect()) as connection:
                connection.sendall(request_bytes(COMPLETIONS, {**body, "stream": stream}, "Connection: close\r\n"))
                data = read_all(connection)
            if stream:
                texts = [json.loads(x[6:])["choices"][0]["text"] for x in data.split(b"\n") if x.startswith(b"data: {")]
                assert "".join(texts) == expected
            else:
                assert json.dumps(expected)[1:-1].encode() in data
        with server.connect() as connection:  # plain HTTP on a TLS port
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" not in read_all(connection)
        leaving = context.wrap_socket(server.connect())
        leaving.sendall(request_bytes(COMPLETIONS, {**LONG, "max_tokens": 2000}))
        time.sleep(0.05)
        leaving.close()
        begin = time.monotonic()
    assert time.monotonic() - begin < harness.PATIENCE / 2


def test_bad_settings():
    for words, text in ((["--ssl-certfile", PEM], "--ssl-keyfile"), (["--ssl-certfile", "Makefile", "--ssl-keyfile", PEM], "Makefile"),
                        (["--api-key", ""], "--api-key"), (["--api-key-file", "/nowhere"], "/nowhere"), (["--port", "70000"], "65535"),
                        (["--host", "no.such.host.invalid"], "no.such.host"), (["--chat-template-kwargs", "[]"], "object"),
                        (["--access-log", "/nowhere/x"], "/nowhere/x"), (["--served-model-name", ""], "--served-model-name"),
                        (["--metrics-prefix", "a b-"], "--metrics-prefix"), (["--metrics-prefix", "1a:"], "--metrics-prefix")):
        done = subprocess.run([harness.BIN, "serve", "demo", "--port", "0", *words], capture_output=True, text=True,
                              timeout=harness.PATIENCE)
        assert done.returncode in (1, 2) and text in done.stderr, (words, done.returncode, done.stderr)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = [harness.BIN, "serve", "demo", "--port", str(taken.getsockname()[1])]
        done = subprocess.run(words, capture_output=True, text=True, timeout=harness.PATIENCE)
        assert done.returncode == 1 and "in use" in done.stderr


def test_open_door():
    """Who listens for the network and asks for no key is told so, once."""
    with Server("--host", "0.0.0.0") as server:
        assert sum("no --api-key" in line for line in server.log) == 1
    for words in (["--host", "0.0.0.0", "--api-key", "x"], ["--host", "localhost"]):
        with Server(*words) as server:
            assert not server.find("no --api-key")


def test_origins():
    with Server("--allowed-origins", "https://a.example", "--allowed-origins", "https://b.example") as server:
        for origin, allowed in (("https://a.example", True), ("https://b.example", True), ("https://c.example", False)):
            _, headers, _ = server.get("/version", {"Origin": origin})
            assert headers.get("access-control-allow-origin") == (origin if allowed else None)
        status, headers, _ = server.call("OPTIONS", COMPLETIONS, headers={"Origin": "https://a.example",
                                                                          "Access-Control-Request-Method": "POST"})
        assert status == 204 and "POST" in headers["access-control-allow-methods"]
        assert "Authorization" in headers["access-control-allow-headers"]
        wanted = "authorization,content-type,x-stainless-lang,x-stainless-retry-count"  # OpenAI's client in a browser
        for origin in ("https://a.example", "https://c.example"):
            _, headers, _ = server.call("OPTIONS", COMPLETIONS, headers={"Origin": origin, "Access-Control-Request-Method": "POST",
                                                                         "Access-Control-Request-Headers": wanted})
            assert headers.get("access-control-allow-headers") == (wanted if origin == "https://a.example" else None)
    with Server() as server:
        assert "access-control-allow-origin" not in server.get("/version", {"Origin": "https://a.example"})[1]


def test_foreign_pages():
    """A page of another site makes no work here, unless it may; pages of this server's own host and clients that are no browser do."""
    body = {"prompt": "x", "max_tokens": 1}
    with Server("--allowed-origins", "https://a.example") as server:
        here = f"http://127.0.0.1:{server.port}"
        for headers, status in (({}, 200), ({"Origin": here}, 200), ({"Origin": "https://a.example"}, 200),
                                ({"Origin": "https://b.example"}, 403), ({"Origin": "null"}, 403),
                                ({"Origin": "https://b.example", "Sec-Fetch-Site": "cross-site"}, 403),
                                ({"Origin": "https://proxy.example", "Sec-Fetch-Site": "same-origin"}, 200)):
            got, _, answer = server.post(COMPLETIONS, body, headers)
            assert got == status and (status == 200 or answer["error"]["code"] == "origin_not_allowed"), (headers, got)
        assert server.get("/health", {"Origin": "https://b.example"})[0] == 200
    with Server("--api-key", "secret") as server:
        headers = {"Origin": "https://b.example", "Authorization": "Bearer secret"}
        assert server.post(COMPLETIONS, body, headers)[0] == 200
    with Server("--allowed-origins", "*") as server:
        assert server.get("/version", {"Origin": "null"})[1]["access-control-allow-origin"] == "null"


# ---- Load ----


def test_full_queue():
    """Two run, two wait, the fifth is told to come back; it may, later."""
    with Server("--max-num-seqs", "2", "--max-num-queued-reqs", "2") as server:
        streams = [server.stream(COMPLETIONS, LONG) for _ in range(4)]
        status, headers, body = server.post(COMPLETIONS, {"prompt": "x", "max_tokens": 1})
        assert status == 429 and int(headers["retry-after"]) >= 1 and body["error"]["code"] == "queue_full"
        status, _, body = server.post(COMPLETIONS, {"prompt": "x", "n": 5})
        assert status == 400 and body["error"]["param"] == "n"
        assert server.metric("admission_rejections_total", 'reason="queue"') == 1
        texts = {read_texts(stream)[0][0] for stream in streams}
        assert len(texts) == 1
        assert server.complete(max_tokens=1)


# ---- What is told ----


def test_served_names():
    with Server("--served-model-name", "good", "--served-model-name", "other") as server:
        assert [m["id"] for m in server.get("/v1/models")[2]["data"]] == ["good", "other"]
        assert server.complete(model="other", max_tokens=1)["model"] == "good"
        assert server.post(COMPLETIONS, {"model": "demo", "prompt": "x"})[0] == 404


def test_metrics():
    with Server("--metrics-prefix", "vllm:") as server:
        server.complete(max_tokens=5)
        read_texts(server.stream(COMPLETIONS, {"prompt": PROMPT, "max_tokens": 7, "temperature": 0}))
        status, headers, text = server.get("/metrics")
        assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
        values = {}
        for line in text.splitlines():
            match = re.fullmatch(r"# (HELP|TYPE) vllm:\w+ .+|(vllm:\w+)\{([^}]*)\} (\S+)", line)
            assert match, line
            if match[2]:
                values[match[2] + re.sub(r'model_name="demo",engine="0",?', "", match[3])] = float(match[4])
        assert values["vllm:generation_tokens_total"] == 12
        assert values["vllm:time_to_first_token_seconds_count"] == 2
        assert values["vllm:inter_token_latency_seconds_count"] == 10
        assert values['vllm:request_success_totalfinished_reason="length"'] == 2
        assert values["vllm:e2e_request_latency_seconds_count"] == 2 == values["vllm:request_prompt_tokens_count"]
        assert values["vllm:request_generation_tokens_sum"] == 12
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total",
                     "prompt_tokens_total", "prefix_cache_queries_total", "prefix_cache_hits_total", "decode_limit_ratio",
                     "exchange_seconds_total"):
            assert f"vllm:{name}" in values, name
        assert values["vllm:decode_host_seconds_total"] > 0 and values["vllm:prefill_host_seconds_total"] > 0
        buckets = [v for k, v in values.items() if k.startswith("vllm:inter_token_latency_seconds_bucket")]
        assert buckets == sorted(buckets) and buckets[-1] == 10
        assert 'vllm:inter_token_latency_seconds_bucketle="0.00025"' in values


def test_access_log():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "log")
        with Server("--access-log", path, "--api-key", "secret") as server:
            key = {"Authorization": "Bearer secret"}
            _, headers, _ = server.post(COMPLETIONS, {"prompt": "my private words", "max_tokens": 3}, key)
            server.get("/health")
            server.post(COMPLETIONS, {"prompt": 5}, key)
            server.get("/version")
            with server.connect() as connection:
                connection.sendall(b"GET /\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                read_all(connection)
            with server.connect() as connection:
                connection.sendall(b"GET /" + b"a" * 198 + "\u00e9".encode() * 4 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                read_all(connection)
        with open(path, encoding="utf-8") as file:
            text = file.read()
        lines = [json.loads(line) for line in text.splitlines()]
        assert [x["status"] for x in lines] == [200, 200, 400, 401, 401, 401] and lines[4]["path"] == lines[5]["path"] == "?"
        first = lines[0]
        assert first["id"] == headers["x-request-id"] and first["path"] == COMPLETIONS and first["method"] == "POST"
        assert first["completion_tokens"] == 3 and first["finish"] == "length" and first["key"] == 0
        assert first["total_ms"] >= first["first_token_ms"] > 0
        assert "private" not in text and "secret" not in text


def test_template_defaults():
    """--chat-template-kwargs reach the template, and a request's own go before them."""
    with Server("--chat-template-kwargs", '{"add_generation_prompt": true}') as server:
        assert server.chat(chat_template_kwargs={"anything": 1}, max_tokens=1)


def test_model_without_a_tokenizer():
    """Shapes alone: prompts are bytes or ids, answers are ids."""
    with tempfile.TemporaryDirectory() as folder:
        with open("demo/config.json", "rb") as config, open(os.path.join(folder, "config.json"), "wb") as copy:
            copy.write(config.read())
        with Server("--load-format", "dummy", model=folder) as server:
            body = server.complete(max_tokens=4)
            assert re.fullmatch(r"( \d+){4}", body["choices"][0]["text"])
            text, _, _ = read_texts(server.stream(COMPLETIONS, {"prompt": PROMPT, "max_tokens": 4, "temperature": 0}))
            assert text[0] == body["choices"][0]["text"]
            for path, more in (("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}), ("/tokenize", {"prompt": "x"}),
                               ("/detokenize", {"tokens": [1]})):
                status, _, answer = server.post(path, more)
                assert status == 400 and answer["error"]["code"] == "unsupported"


if __name__ == "__main__":
    harness.main(globals())
