"""`python -m llm_mojo prepare` in this process, and what it has made."""

import hashlib
import json
from pathlib import Path

from llm_mojo import formats
from llm_mojo.__main__ import main

EOT = 256  # of the byte tokenizer


def shards(folder, stem):
    """The tokens of both shards, as lists: train, val."""
    return [formats.read_tokens(Path(folder, f"{stem}_{split}.bin")).tolist() for split in ("train", "val")]


def run(*arguments, status=0):
    """Runs the command, which must end with this status."""
    assert main(["prepare", *map(str, arguments)]) == status


def error_of(capsys, *arguments):
    """What a command that must fail says."""
    capsys.readouterr()
    run(*arguments, status=1)
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    return message


def outputs(folder):
    """All that a prepared folder has but the manifest, and what the manifest says of it."""
    manifest = json.loads(Path(folder, "manifest.json").read_text())
    files = {
        path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name not in (".lock", "manifest.json")
    }
    assert {name: (each["bytes"], each["sha256"]) for name, each in manifest["outputs"].items()} == {
        name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()
    }
    return files, manifest
