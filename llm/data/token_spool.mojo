"""Token shards, llm.c's files: uint16 tokens, or uint32 (as llm.c has them for Llama 3) where the vocabulary is larger."""

from std.sys import size_of

from llm.base.memory import Tensor
from llm.base.written_files import AtomicFile
from llm.formats.header import TOKENS_MAGIC, WIDE_TOKENS_MAGIC, Header

comptime _LARGEST_NARROW = 1 << 16
comptime _VERSION = 1
comptime _WIDE_VERSION = 7
comptime _COPY_BYTES = 1 << 22


struct TokenSpool(Movable):
    """Tokens kept in a temporary file until it is known how many there are and where they go."""

    var count: Int
    """Number of tokens so far."""
    var _file: AtomicFile
    """Never committed."""
    var _is_wide: Bool

    def __init__(out self, path: String, vocab_size: Int) raises:
        """Starts a temporary file of this name.

        Raises:
            If it cannot be made there.
        """
        self.count = 0
        self._file = AtomicFile("tokenize", path)
        self._is_wide = vocab_size > _LARGEST_NARROW

    def append(mut self, tokens: List[Int32]) raises:
        """Adds tokens.

        Raises:
            If the disk is full or fails.
        """
        if self._is_wide:
            self._append[DType.uint32](tokens)
        else:
            self._append[DType.uint16](tokens)

    def _append[dtype: DType](mut self, tokens: List[Int32]) raises:
        var narrow = List[Scalar[dtype]](length=len(tokens), fill=0)
        var source = tokens.unsafe_ptr()
        var target = narrow.unsafe_ptr()
        for i in range(len(tokens)):
            target[unsafe_offset=i] = source[unsafe_offset=i].cast[dtype]()
        self._file.write(Tensor[dtype](Tensor[dtype].Ptr(unsafe_from_address=Int(target)), len(narrow)))
        _ = narrow^
        self.count += len(tokens)

    def shard(self, path: String, start: Int, count: Int) raises -> AtomicFile:
        """Writes tokens start .. start + count - 1 to a shard, which appears when the caller commits it.

        Raises:
            If there are too many for the header, or the disk is full or fails.
        """
        if count > Int(Int32.MAX):
            raise Error(t"tokenize: {path}: a shard holds at most {Int32.MAX} tokens, not {count}; use --shard-tokens")
        var header = Header(WIDE_TOKENS_MAGIC, _WIDE_VERSION) if self._is_wide else Header(TOKENS_MAGIC, _VERSION)
        header[2] = count
        var file = AtomicFile("tokenize", path)
        header.write(file)
        var width = size_of[UInt32]() if self._is_wide else size_of[UInt16]()
        var buffer = List[UInt8](length=min(_COPY_BYTES, width * count), fill=0)
        var bytes = Tensor[DType.uint8](viewing=Span(buffer))
        var done = 0
        while done < width * count:
            var part = bytes.slice(0, min(len(buffer), width * count - done))
            self._file.read(width * start + done, part)
            file.write(part)
            done += part.size
        _ = buffer^
        file.flush()
        return file^
