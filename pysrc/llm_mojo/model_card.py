"""The README of an exported model: what it is, how it was trained, how good it is, how it is loaded."""

import math
from pathlib import Path
from typing import Any

from llm_mojo.formats import ModelConfig, num_parameters
from llm_mojo.run_log import LOG, Follower, read_settings
from llm_mojo.terminal import line

SHOWN = (
    "batch-size",
    "seq-len",
    "total-batch-size",
    "max-steps",
    "learning-rate",
    "schedule",
    "warmup",
    "final-lr-fraction",
    "weight-decay",
    "beta1",
    "beta2",
    "grad-clip",
    "dropout",
    "shuffle",
    "seed",
    "dtype",
)
LOADING = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
```

`python -m llm_mojo weights FOLDER` makes the checkpoint again that it was exported from, byte for byte.
"""


def card(checkpoint: Path, config: ModelConfig, dtype: str, vocabulary: str) -> str:
    """The text, in Markdown. Of paths only the name of the data's folder is told: the rest is nobody else's business."""
    settings = read_settings(checkpoint.with_name("run.toml"))
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- gpt2\n- llm.mojo\n---\n",
        f"# {title(checkpoint)}\n",
        f"A GPT-2 of {num_parameters(config):,} parameters, trained with llm.mojo on a CPU: {config.num_layers} layers,"
        f" {config.num_heads} heads, {config.channels} wide, context {config.max_seq_len:,}, vocabulary"
        f" {config.vocab_size:,} ({vocabulary}), weights in {dtype}.\n",
        "## Data\n",
        _data(settings),
        "## Loss\n",
        _losses(checkpoint),
        "## Settings\n",
        _settings(settings),
        "## How to load it\n",
        LOADING,
    ]
    return "\n".join(parts)


def title(checkpoint: Path) -> str:
    """What the model is called: its run, or its file."""
    is_run = checkpoint.with_name("run.toml").is_file()
    return line((checkpoint.resolve().parent.name if is_run else checkpoint.stem).encode(errors="replace").decode())


def _data(settings):
    place = settings.get("train-data")
    if not isinstance(place, str):
        return "Not known: there is no run.toml beside the checkpoint.\n"
    name = line(Path(place).parent.name.encode(errors="replace").decode())
    return f"`{name or place}`: llm.mojo's trainer read token shards of this name.\n"


def _settings(settings: dict[str, Any]) -> str:
    rows = [f"| {name} | {settings[name]} |" for name in SHOWN if name in settings]
    if not rows:
        return "Not known.\n"
    return "\n".join(["| | |", "| --- | --- |", *rows]) + "\n"


def _losses(checkpoint: Path) -> str:
    log = checkpoint.with_name(LOG)
    records = Follower(log).read() if log.is_file() else []
    validations = {
        record["step"]: record["val_loss"] for record in records if isinstance(record.get("val_loss"), float | int)
    }
    digits = checkpoint.stem.removeprefix("model_")
    if checkpoint.stem == "best" and validations:
        step = min(validations, key=validations.__getitem__)
    elif digits.isdecimal():
        step = int(digits)
        validations = {at: loss for at, loss in validations.items() if at <= step}
    else:
        return "Not known.\n"
    if not validations:
        return f"After {step:,} steps; there was no validation.\n"
    at = max(validations)
    at = step if step in validations else at
    return (
        f"{validations[at]:.4f} nats per token on the validation data after {at:,} steps (perplexity"
        f" {math.exp(min(validations[at], 700)):.2f}); the model is that after {step:,} steps.\n"
    )
