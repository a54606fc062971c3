"""Text files to tokens in several threads: documents are cut into blocks that can be encoded by themselves."""

from std.atomic import Atomic

from llm.base.file_identity import FileIdentity
from llm.base.files import InputFile, MappedFile, glob_files
from llm.base.memory import Tensor
from llm.base.sha256 import Sha256
from llm.cpu.threads.crew import Crew, Team
from llm.text.bpe import Workspace
from llm.text.tokenizer import Tokenizer

comptime U8 = DType.uint8
comptime _BLOCK_BYTES = 1 << 16
comptime _AHEAD = 512
"""Bytes behind a cut that may count: the next character, or a token that the text has as a whole (255 bytes at most)."""
comptime _MOST_FILES = 1024
"""Files that one group of blocks is from."""


@fieldwise_init
struct Block(Copyable, Movable):
    """A stretch of a document; its tokens do not depend on the rest."""

    var text: Tensor[U8]
    var file: Int
    """Number of the file that is the document."""
    var starts: Bool
    """Whether the document begins here."""
    var ends: Bool


struct Corpus(Movable):
    """The files of a pattern, each one document, read once from the first to the last. Empty ones are left out."""

    var paths: List[String]
    var hashes: List[String]
    """SHA-256 of the files that have been encoded so far, in hexadecimal."""
    var sizes: List[Int]
    """Bytes of each file."""
    var _identities: List[FileIdentity]
    """Of each file as it was found."""
    var num_bytes: Int
    """Bytes of all files."""
    var bytes_read: Int
    """Bytes in the blocks so far."""
    var _hash: Sha256
    """Of the file that the last encoded block was from."""
    var _texts: List[List[UInt8]]
    """What the last blocks are views of."""
    var _first: Int
    """The first file that the last blocks were from."""
    var _next: Int
    """The file to open next."""
    var _at: Int
    """Where the next block begins in the file opened last; 0 if that is used up."""

    def __init__(out self, pattern: String) raises:
        """Finds the files.

        Raises:
            If there is none with text in it, or one cannot be read.
        """
        self.paths = List[String]()
        self.hashes = List[String]()
        self.sizes = List[Int]()
        self._identities = List[FileIdentity]()
        self._hash = Sha256()
        self._texts = List[List[UInt8]]()
        self._first = 0
        self.num_bytes = 0
        self.bytes_read = 0
        self._next = 0
        self._at = 0
        var found = glob_files(pattern)
        for path in found:
            var file = InputFile("tokenize", path)
            if file.size > 0:
                self.paths.append(path)
                self.sizes.append(file.size)
                self._identities.append(file.identity())
                self.num_bytes += file.size
        if len(found) == 0:
            raise Error(t"tokenize: no file matches {pattern}; check the name")
        if len(self.paths) == 0:
            raise Error(t"tokenize: {pattern}: expected text, found nothing but empty files; give files with text")

    def next_blocks(mut self, tokenizer: Tokenizer, num_bytes: Int) raises -> List[Block]:
        """Returns the next blocks, of about so many bytes together; none at the end. Earlier ones become invalid.

        Files are read, not mapped: what another process cuts off is an error here, and no signal.

        Raises:
            If a file can no longer be read, or has changed since it was found.
        """
        # What has been encoded since the last call was read while the files were as they were found.
        for file in range(self._first, self._next):
            _ = self._unchanged(file)
        self._first = self._next if self._at == 0 else self._next - 1
        # Rooms are used again.
        var rooms = self._texts^
        self._texts = List[List[UInt8]]()
        var blocks = List[Block]()
        var taken = 0
        while taken < num_bytes and (self._at > 0 or (self._next < len(self.paths) and len(self._texts) < _MOST_FILES)):
            if self._at == 0:
                self._next += 1
            var room = rooms.pop() if len(rooms) > 0 else List[UInt8]()
            taken += self._cut(tokenizer, room, num_bytes - taken, blocks)
            self._texts.append(room^)
        self.bytes_read += taken
        return blocks^

    def _cut(mut self, tokenizer: Tokenizer, mut room: List[UInt8], wanted: Int, mut blocks: List[Block]) raises -> Int:
        """Reads on in the file that is open, and cuts it into blocks until they are `wanted` bytes; returns their bytes.
        """
        var number = self._next - 1
        var file = self._unchanged(number)
        var left = self.sizes[number] - self._at
        # Beyond the last cut, so that it can be found.
        var size = min(left, wanted + _BLOCK_BYTES + _AHEAD)
        var done = 0
        while True:
            room.resize(size, 0)
            var text = Tensor[U8](viewing=Span(room))
            file.read(self._at, text)
            while done < min(wanted, size):
                var end = size
                if done + _BLOCK_BYTES < size:
                    end = tokenizer.next_cut(text, done + _BLOCK_BYTES)
                # What follows, which is not here yet, may say something else.
                if size < left and end + _AHEAD > size:
                    break
                blocks.append(Block(text.slice(done, end - done), number, self._at + done == 0, end == left))
                done = end
            if done > 0:
                self._at = self._at + done if done < left else 0
                return done
            # A stretch that can be cut nowhere.
            size = min(left, 2 * size)

    def _unchanged(self, file: Int) raises -> InputFile:
        """Opens a file that is still as it was found."""
        var opened = InputFile("tokenize", self.paths[file])
        opened.expect_unchanged(self._identities[file])
        return opened^

    def encode(mut self, tokenizer: Tokenizer, blocks: List[Block], crew: Crew) raises -> List[List[Int32]]:
        """Returns the tokens of each block; those of a document begin with end of text, if the vocabulary has that.

        Raises:
            If a character is not in the vocabulary, or the crew is at work already.
        """
        var results = List[List[Int32]](length=len(blocks), fill=List[Int32]())
        var refused = List[Bool](length=len(blocks), fill=False)
        var num_bytes = 0
        for ref block in blocks:
            num_bytes += block.text.size
        # Work 0 is the hash, which goes through all blocks in order; then one for each block.
        var next = Atomic[Int64](0)
        ref hash = self._hash
        ref hashes = self.hashes

        def encode_blocks(
            member: Int,
        ) {mut results, mut refused, mut next, mut hash, mut hashes, imm blocks, imm tokenizer, imm num_bytes}:
            var work = Workspace(num_bytes)
            while True:
                var i = Int(next.fetch_add(1)) - 1
                if i >= len(blocks):
                    return
                if i < 0:
                    _hash_files(blocks, hash, hashes)
                    continue
                if blocks[i].starts and tokenizer.end_of_text >= 0:
                    results[i].append(Int32(tokenizer.end_of_text))
                try:
                    tokenizer.encode_ordinary(blocks[i].text, results[i], work)
                except:
                    refused[i] = True

        def body(team: Team) {mut encode_blocks}:
            team.run(encode_blocks)

        crew.run(body)
        for i in range(len(blocks)):
            if refused[i]:
                self._refuse(tokenizer, blocks[i].file)
        return results^

    def _refuse(self, tokenizer: Tokenizer, file: Int) raises:
        """Raises what is wrong with a document, and where in it: blocks do not know their place."""
        var bytes = MappedFile(InputFile("tokenize", self.paths[file]))
        try:
            _ = tokenizer.encode(bytes.view[U8](0, bytes.size).span())
        except error:
            raise Error(t"{self.paths[file]}: {error}")
        # A view keeps nothing alive.
        _ = bytes^
        raise Error(t"{self.paths[file]}: the file has changed; start again")


def _hash_files(blocks: List[Block], mut hash: Sha256, mut hashes: List[String]):
    for ref block in blocks:
        if block.starts:
            hash = Sha256()
        hash.update(block.text)
        if block.ends:
            hashes.append(hash.hexadecimal())
