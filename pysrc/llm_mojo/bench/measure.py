"""The bench itself: times all contestants in turn, round after round, and reports nothing unless their losses agree."""

import json
import subprocess
from datetime import datetime, timezone

from llm_mojo import Error
from llm_mojo.bench import machine, results
from llm_mojo.bench.contestants import CONTESTANTS, GENERATORS, STEPS
from llm_mojo.bench.runner import Pace, watch
from llm_mojo.bench.sizes import SIZES, scaling_sizes
from llm_mojo.bench.workshop import Command, Missing
from llm_mojo.formats import num_parameters

TOO_SLOW_S = 60
"""Seconds for a step beyond which a contestant is left out."""
TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}
"""How far apart losses may be."""
SAME_TOKENS = 16
"""Tokens that texts of the same weights have in common at least: then rounding may tip the scales."""
GENERATION = {"continue": "One text, a token at a time", "prompt": "A prompt of 1,023 tokens"}


class Bench:
    """One run and its file, which is written after every process: what was measured is not lost."""

    def __init__(self, workshop, path, pace, rounds, prefix=(), quick=False, append=False):
        self.workshop = workshop
        self.path = path
        self.pace = pace
        self.rounds = rounds
        self.prefix = tuple(prefix)
        self.quick = quick
        self.results = {
            "format": results.FORMAT,
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "commit": machine.commit(),
            "machine": machine.machine(),
            "versions": machine.versions(),
            "limits": [],
            "steps": [],
            "missing": [],
            "gemm": [],
            "attention": [],
            "memory": [],
            "scaling": [],
            "generation": [],
        }
        if append and path.exists():
            self._take_up(results.read(path))

    def _take_up(self, earlier):
        """Goes on with the results of an earlier run of the same code on the same machine."""
        for key in ("commit", "machine", "versions"):
            if earlier[key] != self.results[key]:
                raise Error(f"bench: {self.path} has {key} {earlier[key]}, now it is {self.results[key]}; use another --out")
        self.results = earlier

    def save(self):
        results.write(self.path, self.results)

    def measure_limits(self):
        """Measures the machine's limits once more."""
        program = self.workshop.mojo("bench/bench_limits.mojo")
        self.results["limits"] += self._json_lines(program)

    def steps(self, size, names):
        """Times the steps of all contestants, or of the named ones, at one size."""
        print(f"\n{size.title}", flush=True)
        entries = {}
        for contestant in CONTESTANTS:
            if names and contestant.name not in names:
                continue
            try:
                if self.quick and not contestant.quick:
                    raise Missing("left out by --quick")
                self._refuse_if_slow(contestant, size)
                entries[contestant.name] = self._earlier(contestant, size) or self._entry(contestant, size)
            except Missing as reason:
                self._missing_part(size.name, contestant.label, reason)
        contestants = {c.name: c for c in CONTESTANTS if c.name in entries}
        rounds = -(-self.rounds // size.rarer)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", flush=True)
            self.measure_limits()
            self._round(contestants, entries, size)
            # Before anything is reported: times of programs that do different work say nothing.
            _check_losses(entries)
            known = self.results["steps"]
            known += [entry for entry in entries.values() if entry["rounds"] and entry not in known]
            self.save()

    def _earlier(self, contestant, size):
        """What there is of a contestant already, to which more rounds are added."""
        for entry in self.results["steps"]:
            if (entry["size"], entry["contestant"]) == (size.name, contestant.name):
                return entry
        return None

    def _entry(self, contestant, size):
        contestant.command(self.workshop, size)
        return {
            "size": size.name,
            "title": size.title,
            "B": size.B,
            "T": size.T,
            "gflop": round(size.flops / 1e9, 6),
            "floor_mb": round(size.bytes / 1e6, 6),
            "contestant": contestant.name,
            "label": contestant.label,
            "precision": contestant.precision,
            "flags": contestant.flags,
            "ours": contestant.ours,
            "losses": [],
            "rounds": [],
        }

    def _round(self, contestants, entries, size):
        for name, contestant in list(contestants.items()):
            try:
                seen = watch(contestant.command(self.workshop, size), self.pace, self.prefix)
            except Missing as reason:
                self._missing_part(size.name, contestant.label, reason)
                del contestants[name], entries[name]
                continue
            entry = entries[name]
            if len(seen.losses) > len(entry["losses"]):
                entry["losses"] = seen.losses
            entry["rounds"].append(
                {
                    "ms": seen.ms,
                    "warm_up": seen.warm_up,
                    "first_step_s": seen.first_step_s if contestant.reports_start else None,
                    "peak_mb": seen.peak_mb,
                }
            )
            short = results.Summary.of(seen.timed)
            print(
                f"  {contestant.label:34} {short.median:9.1f} ms  ({short.low:.1f} to {short.high:.1f}, "
                f"{short.count} steps)  {seen.peak_mb:.0f} MB",
                flush=True,
            )

    def _refuse_if_slow(self, contestant, size):
        """Expects time to grow with the arithmetic, from the largest smaller size that this run has seen."""
        smaller = [
            entry
            for entry in self.results["steps"]
            if entry["contestant"] == contestant.name and entry["gflop"] < size.flops / 1e9
        ]
        if smaller:
            nearest = max(smaller, key=lambda entry: entry["gflop"])
            seconds = results.summary(nearest).median / 1000 * size.flops / 1e9 / nearest["gflop"]
            if seconds > TOO_SLOW_S:
                raise Missing(f"a step would take about {seconds:.0f} s; over {TOO_SLOW_S} s is left out")

    def _missing_part(self, part, label, reason):
        """Names what did not take part, on the screen and in the file."""
        print(f"  {label:34} missing: {reason}", flush=True)
        entry = {"size": part, "label": label, "reason": str(reason)}
        if entry not in self.results["missing"]:
            self.results["missing"].append(entry)

    def kernels(self):
        """Times the kernels beside their limits."""
        print("\nkernels", flush=True)
        self._kernel("gemm", "bench/bench_gemm.mojo", rows=256)
        if self.quick:
            self._missing_part("kernels", "matrix products on 4,096 rows", "left out by --quick")
        else:
            self._kernel("gemm", "bench/bench_gemm.mojo", rows=4096)
        self._kernel("attention", "bench/bench_attention.mojo")
        self._kernel("memory", "bench/bench_memory.mojo")

    def _kernel(self, key, source, **parameters):
        flags = [word for name, value in parameters.items() for word in (f"--{name}", value)]
        try:
            rounds = 2 if self.quick else 5
            entries = self._json_lines(self.workshop.mojo(source), *flags, "--rounds", rounds, "--json")
        except Missing as reason:
            self._missing_part("kernels", source, reason)
            return
        self.results[key] += [parameters | entry for entry in entries]
        print(f"  {source} {' '.join(map(str, flags))}: {len(entries)} timed", flush=True)
        self.save()

    def scaling(self):
        """Times our steps over contexts and over model sizes, against their arithmetic."""
        print("\nscaling of train_gpt2.mojo", flush=True)
        program = self.workshop.mojo("train_gpt2.mojo")
        self.measure_limits()
        for size in scaling_sizes():
            c = size.config
            model = ["--n-layer", c.num_layers, "--n-head", c.num_heads, "--n-embd", c.channels]
            shard = self.workshop.shard(size)
            data = ["-i", shard, "-j", shard, "-b", size.B, "-t", size.T, "-v", 0, "-s", 0, "-x", STEPS]
            pace = Pace(least=2, most=5, seconds=1 if self.quick else 3)
            try:
                seen = watch(Command([program, *model, "--vocab-size", c.vocab_size, *data]), pace, self.prefix)
            except Missing as reason:
                self._missing_part("scaling", size.title, reason)
                continue
            entry = {"name": size.name, "title": size.title, "B": size.B, "T": size.T, "layers": c.num_layers}
            entry |= {"channels": c.channels, "gflop": round(size.flops / 1e9, 6)}
            entry |= {"floor_mb": round(size.bytes / 1e6, 6), "peak_mb": seen.peak_mb, "ms": seen.timed}
            self.results["scaling"].append(entry)
            short = results.Summary.of(seen.timed)
            per_token = 1e3 * short.median / size.tokens
            print(
                f"  {size.title:28} {short.median:9.1f} ms, {per_token:.0f} us a token, "
                f"{entry['gflop'] / short.median * 1000:.0f} GFLOP/s",
                flush=True,
            )
            self.save()

    def generation(self):
        """Times reading and writing text, in turn; nothing is kept unless the texts are equal."""
        print("\ngeneration", flush=True)
        if self.quick:
            return self._missing_part("generation", "all", "left out by --quick")
        self.measure_limits()
        runs = {}
        for number in range(self.rounds):
            for contestant in GENERATORS:
                if number and contestant.name not in runs:
                    continue
                try:
                    command = contestant.command(self.workshop, SIZES[0])
                    run = self._json_lines(*command.argv, "--rounds", 2)[0]
                except Missing as reason:
                    self._missing_part("generation", contestant.label, reason)
                    continue
                runs.setdefault(contestant.name, []).append(run)
                print(
                    f"  {contestant.label:34} reads {max(run['prompt']):7.0f} tokens/s, "
                    f"writes {max(run['continue']):6.1f} tokens/s",
                    flush=True,
                )
        _check_texts({contestant.label: runs.get(contestant.name) for contestant in GENERATORS[::2]})
        for key, title in GENERATION.items():
            for contestant in GENERATORS:
                if contestant.name in runs:
                    speeds = [speed for run in runs[contestant.name] for speed in run[key]]
                    entry = {"task": key, "title": title, "contestant": contestant.name, "label": contestant.label}
                    entry |= {"precision": contestant.precision, "ours": contestant.ours}
                    bytes_each = 4 if contestant.precision == "fp32" else 2
                    entry["weights_mb"] = round(bytes_each * num_parameters(SIZES[0].config) / 1e6, 3)
                    for earlier in self.results["generation"]:
                        if (earlier["task"], earlier["contestant"]) == (key, contestant.name):
                            earlier["tokens_per_second"] += speeds
                            break
                    else:
                        self.results["generation"].append(entry | {"tokens_per_second": speeds})
        self.save()

    def _json_lines(self, *command):
        """Runs a program of ours that prints JSON objects. Raises Missing if it fails."""
        argv = [*self.prefix, *(str(word) for word in command)]
        result = subprocess.run(argv, capture_output=True, text=True)
        if result.returncode:
            raise Missing((result.stderr.strip().splitlines() or [f"status {result.returncode}"])[-1][:200])
        return [json.loads(line) for line in result.stdout.splitlines()]


def _check_losses(entries):
    """Raises Error unless all contestants have the same losses, as far as their precision allows."""
    ranked = sorted(entries.values(), key=lambda entry: (entry["precision"] != "fp32", not entry["ours"]))
    for entry in ranked[1:]:
        for step, (found, expected) in enumerate(zip(entry["losses"], ranked[0]["losses"]), 1):
            if abs(found - expected) > TOLERANCE[entry["precision"]]:
                raise Error(
                    f"bench: {entry['label']} has loss {found} in step {step} where {ranked[0]['label']} has "
                    f"{expected}: they do not train the same model on the same tokens; no times are reported"
                )


def _check_texts(runs):
    """Raises Error unless all write the same text from the same float32 weights."""
    texts = {label: run[0]["tokens"][:SAME_TOKENS] for label, run in runs.items() if run}
    if len({tuple(text) for text in texts.values()}) > 1:
        raise Error(f"bench: the same weights continue a prompt differently: {texts}; no times are reported")
