"""Sizes that fit a small text: a batch needs B*T + 1 tokens to train on and as many to validate on."""

from collections.abc import Iterable
from typing import Any

from llm_mojo import Error
from llm_mojo.datasets import VAL_FRACTION

LARGEST_VAL_FRACTION = 0.2
DEFAULTS = {"batch-size": 4, "seq-len": 64}
"""The trainer's, for presets that do not say."""
LEAST = {"batch-size": 1, "seq-len": 1, "total-batch-size": 0, "val-every": 0, "val-batches": -1, "max-steps": -1}


def check(command: str, settings: dict[str, Any]) -> None:
    """Raises Error if a setting that is computed with here is no integer, or too small, as the trainer would."""
    for name in LEAST.keys() & settings.keys():
        try:
            good = int(settings[name]) >= LEAST[name]
        except (TypeError, ValueError):
            good = False
        if not good:
            value = settings[name]
            raise Error(f"{command}: --{name}: expected an integer of at least {LEAST[name]}, got {value!r}")


def val_fraction(size: int, needed: int) -> float:
    """The share of a text of `size` bytes that is for validation: more of a small one, so that it has `needed` tokens."""
    percent = -(-100 * needed // max(size, 1))
    return min(max(percent / 100, VAL_FRACTION), LARGEST_VAL_FRACTION)


def fit(settings: dict[str, Any], given: Iterable[str], train_tokens: int, val_tokens: int) -> dict[str, int]:
    """What is to be changed in the trainer's settings so that text of so many tokens is enough; what was `given` stays.

    Fewer sequences first, a shorter context only where not one of the wanted length is there.
    Raises Error if the text has not enough for anything.
    """
    given = set(given)
    B, T = int(settings["batch-size"]), int(settings["seq-len"])
    validates = int(settings.get("val-every", 1)) > 0
    tokens = min(train_tokens, val_tokens) if validates else train_tokens
    if tokens < 2:
        raise Error(f"train: the text is too small: expected 2 tokens or more for validation, found {tokens}")
    changes = {}
    if B * T + 1 > tokens and not {"batch-size", "total-batch-size"} & given:
        B = changes["batch-size"] = max((tokens - 1) // T, 1)
        if int(settings.get("total-batch-size", 0)):
            changes["total-batch-size"] = 0
    if B * T + 1 > tokens and "seq-len" not in given:
        T = changes["seq-len"] = max((tokens - 1) // B, 1)
    batches = (val_tokens - 1) // (B * T)
    if validates and batches < int(settings.get("val-batches", 5)) and "val-batches" not in given:
        changes["val-batches"] = -1
    return changes


def describe(changes: dict[str, int], settings: dict[str, Any], fraction: float) -> str:
    """Says what was fitted, in words; an empty text if nothing was."""
    parts = []
    if "batch-size" in changes:
        parts.append(f"{changes['batch-size']} sequences a step in place of {settings['batch-size']}")
    if "seq-len" in changes:
        parts.append(f"{changes['seq-len']} tokens of context in place of {settings['seq-len']}")
    if fraction != VAL_FRACTION:
        parts.append(f"the last {fraction:.0%} of the text for validation in place of {VAL_FRACTION:.0%}")
    elif "val-batches" in changes:
        parts.append("validation on all that is for it")
    return f"fitted to a small text: {', '.join(parts)}" if parts else ""
