"""Reading a prompt and writing text, ours and transformers' in turn.

Nothing is reported unless the texts are equal.
"""

import json

from llm_mojo import Error
from llm_mojo.bench import results
from llm_mojo.bench.contestants import GENERATORS
from llm_mojo.bench.runner import Process
from llm_mojo.bench.sizes import SIZES
from llm_mojo.bench.workshop import Missing
from llm_mojo.formats import num_parameters

SAME_TOKENS = 16
"""Tokens that texts of the same weights have in common at least: then rounding may tip the scales."""
TASKS = {"continue": "One text, a token at a time", "prompt": "A prompt of 1,023 tokens"}
TIMED = 2
"""Rounds of a process that count."""
PATIENCE_S = 120


def time_generation(bench):
    """Times all generators, a turn of each in every round, each time in a fresh process."""
    bench.progress.begin("generation", "generation, GPT-2 124M")
    taking_part, seen = [], {generator.name: list[dict]() for generator in GENERATORS}
    for generator in GENERATORS:
        try:
            taking_part.append((generator, generator.command(bench.workshop, SIZES[0])))
        except Missing as reason:
            bench.leave_out("generation", generator.label, reason)
    for number in range(bench.rounds):
        bench.progress.round(number, bench.rounds)
        bench.measure_limits()
        for generator, command in list(taking_part):
            try:
                seen[generator.name] += _turn(bench, generator, command)
            except Missing as reason:
                bench.leave_out("generation", generator.label, reason)
                taking_part.remove((generator, command))
    check_texts({g.label: seen[g.name] for g in GENERATORS if seen[g.name] and g.precision == "fp32"})
    for task, title in TASKS.items():
        for generator in GENERATORS:
            runs = seen[generator.name]
            if runs:
                entry = _entry(generator, task, title) | {"tokens_per_second": [run[task] for run in runs]}
                if task == "continue" and "sum_gbs" in runs[0]:
                    entry["sum_gbs"] = [run["sum_gbs"] for run in runs]
                results.add(bench.results["generation"], entry)
    bench.save()


def _turn(bench, generator, command):
    """Starts a program, lets it warm up for a round, and returns what it prints for the next ones."""
    bench.wait_for_quiet()
    process = Process(command, bench.prefix)
    runs: list[dict] = []
    try:
        while len(runs) < 1 + TIMED:
            line = process.line(PATIENCE_S)
            if line is None:
                raise Missing(process.complaint())
            runs.append(json.loads(line))
    finally:
        process.end()
    for run in runs[1:]:
        print(
            f"  {generator.label:34} reads {run['prompt']:7.0f} tokens/s, writes {run['continue']:6.1f} tokens/s",
            flush=True,
        )
    return runs[1:]


def _entry(generator, task, title):
    entry = {"task": task, "title": title, "contestant": generator.name, "label": generator.label}
    entry |= {"precision": generator.precision, "ours": generator.ours}
    bytes_each = 4 if generator.precision == "fp32" else 2
    config = SIZES[0].config
    # Positions and padding are not multiplied with.
    unused = (config.max_seq_len + config.padded_vocab_size - config.vocab_size) * config.channels
    return entry | {"weights_mb": round(bytes_each * (num_parameters(config) - unused) / 1e6, 3)}


def check_texts(runs):
    """Raises Error unless all write the same text from the same float32 weights."""
    texts = {label: run[0]["tokens"][:SAME_TOKENS] for label, run in runs.items()}
    if len({tuple(text) for text in texts.values()}) > 1:
        raise Error(f"bench: the same weights continue a prompt differently: {texts}; no times are reported")
