#!/usr/bin/env python3
"""Clients that people use: the openai package and curl, where they are installed."""
import glob
import json
import os
import shutil
import subprocess
import sys
import time

import harness
from harness import PROMPT, generate

sys.path += glob.glob("build/python/lib/python3*/site-packages")  # make check put it there
try:
    import openai
except ImportError:
    openai = None

server = harness.Server("--api-key", "key", "--max-num-seqs", "4")
KEY = {"Authorization": "Bearer key"}
MESSAGES = [{"role": "user", "content": "Tell me a story."}]


def client(**settings):
    if openai is None:
        raise harness.Skip("the openai package is not installed (pip install openai)")
    return openai.OpenAI(**{"base_url": f"http://127.0.0.1:{server.port}/v1", "api_key": "key", "max_retries": 0, **settings})


def running():
    text = server.get("/metrics", KEY)[2]
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith("lockstep:num_requests_running"))


def fails(kind, call):
    try:
        call()
    except kind as why:
        return why
    raise AssertionError(f"no {kind.__name__}")


def test_openai_chat():
    c = client()
    answer = c.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=20, temperature=0)
    assert answer.choices[0].message.role == "assistant" and answer.usage.completion_tokens == 20
    text = ""
    with c.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=20, temperature=0, stream=True,
                                   stream_options={"include_usage": True}) as stream:
        for chunk in stream:
            text += chunk.choices[0].delta.content or "" if chunk.choices else ""
    assert text == answer.choices[0].message.content and chunk.usage.completion_tokens == 20


def test_openai_completions():
    expected = generate("-p", PROMPT, "-n", "20", "--temp", "0")[0]
    answer = client().completions.create(model="demo", prompt=PROMPT, max_tokens=20, temperature=0)
    assert answer.choices[0].text == expected
    chunks = client().completions.create(model="demo", prompt=PROMPT, max_tokens=20, temperature=0, stream=True)
    assert "".join(c.choices[0].text for c in chunks) == expected


def test_openai_n_and_logprobs():
    answer = client().chat.completions.create(model="demo", messages=MESSAGES, max_tokens=4, n=3, seed=1, temperature=1, logprobs=True,
                                              top_logprobs=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        assert "".join(t.token for t in choice.logprobs.content) == choice.message.content
        assert all(len(t.top_logprobs) == 2 for t in choice.logprobs.content)


def test_openai_extras():
    answer = client().chat.completions.create(model="demo", messages=MESSAGES, max_tokens=4, temperature=0,
                                              extra_body={"top_k": 1, "min_p": 0.1, "ignore_eos": True, "repetition_penalty": 1.1})
    assert answer.usage.completion_tokens == 4


def test_openai_errors():
    stranger = client(api_key="wrong")
    fails(openai.AuthenticationError, stranger.models.list)
    fails(openai.NotFoundError, lambda: client().completions.create(model="other", prompt="x"))
    why = fails(openai.BadRequestError, lambda: client().completions.create(model="demo", prompt="x", temperature=7000))
    assert why.param == "temperature" and "7000" in why.message
    why = fails(openai.BadRequestError, lambda: client().chat.completions.create(
        model="demo", messages=MESSAGES, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]))
    assert why.param == "tools" and why.code == "unsupported"


def test_openai_timeout_cancels():
    impatient = client(timeout=0.3)
    fails(openai.APITimeoutError, lambda: impatient.completions.create(
        model="demo", prompt=PROMPT, max_tokens=2000, n=4, extra_body={"ignore_eos": True}))
    server.wait_until(lambda: running() == 0)


def test_openai_closing_a_stream_cancels():
    stream = client().completions.create(model="demo", prompt=PROMPT, max_tokens=2000, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    begin = time.monotonic()
    server.wait_until(lambda: running() == 0)
    assert time.monotonic() - begin < (10 if harness.SANITIZED else 1)


def test_openai_models():
    assert [m.id for m in client().models.list()] == ["demo"] and client().models.retrieve("demo").id == "demo"


def curl(body, *words):
    if not shutil.which("curl"):
        raise harness.Skip("curl is not installed")
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    url = f"http://127.0.0.1:{server.port}/v1/completions"
    words = ["curl", "-sS", "-H", "Authorization: Bearer key", "--max-time", str(harness.PATIENCE), "-d", "@-", *words, url]
    return subprocess.run(words, input=json.dumps(body), capture_output=True, text=True, check=True, env=environment).stdout


def test_curl():
    expected = generate("-p", PROMPT, "-n", "20", "--temp", "0")[0]
    body = {"prompt": PROMPT, "max_tokens": 20, "temperature": 0}
    assert json.loads(curl(body))["choices"][0]["text"] == expected
    lines = [x for x in curl({**body, "stream": True}, "-N").split("\n") if x.startswith("data: {")]
    assert "".join(json.loads(x[6:])["choices"][0]["text"] for x in lines) == expected
    long = {**body, "user": "x" * 2_000_000}  # curl asks first: Expect: 100-continue
    assert json.loads(curl(long))["choices"][0]["text"] == expected


def test_zz_ends_well():
    server.stop()


if __name__ == "__main__":
    harness.main(globals())
