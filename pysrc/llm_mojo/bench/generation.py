"""Reading a prompt and writing text, ours and transformers in turn; nothing is reported unless the texts are equal."""

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
PATIENCE_S = 120


def time_generation(bench):
    """Times all generators, a round of each in turn; each stays in memory."""
    bench.progress.begin("generation", "generation, GPT-2 124M")
    running, seen = {}, {}
    for generator in GENERATORS:
        try:
            running[generator.name] = Process(generator.command(bench.workshop, SIZES[0]), bench.prefix)
            # The first round is there to warm up.
            _round(running[generator.name])
            running[generator.name].pause()
            seen[generator.name] = []
        except Missing as reason:
            _leave_out(bench, generator, running, reason)
    rounds = 1 if bench.quick else bench.rounds
    try:
        for number in range(rounds):
            bench.progress.round(number, rounds)
            bench.measure_limits()
            for generator in GENERATORS:
                if generator.name in running:
                    try:
                        seen[generator.name].append(_turn(bench, generator, running[generator.name]))
                    except Missing as reason:
                        _leave_out(bench, generator, running, reason)
    finally:
        for process in running.values():
            process.end()
    check_texts({g.label: seen[g.name] for g in GENERATORS if seen.get(g.name) and g.precision == "fp32"})
    for task, title in TASKS.items():
        for generator in GENERATORS:
            if seen.get(generator.name):
                speeds = [run[task] for run in seen[generator.name]]
                entry = _entry(generator, task, title) | {"tokens_per_second": speeds}
                results.add(bench.results["generation"], entry)
    bench.save()


def _turn(bench, generator, process):
    bench.wait_for_quiet()
    process.resume()
    # It was stopped in what each round begins with and does not time.
    run = _round(process)
    process.pause()
    print(
        f"  {generator.label:34} reads {run['prompt']:7.0f} tokens/s, writes {run['continue']:6.1f} tokens/s",
        flush=True,
    )
    return run


def _round(process):
    line = process.line(PATIENCE_S)
    if line is None:
        raise Missing(process.complaint())
    return json.loads(line)


def _leave_out(bench, generator, running, reason):
    process = running.pop(generator.name, None)
    if process:
        process.end()
    bench.leave_out("generation", generator.label, reason)


def _entry(generator, task, title):
    entry = {"task": task, "title": title, "contestant": generator.name, "label": generator.label}
    entry |= {"precision": generator.precision, "ours": generator.ours}
    bytes_each = 4 if generator.precision == "fp32" else 2
    return entry | {"weights_mb": round(bytes_each * num_parameters(SIZES[0].config) / 1e6, 3)}


def check_texts(runs):
    """Raises Error unless all write the same text from the same float32 weights."""
    texts = {label: run[0]["tokens"][:SAME_TOKENS] for label, run in runs.items()}
    if len({tuple(text) for text in texts.values()}) > 1:
        raise Error(f"bench: the same weights continue a prompt differently: {texts}; no times are reported")
