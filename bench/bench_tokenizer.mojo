"""How fast llm/tokenizer.mojo encodes a text. bench/bench_tokenizer.py runs this in turn with tiktoken.

    mojo run -I . bench/bench_tokenizer.mojo --tokenizer FILE --text FILE [--threads 1] [--repeats 5]

Prints megabytes a second, the median of the repeats, and the number of tokens.
"""

from std.sys import exit, stderr
from std.time import perf_counter_ns

from llm.base.formatting import fixed
from llm.cli.arguments import Option, parse_arguments
from llm.cpu.threads.crew import Crew
from llm.text.corpus import Corpus
from llm.text.tokenizer import Tokenizer
from timing import median


def main():
    try:
        bench()
    except error:
        print(t"bench_tokenizer: {error}", file=stderr)
        exit(1)


def bench() raises:
    """Encodes the text as one string with one thread, and in blocks with several."""
    var args = parse_arguments(
        "bench_tokenizer",
        "Times the encoding of a text.",
        [
            Option("tokenizer", "", "FILE", "gpt2_tokenizer.bin", "vocabulary, an llm.c tokenizer file"),
            Option("text", "i", "FILE", "", "the text"),
            Option("threads", "", "N", "1", "threads", minimum=1),
            Option("repeats", "", "N", "5", "times that the text is encoded", minimum=1),
        ],
    )
    var crew = Crew(args.int("threads"))
    var tokenizer = Tokenizer(args.string("tokenizer"))
    var bytes = open(args.string("text"), "r").read_bytes()
    var corpus = Corpus(args.string("text"))
    var blocks = corpus.next_blocks(tokenizer, corpus.num_bytes)
    var rates = List[Float64]()
    var tokens = 0
    for _ in range(args.int("repeats") + 1):
        tokens = 0
        var start = perf_counter_ns()
        if crew.size == 1:
            tokens = len(tokenizer.encode(Span(bytes)))
        else:
            for ref part in corpus.encode(tokenizer, blocks, crew):
                tokens += len(part)
        rates.append(Float64(len(bytes)) * 1e3 / Float64(perf_counter_ns() - start))
    # The first encoding has touched the memory.
    _ = rates.pop(0)
    print(fixed(median(rates), 2), tokens)
