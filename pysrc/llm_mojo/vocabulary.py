"""Makes a vocabulary of one's own, a byte-level BPE as GPT-2's: the command `python -m llm_mojo tokenizer`.

Hugging Face's `tokenizers` finds the merges. Ids are in GPT-2's order: the 256 bytes, what each merge makes, end of text.
The folder gets tokenizer.bin (llm.c's, for the Mojo programs and `prepare`) and tokenizer.json with tokenizer_config.json
(for Hugging Face); all give the same ids.
"""

from pathlib import Path

from llm_mojo import Error
from llm_mojo.datasets import DATASETS, own_text
from llm_mojo.download import locked, write_json
from llm_mojo.formats import atomic_file, write_tokenizer
from llm_mojo.progress import Progress
from llm_mojo.tokenize import END_OF_TEXT, byte_alphabet, token_bytes

LONGEST_TOKEN = 255  # bytes, in llm.c's tokenizer file
SMALLEST = 257  # the bytes and end of text


def add_arguments(parser):
    """Declares the options of `python -m llm_mojo tokenizer`."""
    parser.add_argument(
        "source",
        nargs="+",
        metavar="NAME|FILE|FOLDER",
        help="text to learn from: files (plain text, .jsonl, .parquet, .gz, .zst), folders, or a data set's name",
    )
    parser.add_argument(
        "--vocab-size", type=int, required=True, metavar="V", help="number of tokens, end of text included"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the result")
    parser.add_argument("--separator", default="", help=r"what stands between documents in plain text (\n: a new line)")
    parser.add_argument("--field", default="text", help="field or column with the text (default text)")


def run(args):
    """Runs `python -m llm_mojo tokenizer`."""
    if args.vocab_size < SMALLEST:
        raise Error(f"--vocab-size: expected {SMALLEST} or more (the bytes and end of text), got {args.vocab_size}")
    if len(args.source) == 1 and args.source[0] in DATASETS:
        dataset = DATASETS[args.source[0]]
    else:
        dataset = own_text("text", args.source, args.separator.replace("\\n", "\n"), args.field)
    make(dataset.files(), args.vocab_size, args.out)


def make(files, vocab_size, out):
    """Learns a vocabulary from files and writes it to the folder `out`."""
    tokenizer = learn(_texts(files), vocab_size - 1)
    merged = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = [token_bytes(text) for text, _ in merged]
    _check(tokenizer, tokens)
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokens.append(END_OF_TEXT.encode())
    out = Path(out)
    with locked(out):
        write_tokenizer(out / "tokenizer.bin", tokens, len(tokens) - 1)
        with atomic_file(out / "tokenizer.json") as file:
            file.write(tokenizer.to_str(pretty=True).encode())
        special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        write_json(out / "tokenizer_config.json", config | special)
    if len(tokens) < vocab_size:
        print(f"the text has no more than {len(tokens):,} tokens in it: no further pair of tokens comes twice")
    print(f"wrote {out / 'tokenizer.bin'} and {out / 'tokenizer.json'}: vocabulary of {len(tokens):,}")


def learn(texts, vocab_size):
    """A Hugging Face tokenizer of bytes and merges learnt from the texts, without special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=list(byte_alphabet()),
        max_token_length=LONGEST_TOKEN,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


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
                    yield text


def _check(tokenizer, tokens):
    """Raises Error unless the vocabulary means the same to readers of merges and to readers of ranks.

    Hugging Face merges the pairs that it has a rule for; the others whatever makes a known token, the lowest id first. Both
    give the same ids if the ids are in the order of the merges and every token's own bytes are encoded as that token.
    """
    alphabet = list(byte_alphabet().values())
    in_order = tokens[:256] == [bytes([value]) for value in alphabet]
    spelled = [
        tokenizer.model.tokenize(text) for text, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    ]
    if not in_order or any(len(pieces) != 1 or pieces[0].id != id for id, pieces in enumerate(spelled)):
        raise Error("tokenizer: the merges that were found are not in the order of their ids; please report this text")
