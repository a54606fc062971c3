"""Byte pair encoding: the merges of a vocabulary, and the tokens of a piece of text.

A piece starts as one token for each byte. Then, as long as two neighbours make up a token, the two that make the one
with the lowest id are replaced by it, from left to right where there are several. The ids of a vocabulary are in the
order of its merges, so a list of tokens says all.
"""

from llm.memory import Tensor

comptime U8 = DType.uint8
comptime NO_TOKEN = Int32.MAX
"""Stands for the token of a pair that makes none: above all others."""

comptime _NO_PAIR = UInt64.MAX
comptime _SHORT = 48
"""Pieces of up to so many bytes are searched for the next merge from end to end; longer ones keep a heap."""
comptime _LONGEST_WORD = 16


struct Merges(Movable):
    """Which tokens make which, and the tokens of the bytes and of short words."""

    var _byte_tokens: List[Int32]
    """The token of each byte."""
    var _pairs: PairTable
    var _words: WordTable

    def __init__(out self, byte_tokens: List[Int32], num_tokens: Int):
        """Starts with single bytes; the merges of up to `num_tokens` tokens are added next."""
        self._byte_tokens = byte_tokens.copy()
        self._pairs = PairTable(num_tokens)
        self._words = WordTable(num_tokens)

    def add(mut self, bytes: Tensor[U8], token: Int, mut work: Workspace):
        """Adds the merge that makes a token, after all those of lower ids.

        A token that is not made of two by the merges before, like end of text, has none and never comes out.
        """
        var parts = List[Int32]()
        self.encode(bytes, parts, work)
        if len(parts) == 2:
            self._pairs.insert(parts[0], parts[1], Int32(token))
            if bytes.size <= _LONGEST_WORD:
                self._words.insert(word_at(bytes, 0, bytes.size), Int32(token))

    @always_inline
    def encode_piece(self, text: Tensor[U8], start: Int, end: Int, mut tokens: List[Int32], mut work: Workspace):
        """Appends the tokens of bytes start .. end - 1."""
        var length = end - start
        if length == 1:
            tokens.append(self._byte_tokens[Int(text[start])])
            return
        if length <= _LONGEST_WORD:
            var token = self._words.find(word_at(text, start, length))
            if token != NO_TOKEN:
                tokens.append(token)
                return
        self.encode(text.slice(start, length), tokens, work)

    def encode(self, bytes: Tensor[U8], mut tokens: List[Int32], mut work: Workspace):
        """Appends the tokens of a piece by merging."""
        if bytes.size <= _SHORT:
            self._encode_short(bytes, tokens)
        else:
            self._encode_long(bytes, tokens, work)

    def _encode_short(self, bytes: Tensor[U8], mut tokens: List[Int32]):
        var parts = Array[Int32, _SHORT](fill=0)
        # What part i and the one after it make.
        var merged = Array[Int32, _SHORT](fill=NO_TOKEN)
        var count = bytes.size
        for i in range(count):
            parts[i] = self._byte_tokens[Int(bytes[i])]
        for i in range(count - 1):
            merged[i] = self._pairs.find(parts[i], parts[i + 1])
        while True:
            var lowest = NO_TOKEN
            var at = 0
            for i in range(count - 1):
                if merged[i] < lowest:
                    lowest = merged[i]
                    at = i
            if lowest == NO_TOKEN:
                break
            parts[at] = lowest
            count -= 1
            for i in range(at + 1, count):
                parts[i] = parts[i + 1]
                merged[i - 1] = merged[i]
            merged[count - 1] = NO_TOKEN
            if at > 0:
                merged[at - 1] = self._pairs.find(parts[at - 1], lowest)
            if at + 1 < count:
                merged[at] = self._pairs.find(lowest, parts[at + 1])
        for i in range(count):
            tokens.append(parts[i])

    def _encode_long(self, bytes: Tensor[U8], mut tokens: List[Int32], mut work: Workspace):
        """Keeps the parts in a linked list and the possible merges in a heap: n log n."""
        work.start(bytes.size)
        for i in range(bytes.size):
            work.parts[i] = self._byte_tokens[Int(bytes[i])]
            work.next[i] = Int32(i + 1)
            work.previous[i] = Int32(i - 1)
        for i in range(bytes.size - 1):
            var token = self._pairs.find(work.parts[i], work.parts[i + 1])
            work.merged[i] = token
            if token != NO_TOKEN:
                work.heap.append(UInt64(token) << 32 | UInt64(i))
        _make_heap(work.heap)
        while len(work.heap) > 0:
            var entry = _pop(work.heap)
            var at = Int(entry & 0xFFFF_FFFF)
            var token = Int32(entry >> 32)
            # What has been merged otherwise since then is still in the heap.
            if work.merged[at] != token:
                continue
            var gone = Int(work.next[at])
            var after = Int(work.next[gone])
            work.parts[at] = token
            work.next[at] = Int32(after)
            work.merged[gone] = NO_TOKEN
            self._look(work, at, after, bytes.size)
            if after < bytes.size:
                work.previous[after] = Int32(at)
            if work.previous[at] >= 0:
                self._look(work, Int(work.previous[at]), at, bytes.size)
        var at = 0
        while at < bytes.size:
            tokens.append(work.parts[at])
            at = Int(work.next[at])

    @always_inline
    def _look(self, mut work: Workspace, left: Int, right: Int, size: Int):
        """Notes what two parts that have become neighbours make."""
        var token = self._pairs.find(work.parts[left], work.parts[right]) if right < size else NO_TOKEN
        work.merged[left] = token
        if token != NO_TOKEN:
            _push(work.heap, UInt64(token) << 32 | UInt64(left))


struct Workspace(Movable):
    """Room for long pieces, kept from one to the next."""

    var parts: List[Int32]
    """Of a long piece: the token that begins at each byte, if one does."""
    var merged: List[Int32]
    """What it makes with the next one."""
    var next: List[Int32]
    """Where the next one begins."""
    var previous: List[Int32]
    var heap: List[UInt64]
    """Possible merges, as token << 32 | place: the lowest token first, and of its places the leftmost."""

    def __init__(out self):
        """Starts without room."""
        self.parts = List[Int32]()
        self.merged = List[Int32]()
        self.next = List[Int32]()
        self.previous = List[Int32]()
        self.heap = List[UInt64]()

    def start(mut self, size: Int):
        """Makes room for a piece of this many bytes."""
        self.heap.clear()
        self.parts.resize(size, 0)
        self.next.resize(size, 0)
        self.previous.resize(size, 0)
        self.merged.resize(size, NO_TOKEN)
        self.merged[size - 1] = NO_TOKEN


# ----- tables: open addressing, at most half full


struct PairTable(Movable):
    """Two tokens -> the token that they make."""

    var _entries: List[UInt64]
    """The pair, then what it makes, for each place."""
    var _shift: UInt64
    var _mask: Int

    def __init__(out self, capacity: Int):
        """Makes room for a number of pairs."""
        var places = 1024
        self._shift = 54
        while places < 2 * capacity:
            places *= 2
            self._shift -= 1
        self._mask = places - 1
        self._entries = List[UInt64](length=2 * places, fill=_NO_PAIR)

    @always_inline
    def find(self, left: Int32, right: Int32) -> Int32:
        """Returns the token that two make, or NO_TOKEN."""
        var entries = self._entries.unsafe_ptr()
        var pair = UInt64(left) << 32 | UInt64(right)
        var place = self._place(pair)
        while True:
            var found = entries[unsafe_offset=2 * place]
            if found == pair:
                return Int32(entries[unsafe_offset=2 * place + 1])
            if found == _NO_PAIR:
                return NO_TOKEN
            place = (place + 1) & self._mask

    def insert(mut self, left: Int32, right: Int32, token: Int32):
        """Adds a pair that is not there."""
        var pair = UInt64(left) << 32 | UInt64(right)
        var place = self._place(pair)
        while self._entries[2 * place] != _NO_PAIR:
            place = (place + 1) & self._mask
        self._entries[2 * place] = pair
        self._entries[2 * place + 1] = UInt64(token)

    @always_inline
    def _place(self, pair: UInt64) -> Int:
        return Int((pair * 0x9E37_79B9_7F4A_7C15) >> self._shift)


@fieldwise_init
struct Word(TrivialRegisterPassable):
    """Up to 16 bytes, padded with zeros, and how many they are."""

    var low: UInt64
    var high: UInt64
    var length: Int


@always_inline
def word_at(text: Tensor[U8], start: Int, length: Int) -> Word:
    """Reads a word of 1 to 16 bytes."""
    var low = UInt64(0)
    var high = UInt64(0)
    if start + 16 <= text.size:
        var address = text.ptr.unsafe_offset(start)
        low = address.unsafe_bitcast[UInt64]().unsafe_load[alignment=1]()
        high = address.unsafe_offset(8).unsafe_bitcast[UInt64]().unsafe_load[alignment=1]()
        if length <= 8:
            low &= UInt64.MAX >> UInt64(64 - 8 * length)
            high = 0
        else:
            high &= UInt64.MAX >> UInt64(128 - 8 * length)
    else:
        for i in range(min(length, 8)):
            low |= UInt64(text[start + i]) << UInt64(8 * i)
        for i in range(8, length):
            high |= UInt64(text[start + i]) << UInt64(8 * (i - 8))
    return Word(low, high, length)


struct WordTable(Movable):
    """Short words -> the token that they are."""

    var _entries: List[UInt64]
    """Low, high, and length << 32 | token, for each place; zeros where there is none."""
    var _shift: UInt64
    var _mask: Int

    def __init__(out self, capacity: Int):
        """Makes room for a number of words."""
        var places = 1024
        self._shift = 54
        while places < 2 * capacity:
            places *= 2
            self._shift -= 1
        self._mask = places - 1
        self._entries = List[UInt64](length=3 * places, fill=0)

    @always_inline
    def find(self, word: Word) -> Int32:
        """Returns the token of a word, or NO_TOKEN."""
        var entries = self._entries.unsafe_ptr()
        var place = self._place(word)
        while True:
            var entry = entries.unsafe_offset(3 * place)
            var rest = entry[unsafe_offset=2]
            if (
                entry[unsafe_offset=0] == word.low
                and entry[unsafe_offset=1] == word.high
                and Int(rest >> 32) == word.length
            ):
                return Int32(rest & 0xFFFF_FFFF)
            if rest == 0:
                return NO_TOKEN
            place = (place + 1) & self._mask

    def insert(mut self, word: Word, token: Int32):
        """Adds a word that is not there."""
        var place = self._place(word)
        while self._entries[3 * place + 2] != 0:
            place = (place + 1) & self._mask
        self._entries[3 * place] = word.low
        self._entries[3 * place + 1] = word.high
        self._entries[3 * place + 2] = UInt64(word.length) << 32 | UInt64(token)

    @always_inline
    def _place(self, word: Word) -> Int:
        var mixed = (word.low ^ word.high * 0xC2B2_AE3D_27D4_EB4F) * 0x9E37_79B9_7F4A_7C15 + UInt64(word.length)
        return Int((mixed ^ mixed >> 29) * 0x9E37_79B9_7F4A_7C15 >> self._shift)


# ----- a binary heap, the smallest on top


def _make_heap(mut heap: List[UInt64]):
    for i in reversed(range(len(heap) // 2)):
        _sift_down(heap, i)


def _push(mut heap: List[UInt64], value: UInt64):
    heap.append(value)
    var at = len(heap) - 1
    while at > 0 and heap[(at - 1) // 2] > value:
        heap[at] = heap[(at - 1) // 2]
        at = (at - 1) // 2
    heap[at] = value


def _pop(mut heap: List[UInt64]) -> UInt64:
    var top = heap[0]
    var last = heap.pop()
    if len(heap) > 0:
        heap[0] = last
        _sift_down(heap, 0)
    return top


def _sift_down(mut heap: List[UInt64], start: Int):
    var value = heap[start]
    var at = start
    while 2 * at + 1 < len(heap):
        var child = 2 * at + 1
        if child + 1 < len(heap) and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = value
