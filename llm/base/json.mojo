"""JSON as far as a run needs it: objects of numbers, words, texts without escapes, lists of numbers, and objects."""

from std.ffi import external_call
from std.math import isfinite

from llm.base.numbers import parse_number
from llm.base.strings import part, trimmed


struct JsonObject(Movable):
    """The members of one object, each value as it was written."""

    var _names: List[String]
    var _values: List[String]

    def __init__(out self, text: String) raises:
        """Reads an object.

        Raises:
            If the text is no object.
        """
        self._names = List[String]()
        self._values = List[String]()
        var inside = String(text.strip())
        if not inside.startswith("{") or not inside.endswith("}"):
            raise Error("expected an object in braces")
        var bytes = inside.as_bytes()
        var end = len(bytes) - 1
        var start = 1
        while start < end:
            var stop = _end_of_member(bytes, start, end)
            var member = part(inside, start, stop)
            var colon = member.find(":")
            if colon < 0:
                raise Error(t"expected a name and a value, found {member}")
            self._names.append(_unquoted(trimmed(member, 0, colon)))
            self._values.append(trimmed(member, colon + 1, member.byte_length()))
            start = stop + 1

    def text(self, name: String) raises -> String:
        """Returns a text."""
        return _unquoted(self._raw(name))

    def object(self, name: String) raises -> JsonObject:
        """Returns an object within this one."""
        return JsonObject(self._raw(name))

    def bool(self, name: String) raises -> Bool:
        """Returns true or false."""
        var raw = self._raw(name)
        if raw != "true" and raw != "false":
            raise Error(t"expected {name} to be true or false, found {raw}")
        return raw == "true"

    def int(self, name: String, minimum: Int, maximum: Int) raises -> Int:
        """Returns an integer of this range."""
        var value = self.float(name)
        if not (value >= Float64(minimum) and value <= Float64(maximum)) or Float64(Int(value)) != value:
            raise Error(t"expected {name} to be an integer from {minimum} to {maximum}, found {self._raw(name)}")
        return Int(value)

    def float(self, name: String) raises -> Float64:
        """Returns a number."""
        return _number(name, self._raw(name))

    def floats(self, name: String) raises -> List[Float64]:
        """Returns a list of numbers."""
        var raw = self._raw(name)
        if not raw.startswith("[") or not raw.endswith("]"):
            raise Error(t"expected {name} to be a list, found {raw}")
        var numbers = List[Float64]()
        var inside = trimmed(raw, 1, raw.byte_length() - 1)
        if inside.byte_length() > 0:
            for item in inside.split(","):
                numbers.append(_number(name, String(item.strip())))
        return numbers^

    def has(self, name: String) -> Bool:
        """Tells whether there is such a member and it is not null."""
        for i, known in enumerate(self._names):
            if known == name:
                return self._values[i] != "null"
        return False

    def _raw(self, name: String) raises -> String:
        for i, known in enumerate(self._names):
            if known == name:
                return self._values[i]
        raise Error(t"expected a member {name}, found none")


def json_number[dtype: DType](value: Scalar[dtype]) -> String:
    """Writes a number with as few digits as give it back exactly; `null` for NaN and infinities, which JSON lacks."""
    if not isfinite(value):
        return "null"
    var text = String()
    for digits in range(6, 18):
        text = formatted(Float64(value), String(t"%.{digits}g"))
        if parse_number(text).or_else(0).cast[dtype]() == value:
            break
    return text^


def json_numbers(values: List[Float64]) -> String:
    """Writes a list of numbers."""
    var text = String("[")
    for i, value in enumerate(values):
        if i > 0:
            text += ", "
        text += json_number(value)
    return text + "]"


def json_text(text: String) -> String:
    """Writes a text in quotes. Bytes that are not UTF-8, as names of files may have, become U+FFFD."""
    var quoted = String(from_utf8_lossy=text.as_bytes()).replace("\\", "\\\\").replace('"', '\\"')
    for control in range(0x20):
        var digits = "0123456789abcdef"
        quoted = quoted.replace(chr(control), String(t"\\u00{control // 16}{digits[byte=control % 16]}"))
    return '"' + quoted + '"'


def formatted(value: Float64, var format: String) -> String:
    """Writes a number in one of the formats of C's strfromd: a precision and a letter, no flags."""
    var buffer = List[UInt8](length=512, fill=0)
    var length = external_call["strfromd", Int32](
        buffer.unsafe_ptr(), len(buffer), format.as_c_string_span().ptr(), value
    )
    return part(StringSlice(unsafe_from_utf8=Span(buffer)), 0, Int(length))


def _end_of_member(bytes: Span[UInt8, _], start: Int, end: Int) -> Int:
    """Finds the comma that ends a member: not one in a text, a list or an object."""
    var depth = 0
    var quoted = False
    var escaped = False
    for i in range(start, end):
        var c = bytes[i]
        if escaped:
            escaped = False
        elif c == UInt8(ord("\\")):
            escaped = quoted
        elif c == UInt8(ord('"')):
            quoted = not quoted
        elif quoted:
            continue
        elif c == UInt8(ord("[")) or c == UInt8(ord("{")):
            depth += 1
        elif c == UInt8(ord("]")) or c == UInt8(ord("}")):
            depth -= 1
        elif c == UInt8(ord(",")) and depth == 0:
            return i
    return end


def _unquoted(text: String) raises -> String:
    if text.byte_length() < 2 or not text.startswith('"') or not text.endswith('"'):
        raise Error(t"expected a text in quotes, found {text}")
    return part(text, 1, text.byte_length() - 1)


def _number(name: String, text: String) raises -> Float64:
    var value = parse_number(text)
    if not value:
        raise Error(t"expected {name} to be a number, found {text}")
    if not isfinite(value.value()):
        raise Error(t"expected {name} to be a finite number, found {text}")
    return value.value()
