"""Settings in files: flat TOML of the long names of flags. Presets are such files, and every run writes one."""

from std.os.path import dirname, exists
from std.ffi import external_call

from llm.base.files import beside, read_text
from llm.base.numbers import parse_number
from llm.base.strings import part, trimmed
from llm.base.written_files import AtomicFile
from llm.cli.arguments import Arguments

comptime RUN_SETTINGS = "run.toml"
"""The settings in the folder of a run."""
comptime RUN_TOKENIZER = "tokenizer.bin"
"""The tokenizer there."""
comptime MADE_BY_NOTE = "made-by"
"""No setting: in a preset the command that makes its data."""
comptime TOKENIZER_NOTE = "tokenizer-sha256"
"""No setting: of the tokenizer that a run has kept, which lies beside its settings."""


def read_settings(mut args: Arguments, path: String) raises:
    """Gives options the values that a file has for them. A flag that is parsed again afterwards counts more.

    Raises:
        If the file is not flat TOML or names an option that there is not, or one that is not for files.
    """
    var lines = read_text("settings", path).split("\n")
    var seen = List[String]()
    for i, whole in enumerate(lines):
        var line = String(whole.strip())
        if line.byte_length() == 0 or line.startswith("#"):
            continue
        try:
            var equals = line.find("=")
            if equals < 0:
                raise Error(t"expected `name = value`, found '{line}'")
            var name = trimmed(line, 0, equals)
            if name in seen:
                raise Error(t"{name} is there twice")
            if name == TOKENIZER_NOTE or name == MADE_BY_NOTE:
                continue
            for other in flags_only():
                if name == other:
                    raise Error(
                        t"{name} is for the command line alone: a file does not say where to write or what to replace;"
                        t" remove the line and give --{name}"
                    )
            args.set(name, _value(trimmed(line, equals + 1, line.byte_length())), path)
            seen.append(name)
        except error:
            raise Error(t"{path}, line {i + 1}: {error}")
    # The name is relative to the run, which may have been moved.
    if read_note(path, TOKENIZER_NOTE):
        args.set("tokenizer", beside(path, args.string("tokenizer")), path)


def read_note(path: String, wanted: String) raises -> Optional[String]:
    """Returns the text that a file of settings has under a name; none if it has not, or there is no such file.

    Raises:
        If it cannot be read, or the value is no text.
    """
    if not exists(path):
        return None
    for line in read_text("settings", path).split("\n"):
        var equals = line.find("=")
        if equals >= 0 and String(line[byte=:equals]).strip() == wanted:
            return _value(trimmed(String(line), equals + 1, line.byte_length()))
    return None


def flags_only() -> List[String]:
    """Lists the options that settings in files may not have."""
    return ["out", "preset", "resume", "dry-run", "trace"]


def find_preset(name: String) raises -> String:
    """Returns the file of a preset: the one named, or presets/NAME.toml here or beside the program's folder.

    Raises:
        If there is none.
    """
    if exists(name):
        return name
    var here = String(t"presets/{name}.toml")
    if exists(here):
        return here
    var beside = dirname(dirname(_own_path())) + "/" + here
    if exists(beside):
        return beside
    raise Error(t"no preset {name}: neither the file {name} nor {here} is there; `ls presets` lists them")


def write_settings(
    args: Arguments,
    path: String,
    heading: String,
    without: List[String],
    instead: List[Tuple[String, String]],
    notes: List[Tuple[String, String]],
) raises:
    """Writes every option that has a value, so that `--preset FILE` repeats them; `instead` has other values for some.

    Raises:
        If the file cannot be written.
    """
    var text = heading
    for option in args.options:
        var value = args.string(option.name)
        for ref other in instead:
            if option.name == other[0]:
                value = other[1]
        var is_said = value.byte_length() > 0 or (args.given(option.name) and option.name == "tokenizer")
        if option.name in without or not is_said:
            continue
        if option.is_switch():
            value = "true" if args.bool(option.name) else "false"
        elif not _is_toml_number(value):
            value = toml_text(value)
        text += String(t"{option.name} = {value}\n")
    for ref note in notes:
        text += String(t"{note[0]} = {toml_text(note[1])}\n")
    var file = AtomicFile("settings", path)
    file.write(text^)
    file.commit()


def change_settings(path: String, args: Arguments, names: List[StaticString]) raises:
    """Writes a file of settings anew with what these options are now; all else in it stays.

    Raises:
        If the file cannot be read or written.
    """
    var text = String()
    for line in read_text("settings", path).split("\n"):
        var name = trimmed(String(line), 0, max(line.find("="), 0))
        var changes = False
        for other in names:
            changes = changes or name == other
        if not changes and line.byte_length() > 0:
            text += String(t"{line}\n")
    for name in names:
        ref value = args.string(name)
        text += String(t"{name} = {value if _is_toml_number(value) else toml_text(value)}\n")
    var file = AtomicFile("settings", path)
    file.write(text^)
    file.commit()


def _value(text: String) raises -> String:
    """Reads a TOML string, number or boolean, which a comment may follow; booleans become 1 and 0."""
    if text.startswith('"') or text.startswith("'"):
        var bytes = text.as_bytes()
        var quote = bytes[0]
        var value = List[UInt8]()
        var i = 1
        while i < len(bytes):
            var c = bytes[i]
            if c == quote:
                _check_end(trimmed(text, i + 1, len(bytes)))
                return String(StringSlice(unsafe_from_utf8=Span(value)))
            if c == UInt8(ord("\\")) and quote == UInt8(ord('"')):
                i += _unescape(bytes[i + 1 :], value, text)
            else:
                value.append(c)
            i += 1
        raise Error(t"the text {text} does not end")
    var comment = text.find("#")
    var value = trimmed(text, 0, comment) if comment >= 0 else text
    if value == "true":
        return "1"
    if value == "false":
        return "0"
    if not _is_toml_number(value):
        raise Error(t"expected a number, true, false, or a text in quotes, found '{value}'")
    return value.replace("_", "")


def _unescape(bytes: Span[UInt8, _], mut value: List[UInt8], text: String) raises -> Int:
    """Appends the character that is spelled behind a backslash; returns the bytes of its spelling."""
    var names = 'btnfr"\\'
    var characters: List[UInt8] = [0x08, 0x09, 0x0A, 0x0C, 0x0D, 0x22, 0x5C]
    for i, name in enumerate(names.as_bytes()):
        if len(bytes) > 0 and bytes[0] == name:
            value.append(characters[i])
            return 1
    if len(bytes) >= 5 and bytes[0] == UInt8(ord("u")):
        var code = 0
        for c in bytes[1:5]:
            var digit = String("0123456789abcdef").find(chr(Int(c)).lower())
            code = code * 16 + digit if digit >= 0 and code >= 0 else -1
        if code >= 0 and not 0xD800 <= code < 0xE000:
            value.extend(chr(code).as_bytes())
            return 5
    raise Error(t"expected \\b, \\t, \\n, \\f, \\r, \\\", \\\\ or \\uXXXX after a backslash in {text}")


def _check_end(left: String) raises:
    if left.byte_length() > 0 and not left.startswith("#"):
        raise Error(t"expected the end of the line, found '{left}'")


def _is_toml_number(text: String) -> Bool:
    """Tells whether a text is a number as TOML writes it: digits on both sides of a point, underscores inside."""
    var previous_digit = False
    var digits = False
    for c in text.as_bytes():
        var digit = UInt8(ord("0")) <= c <= UInt8(ord("9"))
        var sign = c == UInt8(ord("-")) or c == UInt8(ord("+"))
        var exponent = c == UInt8(ord("e")) or c == UInt8(ord("E"))
        var inner = c == UInt8(ord(".")) or c == UInt8(ord("_")) or exponent
        if not (digit or (sign and not previous_digit) or (inner and previous_digit)):
            return False
        digits = digits or digit
        previous_digit = digit
    return digits and previous_digit and Bool(parse_number(text.replace("_", "")))


def toml_text(text: String) -> String:
    """Writes a text in quotes."""
    var quoted = String('"')
    for byte in text.as_bytes():
        if byte == UInt8(ord('"')) or byte == UInt8(ord("\\")):
            quoted += "\\" + chr(Int(byte))
        elif byte == 0x7F or byte < 0x20:
            quoted += "\\u" + hex(Int(byte), prefix="").ascii_rjust(4, "0")
        else:
            # A byte of a longer character goes over as it is.
            quoted += StringSlice(unsafe_from_utf8=Span(List[UInt8](length=1, fill=byte)))
    return quoted + '"'


def _own_path() -> String:
    """Returns where this program lies."""
    var name = String("/proc/self/exe")
    var buffer = List[UInt8](length=4096, fill=0)
    var length = external_call["readlink", Int](name.as_c_string_span().ptr(), buffer.unsafe_ptr(), len(buffer))
    return part(StringSlice(unsafe_from_utf8=Span(buffer)), 0, max(length, 0))
