"""An archive of stories as TinyStories comes in."""

import io
import json
import tarfile


def archive(members):
    """A .tar.gz of name -> bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def stories(*texts, **options):
    """A file of the archive; the options are those of json.dumps."""
    return json.dumps([{"story": text, "summary": "[], {"} for text in texts], **options).encode()


STORIES = {
    "._data00.json": b"not a story",
    "data01.json": stories(" \nhe\n", "ll"),
    "./data00.json": stories("hell", 'a "quoted" 東 é', indent=1),
    "readme.txt": b"no",
    "data02.json": stories(*(f"story {i}" for i in range(500)), ensure_ascii=False),
}
