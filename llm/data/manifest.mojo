"""Whether data, tokenizer and model belong together: the manifest beside the data says what it was made from.

`python -m llm_mojo prepare` writes it, and tokenize_text.mojo in the same form.
"""

from std.os.path import basename, exists

from llm.base.files import beside, glob_files, read_text
from llm.base.json import JsonObject, json_text
from llm.base.sha256 import sha256_of_file, sha256_of_written
from llm.base.written_files import AtomicFile, has_unfinished
from llm.text.tokenizer import Tokenizer
from llm.text.unicode_table import UNICODE_VERSION

comptime _LARGEST_MANIFEST = 1 << 26
comptime _LARGEST_VOCABULARY = 1 << 31


def check_manifests(pattern: String, tokenizer: Optional[String], vocab_size: Int) raises:
    """Checks the shards that match a pattern by the manifests beside them; where there is none, there is no check.

    Raises:
        If the shards were made with another tokenizer than this file, or for another vocabulary than the model's.
    """
    var checked = String()
    for shard in glob_files(pattern):
        var path = beside(shard, "manifest.json")
        if path == checked:
            continue
        checked = path
        if exists(path):
            _check(path, tokenizer, vocab_size)
        elif has_unfinished(path):
            raise Error(
                t"data: {path} is being written, or was when its program was killed: shards of two texts may lie beside"
                t" each other; wait for it, or make the data again"
            )


def _check(path: String, tokenizer: Optional[String], vocab_size: Int) raises:
    var name: String
    var size: Int
    var sha256: String
    try:
        var made_with = JsonObject(read_text("data", path, _LARGEST_MANIFEST)).object("tokenizer")
        name = made_with.text("name")
        size = made_with.int("vocab_size", 1, _LARGEST_VOCABULARY)
        sha256 = made_with.text("sha256")
    except error:
        raise Error(t"data: {path}: not a manifest of prepared data ({error}); prepare the data again")
    var data = String(t"the data ({path}) was made with the tokenizer {name} of {size} tokens")
    if tokenizer and size == vocab_size and sha256_of_file(tokenizer.value()) != sha256:
        raise Error(
            t"data and tokenizer do not agree: {data}, {tokenizer.value()} is another one; give the tokenizer.bin"
            t" beside the data (--tokenizer), or prepare the data with the one given"
        )
    if size != vocab_size and tokenizer and Tokenizer(tokenizer.value()).vocab_size == vocab_size:
        raise Error(
            t"data and tokenizer do not agree: {data}, {tokenizer.value()} has {vocab_size} tokens, as the model; give"
            t" the tokenizer.bin beside the data (--tokenizer) and a model for it, or prepare the data with the one"
            t" given"
        )
    if size != vocab_size:
        raise Error(
            t"data and model do not agree: {data}, the model has {vocab_size}; prepare the data with the model's"
            t" tokenizer (--tokenizer of `prepare`), or train another model (--init, --vocab-size)"
        )


struct Manifest(Movable):
    """What was made of what, as it is written beside the data."""

    var _inputs: String
    var _outputs: String
    var _documents: Int

    def __init__(out self):
        """Starts without files."""
        self._inputs = String()
        self._outputs = String()
        self._documents = 0

    def add_input(mut self, path: String, size: Int, sha256: String):
        """Notes a file of text, which is a document."""
        self._documents += 1
        self._inputs += ",\n  " if self._inputs else "\n  "
        self._inputs += String(t'{{"name": {json_text(path)}, "bytes": {size}, "sha256": "{sha256}"}}')

    def add_output(mut self, file: AtomicFile, tokens: Optional[Int]) raises:
        """Notes a file that has been written, with its tokens if it is a shard."""
        var count = String(t'"tokens": {tokens.value()}, ') if tokens else String()
        var name = json_text(String(basename(file.path)))
        var sha256 = sha256_of_written(file)
        self._outputs += ",\n  " if self._outputs else "\n  "
        self._outputs += String(t'{name}: {{{count}"bytes": {file.size}, "sha256": "{sha256}"}}')

    def text(self, command: String, tokenizer: Tokenizer, source: String) raises -> String:
        """Returns the JSON; `source` is the tokenizer file, which lies beside the data as tokenizer.bin."""
        var end_of_text = String(tokenizer.end_of_text) if tokenizer.end_of_text >= 0 else String("null")
        var sha256 = sha256_of_file(source)
        var lines: List[String] = [
            '"manifest": 1',
            String(t'"command": {json_text(command)}'),
            String(t'"versions": {{"unicode": "{UNICODE_VERSION}"}}'),
            String(
                t'"tokenizer": {{"name": {json_text(source)}, "file": "tokenizer.bin", "vocab_size":'
                t' {tokenizer.vocab_size}, "end_of_text": {end_of_text}, "sha256": "{sha256}"}}'
            ),
            String(t'"documents": {self._documents}'),
            String(t'"inputs": [{self._inputs}\n ]'),
            String(t'"outputs": {{{self._outputs}\n }}'),
        ]
        return "{\n " + ",\n ".join(lines) + "\n}\n"
