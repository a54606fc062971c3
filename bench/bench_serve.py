"""How many tokens a second `llm-mojo serve` gives one client and many at once, and what a minute of that does to its memory.

    python bench/bench_serve.py MODEL [--clients 32] [--seconds 60]

Each client asks for texts of 100 tokens, one after the other, with a seed of its own; some of what they get is compared with
what the model writes alone.
"""

import argparse
import asyncio
import subprocess
import sys
import time
from pathlib import Path

import openai

from llm_mojo import GPT2

TOKENS = 100
CHECKED = 8  # texts that are written again, alone


def resident_mb(pid: int) -> float:
    """Megabytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


async def ask(client, model, until, texts, seed):
    """Asks for texts until the time is over; returns the tokens that came by then."""
    count = 0
    while time.monotonic() < until:
        text = ""
        stream = await client.completions.create(model=model, prompt="The", max_tokens=TOKENS, seed=seed, stream=True)
        async for chunk in stream:
            text += chunk.choices[0].text
            count += len(chunk.choices[0].model_extra["token_ids"]) if time.monotonic() < until else 0
        texts[seed] = text
        seed += 1000
    return count


async def load(url, model, clients, seconds):
    """(tokens a second, texts by their seeds) of so many clients at once."""
    texts: dict[int, str] = {}
    async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=600) as client:
        until = time.monotonic() + seconds
        counts = await asyncio.gather(*(ask(client, model, until, texts, seed) for seed in range(clients)))
    return sum(counts) / seconds, texts


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    command = [sys.executable, "-u", "-m", "llm_mojo", "serve", "--port", "0", args.model]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        url = next(line for line in server.stdout if "base_url=" in line).partition("base_url=")[2].strip()
        asyncio.run(load(url, args.model, 1, 3))
        one, _ = asyncio.run(load(url, args.model, 1, args.seconds / 3))
        asyncio.run(load(url, args.model, args.clients, 3))
        before = resident_mb(server.pid)
        many, texts = asyncio.run(load(url, args.model, args.clients, args.seconds))
        after = resident_mb(server.pid)
    finally:
        server.terminate()
        server.wait()
    print(f"one client {one:.0f} tokens/s; {args.clients} clients {many:.0f} tokens/s, {many / one:.1f} times as many")
    print(f"memory {before:.0f} MB before, {after:.0f} MB after {args.seconds:.0f} s; {len(texts)} texts, no error")
    model = GPT2.from_pretrained(args.model)
    for seed in list(texts)[:CHECKED]:
        assert model.generate("The", TOKENS, temperature=1.0, seed=seed).text == texts[seed]
    print(f"{min(CHECKED, len(texts))} texts are what the model writes alone")


if __name__ == "__main__":
    main()
