"""The command `tune`: learning rates for one's own text and model, found by many short trials and few longer ones.

All rates are tried for a few steps, and the best third of them for eight times as many; the loss on the validation data
decides. Every trial is a whole run, with its warm-up and its decay: losses in the middle of a schedule say little about its
end. Short runs like higher rates than long ones do, so a third goes on and not one, and the second round is as long as
the run that is tuned for, if there is time for that.
"""

import itertools
import json
import math
import shlex
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_mojo import Error, runs, train
from llm_mojo.download import write_json
from llm_mojo.trainer_flags import as_words, number, split_words
from llm_mojo.training import Training

USAGE = """\
usage: {program} tune [TEXT ...] [flags]

Looks for the learning rates with which a small GPT learns most from a text: trains it with each for a few steps, and with
the best third of them for eight times as many. Texts and flags are those of `train`; the rates given
are where the search begins. The same command again goes on where it was interrupted.

      --minutes X        time for all trials (default: 2); more of it is longer trials
      --full             no search: a whole run with each choice of rates, however long it takes
      --out DIR          folder for the losses and their chart (default: runs/NAME-tune)
      --replace          replace what is there
"""
FACTORS: dict[str, dict[str, tuple[float, ...]]] = {
    "adamw": {"learning-rate": (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)},
    "muon": {"muon-rate": (1 / 4, 1 / 2, 1, 2), "learning-rate": (1 / 3, 1, 3)},
}
"""Which rates are tried, as multiples of those given."""
DEFAULT_RATES = {"learning-rate": 1e-4, "muon-rate": 0.01}
MINUTES = 2.0
PROBE_STEPS = 20
LARGEST_VALIDATION = 40  # batches
FEWEST_STEPS = 8
KEPT = 3
"""One of so many rates goes on to the second round."""
LONGER = 8
"""Trials of the second round are so many times as long."""
TUNED = "tune.json"

Rates = dict[str, float]


@dataclass
class Trial:
    """A short run: its rates, its steps, and the validation loss at its end; infinite if it diverged."""

    rates: Rates
    steps: int
    loss: float


@dataclass
class Sweep:
    """What was asked for and what came of it; `tune.json` in the folder."""

    folder: Path
    what: dict[str, Any]
    full_steps: int = 0
    """Of the run that is tuned for."""
    steps: list[int] = field(default_factory=list)
    """Of the trials of each round."""
    trials: list[Trial] = field(default_factory=list)

    def best(self) -> Trial:
        """The best of the longest trials."""
        longest = max(trial.steps for trial in self.trials)
        return min((trial for trial in self.trials if trial.steps == longest), key=lambda trial: trial.loss)

    def find(self, rates: Rates, steps: int) -> Trial | None:
        """A trial that was made before."""
        return next((trial for trial in self.trials if trial.rates == rates and trial.steps == steps), None)

    def save(self) -> None:
        """Writes tune.json."""
        trials = [
            {"rates": trial.rates, "steps": trial.steps, "val_loss": trial.loss if math.isfinite(trial.loss) else None}
            for trial in self.trials
        ]
        write_json(
            self.folder / TUNED,
            {"asked": self.what, "full_steps": self.full_steps, "steps": self.steps, "trials": trials},
        )


def call(words: Sequence[str], program: str) -> None:
    """Runs `tune` with the words behind its name. Raises Error if they say nothing to tune."""
    if "--help" in words or list(words)[-1:] == ["-h"]:
        print(USAGE.format(program=program), flush=True)
        return
    texts, flags = split_words(words, own_switches=["replace", "full"])
    full = flags.pop("full", False)
    minutes, out, replaces = (
        _minutes(flags.pop("minutes", MINUTES)),
        flags.pop("out", None),
        flags.pop("replace", False),
    )
    if "dry-run" in flags:
        raise Error("tune: --dry-run is a flag of train")
    work = train.task("tune", texts, flags, ["tune", *words])
    grid = rates_to_try(work.settings)
    begin = time.monotonic()
    sweep = _begin(work.what() | {"full": full}, work.dataset.name, out, replaces)
    run = _Runner(work)
    if not sweep.steps:
        ms, start_s = run.probe(grid[0])
        sweep.full_steps = run.full_steps(ms)
        left_s = minutes * 60 - (time.monotonic() - begin)
        sweep.steps = [sweep.full_steps] if full else plan(len(grid), left_s, ms / 1000, start_s, sweep.full_steps)
        sweep.save()
    for round, steps in enumerate(sweep.steps):
        losses = []
        print(f"round {round + 1} of {len(sweep.steps)}: {len(grid)} trials of {steps} steps")
        for rates in grid:
            trial = sweep.find(rates, steps)
            if trial is None:
                trial = Trial(rates, steps, run.loss(rates, steps, sweep.full_steps))
                sweep.trials.append(trial)
                sweep.save()
            print(f"  {_described(rates)} | val loss {trial.loss:.4f}", flush=True)
            losses.append(trial.loss)
        if not any(map(math.isfinite, losses)):
            raise Error("tune: the model diverges with all of these rates; begin with a lower --learning-rate")
        grid = best_of(grid, losses)
    _conclude(sweep, texts, flags, program, time.monotonic() - begin)


def rates_to_try(settings: dict[str, Any]) -> list[Rates]:
    """The rates around those of the settings, the nearest to them first. Raises Error for an optimizer that has none."""
    optimizer = settings.get("optimizer", "adamw")
    if optimizer not in FACTORS:
        raise Error(f"tune: --optimizer: expected one of {', '.join(FACTORS)}, found {optimizer!r}")
    factors = FACTORS[optimizer]
    centre = {}
    for name in factors:
        value = number(settings.get(name, DEFAULT_RATES[name]))
        if not isinstance(value, float) or not 0 < value < math.inf:
            raise Error(f"tune: --{name}: expected a number above 0 to begin with, found {value!r}")
        centre[name] = value
    choices = itertools.product(*factors.values())
    nearest = sorted(choices, key=lambda choice: (sum(abs(math.log(factor)) for factor in choice), choice))
    return [
        {name: float(f"{centre[name] * factor:.3g}") for name, factor in zip(factors, choice)} for choice in nearest
    ]


def best_of(grid: Sequence[Rates], losses: Iterable[float]) -> list[Rates]:
    """The third of the rates with the lowest losses, rounded up, in the order of the grid."""
    order = sorted(zip(losses, range(len(grid))))
    return [grid[index] for index in sorted(index for _, index in order[: -(-len(grid) // KEPT)])]


def plan(choices: int, seconds: float, step_s: float, start_s: float, full_steps: int) -> list[int]:
    """Steps of the trials of both rounds, so that all of them take `seconds`.

    A trial takes start_s + steps * step_s; the longest is no longer than full_steps, the run that is tuned for.
    Raises Error if there is no time for FEWEST_STEPS.
    """
    kept = -(-choices // KEPT)
    starts_s, runs = (choices + kept) * start_s, choices / LONGER + kept
    longest = min(int((seconds - starts_s) / (runs * step_s)), full_steps)
    if (shortest := longest // LONGER) < FEWEST_STEPS:
        needed = starts_s + runs * step_s * FEWEST_STEPS * LONGER
        raise Error(
            f"tune: expected time for trials of {FEWEST_STEPS} steps or more, found it for {max(shortest, 0)}; a step takes"
            f" {step_s * 1000:.0f} ms here: use --minutes {math.ceil(needed / 6) / 10:g} or more, or more --max-steps"
        )
    return [shortest, longest]


class _Runner:
    """Makes the trials of one piece of work."""

    def __init__(self, work: train.Task):
        self._words = [*work.words, "-s", "0", "--max-minutes", "0"]
        self._settings = work.settings
        self._tokens = sum(each["tokens"] for name, each in work.shards.items() if "_train" in name)
        self._warmup = number(work.settings.get("warmup", 0))
        batches = int(work.settings.get("val-batches", 5))
        if batches < 0 or batches > LARGEST_VALIDATION:
            self._words += ["-m", f"{min(self._val_batches(work), LARGEST_VALIDATION)}"]

    @staticmethod
    def _val_batches(work):
        tokens = sum(each["tokens"] for name, each in work.shards.items() if "_val" in name)
        return max((tokens - 1) // (int(work.settings["batch-size"]) * int(work.settings["seq-len"])), 1)

    def full_steps(self, ms: float) -> int:
        """The steps of the run that is tuned for, if a step takes so many milliseconds."""
        steps, minutes = int(self._settings.get("max-steps", 40)), number(self._settings.get("max-minutes", 0))
        if minutes:
            steps = int(minutes * 60_000 / ms)
        elif steps < 0:
            a_step = int(self._settings["batch-size"]) * int(self._settings["seq-len"])
            steps = self._tokens // max(a_step, int(self._settings.get("total-batch-size", 0)))
        return max(steps, 1)

    def probe(self, rates: Rates) -> tuple[float, float]:
        """(milliseconds of a step, seconds of a trial beside its steps), by a short run, which may diverge."""
        begin = time.monotonic()
        times = []
        try:
            for record in self._records(rates, PROBE_STEPS, 0):
                times += [record["ms"]] if "ms" in record else []
        except Error:
            if not times:
                raise
        return statistics.median(times), time.monotonic() - begin - sum(times) / 1000

    def loss(self, rates: Rates, steps: int, full_steps: int) -> float:
        """The validation loss after a run of so many steps. The warm-up is the part of it that it is of the whole run."""
        found = math.nan
        begun = False
        try:
            for record in self._records(rates, steps, round(self._warmup * min(steps / full_steps, 1))):
                begun = begun or "loss" in record
                found = record["val_loss"] if record.get("val_loss") is not None else found
        except Error:
            if not begun:
                raise
            return math.inf
        return found if math.isfinite(found) else math.inf

    def _records(self, rates, steps, warmup) -> Iterator[dict[str, Any]]:
        more = {**rates, "max-steps": steps, "val-every": steps, "warmup": warmup}
        with Training([*self._words, *as_words(more)], None, None, show=False) as run:
            yield from run


def _minutes(value) -> float:
    minutes = number(value)
    if not isinstance(minutes, float) or not 0 < minutes < math.inf:
        raise Error(f"tune: --minutes: expected a number above 0, found {value!r}")
    return minutes


def _begin(what: dict[str, Any], name: str, out: str | None, replaces: bool) -> Sweep:
    """The sweep that was asked for, if it is there, or a new one in a folder of its own."""
    first = Path(out) if out else runs.RUNS / f"{name}-tune"
    for folder in [first] if out or replaces else runs.numbered(first):
        if folder.is_dir() and any(folder.iterdir()):
            if replaces and not (folder / TUNED).exists():
                raise Error(f"tune: {folder} holds something that tune did not make; --out names another folder")
            if not replaces and (sweep := _read(folder, what)):
                print(f"going on with {folder / TUNED}, {len(sweep.trials)} trials; --replace begins anew")
                return sweep
            if not replaces and out:
                raise Error(f"tune: {folder} holds something else; --replace replaces it, --out names another folder")
            if not replaces:
                continue
        folder.mkdir(parents=True, exist_ok=True)
        return Sweep(folder, what)
    raise AssertionError


def _read(folder: Path, what: dict[str, Any]) -> Sweep | None:
    """The sweep in a folder if it is of this work."""
    try:
        content = json.loads((folder / TUNED).read_bytes())
        if content["asked"] != json.loads(json.dumps(what)):
            return None
        trials = [
            Trial(each["rates"], each["steps"], math.inf if each["val_loss"] is None else each["val_loss"])
            for each in content["trials"]
        ]
        return Sweep(folder, what, content["full_steps"], content["steps"], trials)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _conclude(sweep, texts, flags, program, seconds):
    best = sweep.best()
    print(f"best: {_described(best.rates)}, val loss {best.loss:.4f} after {best.steps} steps ({seconds:.0f} s in all)")
    for name, value in best.rates.items():
        tried = sorted({trial.rates[name] for trial in sweep.trials})
        if value in (tried[0], tried[-1]):
            edge = "lowest" if value == tried[0] else "highest"
            print(f"note: this is the {edge} {name} that was tried; to look beyond: tune again with --{name} {value:g}")
    _draw(sweep)
    others = {name: value for name, value in flags.items() if name not in best.rates}
    words = [*texts, *as_words(others), *as_words({name: f"{value:g}" for name, value in best.rates.items()})]
    print(f"train with them: {program} train {shlex.join(words)}")


def _draw(sweep):
    try:
        from llm_mojo import charts
    except ModuleNotFoundError:
        print("no chart: it needs the Python package matplotlib (the extra plot)")
        return
    name = next(iter(sweep.trials[0].rates))
    path, _ = charts.save(_chart(sweep, name), sweep.folder / "tune.png", 4.5, [vars(trial) for trial in sweep.trials])
    print(f"chart: {path}")


def _chart(sweep: Sweep, name: str) -> Callable:
    """Validation loss over the first rate, a line for each length of trials; of what differs beside it, the best counts."""

    def draw(figure, theme):
        axes = figure.add_subplot()
        for steps, colour in zip(sweep.steps, [*theme.series[::-1]][-len(sweep.steps) + 1 :] + [theme.accent]):
            best: dict[float, float] = {}
            for trial in sweep.trials:
                if trial.steps == steps and math.isfinite(trial.loss):
                    rate = trial.rates[name]
                    best[rate] = min(trial.loss, best.get(rate, math.inf))
            points = sorted(best.items())
            axes.plot(*zip(*points), color=colour, marker="o", label=f"{steps} steps")
        axes.set_xscale("log")
        axes.set_xlabel(f"{name} (log)")
        axes.set_ylabel("validation loss (nats per token)")
        axes.legend()
        axes.grid()

    return draw


def _described(rates):
    return ", ".join(f"{name} {value:g}" for name, value in rates.items())
