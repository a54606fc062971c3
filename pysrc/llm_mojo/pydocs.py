"""The English of Python's own documentation on this machine: the embedded data set, which needs no network.

It has the language reference (pydoc_data.topics, what `help("with")` shows) and the docstrings of the standard library,
which are parsed from its source files, never imported. The text depends on the version of Python.
"""

import ast
import hashlib
import inspect
import platform
import random
import re
import sysconfig
import unicodedata
import warnings
from pathlib import Path

from llm_mojo import Error

MIN_BYTES = 1_000_000
MIN_DOCUMENT_CHARACTERS = 60
MAX_HEADING_CHARACTERS = 90
SKIPPED_FOLDERS = {
    *("test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "encodings", "pydoc_data"),
    *("site-packages", "dist-packages", "ensurepip", "lib-dynload", "__pycache__"),
}

ASCII = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "→": "->", "•": "*"})
UNDERLINE = re.compile(r"^\s*([-=*~^\"'#+_.])\1{2,}\s*$")
ROLE = re.compile(r":[a-z]+(?::[a-z]+)?:`~?([^`]*)`")
QUOTED = re.compile(r"``?([^`'\n]+)``?")
CODE = re.compile(r">>> |::=|\|-|\+-")
PROSE_CHARACTER = re.compile(r"[A-Za-z ,.'\"]")


def identity():
    """What the text depends on: the version of Python, and the rules in this file."""
    rules = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return {"python": platform.python_version(), "implementation": platform.python_implementation(), "rules": rules}


def documents():
    """Returns the documents, ASCII text that ends in a newline, in an order that is mixed but always the same.

    No paragraph comes twice: the reference repeats its sections in several topics, and docstrings are inherited by copying.
    Raises Error if this Python has less than a megabyte of documentation.
    """
    library = Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    texts = []
    for heading, body in [*_topics(), *_docstrings(library)]:
        paragraphs = [paragraph for paragraph in _paragraphs(body) if _is_new(paragraph, seen)]
        text = "\n\n".join(paragraphs)
        if len(text) >= MIN_DOCUMENT_CHARACTERS:
            texts.append(f"{heading}\n\n{text}\n")
    size = sum(map(len, texts))
    if size < MIN_BYTES:
        raise Error(
            f"pydocs: expected at least {MIN_BYTES:,} bytes of documentation in Python {platform.python_version()}"
            f" at {library}, found {size:,}; install Python's whole standard library"
            " (on Debian: apt-get install python3 libpython3-stdlib),"
            " or train on a text of your own: python -m llm_mojo prepare FILE"
        )
    random.Random(0).shuffle(texts)
    return texts


def _topics():
    """Yields (heading, text) for every section of the language reference."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    for name in sorted(topics):
        lines, heading, start = topics[name].splitlines(), name, 0
        for at in range(1, len(lines)):
            if UNDERLINE.match(lines[at]) and lines[at - 1].strip():
                yield heading, "\n".join(lines[start : at - 1])
                heading, start = _plain(lines[at - 1]).strip(), at + 1
        yield heading, "\n".join(lines[start:])


def _docstrings(library):
    """Yields (heading, docstring) for every module, class and function of the standard library, by module."""
    for path in sorted(library.rglob("*.py"), key=lambda path: path.relative_to(library).parts):
        parts = path.relative_to(library).with_suffix("").parts
        if SKIPPED_FOLDERS.intersection(parts[:-1]) or any(part.startswith("config-") for part in parts):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escape sequences in strings
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError, OSError):
                continue
        yield from _docstrings_of(tree, ".".join(part for part in parts if part != "__init__"))


def _docstrings_of(node, name):
    docstring = ast.get_docstring(node)
    if docstring:
        yield _heading(node, name), docstring
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _docstrings_of(child, f"{name}.{child.name}")


def _heading(node, name):
    """`module json`, `class json.JSONDecoder`, `json.dumps(obj, indent=None)`."""
    if isinstance(node, ast.Module):
        return f"module {name}"
    if isinstance(node, ast.ClassDef):
        return f"class {name}"
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    call = f"{name}({ast.unparse(node.args)})"
    return _plain(call if len(call) <= MAX_HEADING_CHARACTERS else f"{name}(...)")


def _paragraphs(text):
    """The paragraphs that read as English, or as a short example; walls of examples, tables and grammar are left out."""
    lines = [line.rstrip() for line in _plain(inspect.cleandoc(text)).splitlines() if not UNDERLINE.match(line)]
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        prose = len(PROSE_CHARACTER.findall(paragraph))
        if paragraph.strip() and not CODE.search(paragraph) and prose >= 0.85 * len(paragraph.replace("\n", " ")):
            yield paragraph.strip("\n")


def _plain(text):
    """ASCII, without markup: :role:`x` becomes x, ``x`` becomes "x"."""
    text = unicodedata.normalize("NFKD", text.translate(ASCII)).encode("ascii", "ignore").decode()
    text = "".join(character for character in text.expandtabs() if character == "\n" or character.isprintable())
    return QUOTED.sub(r'"\1"', ROLE.sub(r"\1", text))


def _is_new(paragraph, seen):
    key = " ".join(paragraph.split())
    if len(key) >= MIN_DOCUMENT_CHARACTERS and key in seen:
        return False
    seen.add(key)
    return True
