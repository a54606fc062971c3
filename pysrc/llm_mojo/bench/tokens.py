"""Encoding text with GPT-2's vocabulary, ours and tiktoken in turn: what bench/bench_tokenizer.py finds."""

import json
import subprocess
import sys

from llm_mojo.bench import results
from llm_mojo.bench.workshop import ROOT

ENCODERS = {"tiktoken": "tiktoken", "one": "llm.mojo, one thread", "all": "llm.mojo, all threads"}


def time_tokens(bench):
    """Times both on tiny shakespeare and on Python's documentation."""
    bench.progress.begin("tokens", "encoding text")
    bench.wait_for_quiet()
    figures = bench.workshop.folder / "tokens.json"
    program = [*bench.prefix, sys.executable, ROOT / "bench" / "bench_tokenizer.py"]
    result = subprocess.run([*program, "--rounds", "5", "--json", figures], stderr=subprocess.PIPE, text=True)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f"status {result.returncode}"])[-1][:200]
        bench.leave_out("tokens", "the encoding of text", reason)
        return
    found = json.loads(figures.read_text())
    for text, rates in found["texts"].items():
        for name, label in ENCODERS.items():
            entry = {"text": text, "encoder": name, "label": label, "ours": name != "tiktoken"}
            results.add(bench.results["tokens"], entry | {"mb_per_second": rates[name]})
    bench.save()
