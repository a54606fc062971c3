"""Makes a vocabulary of one's own, a byte-level BPE as GPT-2's: the command `python -m llm_mojo tokenizer`.

Hugging Face's `tokenizers` finds the merges. Ids are in GPT-2's order: the 256 bytes, what each merge makes, end of text.
The folder gets tokenizer.bin (llm.c's, for the Mojo programs and `prepare`) and Hugging Face's files (tokenizer.json and
others); all give the same ids.
"""

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path

from llm_mojo import Error
from llm_mojo.datasets import DATASETS, File
from llm_mojo.download import locked
from llm_mojo.files import AnyPath, atomic_file
from llm_mojo.formats import write_tokenizer
from llm_mojo.hf_tokenizer import TOKENIZER_FILES, find_merges, tokenizer_files
from llm_mojo.own_text import KINDS_OF_FILES, add_text_arguments, own_text
from llm_mojo.progress import Progress
from llm_mojo.readers import well_formed
from llm_mojo.tokenize import END_OF_TEXT, byte_alphabet, token_bytes

LONGEST_TOKEN = 255  # bytes, in llm.c's tokenizer file
ANY_LENGTH = 10**30  # of a text: transformers' way to say that the tokenizer sets no limit
SMALLEST = 257  # the bytes and end of text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `python -m llm_mojo tokenizer`."""
    parser.add_argument(
        "source",
        nargs="+",
        metavar="NAME|FILE|FOLDER",
        help=f"text to learn from: files ({KINDS_OF_FILES}), folders, or a data set's name",
    )
    parser.add_argument(
        "--vocab-size", type=int, required=True, metavar="V", help="number of tokens, end of text included"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the result")
    add_text_arguments(parser)
    parser.add_argument("--force", action="store_true", help="replace a vocabulary that is in the folder")


def run(args: argparse.Namespace) -> None:
    """Runs `python -m llm_mojo tokenizer`."""
    if args.vocab_size < SMALLEST:
        raise Error(f"--vocab-size: expected {SMALLEST} or more (the bytes and end of text), got {args.vocab_size}")
    if len(args.source) == 1 and args.source[0] in DATASETS:
        dataset = DATASETS[args.source[0]]
    else:
        dataset = own_text("text", args.source, args.separator, args.field)
    taken = [args.out / name for name in ("tokenizer.bin", *TOKENIZER_FILES) if os.path.lexists(args.out / name)]
    if taken and not args.force:
        raise Error(f"tokenizer: {taken[0]} is there already; --force replaces it, --out names another folder")
    make(dataset.files(), args.vocab_size, args.out)


def make(files: Iterable[File], vocab_size: int, out: AnyPath) -> None:
    """Learns a vocabulary from files and writes it to the folder `out`."""
    tokens = learn(_texts(files), vocab_size - 1) + [END_OF_TEXT.encode()]
    out, eot = Path(out), len(tokens) - 1
    with locked(out):
        write_tokenizer(out / "tokenizer.bin", tokens, eot)
        for name, text in tokenizer_files(tokens, eot, ANY_LENGTH).items():
            with atomic_file(out / name) as file:
                file.write(text.encode())
    if len(tokens) < vocab_size:
        print(f"the text has no more than {len(tokens):,} tokens in it: no further pair of tokens comes twice")
    print(f"wrote {out / 'tokenizer.bin'} and {out / 'tokenizer.json'}: vocabulary of {len(tokens):,}")


def learn(texts: Iterable[str], vocab_size: int) -> list[bytes]:
    """The bytes of the tokens that Hugging Face's trainer finds in the texts: the 256 bytes, then what each merge makes.

    It merges the pairs that it has a rule for; other encoders whatever makes a known token, the lowest id first. Both give
    the same ids if every token, encoded in the second way by the tokens before it, ends as the pair of its rule.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=list(byte_alphabet()),
        max_token_length=LONGEST_TOKEN,
    )
    tokenizer.train_from_iterator(texts, trainer)
    rules = json.loads(tokenizer.to_str())["model"]["merges"]
    tokens = [bytes([value]) for value in byte_alphabet().values()]
    tokens += [token_bytes(left + right) for left, right in rules]
    if find_merges(tokens) != [[token_bytes(left), token_bytes(right)] for left, right in rules]:
        raise Error("tokenizer: the merges that were found depend on more than their order; please report this text")
    return tokens


def _texts(files):
    """The texts of files in pieces, with progress."""
    sizes, done = [file.size for file in files], 0
    with Progress("reading") as progress:
        for number, file in enumerate(files):
            path = file.fetch()
            sizes[number] = path.stat().st_size
            for block in file.reader.blocks(path):
                done += block.size
                fraction = None if None in sizes else (sum(sizes[:number]) + block.read) / sum(sizes)
                progress.show(fraction, done)
                for text, _ in file.reader.documents(block):
                    yield well_formed(text)
