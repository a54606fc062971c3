"""GPT-2's tokens: llm/text/tokenizer.mojo beside tiktoken, in turn, on tiny shakespeare and on Python's documentation.

    python bench/bench_tokenizer.py [--rounds 7] [--threads 2] [--json FILE]

Medians of the rounds, and of the ratios within each round. tiktoken encodes to a NumPy array, the fastest that it offers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from llm_mojo import pydocs
from llm_mojo.datasets import DATASETS
from llm_mojo.formats import write_tokenizer
from llm_mojo.tokenize import END_OF_TEXT, gpt2_tokenizer

ROOT = Path(__file__).resolve().parent.parent
REPEATS = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the second native run")
    parser.add_argument("--json", type=Path, help="where to write every figure")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = bench(Path(folder), args.rounds, args.threads)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


def bench(folder, rounds, threads):
    """Prints a line for each text and returns all figures, in megabytes a second."""
    program = folder / "bench_tokenizer"
    source = ROOT / "bench" / "bench_tokenizer.mojo"
    mojo = Path(sys.executable).with_name("mojo")
    subprocess.run([mojo, "build", "-I", ROOT, source, "-o", program], check=True)
    gpt2 = gpt2_tokenizer()
    write_tokenizer(folder / "tokenizer.bin", gpt2.tokens, gpt2.eot)
    ranks = {token: rank for rank, token in enumerate(gpt2.tokens[: gpt2.eot])}
    special = {END_OF_TEXT: gpt2.eot}
    engine = tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)

    def native(path, threads):
        flags = ["--tokenizer", folder / "tokenizer.bin", "--text", path, "--threads", str(threads)]
        output = subprocess.run(
            [program, *flags, "--repeats", str(REPEATS)], check=True, capture_output=True, text=True
        )
        return float(output.stdout.split()[0])

    results = {"tiktoken": tiktoken.__version__, "threads": threads, "texts": {}}
    print(f"MB/s                 tiktoken   1 thread  {threads} threads   ratios to tiktoken, and of the threads")
    for name, text in texts():
        path = folder / name
        path.write_bytes(text.encode())
        figures = {"tiktoken": [], "one": [], "all": []}
        for _ in range(rounds):
            figures["tiktoken"].append(tiktoken_rate(engine, text))
            figures["one"].append(native(path, 1))
            figures["all"].append(native(path, threads))
        results["texts"][name] = figures
        medians = [statistics.median(figures[key]) for key in figures]
        ratios = [median_ratio(figures, *pair) for pair in (("one", "tiktoken"), ("all", "tiktoken"), ("all", "one"))]
        print(f"{name:20}" + "".join(f"{value:9.1f}  " for value in medians) + "  ".join(f"{r:.2f}" for r in ratios))
    return results


def texts():
    """Yields name and text."""
    yield "tiny shakespeare", DATASETS["tinyshakespeare"].files()[0].fetch().read_text(encoding="utf-8")
    yield "pydocs", "".join(pydocs.documents())


def tiktoken_rate(engine, text):
    rates = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        engine.encode_to_numpy(text)
        rates.append(len(text.encode()) / 1e6 / (time.perf_counter() - start))
    return statistics.median(rates)


def median_ratio(figures, over, under):
    return statistics.median(a / b for a, b in zip(figures[over], figures[under]))


if __name__ == "__main__":
    main()
