"""Generation beside transformers, in turn in one run: `python bench/bench_generate.py [--tokens 64] [--rounds 3]`.

Random GPT-2 124M weights, one stream, greedy, the key and value cache of each; fp32 and bf16. Each round times a short
prompt with steps after it, and a prompt of 1,016 tokens with 8 steps, first theirs, then ours
(bench_generate.mojo, built into build/ if it is not there). The medians are compared.
"""

import argparse
import re
import statistics
import subprocess
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "build" / "bench_generate"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LONG_PROMPT = 1016


def theirs(model, prompt, tokens):
    """Seconds that transformers takes for a prompt of so many tokens and the tokens after it."""
    ids = (torch.arange(prompt) * 7919 % 50257)[None]
    start = time.perf_counter()
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        pad_token_id=50256,
    )
    return time.perf_counter() - start


def ours(dtype, prompt, tokens):
    """Seconds per step, seconds for the prompt, and the share of the bandwidth, as bench_generate.mojo prints them."""
    command = [PROGRAM, "--dtype", dtype, "--prompt", str(prompt), "--steps", str(tokens)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    step = float(re.search(r"^step +([\d.]+) ms", output, re.M)[1]) / 1e3
    read = min(float(seconds) for seconds in re.findall(r"^prompt .* in ([\d.]+) s", output, re.M))
    return step, read, float(re.search(r"([\d.]+)%$", output, re.M)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if not PROGRAM.exists():
        subprocess.run(["mojo", "build", "-I", ".", "bench/bench_generate.mojo", "-o", PROGRAM], cwd=ROOT, check=True)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    for name, dtype in DTYPES.items():
        model.to(dtype)
        their_steps, their_reads, our_steps, our_reads, shares = [], [], [], [], []
        theirs(model, 8, 4)
        for _ in range(args.rounds):
            short = theirs(model, 8, 1)
            their_steps.append((theirs(model, 8, args.tokens + 1) - short) / args.tokens)
            their_reads.append(theirs(model, LONG_PROMPT, 1))
            step, _, share = ours(name, 8, args.tokens)
            our_steps.append(step)
            shares.append(share)
            our_reads.append(ours(name, LONG_PROMPT, 8)[1])
        their_step, our_step = statistics.median(their_steps), statistics.median(our_steps)
        their_read, our_read = statistics.median(their_reads), statistics.median(our_reads)
        print(
            f"{name}  a token: transformers {their_step * 1e3:.1f} ms ({1 / their_step:.1f} tok/s),"
            f" ours {our_step * 1e3:.1f} ms ({1 / our_step:.1f} tok/s): {their_step / our_step:.2f}x,"
            f" {statistics.median(shares):.0f}% of the bandwidth"
        )
        print(
            f"{name}  a prompt of {LONG_PROMPT} tokens: transformers {their_read:.2f} s ({LONG_PROMPT / their_read:.0f}"
            f" tok/s), ours {our_read:.2f} s ({LONG_PROMPT / our_read:.0f} tok/s): {their_read / our_read:.2f}x"
        )


if __name__ == "__main__":
    main()
