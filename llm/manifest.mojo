"""Whether data, tokenizer and model belong together: `prepare` notes beside the data which tokenizer made it."""

from std.os.path import exists

from llm.files import beside, glob_files, read_text
from llm.json import JsonObject
from llm.sha256 import sha256_of_file

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
        if path != checked and exists(path):
            _check(path, tokenizer, vocab_size)
            checked = path


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
    if size != vocab_size:
        raise Error(
            t"data and model do not agree: {data}, the model has {vocab_size}; prepare the data with the model's"
            t" tokenizer (--tokenizer of `prepare`), or train another model (--init, --vocab-size)"
        )
    if tokenizer and sha256_of_file(tokenizer.value()) != sha256:
        raise Error(
            t"data and tokenizer do not agree: {data}, {tokenizer.value()} is another one; give the tokenizer.bin"
            t" beside the data (--tokenizer), or prepare the data with the one given"
        )
