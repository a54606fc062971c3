"""Text files to tokens in several threads: documents are cut into blocks that can be encoded by themselves."""

from std.atomic import Atomic

from llm.bpe import Workspace
from llm.cpu.parallel import Team
from llm.files import InputFile, MappedFile, glob_files
from llm.memory import Tensor
from llm.tokenizer import Tokenizer

comptime U8 = DType.uint8
comptime _BLOCK_BYTES = 1 << 16
comptime _MOST_FILES = 1024
"""Files that one group of blocks is from: a process can map only so many."""


@fieldwise_init
struct Block(Copyable, Movable):
    """A stretch of a document; its tokens do not depend on the rest."""

    var text: Tensor[U8]
    var file: Int
    """Number of the file that is the document."""
    var starts: Bool
    """Whether the document begins here."""


struct Corpus(Movable):
    """The files of a pattern, each one document, read once from the first to the last. Empty ones are left out."""

    var num_files: Int
    var num_bytes: Int
    var bytes_read: Int
    """Bytes in the blocks so far."""
    var _paths: List[String]
    var _open: List[MappedFile]
    """Those that the last blocks were from."""
    var _next: Int
    """The file to open next."""
    var _at: Int
    """Where the next block begins in the file opened last; 0 if that is used up."""

    def __init__(out self, pattern: String) raises:
        """Finds the files.

        Raises:
            If there is none with text in it, or one cannot be read.
        """
        self._paths = List[String]()
        self._open = List[MappedFile]()
        self.num_bytes = 0
        self.bytes_read = 0
        self._next = 0
        self._at = 0
        var found = glob_files(pattern)
        for path in found:
            var size = InputFile("tokenize", path).size
            if size > 0:
                self._paths.append(path)
                self.num_bytes += size
        self.num_files = len(self._paths)
        if len(found) == 0:
            raise Error(t"tokenize: no file matches {pattern}; check the name")
        if self.num_files == 0:
            raise Error(t"tokenize: {pattern}: expected text, found nothing but empty files; give files with text")

    def next_blocks(mut self, tokenizer: Tokenizer, num_bytes: Int) raises -> List[Block]:
        """Returns the next blocks, of about so many bytes together; none at the end. Earlier ones become invalid.

        Raises:
            If a file can no longer be read.
        """
        self._release()
        var blocks = List[Block]()
        var taken = 0
        while taken < num_bytes and (self._at > 0 or (self._next < self.num_files and len(self._open) < _MOST_FILES)):
            if self._at == 0:
                self._open.append(MappedFile(InputFile("tokenize", self._paths[self._next])))
                self._next += 1
            ref file = self._open[len(self._open) - 1]
            var text = file.view[U8](0, file.size)
            var end = file.size
            if self._at + _BLOCK_BYTES < file.size:
                end = tokenizer.next_cut(text, self._at + _BLOCK_BYTES)
            blocks.append(Block(text.slice(self._at, end - self._at), self._next - 1, self._at == 0))
            taken += end - self._at
            self._at = end if end < file.size else 0
        self.bytes_read += taken
        return blocks^

    def _release(mut self):
        """Closes the files that are used up, and gives back the memory of what has been read of the other."""
        var files = List[MappedFile]()
        if self._at > 0:
            files.append(self._open.pop())
            files[0].release(self._at)
        self._open = files^

    def encode(self, tokenizer: Tokenizer, blocks: List[Block], team: Team) raises -> List[List[Int32]]:
        """Returns the tokens of each block; those of a document begin with end of text, if the vocabulary has that.

        Raises:
            If a character is not in the vocabulary.
        """
        var results = List[List[Int32]](length=len(blocks), fill=List[Int32]())
        var refused = List[Bool](length=len(blocks), fill=False)
        var next = Atomic[Int64](0)

        var num_bytes = 0
        for ref block in blocks:
            num_bytes += block.text.size

        def body(member: Int) {mut results, mut refused, mut next, imm blocks, imm tokenizer, imm num_bytes}:
            var work = Workspace(num_bytes)
            while True:
                var i = Int(next.fetch_add(1))
                if i >= len(blocks):
                    return
                if blocks[i].starts and tokenizer.end_of_text >= 0:
                    results[i].append(Int32(tokenizer.end_of_text))
                try:
                    tokenizer.encode_ordinary(blocks[i].text, results[i], work)
                except:
                    refused[i] = True

        team.run(body)
        for i in range(len(blocks)):
            if refused[i]:
                self._refuse(tokenizer, blocks[i].file)
        return results^

    def _refuse(self, tokenizer: Tokenizer, file: Int) raises:
        """Raises what is wrong with a document, and where in it: blocks do not know their place."""
        var bytes = MappedFile(InputFile("tokenize", self._paths[file]))
        try:
            _ = tokenizer.encode(bytes.view[U8](0, bytes.size).span())
        except error:
            raise Error(t"{self._paths[file]}: {error}")
        # A view keeps nothing alive.
        _ = bytes^
        raise Error(t"{self._paths[file]}: the file has changed; start again")
