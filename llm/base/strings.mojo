"""Parts of texts, as calls: std checks the ends of a slice inline, in 680 lines of IR each time.

Arguments and names of files may be any bytes, of which std's own slices end the process.
"""


@no_inline
def part(text: StringSlice, begin: Int, end: Int) -> String:
    """Returns bytes begin .. end - 1."""
    return String(StringSlice(unsafe_from_utf8=text.as_bytes()[begin:end]))


@no_inline
def trimmed(text: StringSlice, begin: Int, end: Int) -> String:
    """Returns the same without the spaces around it."""
    return String(part(text, begin, end).strip())
