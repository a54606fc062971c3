"""Parts of texts, as calls: std checks the ends of a slice inline, in 680 lines of IR each time."""


@no_inline
def part(text: StringSlice, begin: Int, end: Int) -> String:
    """Returns bytes begin .. end - 1, which must begin and end between characters."""
    return String(text[byte=begin:end])


@no_inline
def trimmed(text: StringSlice, begin: Int, end: Int) -> String:
    """Returns the same without the spaces around it."""
    return String(part(text, begin, end).strip())
