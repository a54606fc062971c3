"""Turns text files into token shards, in threads. `--help` lists the flags."""

from std.os import remove
from std.os.path import basename, exists
from std.sys import exit
from std.time import perf_counter_ns

from llm.base.files import InputFile, MappedFile, allow_many_files, glob_files, read_text
from llm.base.formatting import fixed, grouped
from llm.base.json import json_text
from llm.base.written_files import AtomicFile, lock_folder
from llm.cli.arguments import Option, command_line, parse_arguments
from llm.cli.screen import Screen, complain
from llm.cli.signals import signal_name, stop_signal, watch_for_signals
from llm.cli.start import expect_addresses
from llm.cli.ticker import Ticker
from llm.cpu.threads.cores import available_threads
from llm.cpu.threads.crew import Crew
from llm.data.manifest import Manifest
from llm.data.token_spool import TokenSpool
from llm.text.corpus import Corpus
from llm.text.tokenizer import Tokenizer

comptime U8 = DType.uint8
comptime GROUP_BYTES = 1 << 22
"""Text that each thread gets at a time."""
comptime MIN_TOKENS = 2
"""A token and the one after it."""
comptime SHORT_REST = 100
"""What is left for a last shard is short if it is less than this part of one."""


def options() -> List[Option]:
    return [
        Option("text", "i", "GLOB", "", "the text files, each of them one document; quote a pattern"),
        Option("out", "o", "DIR", "", "folder for the shards, and for a copy of the tokenizer file"),
        Option("name", "", "NAME", "", "makes NAME_train.bin and NAME_val.bin (default: the name of the folder)"),
        Option("tokenizer", "", "FILE", "gpt2_tokenizer.bin", "vocabulary, an llm.c tokenizer file"),
        Option("val-fraction", "", "X", "0.1", "share of the tokens, at the end, for validation", maximum=1),
        Option("shard-tokens", "", "N", "0", "cuts shards of so many tokens, NAME_train_000000.bin and on (0: none)"),
        Option("force", "", "", "", "replace shards of another text that are in --out"),
        Option("threads", "", "N", "0", "threads to use (0: one for each core)"),
    ]


def main():
    expect_addresses()
    try:
        exit(tokenize())
    except error:
        complain(String(t"tokenize_text: {error}"))
        exit(1)


def tokenize() raises -> Int:
    """Makes the shards and returns the exit status: 0, or 128 and the signal that stopped it."""
    var args = parse_arguments("tokenize_text", "Turns text files into token shards for train_gpt2.", options())
    var needed: List[StaticString] = ["text", "out"]
    for flag in needed:
        if not args.given(flag):
            args.fail(String(t"expected --{flag}: there is no default"))
    var name = args.string("name") if args.given("name") else basename(args.string("out").rstrip("/"))
    if name in ["", ".", ".."]:
        args.fail(String(t"expected --name: '{args.string('out')}' gives none"))
    var val_fraction = args.float("val-fraction")
    var shard_tokens = args.int("shard-tokens")
    var crew = Crew(args.int("threads") if args.int("threads") > 0 else available_threads())
    var tokenizer = Tokenizer(args.string("tokenizer"))
    var corpus = Corpus(args.string("text"))
    watch_for_signals()
    var screen = Screen()
    # Until all are written, every shard is open.
    allow_many_files()
    var lock = lock_folder("tokenize", args.string("out"))
    if not args.given("force"):
        expect_own_set(args.string("out"), corpus)
    var spool = TokenSpool(args.string("out") + "/" + name + "_all.bin", tokenizer.vocab_size)
    encode_all(corpus, tokenizer, crew, spool, screen)
    screen.check()
    if stop_signal() != 0:
        screen.line(String(t"stopped by {signal_name(stop_signal())}; nothing was written"))
        return 128 + stop_signal()
    var middle = Int(Float64(spool.count) * (1 - val_fraction))
    if middle < MIN_TOKENS or spool.count - middle < MIN_TOKENS:
        raise Error(
            t"too little text: expected {MIN_TOKENS} tokens or more for training and for validation, found {middle} and"
            t" {spool.count - middle}; give more text, or change --val-fraction"
        )
    var manifest = Manifest()
    for i in range(len(corpus.paths)):
        manifest.add_input(corpus.paths[i], corpus.sizes[i], corpus.hashes[i])
    var stem = args.string("out") + "/" + name
    var files = List[AtomicFile]()
    write_split(spool, 0, middle, stem + "_train", shard_tokens, files, manifest)
    write_split(spool, middle, spool.count - middle, stem + "_val", shard_tokens, files, manifest)
    files.append(copy_of(args.string("tokenizer"), args.string("out") + "/tokenizer.bin"))
    manifest.add_output(files[len(files) - 1], None)
    var command = String("tokenize_text")
    for word in command_line():
        command += " '" + word.replace("'", "'\\''") + "'"
    var text = manifest.text(command, tokenizer, args.string("tokenizer"))
    # A manifest that is there speaks of what is there: it goes first, and the new one comes last. In between the new one
    # is there under its temporary name, by which the trainer knows that the set is not whole.
    var file = AtomicFile("tokenize", args.string("out") + "/manifest.json")
    file.write(text)
    file.flush()
    if exists(args.string("out") + "/manifest.json"):
        remove(args.string("out") + "/manifest.json")
    var written = List[String]()
    for i in range(len(files)):
        files[i].commit()
        written.append(files[i].path)
    file.commit()
    for i in range(len(files)):
        screen.line(String(t"wrote {files[i].path} ({grouped(files[i].size)} bytes)"))
    for split in ["_train*.bin", "_val*.bin"]:
        for path in glob_files(args.string("out") + "/" + name + split):
            if path not in written:
                screen.line(String(t"note: {path} was there before and is not of this text; remove it"))
    _ = lock^
    screen.check()
    return 0


def expect_own_set(folder: String, corpus: Corpus) raises:
    """Refuses a folder whose manifest names none of these texts: what it has belongs to another job."""
    var path = folder + "/manifest.json"
    if not exists(path):
        return
    var manifest = read_text("tokenize", path)
    for ref name in corpus.paths:
        if '"name": ' + json_text(name) in manifest:
            return
    raise Error(t"{folder} holds the shards of another text ({path}); --force replaces them, another --out keeps both")


def encode_all(mut corpus: Corpus, tokenizer: Tokenizer, crew: Crew, mut spool: TokenSpool, mut screen: Screen) raises:
    """Tokenizes the corpus, until it ends or a signal comes."""
    var ticker = Ticker("tokenizing, bytes", screen)
    var start = perf_counter_ns()
    while not ticker.stopped():
        var blocks = corpus.next_blocks(tokenizer, crew.size * GROUP_BYTES)
        if len(blocks) == 0:
            var seconds = Float64(perf_counter_ns() - start) / 1e9
            screen.line(
                String(
                    t"{grouped(len(corpus.paths))} files, {grouped(corpus.num_bytes)} bytes: {grouped(spool.count)}"
                    t" tokens in {fixed(seconds, 1)} s ({fixed(Float64(corpus.num_bytes) / 1e6 / seconds, 1)} MB/s)"
                )
            )
            return
        for ref tokens in corpus.encode(tokenizer, blocks, crew):
            spool.append(tokens)
        var rate = Float64(corpus.bytes_read) * 1e3 / Float64(perf_counter_ns() - start)
        var so_far = String(t"{grouped(spool.count)} tokens | {fixed(rate, 1)} MB/s")
        ticker.show(corpus.bytes_read, corpus.num_bytes, so_far)


def write_split(
    spool: TokenSpool,
    start: Int,
    count: Int,
    stem: String,
    shard_tokens: Int,
    mut files: List[AtomicFile],
    mut manifest: Manifest,
) raises:
    """Writes the shards of a split as `prepare` does: STEM.bin, or STEM_000000.bin and on if they are cut."""
    var size = shard_tokens if shard_tokens > 0 else count
    var shards = (count + size - 1) // size
    # A short rest goes to the last whole shard.
    if shards > 1 and (count - (shards - 1) * size) * SHORT_REST < size:
        shards -= 1
    for i in range(shards):
        var path = String(t"{stem}_{String(i).ascii_rjust(6, '0')}.bin") if shard_tokens > 0 else stem + ".bin"
        var tokens = count - i * size if i + 1 == shards else size
        files.append(spool.shard(path, start + i * size, tokens))
        manifest.add_output(files[len(files) - 1], tokens)


def copy_of(source: String, target: String) raises -> AtomicFile:
    """Puts the tokenizer beside the shards, where the trainer looks for it; it appears when the caller commits it."""
    var bytes = MappedFile(InputFile("tokenizer", source))
    var file = AtomicFile("tokenizer", target)
    file.write(bytes.view[U8](0, bytes.size))
    _ = bytes^
    file.flush()
    return file^
