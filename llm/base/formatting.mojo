"""Numbers and times as people read them."""

from llm.base.json import formatted


def fixed(value: Float64, decimals: Int) -> String:
    """Writes a number with this many decimals, as C's %.*f does."""
    return formatted(value, String(t"%.{decimals}f"))


def scientific(value: Float64, decimals: Int) -> String:
    """Writes a number with an exponent and this many decimals, as C's %.*e does."""
    return formatted(value, String(t"%.{decimals}e"))


def percent(share: Float64) -> String:
    """Writes a part of the whole in two digits: 74%, 7.4%, 0.1%."""
    return fixed(100 * share, 0 if share >= 0.0995 else 1) + "%"


def grouped(value: Int) -> String:
    """Writes an integer with a comma before every three digits."""
    var digits = String(abs(value))
    var text = String("-") if value < 0 else String()
    var length = digits.byte_length()
    for i in range(length):
        if i > 0 and (length - i) % 3 == 0:
            text += ","
        text += digits[byte=i]
    return text^


def aligned(rows: List[Tuple[String, String]]) -> String:
    """Writes rows of a name and a value, the values under each other."""
    var width = 0
    for ref row in rows:
        width = max(width, row[0].byte_length())
    var text = String()
    for ref row in rows:
        text += String(t"{row[0].ascii_ljust(width)}  {row[1]}\n")
    return text^


def wrapped(text: String, columns: Int, indent: Int) -> String:
    """Breaks lines that have more characters than there are columns at spaces; what goes on is indented.

    A word that is longer than a line stays whole.
    """
    var lines = List[String]()
    for whole in text.split("\n"):
        var line = String(whole)
        while line.byte_length() > columns:
            var at = -1
            for i, byte in enumerate(line.as_bytes()):
                if byte == UInt8(ord(" ")) and indent < i and (i <= columns or at < 0):
                    at = i
            if at < 0:
                break
            lines.append(String(line[byte=:at]))
            line = String(" ") * indent + String(line[byte = at + 1 :])
        lines.append(line^)
    return String("\n").join(lines)


def duration(seconds: Float64) -> String:
    """Writes a time as minutes and seconds, with hours if there are any: 4:07, 1:30:00."""
    var whole = Int(max(seconds, 0) + 0.5)
    var rest = String(t"{String(whole % 60).ascii_rjust(2, '0')}")
    if whole < 3600:
        return String(t"{whole // 60}:{rest}")
    return String(t"{whole // 3600}:{String(whole // 60 % 60).ascii_rjust(2, '0')}:{rest}")
