"""What files begin with that are no text, whatever their names say."""

from llm_mojo.formats import KINDS as OURS

KINDS = [  # (where, what files have there, what they are, their suffix if they can be unpacked)
    (0, b"\x1f\x8b", "gzip", ".gz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd", ".zst"),
    (0, b"\xfd7zXZ\0", "xz", ".xz"),
    (4, b"1AY&SY", "bzip2", ".bz2"),
    (0, b"PK\x03\x04", "zip", None),
    (0, b"7z\xbc\xaf\x27\x1c", "7-Zip", None),
    (0, b"Rar!\x1a\x07", "RAR", None),
    (0, b"\x04\x22\x4d\x18", "lz4", None),
    (0, b"\x1f\x9d", "compress", None),
    (0, b"LZIP\x01", "lzip", None),
    (257, b"ustar", "a tar archive", None),
    (0, b"%PDF-", "PDF", None),
    (0, b"{\\rtf", "rich text (RTF)", None),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a document of a word processor", None),
    (0, b"PAR1", "parquet", None),
    (0, b"ARROW1\0\0", "Arrow", None),
    (0, b"SQLite format 3\0", "SQLite", None),
    (0, b"\x7fELF", "a program", None),
    (0, b"\x89PNG\r\n", "a picture", None),
    (0, b"\xff\xd8\xff", "a picture", None),
    (0, b"GIF8", "a picture", None),
    *((0, magic.to_bytes(4, "little"), what, None) for magic, what in OURS.items()),
]


def kind_of(head: bytes) -> tuple[str, str | None] | None:
    """What a file is that begins so, and the suffix of those that are unpacked by it; None if it may be text."""
    for at, mark, kind, suffix in KINDS:
        if head[at:].startswith(mark):
            return kind, suffix
    return None
