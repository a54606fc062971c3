"""The files of a run: its newest checkpoint, and the vocabulary that it owns.

A run keeps a copy of its tokenizer as tokenizer.bin; run.toml and the sidecar of each checkpoint have its SHA-256.
"""

import json
import re
from pathlib import Path

from llm_mojo import Error
from llm_mojo.download import sha256_of
from llm_mojo.run_log import read_settings

TOKENIZER = "tokenizer.bin"
TOKENIZER_NOTE = "tokenizer-sha256"
GPT2_VOCABULARY = 50257


def newest_checkpoint(folder: Path) -> Path:
    """The model of the newest complete checkpoint in the folder of a run."""
    steps = [match[1] for path in folder.iterdir() if (match := re.fullmatch(r"DONE_(\d{8})", path.name))]
    if not steps:
        raise Error(
            f"{folder}: expected a run with a complete checkpoint (model_STEP.bin and DONE_STEP), found none;"
            " name the checkpoint itself, or the folder that was the run's --out"
        )
    return folder / f"model_{max(steps)}.bin"


def find_tokenizer(checkpoint: Path, vocab_size: int) -> Path:
    """The tokenizer file of a checkpoint: the one that its run has kept or was given, or beside it, else GPT-2's."""
    kept = checkpoint.with_name(TOKENIZER)
    if trained_with(checkpoint) and kept.is_file():
        return kept
    settings = read_settings(checkpoint.parent / "run.toml")
    settings = {name: value for name, value in settings.items() if isinstance(value, str) and "\0" not in value}
    places = [checkpoint.with_name(f"{checkpoint.stem}_tokenizer.bin")]
    if "tokenizer" in settings:
        places.append(Path(settings["tokenizer"]))
    if "train-data" in settings:
        places.append(Path(settings["train-data"]).parent / "tokenizer.bin")
    places.append(checkpoint.with_name("tokenizer.bin"))
    if vocab_size == GPT2_VOCABULARY:
        places += [checkpoint.with_name("gpt2_tokenizer.bin"), Path("gpt2_tokenizer.bin")]
    for place in places:
        if place.is_file():
            return place
    raise Error(
        f"{checkpoint}: expected its tokenizer under one of these names, found none:"
        f" {', '.join(map(str, places))}; name it with --tokenizer FILE"
    )


def trained_with(checkpoint: Path) -> str | None:
    """The SHA-256 of the tokenizer file that a checkpoint was trained with; None if neither sidecar nor run.toml say."""
    sidecar = checkpoint.with_name(f"{checkpoint.stem.replace('model_', 'extra_', 1)}.json")
    try:
        kept = json.loads(sidecar.read_bytes()).get("tokenizer") if sidecar.is_file() else None
    except (ValueError, AttributeError, RecursionError):
        raise Error(f"{sidecar}: expected what a run remembers, found something else; the file is damaged") from None
    kept = kept or read_settings(checkpoint.with_name("run.toml")).get(TOKENIZER_NOTE)
    return kept if isinstance(kept, str) else None


def expect_own_tokenizer(tokenizer: Path, checkpoint: Path, sha256: str | None = None) -> None:
    """Raises Error if a checkpoint was trained with another tokenizer than this file: its ids would mean other texts.

    `sha256`: of the file, if that is known.
    """
    expected = trained_with(checkpoint)
    if expected and (found := sha256 or sha256_of(tokenizer)) != expected:
        raise Error(
            f"the tokenizer {tokenizer} (SHA-256 {found[:12]}...) is not the one that {checkpoint} was trained with"
            f" ({expected[:12]}...): the same ids would mean other texts; give that one with --tokenizer (a run keeps it as"
            f" {TOKENIZER} in its folder)"
        )
