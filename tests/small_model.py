"""The files of a small model for runs of the trainers, and what such runs draw from them and print."""

import re

import numpy as np

from llm_mojo import formats, reference

SMALL = formats.ModelConfig(max_seq_len=20, vocab_size=131, num_layers=2, num_heads=3, channels=36)
ONE_HEAD = formats.ModelConfig(max_seq_len=5, vocab_size=17, num_layers=1, num_heads=1, channels=10)


def make_files(folder, config):
    """Writes a model, three shards of different sizes, validation data and a tokenizer."""
    V = config.vocab_size
    random = np.random.default_rng(1)
    formats.write_checkpoint(folder / "model.bin", config, reference.init_tensors(config, seed=2, spread=True))
    for name, size in {"train_0": 3 * 51 + 1, "train_1": 2 * 51 + 30, "train_2": 4 * 51, "val_0": 150}.items():
        formats.write_tokens(folder / f"{name}.bin", random.integers(V, size=size))
    formats.write_tokenizer(folder / "tokenizer.bin", [b"%d " % token for token in range(V)], V - 1)


def losses(kind, output):
    """The train or val losses that the basic trainer has printed."""
    return [float(loss) for loss in re.findall(rf"{kind} loss (\S+)", output)]


def shuffled_batches(paths, B, T):
    """Yields inputs and targets (B,T) in the order of llm.c's loader, by numpy's mt19937."""
    random = np.random.RandomState(42)

    def shuffle(items):
        for i in range(len(items) - 1, 0, -1):
            j = int(random.randint(2**32, dtype=np.uint32)) % (i + 1)
            items[i], items[j] = items[j], items[i]

    shards = list(range(len(paths)))
    while True:
        shuffle(shards)
        for shard in shards:
            tokens = formats.read_tokens(paths[shard]).astype(np.int32)
            samples = list(range((len(tokens) - 1) // (B * T)))
            shuffle(samples)
            for sample in samples:
                batch = tokens[sample * B * T :][: B * T + 1]
                yield batch[:-1].reshape(B, T), batch[1:].reshape(B, T)
