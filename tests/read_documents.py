"""The documents that a reader finds, however the file is cut."""


def documents(reader, path, start=None, **options):
    """The documents from a place on; what comes before the first one that begins there is a document too."""
    found = []
    for block in reader.blocks(path, start, **options):
        for text, starts in reader.documents(block):
            if starts or not found:
                found.append("")
            found[-1] += text
    return found


def starts_and_rests(reader, path):
    """For every place where a block ends: the tokens' text before it and after it."""
    blocks = list(reader.blocks(path))
    for at, block in enumerate(blocks, 1):
        before = [piece for each in blocks[:at] for piece in reader.documents(each)]
        after = [piece for each in reader.blocks(path, block.after) for piece in reader.documents(each)]
        yield before + after


def joined(pieces):
    """Pieces of documents -> documents."""
    found = []
    for text, starts in pieces:
        if starts:
            found.append("")
        found[-1] += text
    return found
