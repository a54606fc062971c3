"""The making of token shards: it can be killed at any time, and goes on where its journal says."""

import time
from typing import Any

import numpy as np

from llm_mojo import Error
from llm_mojo.cleaning import Seen
from llm_mojo.datasets import First, Last
from llm_mojo.download import write_json
from llm_mojo.formats import token_dtype
from llm_mojo.manifest import fingerprint
from llm_mojo.pipeline import Work, first_unknown, results, workers_for
from llm_mojo.prepared import JOURNAL, SEEN, start_over
from llm_mojo.progress import Progress
from llm_mojo.shards import Shards, read_part
from llm_mojo.tokenize import UnknownCharacter

JOURNAL_SECONDS = 5.0
MIN_SHARD_TOKENS = 2  # a token and the one after it


class Job:
    """One run of `prepare`. `state` says how far it has come; what was written beyond that does not count.

    `journal` is that of the job that was unfinished in the folder, or None.
    """

    state: dict[str, Any]

    def __init__(self, out, recipe, dataset, tokenizer, cleaning, inputs, journal=None):
        self.out, self.recipe, self.dataset, self.inputs = out, recipe, dataset, inputs
        self.work = Work(tokenizer, cleaning, dataset.separator)
        self.dtype = token_dtype(len(tokenizer.tokens))
        self.marks = [fingerprint(file.fetch()) for file in inputs.files if not file.url]
        try:
            if not journal or journal["recipe"] != recipe or journal["inputs"] != self.marks:
                raise ValueError("another job")
            self._open(journal["state"])
            print(f"going on after {sum(self.state['tokens'].values()):,} tokens", flush=True)
        except (KeyError, TypeError, ValueError):
            start_over(out, journal)
            self.state = {"file": 0, "place": None, "tokens": {}, "documents": 0, "dropped": 0, "replaced": 0}
            # By the journal the next run knows the other files for ours: it comes first.
            self._write_journal()
            self._open(self.state)

    def _open(self, state):
        self.state = state
        sinks = ["all"] if isinstance(self.dataset.split, Last) else ["train", "val"]
        self.sinks = {sink: self._shards(sink, state["tokens"].get(sink, 0)) for sink in sinks}
        self.seen = Seen(self.out / SEEN, state["documents"]) if self.work.cleaning.is_unique else None

    def _shards(self, split, count=0):
        """The shards of a split: numbered if they are cut, those for training after those for validation."""
        stem, shard_tokens = self.dataset.stem, self.dataset.shard_tokens
        if split == "all" or shard_tokens is None:
            return Shards(self.out, f"{stem}_{split}.bin", self.dtype, None, 0, count)
        first = 0
        if split == "train" and isinstance(self.dataset.split, First):
            first = -(-self._val_tokens() // shard_tokens)
        return Shards(self.out, f"{stem}_{split}_{{:06d}}.bin", self.dtype, shard_tokens, first, count)

    def _val_tokens(self):
        return self.dataset.split.tokens or self.dataset.shard_tokens

    def run(self, workers):
        """Tokenizes what is left, noting now and then how far it has come."""
        files, state = self.inputs.files, self.state
        openers = [self.inputs.opener(number) for number in range(len(files))]
        readers = [file.reader for file in files]
        if all(file.url is None for file in files) or len(files) == 1:
            self.inputs.sizes = [file.fetch().stat().st_size for file in files]
        size = None if None in self.inputs.sizes else sum(self.inputs.sizes)
        start = (state["file"], state["place"])
        saved, done = time.monotonic(), 0
        try:
            with Progress("tokenizing") as progress:
                for result in results(openers, readers, self.work, workers_for(size, workers), start):
                    self._take(result)
                    done += result.block.size
                    tokens = sum(sink.count for sink in self.sinks.values())
                    fraction = self.inputs.fraction(result.file, result.block.read)
                    progress.show(fraction, done, f"{tokens:,} tokens")
                    if time.monotonic() - saved >= JOURNAL_SECONDS:
                        self._save()
                        saved = time.monotonic()
        except UnknownCharacter as error:
            raise first_unknown(error, openers, readers) from None
        finally:
            self._save()
            if self.seen:
                self.seen.close()

    def _take(self, result):
        state, encoded = self.state, result.encoded
        ids, dropped = self._without_duplicates(encoded) if self.seen else (encoded.ids, 0)
        if isinstance(self.dataset.split, First):
            val = max(self._val_tokens() - self.sinks["val"].count, 0)
            self.sinks["val"].write(ids[:val])
            self.sinks["train"].write(ids[val:])
        else:
            self.sinks[result.block.split or "all"].write(ids)
        # All at once: an interruption may come at any point.
        self.state = {
            "file": result.file,
            "place": result.block.after,
            "tokens": {name: sink.count for name, sink in self.sinks.items()},
            "documents": state["documents"] + encoded.documents,
            "dropped": state["dropped"] + encoded.dropped + dropped,
            "replaced": state["replaced"] + encoded.replaced,
        }

    def _without_duplicates(self, encoded):
        """The ids of the documents that have not come before, and how many have."""
        assert self.seen
        number, at, parts = self.state["documents"], 0, []
        for length, key in zip(encoded.lengths, encoded.keys):
            if self.seen.add(key, number):
                parts.append(encoded.ids[at : at + length])
            at += length
        dropped = len(encoded.keys) - len(parts)
        return (np.concatenate(parts) if parts else encoded.ids[:0]), dropped

    def _save(self):
        """Writes the journal; first what it speaks of."""
        for sink in self.sinks.values():
            sink.save()
        if self.seen:
            self.seen.save()
        self._write_journal()

    def _write_journal(self):
        about = {"journal": 1, "recipe": self.recipe, "stem": self.dataset.stem}
        about |= {"sources": [file.name for file in self.inputs.files], "inputs": self.marks, "state": self.state}
        write_json(self.out / JOURNAL, about)

    def finish(self):
        """Completes the shards under their temporary names; returns what the manifest says of them."""
        if not any(sink.count for sink in self.sinks.values()):
            raise Error(
                f"prepare: {self.dataset.name}: nothing is left: of {self.state['documents']:,} documents"
                f" {self.state['dropped']:,} were dropped; give text, or change --clean"
            )
        if isinstance(self.dataset.split, Last):
            self._cut()
        for split in ("train", "val"):
            if self.sinks[split].count < MIN_SHARD_TOKENS:
                raise Error(
                    f"prepare: {self.dataset.name}: too little text: expected {MIN_SHARD_TOKENS} tokens or more for"
                    f" training and for validation, found {self.sinks[split].count} for"
                    f" {'training' if split == 'train' else 'validation'}; give more text, or change --val-fraction or"
                    " --val-tokens"
                )
        return self.sinks["train"].finish() | self.sinks["val"].finish()

    def _cut(self):
        """Copies the tokens to training and, the last of them, to validation."""
        whole = self.sinks["all"]
        whole.close()
        left = int(whole.count * (1 - self.dataset.split.fraction))
        self.sinks = {split: self._shards(split) for split in ("train", "val")}
        for ids in read_part(self.out / f"{self.dataset.stem}_all.bin.part", whole.count, self.dtype):
            self.sinks["train"].write(ids[:left])
            self.sinks["val"].write(ids[left:])
            left -= min(left, len(ids))
