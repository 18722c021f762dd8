#!/usr/bin/env python3
"""The API of `lockstep serve`: what good requests are answered, and how bad ones are refused."""
import threading
import time

import harness
from harness import PROMPT, generate, read_texts

server = harness.Server("--max-num-seqs", "8")

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Tell me a story."}]


def test_completion_is_generates():
    expected = generate("-p", PROMPT, "-n", "24", "--temp", "0")[0]
    body = server.complete(max_tokens=24)
    choice = body["choices"][0]
    assert choice["text"] == expected and choice["finish_reason"] == "length" and choice["stop_reason"] is None
    assert body["object"] == "text_completion" and body["model"] == "demo" and body["id"].startswith("cmpl-")
    assert body["usage"]["completion_tokens"] == 24
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 24


def test_sampled_completion_is_generates():
    expected = generate("-p", PROMPT, "-n", "24", "--seed", "7", "--temp", "0.9", "--top-k", "20", "--top-p", "0.95")[0]
    body = server.complete(max_tokens=24, seed=7, temperature=0.9, top_k=20, top_p=0.95)
    assert body["choices"][0]["text"] == expected


def test_seeds_are_generates():
    """All 64 bits, and the sign."""
    for seed in (-1, 9007199254740993, -9223372036854775808, 9223372036854775807):
        expected = generate("-p", PROMPT, "-n", "8", "--seed", str(seed), "--temp", "1")[0]
        assert server.complete(max_tokens=8, seed=seed, temperature=1)["choices"][0]["text"] == expected, seed


def test_defaults_are_the_models():
    expected = generate("-p", PROMPT, "-n", "16", "--seed", "3")[0]
    status, _, body = server.post(COMPLETIONS, {"prompt": PROMPT, "seed": 3})
    assert status == 200 and body["choices"][0]["text"] == expected


def test_stream_is_generates():
    expected = generate("-p", PROMPT, "-n", "40", "--temp", "0")[0]
    stream = server.stream(COMPLETIONS, {"prompt": PROMPT, "temperature": 0, "max_tokens": 40, "stream_options": {"include_usage": True}})
    text, finish, usage = read_texts(stream)
    assert text == {0: expected} and finish == {0: "length"} and usage["completion_tokens"] == 40


def test_choices_are_generates():
    expected = generate("-p", PROMPT, "-n", "12", "--seed", "5", "--num-return-sequences", "3", "--temp", "1")
    fields = {"max_tokens": 12, "seed": 5, "n": 3, "temperature": 1}
    assert [c["text"] for c in server.complete(**fields)["choices"]] == expected
    text, _, _ = read_texts(server.stream(COMPLETIONS, {"prompt": PROMPT, **fields}))
    assert [text[i] for i in range(3)] == expected


def test_many_prompts():
    prompts = [PROMPT, "The cat", "A dragon"]
    expected = generate(*[w for p in prompts for w in ("-p", p)], "-n", "10", "--temp", "0")
    body = server.complete(prompt=prompts, max_tokens=10)
    assert [c["text"] for c in body["choices"]] == expected
    ids = [server.post("/tokenize", {"prompt": p})[2]["tokens"] for p in prompts]
    body = server.complete(prompt=ids, max_tokens=10)
    assert [c["text"] for c in body["choices"]] == expected
    assert server.complete(prompt=ids[1], max_tokens=10)["choices"][0]["text"] == expected[1]


def test_streams_at_once():
    """More than run at once; each one's text is its own."""
    prompts = [f"{PROMPT} {name}" for name in "Tim Tom Ann Sue Max Ben Lily Spot Rex Mia Joe Zoe Kim Sam Amy Bob".split()]
    expected = generate(*[w for p in prompts for w in ("-p", p)], "-n", "20", "--temp", "0")
    got = [None] * len(prompts)

    def one(i):
        got[i] = read_texts(server.stream(COMPLETIONS, {"prompt": prompts[i], "temperature": 0, "max_tokens": 20}))[0][0]

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected
    server.idle()


def test_chat():
    body = server.chat(max_tokens=20)
    choice = body["choices"][0]
    assert body["object"] == "chat.completion" and choice["message"]["role"] == "assistant"
    stream = server.stream(CHAT, {"messages": MESSAGES, "temperature": 0, "max_tokens": 20})
    chunks = list(stream)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(c["object"] == "chat.completion.chunk" and c["id"] == chunks[0]["id"] for c in chunks)
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == choice["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
    rendered = "<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n"
    assert server.complete(prompt=rendered, max_tokens=20)["choices"][0]["text"] == choice["message"]["content"]


def test_chat_content_parts():
    parts = [{"type": "text", "text": "Tell me"}, {"type": "text", "text": "a story."}]
    assert server.chat(parts)["choices"][0] == server.chat("Tell me\na story.")["choices"][0]


def test_chat_without_max_tokens():
    """As many as fit: it ends by itself, or at the context's end."""
    status, _, body = server.post(CHAT, {"messages": MESSAGES, "temperature": 0, "stop": ["."]})
    assert status == 200 and body["choices"][0]["finish_reason"] == "stop"
    assert body["choices"][0]["stop_reason"] == "." and "." not in body["choices"][0]["message"]["content"]


def test_max_completion_tokens():
    assert server.chat(max_tokens=50, max_completion_tokens=3)["usage"]["completion_tokens"] == 3


def test_stop():
    whole = server.complete(max_tokens=40)["choices"][0]["text"]
    body = server.complete(max_tokens=40, stop=[" play", "zzz"])
    assert body["choices"][0]["text"] == whole[:whole.index(" play")]
    assert body["choices"][0]["finish_reason"] == "stop" and body["choices"][0]["stop_reason"] == " play"
    included = server.complete(max_tokens=40, stop=" play", include_stop_str_in_output=True)
    assert included["choices"][0]["text"] == whole[:whole.index(" play") + 5]
    text, finish, _ = read_texts(server.stream(COMPLETIONS, {"prompt": PROMPT, "temperature": 0, "max_tokens": 40, "stop": " play"}))
    assert text[0] == body["choices"][0]["text"] and finish[0] == "stop"
    token = server.post("/tokenize", {"prompt": " play"})[2]["tokens"]
    body = server.complete(max_tokens=40, stop_token_ids=token)
    assert body["choices"][0]["text"] == whole[:whole.index(" play")] and body["choices"][0]["stop_reason"] == token[0]


def test_ends_by_itself():
    body = server.complete(prompt="The end.", max_tokens=600, ignore_eos=False)
    assert body["choices"][0]["finish_reason"] == "stop" and body["choices"][0]["stop_reason"] is None
    n = body["usage"]["completion_tokens"]
    body = server.complete(prompt="The end.", max_tokens=n + 3, ignore_eos=True)
    assert body["choices"][0]["finish_reason"] == "length" and body["usage"]["completion_tokens"] == n + 3
    body = server.complete(prompt="The end.", max_tokens=n + 3, min_tokens=n + 2)
    assert body["usage"]["completion_tokens"] >= n + 2


def test_bias_and_allowed():
    token = server.post("/tokenize", {"prompt": " Tom"})[2]["tokens"]
    assert server.complete(max_tokens=1, logit_bias={str(token[0]): 100})["choices"][0]["text"] == " Tom"
    assert server.complete(max_tokens=2, allowed_token_ids=token)["choices"][0]["text"] == " Tom Tom"
    assert " Spot" not in server.complete(max_tokens=3, bad_words=["Spot"])["choices"][0]["text"]
    assert server.complete(max_tokens=8, repetition_penalty=1.5, presence_penalty=1, frequency_penalty=1, min_p=0.1)


def test_chat_logprobs():
    body = server.chat(logprobs=True, top_logprobs=2, max_tokens=6)
    content = body["choices"][0]["logprobs"]["content"]
    assert len(content) == 6
    assert "".join(e["token"] for e in content) == body["choices"][0]["message"]["content"]
    for entry in content:
        assert len(entry["top_logprobs"]) == 2 and entry["logprob"] <= 0
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"] and bytes(entry["bytes"]).decode() == entry["token"]
    streamed = []
    for chunk in server.stream(CHAT, {"messages": MESSAGES, "temperature": 0, "max_tokens": 6, "logprobs": True, "top_logprobs": 2}):
        streamed += (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    assert streamed == content
    assert server.chat(max_tokens=2)["choices"][0]["logprobs"] is None
    assert server.chat(max_tokens=2, logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_completion_logprobs_and_echo():
    body = server.complete(logprobs=1, echo=True, max_tokens=3)
    choice = body["choices"][0]
    lp = choice["logprobs"]
    n = body["usage"]["total_tokens"]
    assert choice["text"].startswith(PROMPT) and "".join(lp["tokens"]) == choice["text"]
    assert len(lp["token_logprobs"]) == n == len(lp["top_logprobs"]) == len(lp["text_offset"])
    assert lp["token_logprobs"][0] is None and lp["top_logprobs"][0] is None and lp["text_offset"][0] == 0
    assert all(choice["text"][o:].startswith(t) for o, t in zip(lp["text_offset"], lp["tokens"]))
    only = server.complete(echo=True, max_tokens=0)
    assert only["choices"][0]["text"] == PROMPT and only["usage"]["completion_tokens"] == 0
    text, _, _ = read_texts(server.stream(COMPLETIONS, {"prompt": PROMPT, "temperature": 0, "max_tokens": 3, "echo": True}))
    assert text[0] == choice["text"]


def test_streamed_logprobs():
    """Offsets go on from chunk to chunk, and the drawn token is always among those listed."""
    ask = {"prompt": PROMPT, "max_tokens": 8, "temperature": 3, "seed": 4, "logprobs": 1, "ignore_eos": True}
    for echo in (False, True):
        whole = server.complete(**ask, echo=echo)["choices"][0]["logprobs"]
        parts = [chunk["choices"][0]["logprobs"] for chunk in server.stream(COMPLETIONS, {**ask, "echo": echo})]
        for key in ("tokens", "text_offset", "token_logprobs", "top_logprobs"):
            assert sum((part[key] for part in parts if part), []) == whole[key]
        for token, value, top in zip(whole["tokens"], whole["token_logprobs"], whole["top_logprobs"]):
            assert top is None or (top[token] == value and len(top) <= 2)
    assert all(len(top) == 1 for top in server.complete(**{**ask, "logprobs": 0})["choices"][0]["logprobs"]["top_logprobs"])


def test_lists_have_an_end():
    server.refused(COMPLETIONS, {"prompt": PROMPT, "bad_words": ["ab"] * 1025}, param="bad_words", word="1024")
    server.refused(COMPLETIONS, {"prompt": PROMPT, "stop_token_ids": [5] * 1025}, param="stop_token_ids", word="1024")
    server.refused(COMPLETIONS, {"prompt": [300] * 2000, "n": 64, "prompt_logprobs": 20}, param="prompt_logprobs", word="1048576")
    server.complete(bad_words=["ab"] * 1024, stop_token_ids=[5] * 1024, max_tokens=1)


def test_prompt_logprobs():
    body = server.complete(prompt_logprobs=2, max_tokens=1)
    entries = body["choices"][0]["prompt_logprobs"]
    ids = server.post("/tokenize", {"prompt": PROMPT})[2]["tokens"]
    assert len(entries) == len(ids) and entries[0] is None
    for token, entry in zip(ids[1:], entries[1:]):
        assert set(entry[str(token)]) == {"logprob", "rank", "decoded_token"} and 2 <= len(entry) <= 3
    assert server.chat(prompt_logprobs=0, max_tokens=1)["choices"][0]["prompt_logprobs"][0] is None


def test_usage_in_every_chunk():
    stream = server.stream(COMPLETIONS, {"prompt": PROMPT, "max_tokens": 4, "temperature": 0,
                                         "stream_options": {"include_usage": True, "continuous_usage_stats": True}})
    counts = [c["usage"]["completion_tokens"] for c in stream]
    assert counts == sorted(counts) and counts[-1] == 4


def test_tokenize():
    status, _, body = server.post("/tokenize", {"model": "demo", "prompt": "Hello world", "return_token_strs": True})
    assert status == 200 and body["count"] == 2 == len(body["tokens"]) and body["token_strs"] == ["Hello", " world"]
    assert server.post("/detokenize", {"tokens": body["tokens"]})[2]["prompt"] == "Hello world"
    assert server.post("/tokenize", {"content": "Hello world"})[2]["tokens"] == body["tokens"]
    chat = server.post("/tokenize", {"messages": MESSAGES})[2]
    assert server.post("/detokenize", {"tokens": chat["tokens"]})[2]["prompt"].endswith("<|im_start|>assistant\n")
    chat = server.post("/tokenize", {"messages": MESSAGES, "add_generation_prompt": False})[2]
    assert server.post("/detokenize", {"tokens": chat["tokens"]})[2]["prompt"].endswith("story.<|im_end|>\n")
    for kwargs, more, end in (({"add_generation_prompt": False}, {}, "story.<|im_end|>\n"),
                              ({"add_generation_prompt": True}, {"add_generation_prompt": False}, "<|im_start|>assistant\n")):
        chat = server.post("/tokenize", {"messages": MESSAGES, "chat_template_kwargs": kwargs, **more})[2]
        assert server.post("/detokenize", {"tokens": chat["tokens"]})[2]["prompt"].endswith(end)
    server.refused("/detokenize", {"tokens": [5, 99999]}, param="tokens", word="99999")
    odd = "ü\u0000\U0001F600 x"
    assert server.post("/detokenize", {"tokens": server.post("/tokenize", {"prompt": odd})[2]["tokens"]})[2]["prompt"] == odd


def test_models():
    status, _, body = server.get("/v1/models")
    assert status == 200 and [m["id"] for m in body["data"]] == ["demo"] and body["data"][0]["max_model_len"] == 2048
    assert server.get("/v1/models/demo")[2]["id"] == "demo"
    assert server.get("/v1/models/d%65mo")[2]["id"] == "demo"
    for path in ("other", "d%zzmo", "demo%00", "%ff", ""):
        assert server.get(f"/v1/models/{path}")[0] == 404, path
    assert server.complete(model="demo", max_tokens=1)


def test_values_of_other_clients():
    """What vLLM, llama-server and clients in languages with one type of number take or send."""
    greedy = server.complete(max_tokens=12)["choices"][0]["text"]
    for fields in ({"temperature": 1e-8}, {"temperature": 5e-4}, {"temperature": 1.5, "top_p": 0}, {"max_tokens": 12.0}):
        assert server.complete(**{"max_tokens": 12, **fields})["choices"][0]["text"] == greedy, fields
    body = server.complete(max_tokens=-1, ignore_eos=True, prompt=[5] * 2000)
    assert body["usage"]["completion_tokens"] == 48 and body["usage"]["total_tokens"] == 2048
    assert server.chat(max_tokens=-1, stop=["."])["choices"][0]["finish_reason"] == "stop"
    assert server.complete(prompt=[5] * 3000, truncate_prompt_tokens=-1, max_tokens=8)["usage"]["prompt_tokens"] == 2040


def test_fields_that_mean_nothing_here():
    server.complete(max_tokens=1, user="somebody", best_of=1, tools=[], tool_choice="none", response_format={"type": "text"},
                    metadata={"a": 1}, suffix=None, never_heard_of={"x": [1, 2]}, stop=None, n=None, logit_bias=None)


def test_truncate():
    ids = server.post("/tokenize", {"prompt": PROMPT})[2]["tokens"]
    short = server.complete(truncate_prompt_tokens=4)
    assert short["usage"]["prompt_tokens"] == 4
    assert short["choices"][0]["text"] == server.complete(prompt=ids[-4:])["choices"][0]["text"]


def test_prefix_cache():
    """What a prompt has in common with an earlier one is not computed again, and changes nothing but the time."""
    words = [f"The {w} dog saw a {w} cat." for w in ("big", "red", "old", "sad", "tiny", "happy")] * 12
    prompt = " ".join(words)
    before = server.metric("prefix_cache_hits_total")
    first = server.complete(prompt=prompt, max_tokens=20)
    again = server.complete(prompt=prompt, max_tokens=20)
    n = first["usage"]["prompt_tokens"]
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == (n - 1) // 64 * 64 >= 512
    assert again["choices"] == first["choices"]
    assert server.metric("prefix_cache_hits_total") - before == (n - 1) // 64 * 64
    other = server.complete(prompt=prompt + " Then", max_tokens=20)
    assert other["choices"][0]["text"] == generate("-p", prompt + " Then", "-n", "20", "--temp", "0")[0]
    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] >= 512


def test_prefix_cache_is_quick():
    """2,000 tokens in common: the second first token comes in a fraction of the first's time."""
    ids = [300 + i * 7 % 3000 for i in range(2000)]
    times = []
    for _ in range(2):
        begin = time.monotonic()
        server.complete(prompt=ids, max_tokens=1)
        times.append(time.monotonic() - begin)
    assert times[1] < 0.15 * times[0], times


def test_priority():
    """While all seats are taken, the more important one of two that wait goes first."""
    running = [server.stream(COMPLETIONS, {"prompt": PROMPT, "max_tokens": 300, "ignore_eos": True}) for _ in range(8)]
    done = []

    def one(priority):
        server.complete(priority=priority, max_tokens=2)
        done.append(priority)

    threads = []
    for i, priority in enumerate((3, -3)):
        threads.append(threading.Thread(target=one, args=(priority,)))
        threads[-1].start()
        server.wait_until(lambda: server.metric("num_requests_waiting") == i + 1)
    running[0].close()  # one seat
    for thread in threads:
        thread.join()
    for stream in running:
        stream.close()
    assert done == [-3, 3]


# ---- Refusals ----


def test_wrong_types():
    for field, value in {"temperature": "hot", "top_p": [], "max_tokens": "5", "stream": 1, "stop": 5, "n": 1.5, "seed": "x",
                         "logit_bias": [], "top_k": 0.5, "stop_token_ids": "x", "ignore_eos": "yes", "stream_options": 3,
                         "min_tokens": {}, "presence_penalty": True, "bad_words": [1], "model": 3}.items():
        server.refused(COMPLETIONS, {"prompt": PROMPT, "max_tokens": 1, field: value}, param=field, word="expected")


def test_out_of_range():
    for field, value in {"temperature": -1, "top_p": 2, "n": 0, "max_tokens": -2, "truncate_prompt_tokens": 0, "logprobs": 21, "min_p": 1.5,
                         "repetition_penalty": 0, "presence_penalty": 3, "top_k": -2, "min_tokens": 99,
                         "logit_bias": {"1": 101}, "logit_bias ": {"x": 1}, "stop_token_ids": [-1], "n ": 200,
                         "stop_token_ids ": [99999], "allowed_token_ids": [], "allowed_token_ids ": [99999], "max_tokens ": 1e300}.items():
        name = field.strip()
        server.refused(COMPLETIONS, {"prompt": PROMPT, "max_tokens": 8, name: value}, param=name)


def test_unsupported_is_refused_by_name():
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    for field, value in {"tools": [tool], "tool_choice": "required", "response_format": {"type": "json_object"},
                         "guided_json": {"type": "object"}, "best_of": 3, "suffix": "x", "skip_special_tokens": False,
                         "modalities": ["audio"], "chat_template": "x", "continue_final_message": True, "use_beam_search": True,
                         "structured_outputs": {"regex": "a"}, "echo": True}.items():
        server.refused(CHAT, {"messages": MESSAGES, field: value}, param=field, code="unsupported")
    image = [{"type": "image_url", "image_url": {"url": "data:"}}]
    server.refused(CHAT, {"messages": [{"role": "user", "content": image}]}, param="messages", code="unsupported", word="image_url")


def test_bad_prompts():
    for prompt in (None, 5, {}, [], [[]], ["a", 5], [1, "a"], "", [-1], [4096], [1.5], [True]):
        server.refused(COMPLETIONS, {"prompt": prompt, "max_tokens": 1}, param="prompt")
    server.refused(COMPLETIONS, {}, param="prompt", word="missing")
    for messages in (None, [], "hi", [5], [{}], [{"role": 5, "content": "x"}], [{"role": "user", "content": 5}],
                     [{"role": "user", "content": [{"type": "text"}]}]):
        server.refused(CHAT, {"messages": messages}, param="messages")


def test_nested_too_deep():
    """What the template cannot walk through: its limit, and no word of the context's."""
    deep = "[" * 1500 + "]" * 1500
    body = '{"messages": [{"role": "user", "content": "x", "more": %s}]}' % deep
    error = server.refused(CHAT, body, param="messages", word="nested deeper")
    assert error["code"] is None and error["message"].startswith("more than the chat template may read:")


def test_too_long():
    error = server.refused(COMPLETIONS, {"prompt": PROMPT, "max_tokens": 5000}, param="prompt", code="context_length_exceeded")
    assert "2048" in error["message"]
    server.refused(COMPLETIONS, {"prompt": [5] * 3000, "max_tokens": 1}, param="prompt", code="context_length_exceeded")
    server.refused(CHAT, {"messages": [{"role": "user", "content": "word " * 3000}]}, param="messages", code="context_length_exceeded")


def test_far_too_long():
    """Refused before the time to tokenize it is spent."""
    begin = time.monotonic()
    server.refused(COMPLETIONS, {"prompt": "x " * 1_500_000}, param="prompt", code="context_length_exceeded", word="bytes")
    assert time.monotonic() - begin < (20 if harness.SANITIZED else 2)


def test_nothing_left_to_draw():
    """What the engine finds only when it draws."""
    ids = server.post("/tokenize", {"prompt": " Tom"})[2]["tokens"]
    fields = {"prompt": PROMPT, "max_tokens": 2, "allowed_token_ids": ids, "bad_words": ["Tom"]}
    server.refused(COMPLETIONS, fields, word="every token is forbidden")
    chunks = list(server.stream(COMPLETIONS, fields))
    assert "every token is forbidden" in chunks[-1]["error"]["message"]


def test_bad_bodies():
    for body in ("", "{", "[]", "nonsense", '{"prompt": "x",}', '{"prompt": "a", "prompt": "b"}', "[" * 100000, '"x"',
                 '{"prompt": "\\ud800"}', '{"seed": 99999999999999999999}', b'{"prompt": "\xff"}', "\x00"):
        status, _, answer = server.post(COMPLETIONS, body)
        assert status == 400 and answer["error"]["type"] == "invalid_request_error", (body[:40], status, answer)


def test_unknown_model():
    server.refused(COMPLETIONS, {"model": "other", "prompt": "x"}, status=404, param="model", code="model_not_found")
    for n in (198, 199, 200):  # what is cut off the name is not cut in a character
        server.refused(COMPLETIONS, {"model": "a" * n + "\u00e9" * 4, "prompt": "x"}, status=404, param="model",
                       word="there is no model 'aaaaa")
    server.refused(COMPLETIONS, {"model": "\u00e9", "prompt": "x"}, status=404, param="model", word="'\u00e9' here")


def test_paths_and_methods():
    for method, path, status in (("GET", "/nowhere", 404), ("POST", "/v1", 404), ("GET", COMPLETIONS, 405), ("DELETE", CHAT, 405),
                                 ("POST", "/health", 405), ("PUT", "/v1/models", 405), ("GET", "/v1/../x", 404)):
        got, headers, body = server.call(method, path)
        assert got == status and body["error"]["message"], (method, path, got)
        assert status != 405 or headers["allow"] in ("GET", "POST")
    for path in (b"/v1/\xffmodels", b"/\xff", b"/" + b"a" * 198 + "\u00e9".encode() * 4, b"/" + b"a" * 500):
        with server.connect() as connection:  # bytes that no URL has, and that no JSON could repeat
            connection.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            data = harness.read_all(connection)
        assert data.startswith(b"HTTP/1.1 404 ") and b"\"code\":\"not_found\"" in data and b"there is no " in data, path
    assert server.call("HEAD", "/health")[0] == 200
    for path in ("/v1/health", "/models"):
        assert server.get(path)[0] == 200
    assert server.post("/completions", {"prompt": PROMPT, "max_tokens": 1})[2]["object"] == "text_completion"
    assert server.post("/chat/completions", {"messages": MESSAGES, "max_tokens": 1})[2]["object"] == "chat.completion"
    assert server.get("/version")[2]["version"]


def test_zz_ends_well():
    server.idle()
    server.stop()


if __name__ == "__main__":
    harness.main(globals())
