"""Downloads and tokenizes TinyStories: data/tinystories/TinyStories_{train,val}.bin and tokenizer.bin.

The archive (1.6 GB) is roneneldan/TinyStories on Hugging Face, the tokenizer GPT-2's, split and shards as in llm.c:
925,653,391 tokens for training and 19,043,638 for validation. Tokenizes on all cores, in memory that does not grow with the
corpus. The same as `python -m llm_mojo prepare tinystories`, and takes the same options.
"""

import sys

from llm_mojo.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["prepare", "tinystories", *sys.argv[1:]]))
