"""Parts of texts, as calls: std checks the ends of a slice inline, in 680 lines of IR each time."""


@no_inline
def part(text: StringSlice, begin: Int, end: Int) -> String:
    """Returns bytes begin .. end - 1, which must lie in the text and begin and end between characters."""
    debug_assert(0 <= begin <= end <= text.byte_length(), "part: outside of the text")
    return String(
        StringSlice(unsafe_from_utf8=Span(unsafe_ptr=text.unsafe_ptr().unsafe_offset(begin), length=end - begin))
    )


@no_inline
def trimmed(text: StringSlice, begin: Int, end: Int) -> String:
    """Returns the same without the spaces around it."""
    return String(part(text, begin, end).strip())
