"""Writes llm/text/unicode_table.mojo: which characters GPT-2's split pattern takes for letters, numbers and white space.

    python -m llm_mojo.unicode_table [FILE]

The tables are asked of tiktoken itself, whose regular expressions define what GPT-2's tokens are: Python's own
`unicodedata` is older than their tables or newer, depending on the Python. Run it again when tiktoken's engine moves to
another version of Unicode; tests/test_bpe.py says when.
"""

import sys
from pathlib import Path

import tiktoken

from llm_mojo import Error

CLASSES = {"LETTERS": r"\p{L}", "NUMBERS": r"\p{N}", "WHITE_SPACE": r"\s"}
# A letter that each version was the first to have (DerivedAge.txt): tells which one the engine knows.
FIRST_LETTERS = {"14.0": 0x0870, "15.0": 0x1E4D0, "15.1": 0x2EBF0, "16.0": 0x1C89, "17.0": 0x088F}
CHARACTERS_PER_LINE = 100

HEAD = '''"""The characters that GPT-2's split pattern takes for letters, numbers and white space: Unicode {version}.

Made by `python -m llm_mojo.unicode_table` from the tables of tiktoken {tiktoken}; do not edit. Each class is a list of
hexadecimal code points and ranges of them, both ends included.
"""

comptime UNICODE_VERSION = "{version}"
'''


def characters_that_match(pattern):
    """The code points that tiktoken's engine matches with a pattern for one character."""
    # With bytes for tokens, what is encoded is what matches: the engine leaves out the rest.
    tokens = {bytes([value]): value for value in range(256)}
    engine = tiktoken.Encoding("probe", pat_str=pattern, mergeable_ranks=tokens, special_tokens={})
    every = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    return [ord(character) for character in bytes(engine.encode_ordinary(every)).decode()]


def unicode_version(letters):
    """The newest version whose first letter is among the letters; Error if the list above ends too early."""
    known = [version for version, letter in FIRST_LETTERS.items() if letter in letters]
    if not known or known[-1] == list(FIRST_LETTERS)[-1]:
        raise Error("unicode_table: tiktoken knows a version that FIRST_LETTERS does not tell from the next; add that")
    return known[-1]


def ranges(codes):
    """`41-5A AA B5`: sorted code points as ranges."""
    found: list[list[int]] = []
    for code in codes:
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return " ".join(f"{first:X}" if first == last else f"{first:X}-{last:X}" for first, last in found)


def source():
    """The text of llm/text/unicode_table.mojo."""
    classes = {name: characters_that_match(pattern) for name, pattern in CLASSES.items()}
    text = HEAD.format(version=unicode_version(set(classes["LETTERS"])), tiktoken=tiktoken.__version__)
    for name, codes in classes.items():
        lines = [""]
        for word in ranges(codes).split(" "):
            if len(lines[-1]) + len(word) > CHARACTERS_PER_LINE:
                lines.append("")
            lines[-1] += word + " "
        lines[-1] = lines[-1].rstrip()
        # As `mojo format` has it.
        value = "(\n" + "".join(f'    "{line}"\n' for line in lines) + ")" if len(lines) > 1 else f'"{lines[0]}"'
        text += f"\ncomptime {name} = {value}\n"
    return text


def main():
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "llm" / "text" / "unicode_table.mojo"
    path.write_text(source(), encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
