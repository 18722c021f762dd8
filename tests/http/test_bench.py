#!/usr/bin/env python3
"""`lockstep bench serve`: what it sends, counts and reports."""
import json
import subprocess
import tempfile

import harness
from harness import PROMPT

server = harness.Server("--api-key", "key", "--max-num-seqs", "8")


def bench(*words, code=0, port=None):
    words = [harness.BIN, "bench", "serve", "--base-url", f"http://127.0.0.1:{port or server.port}", "--api-key", "key", *words]
    done = subprocess.run(words, capture_output=True, text=True, timeout=harness.PATIENCE)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done


def figures(*words, **more):
    return json.loads(bench("--json", *words, **more).stdout)


def test_random_load():
    f = figures("--num-prompts", "20", "--random-input-len", "30", "--random-output-len", "10", "--max-concurrency", "8")
    assert f["completed"] == 20 and f["failed"] == 0
    assert f["total_input_tokens"] == 600 and f["total_output_tokens"] == 200
    assert abs(f["output_throughput"] - 200 / f["duration_s"]) < 0.01 * f["output_throughput"]
    for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2el_ms"):
        t = f[name]
        assert 0 < t["median"] <= t["p90"] <= t["p99"] <= t["max"] and 0 < t["mean"] <= t["max"], (name, t)
    assert f["ttft_ms"]["max"] <= f["e2el_ms"]["max"]


def test_lengths_vary_and_repeat():
    words = ("--num-prompts", "12", "--random-input-len", "30", "--random-output-len", "6", "--random-range-ratio", "0.5")
    first, again, other = figures(*words, "--seed", "1"), figures(*words, "--seed", "1"), figures(*words, "--seed", "2")
    assert first["total_input_tokens"] == again["total_input_tokens"] != other["total_input_tokens"]
    assert 12 * 15 <= first["total_input_tokens"] <= 12 * 45


def test_rate():
    """20 a second: 20 requests take about a second, and no less than the last arrival."""
    f = figures("--num-prompts", "20", "--request-rate", "20", "--random-input-len", "4", "--random-output-len", "2")
    assert f["duration_s"] > 0.3 and f["completed"] == 20


def test_dataset():
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.write(json.dumps({"prompt": PROMPT, "output_len": 5, "arrival": 0.3}) + "\n\n")
        file.write(json.dumps({"prompt": [1000, 1001, 1002], "output_len": 3}) + "\n")
        file.flush()
        f = figures("--num-prompts", "5", "--dataset", file.name)
        assert f["completed"] == 5 and f["total_output_tokens"] == 3 * 5 + 2 * 3 and f["duration_s"] >= 0.3
    for text, word in (("", "no prompt"), ("{}\n", "without prompt"), ("nonsense\n", "JSON"), ('{"prompt": "x", "output_len": 0}\n', "output_len")):
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.write(text)
            file.flush()
            words = [harness.BIN, "bench", "serve", "--dataset", file.name]
            done = subprocess.run(words, capture_output=True, text=True, timeout=harness.PATIENCE)
            assert done.returncode in (1, 2) and word in done.stderr, (text, done.stderr)


def test_goodput():
    words = ("--num-prompts", "4", "--random-input-len", "8", "--random-output-len", "4")
    assert figures(*words, "--goodput", "ttft:60000,tpot:60000,e2el:60000")["request_goodput"] > 0
    assert figures(*words, "--goodput", "ttft:0.001")["request_goodput"] == 0
    assert "goodput 0.00" in bench(*words, "--goodput", "e2el:0.001").stdout


def test_results_file():
    """The figures as every measurement keeps them: compared, and in a report."""
    words = ("--num-prompts", "8", "--random-input-len", "20", "--random-output-len", "6", "--max-concurrency", "4")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/serve.json"
        assert "TTFT" in bench(*words, "--output-json", path).stdout
        with open(path) as file:
            results = json.load(file)
        row, = results["rows"]
        m = row["metrics"]
        for words_of_key in (("-api-key", "secret"), ("--api", "secret"), ("--api-key=secret",)):
            bench(*words, *words_of_key, "--output-json", f"{folder}/key.json")
            with open(f"{folder}/key.json") as file:
                assert "secret" not in file.read()
        assert results["what"] == "serve" and "key" not in results["command"].replace("--api-key", "")
        assert row["settings"] == {"requests": 8, "concurrency": 4, "input": 20, "output": 6}
        assert m["failed_percent"]["median"] == 0 and 0 < m["ttft_p50_ms"]["median"] <= m["ttft_p99_ms"]["median"]
        assert m["output_tokens_per_s"]["better"] == "more" and m["e2e_max_ms"]["better"] == "less"
        done = subprocess.run([harness.BIN, "report", path], capture_output=True, text=True, timeout=harness.PATIENCE)
        assert done.returncode == 0 and "A server, as its clients see it" in done.stdout and "20, 6" in done.stdout
        m["ttft_p50_ms"].update({key: 1e-6 for key in ("median", "min", "max")}, runs=[1e-6])
        with open(path, "w") as file:
            json.dump(results, file)
        assert "ttft_p50_ms" in bench(*words, "--compare", path, code=1).stdout
    assert "ttft_p50_ms" in bench(*words, "-o", "csv").stdout


def test_failures_are_told():
    done = bench("--num-prompts", "3", "--random-input-len", "5000", code=1)
    assert "3 failed" in done.stdout and "context" in done.stderr
    done = bench("--num-prompts", "3", "--api-key", "wrong", code=0)  # the first of several keys is sent
    done = subprocess.run([harness.BIN, "bench", "serve", "--base-url", f"http://127.0.0.1:{server.port}", "--num-prompts", "2"],
                          capture_output=True, text=True, timeout=harness.PATIENCE)
    assert done.returncode == 1 and "API key" in done.stderr
    assert "connect" in bench("--num-prompts", "2", code=1, port=1).stderr.lower()


def test_usage():
    for words, text in (([], "bench serve"), (["other"], "bench serve"), (["--num-prompts", "1"], "bench serve"), (["serve", "--goodput", "x:1"], "--goodput"),
                        (["serve", "--num-prompts", "0"], "--num-prompts"), (["serve", "-o", "xml"], "--output"),
                        (["serve", "--base-url", "ftp://x"], "--base-url ftp://x: expected http://"), (["serve", "--base-url", "x:80"], "--base-url")):
        done = subprocess.run([harness.BIN, "bench", *words], capture_output=True, text=True, timeout=harness.PATIENCE)
        assert done.returncode == 2 and text in done.stderr, (words, done.stderr)


def test_zz_ends_well():
    server.stop()


if __name__ == "__main__":
    harness.main(globals())
