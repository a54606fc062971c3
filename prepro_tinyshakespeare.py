"""Downloads and tokenizes tinyshakespeare: data/tinyshakespeare/tiny_shakespeare_{train,val}.bin and tokenizer.bin.

The text is karpathy's char-rnn input (1.1 MB), the tokenizer GPT-2's, split and shards as in llm.c: 305,260 tokens for
training and 32,768 for validation. The same as `python -m llm_mojo prepare tinyshakespeare`, and takes the same options.
"""

import sys

from llm_mojo.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["prepare", "tinyshakespeare", *sys.argv[1:]]))
