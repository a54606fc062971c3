"""The server: OpenAI's own client against it, limits, who may ask, who leaves."""

import asyncio
import base64
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time

import httpx
import numpy as np
import openai
import pytest

from llm_mojo import GPT2, GPT2Config, Tokenizer, formats
from llm_mojo.__main__ import main
from mojo_programs import ENVIRONMENT, ROOT, wait_for

pytestmark = pytest.mark.engine
PROMPT = "The Thing "


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small random model of bytes, as a checkpoint: (its file, the model)."""
    folder = tmp_path_factory.mktemp("model")
    made = GPT2(GPT2Config(64, 257, 2, 2, 32), seed=3, tokenizer=Tokenizer.load("byte"))
    # Random weights say nothing in particular: louder ones have favourites.
    made.load_parameters({"wte": 5 * made.parameters()["wte"]})
    made.save(folder / "model.bin")
    return folder / "model.bin", made


class Running:
    """`python -m llm_mojo serve` in a process of its own."""

    def __init__(self, *flags, cwd):
        command = [sys.executable, "-m", "llm_mojo", "serve", "--port", "0", *map(str, flags)]
        environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT / "pysrc"), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("OpenAI's protocol"):
                break
        assert self.lines and self.lines[-1].startswith("OpenAI's protocol"), self.lines
        self.base_url = self.lines[-1].partition("base_url=")[2].split(",")[0].strip()
        self.url = self.base_url.removesuffix("v1")

    def end(self):
        self.process.terminate()
        assert self.process.wait(timeout=30) in (0, -15)


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    running = Running(model[0], cwd=tmp_path_factory.mktemp("server"))
    yield running
    running.end()


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)


@pytest.fixture
def name(model):
    return f"{model[0]}"


def test_models(client, name):
    assert [each.id for each in client.models.list()] == [name]
    assert client.models.retrieve(name).owned_by == "llm.mojo"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.completions.create(model="gpt-5", prompt="a")


def test_a_completion_is_what_generate_writes(client, model, name):
    answer = client.completions.create(model=name, prompt=PROMPT, max_tokens=40, temperature=0.7, seed=11, top_p=0.9)
    expected = model[1].generate(PROMPT, 40, temperature=0.7, seed=11, top_p=0.9)
    assert answer.choices[0].text == expected.text and answer.choices[0].finish_reason == expected.finish_reason
    assert answer.object == "text_completion" and answer.usage.prompt_tokens == len(PROMPT)
    assert answer.usage.completion_tokens == len(expected.tokens) == answer.usage.total_tokens - len(PROMPT)


def test_streams(client, model, name):
    stream = client.completions.create(
        model=name, prompt=PROMPT, max_tokens=30, seed=5, n=3, stream=True, stream_options={"include_usage": True}
    )
    texts, ends, usage = ["", "", ""], {}, None
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
        usage = chunk.usage or usage
    expected = model[1].generate(PROMPT, 30, temperature=1.0, seed=5, n=3)
    assert texts == [each.text for each in expected]
    assert ends == {i: each.finish_reason for i, each in enumerate(expected)}
    assert usage.completion_tokens == sum(len(each.tokens) for each in expected)


def test_stop_and_seeds(client, model, name):
    whole = client.completions.create(model=name, prompt=PROMPT, max_tokens=60, seed=1).choices[0].text
    stop = whole[20:23]
    choice = client.completions.create(model=name, prompt=PROMPT, max_tokens=60, seed=1, stop=[stop, "@@"]).choices[0]
    assert choice.text == whole[: whole.index(stop)] and choice.finish_reason == "stop"
    without = {client.completions.create(model=name, prompt=PROMPT, max_tokens=30).choices[0].text for _ in range(4)}
    assert len(without) > 1


def test_token_prompts_and_logprobs(client, model, name):
    ids = model[1].tokenizer.encode(PROMPT)
    answer = client.completions.create(model=name, prompt=[ids, ids[:3]], max_tokens=8, logprobs=4, seed=9, n=2)
    assert len(answer.choices) == 4
    for index, choice in enumerate(answer.choices):
        prompt = ids if index < 2 else ids[:3]
        expected = model[1].generate([prompt], 8, temperature=1.0, seed=9 + index, logprobs=4)[0]
        assert choice.text == expected.text
        assert choice.logprobs.token_logprobs == pytest.approx(expected.logprobs, abs=1e-5)
        for top, alternatives, token in zip(
            choice.logprobs.top_logprobs, expected.alternatives, choice.logprobs.tokens
        ):
            assert token in top and len(top) in (4, 5)
            assert sorted(top.values())[-4:] == pytest.approx(sorted(value for _, value in alternatives), abs=1e-5)
        assert choice.logprobs.text_offset[0] == 0


def test_echo_has_the_logprobs_of_the_prompt(client, model, name):
    """Against the logits, by NumPy in float64: what lm-eval computes log-likelihoods from."""
    text = "one Thing under the Water"
    answer = client.completions.create(model=name, prompt=text, max_tokens=0, logprobs=2, echo=True)
    ids = model[1].tokenizer.encode(text)
    logits = model[1].logits(ids).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found = answer.choices[0].logprobs
    assert answer.choices[0].text == text and found.token_logprobs[0] is None and found.tokens == list(text)
    assert found.token_logprobs[1:] == pytest.approx([row[id] for row, id in zip(expected, ids[1:])], abs=1e-4)
    assert found.text_offset == list(range(len(text)))
    assert [max(top.values()) for top in found.top_logprobs[1:]] == pytest.approx(expected[:-1].max(axis=1), abs=1e-4)


def test_bytes_that_are_no_text(client, name):
    answer = client.completions.create(model=name, prompt=[0xE2], max_tokens=1, logprobs=0, echo=True)
    assert answer.choices[0].logprobs.tokens[0] == "bytes:\\xe2"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": -1}, "max_tokens: expected a whole number from 0 to 4096, found -1"),
        ({"max_tokens": 10**9}, "max_tokens: expected"),
        ({"temperature": -0.5}, "temperature: expected a number from 0 to 100"),
        ({"n": 0}, "n: expected"),
        ({"n": 100, "prompt": ["a", "b"]}, "at most 128 texts in a request, found 200"),
        ({"prompt": "a" * 65}, "context is 64 tokens, the prompt has 65"),
        ({"prompt": [300]}, "token ids from 0 to 256"),
        ({"prompt": []}, "prompt: expected a text"),
        ({"prompt": [[1], []]}, "prompt: expected texts"),
        ({"stop": ["x"] * 17}, "stop: expected"),
        ({"stop": ""}, None),
        ({"logprobs": 21}, "logprobs: expected"),
        ({"best_of": 3}, "best_of: expected the same as n"),
        ({"suffix": "x"}, "this server has no suffix"),
        ({"frequency_penalty": 1.0}, "this server has no frequency_penalty"),
        ({"extra_body": {"colour": 1}}, "Unrecognized request argument: colour"),
        ({"extra_body": {"stream": "yes"}}, "stream: expected true or false"),
        ({"extra_body": {"top_k": 1.5}}, "top_k: expected"),
    ],
)
def test_mistakes(settings, message, client, name):
    request = {"model": name, "prompt": "a", "max_tokens": 2} | settings
    if message is None:
        client.completions.create(**request)
        return
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(**request)
    assert message in error.value.body["message"] and error.value.body["type"] == "invalid_request_error"


def test_bodies_that_are_no_requests(server):
    url, kind = f"{server.base_url}/completions", {"content-type": "application/json"}
    assert httpx.post(url, content=b"{", headers=kind).status_code == 400
    assert httpx.post(url, content=b"[1]", headers=kind).json()["error"]["message"].startswith("expected a JSON object")
    assert httpx.post(url, content=b"[" * 100_000, headers=kind).status_code == 400
    assert httpx.post(url, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert httpx.post(url, content=b"0" * 9_000_000, headers=kind).status_code == 413
    assert httpx.get(url).status_code == 405
    assert httpx.get(f"{server.url}nothing").status_code == 404


def test_texts_side_by_side_are_what_they_are_alone(server, model, name):
    """Forty clients at once, more than are decoded side by side."""

    async def ask(client, seed):
        answer = await client.completions.create(
            model=name, prompt=PROMPT[: seed % 9 + 1], max_tokens=10 + seed, seed=seed
        )
        return answer.choices[0].text

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="none") as client:
            return await asyncio.gather(*(ask(client, seed) for seed in range(40)))

    for seed, text in enumerate(asyncio.run(all_of_them())):
        expected = model[1].generate(PROMPT[: seed % 9 + 1], 10 + seed, temperature=1.0, seed=seed)
        assert text == expected.text


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.long)])
def test_clients_that_leave_end_their_texts(count, server, name, client):
    """Of a stream in the middle, and of an answer that is waited for; then the server has nothing to do."""
    request = {"model": name, "prompt": "a", "max_tokens": 4096, "n": 16, "temperature": 2.0}
    dice = random.Random(count)
    for number in range(count):
        body = json.dumps(request | {"stream": number % 2 == 0}).encode()
        host, port = server.url.removeprefix("http://").strip("/").split(":")
        with contextlib.closing(socket.create_connection((host, int(port)))) as connection:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            if number % 2 == 0:
                connection.recv(2000)
            time.sleep(dice.uniform(0, 0.1))

    def processor_s():
        fields = open(f"/proc/{server.process.pid}/stat").read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def is_idle():
        before = processor_s()
        time.sleep(0.3)
        return processor_s() - before < 0.1

    wait_for(is_idle, 60)
    assert client.completions.create(model=name, prompt="a", max_tokens=2).usage.completion_tokens == 2


def test_too_many_texts(server, name):
    """The queue has its end; whoever is refused is told to come again."""

    async def ask(client, seed):
        request = {"model": name, "prompt": "a", "max_tokens": 100, "n": 128, "seed": seed}
        return (await client.post(f"{server.base_url}/completions", json=request, timeout=120)).status_code

    async def all_of_them():
        async with httpx.AsyncClient() as client:
            return await asyncio.gather(*(ask(client, seed) for seed in range(8)))

    statuses = asyncio.run(all_of_them())
    assert set(statuses) == {200, 429}


def test_a_request_that_takes_too_long(model, tmp_path):
    running = Running(model[0], "--timeout", "0.2", cwd=tmp_path)
    try:
        client = openai.OpenAI(base_url=running.base_url, api_key="none", max_retries=0)
        with pytest.raises(openai.InternalServerError, match="longer than 0.2 s"):
            client.completions.create(model=f"{model[0]}", prompt="a", max_tokens=4096, n=64)
    finally:
        running.end()


def test_who_may_ask(server):
    host = server.url.removeprefix("http://").strip("/")
    assert httpx.get(server.url, headers={"host": "evil.example"}).status_code == 403
    assert httpx.get(server.url, headers={"host": f"localhost:{host.split(':')[1]}"}).status_code == 200
    for origin in "http://evil.example", "null", f"https://{host}.evil.example":
        assert httpx.get(f"{server.url}api/runs", headers={"origin": origin}).status_code == 403
    assert httpx.get(f"{server.url}api/runs", headers={"origin": f"http://{host}"}).status_code == 200
    policy = httpx.get(server.url).headers["content-security-policy"]
    assert "script-src 'self'" in policy and "unsafe" not in policy


def test_beyond_this_machine_there_is_a_token(model, tmp_path):
    running = Running(model[0], "--host", "0.0.0.0", cwd=tmp_path)
    try:
        token = running.lines[-1].partition("api_key=")[2].split()[0]
        url = running.url.replace("0.0.0.0", "127.0.0.1")
        for path in "", "page/app.js", "v1/models", "api/runs", f"v1/models?token={token[:-1]}":
            assert httpx.get(url + path).status_code == 401
        assert httpx.get(f"{url}v1/models", headers={"authorization": f"Bearer {token}"}).status_code == 200
        with httpx.Client(follow_redirects=True) as browser:
            assert browser.get(f"{url}?token={token}").status_code == 200
            assert browser.get(f"{url}api/runs").status_code == 200
        client = openai.OpenAI(base_url=f"{url}v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="a token is needed"):
            client.models.list()
    finally:
        running.end()


def test_paths_stay_in_the_folder_of_runs(tmp_path, model):
    for folder in "runs/one", "secret":
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "log.jsonl").write_text(
            '{"step": 1, "loss": 2.5, "ms": 3}\n{"step": 1, "val_loss": 2.25}\n'
        )
    running = Running(cwd=tmp_path)
    try:
        assert [run["name"] for run in httpx.get(f"{running.url}api/runs").json()["runs"]] == ["one"]
        found = httpx.get(f"{running.url}api/runs/one").json()
        assert found["train"]["loss"] == [2.5] and found["val"] == [[1, 2.25]] and not found["running"]
        again = httpx.get(f"{running.url}api/runs/one?from={found['next']}").json()
        assert again["train"]["loss"] == [] and again["next"] == found["next"]
        for name in "../secret", "..%2Fsecret", "%2e%2e", "two", "one%00", "one/../../secret":
            assert httpx.get(f"{running.url}api/runs/{name}").status_code == 404
        for name in "page/../app.py", "page/..%2fapp.py", "page/app.py":
            assert httpx.get(running.url + name).status_code == 404
        with open(tmp_path / "runs/one/log.jsonl", "a") as log:
            log.write("no json\n")
        assert "expected an object" in httpx.get(f"{running.url}api/runs/one").json()["problem"]
        # There is no model, and that is said.
        answer = httpx.post(f"{running.url}v1/completions", json={"prompt": "a"})
        assert answer.status_code == 404 and "no run has a checkpoint yet" in answer.json()["error"]["message"]
    finally:
        running.end()


def test_tokens_and_attention(server, model, name):
    text = "a é b"
    found = httpx.post(f"{server.url}api/tokens", json={"model": name, "text": text}).json()
    assert found["ids"] == model[1].tokenizer.encode(text) and found["tokens"][2] == "bytes:\\xc3"
    found = httpx.post(f"{server.url}api/attention", json={"model": name, "text": text, "layer": 1}).json()
    maps = np.frombuffer(base64.b64decode(found["maps"]), np.uint8).reshape(2, 6, 6)
    assert np.abs(maps / 255 - model[1].attention(model[1].tokenizer.encode(text), 1)).max() < 0.5 / 255 + 1e-6
    for body, message in [
        ({"layer": 2}, "layer: expected 0 to 1"),
        ({"text": "x" * 65}, "at most 64 tokens to look at, found 65"),
        ({"text": 5}, "text: expected a text"),
    ]:
        answer = httpx.post(f"{server.url}api/attention", json={"model": name, "text": text} | body)
        assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_what_stops_the_server_before_it_starts(model, tmp_path):
    command = [sys.executable, "-m", "llm_mojo", "serve"]
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT / "pysrc")}

    def error(*flags):
        result = subprocess.run(
            [*command, *map(str, flags)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 1
        return result.stderr

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen at 127.0.0.1, port {port}: Address already in use; --port names another" in error(
            "--port", port
        )
    assert "nothing.bin" in error("--port", 0, "nothing.bin")
    assert "--port: expected 0 to 65535" in error("--port", 70000)


@pytest.mark.long
@pytest.mark.builds("eval_gpt2.mojo")
def test_lm_evals_loglikelihoods_are_those_of_eval_gpt2(mojo_program, tmp_path, monkeypatch):
    """lm-eval's local-completions on a made task of 200 examples."""
    lm_eval = pytest.importorskip("lm_eval", reason="needs the extra long: pip install -e '.[long]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    made = GPT2(GPT2Config(128, 257, 2, 2, 32), seed=3, tokenizer=Tokenizer.load("byte"))
    made.load_parameters({"wte": 5 * made.parameters()["wte"]})
    made.save("model.bin")
    assert main(["export", "model.bin", "--to", "hf"]) == 0
    dice = random.Random(5)

    def words(most):
        return " ".join(
            dice.choice("the a of one Thing other stone Water under".split()) for _ in range(dice.randint(1, most))
        )

    examples = [
        {"ctx": words(8), "choices": [words(4) for _ in range(4)], "label": dice.randrange(4)} for _ in range(200)
    ]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    encode = made.tokenizer.encode
    formats.write_hellaswag(
        "task.bin",
        [
            formats.Choice(encode(e["ctx"]), [encode(f" {choice}") for choice in e["choices"]], e["label"])
            for e in examples
        ],
    )
    mojo_program("eval_gpt2.mojo").output("-e", "model.bin", "--hellaswag", "task.bin", "--json", "ours.json")
    ours = json.loads((tmp_path / "ours.json").read_text())["hellaswag"]["judgements"]

    task = {
        "task": "made",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "task.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{ctx}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
    }
    running = Running("model.bin", cwd=tmp_path)
    try:
        settings = {"base_url": f"{running.base_url}/completions", "model": "model.bin", "tokenizer": f"{tmp_path}/hf"}
        settings |= {"tokenizer_backend": "huggingface", "num_concurrent": 4, "batch_size": 8, "max_length": 128}
        found = lm_eval.simple_evaluate("local-completions", model_args=settings, tasks=[task], bootstrap_iters=0)
    finally:
        running.end()
    samples = sorted(found["samples"]["made"], key=lambda sample: sample["doc_id"])
    assert len(samples) == 200
    for sample, own in zip(samples, ours):
        theirs = [response[0] for response in sample["filtered_resps"]]
        assert theirs == pytest.approx([-loss for loss in own["losses"]], abs=1e-4)
