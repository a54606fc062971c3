"""Commands as a person can paste them into a shell."""

from std.os import getenv
from std.os.path import basename
from std.sys import argv

from llm.base.memory import Tensor
from llm.text.utf8 import character_at

comptime _HEXADECIMAL = "0123456789abcdef"


def shell_command(words: List[String]) -> String:
    """Returns the words as one line."""
    var command = String()
    for ref word in words:
        command += (" " if command else "") + shell_word(word)
    return command^


def called_as() -> String:
    """Returns what a person has typed to start this program, such as `llm-mojo train`; nothing if it was its own name.
    """
    return getenv("LLM_MOJO_CALLED")


def python_side() -> List[String]:
    """Returns the words that start the commands in Python."""
    return ["llm-mojo"] if called_as().startswith("llm-mojo ") else ["python", "-m", "llm_mojo"]


def own_program() -> List[String]:
    """Returns the words that start this program, as it was started: `mojo train_gpt2.mojo` has only the second itself.
    """
    var name = String(argv()[0])
    if called_as().startswith("llm-mojo "):
        return ["llm-mojo", String(basename(name))]
    return ["mojo", name] if name.endswith(".mojo") else [name]


def shell_word(word: String) -> String:
    """Quotes a word if it needs it: '...', or $'...' where it has control characters or is not UTF-8."""
    var bytes = Tensor[DType.uint8](viewing=word.as_bytes())
    var plain = word.byte_length() > 0
    var strange = False
    var at = 0
    while at < bytes.size:
        var character = character_at(bytes, at)
        var code = character.code
        strange = strange or code < 0x20 or 0x7F <= code < 0xA0
        var letter = ord("a") <= (code | 32) <= ord("z")
        var digit = ord("0") <= code <= ord("9")
        plain = plain and (letter or digit or code > 0x7F or (0 < code < 0x7F and chr(code) in "-_./=:,+@%"))
        at += character.length
    # A view keeps nothing alive.
    _ = word
    if strange:
        return _escaped(word)
    return word if plain else "'" + word.replace("'", "'\\''") + "'"


def _escaped(word: String) -> String:
    var text = String("$'")
    for byte in word.as_bytes():
        if byte == UInt8(ord("'")) or byte == UInt8(ord("\\")):
            text += "\\" + chr(Int(byte))
        elif UInt8(0x20) <= byte < UInt8(0x7F):
            text += chr(Int(byte))
        else:
            text += "\\x" + chr(Int(_HEXADECIMAL.as_bytes()[Int(byte >> 4)]))
            text += chr(Int(_HEXADECIMAL.as_bytes()[Int(byte & 15)]))
    return text + "'"
