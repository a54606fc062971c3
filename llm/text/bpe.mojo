"""Byte pair encoding: the merges of a vocabulary, and the tokens of a piece of text.

A piece starts as one token for each byte. Then, as long as two neighbours make up a token, the two that make the one
with the lowest id are replaced by it, from left to right where there are several. The ids of a vocabulary are in the
order of its merges, so a list of tokens says all.
"""

from llm.base.memory import Tensor

comptime U8 = DType.uint8
comptime NO_TOKEN = Int32.MAX
"""Stands for the token of a pair that makes none: above all others."""

comptime LONGEST_PIECE = Int(Int32.MAX)
"""Bytes that a piece may have: places in it are 32-bit numbers."""

comptime _NO_PAIR = UInt64.MAX
comptime _SHORT = 256
"""Pieces of up to so many bytes are searched for the next merge from end to end; longer ones keep lists."""
comptime _LONGEST_WORD = 16
comptime _ENTRY = 6
"""64-bit integers that a recent word takes, of which three hold its tokens."""


struct Merges(Movable):
    """Which tokens make which, and the tokens of the bytes and of short words."""

    var _byte_tokens: List[Int32]
    """The token of each byte."""
    var _num_tokens: Int
    var _pairs: PairTable
    var _words: WordTable

    def __init__(out self, byte_tokens: List[Int32], num_tokens: Int):
        """Starts with single bytes; the merges of up to `num_tokens` tokens are added next."""
        self._byte_tokens = byte_tokens.copy()
        self._num_tokens = num_tokens
        self._pairs = PairTable(num_tokens)
        self._words = WordTable(num_tokens)

    def add(mut self, bytes: Tensor[U8], token: Int, mut work: Workspace):
        """Adds the merge that makes a token, after all those of lower ids.

        A token that is not made of two by the merges before, like end of text, has none and never comes out.
        """
        if self._merge_short(bytes, work) == 2:
            self._pairs.insert(work.parts[0], work.parts[1], Int32(token))
            if bytes.size <= _LONGEST_WORD:
                self._words.insert(word_at(bytes, 0, bytes.size), Int32(token))

    @always_inline
    def encode_piece(self, text: Tensor[U8], start: Int, end: Int, mut tokens: List[Int32], mut work: Workspace):
        """Appends the tokens of bytes start .. end - 1."""
        var length = end - start
        if length == 1:
            tokens.append(self._byte_tokens[Int(text[start])])
            return
        if length > _LONGEST_WORD:
            self.encode(text.slice(start, length), tokens, work)
            return
        var word = word_at(text, start, length)
        var token = self._words.find(word)
        if token != NO_TOKEN:
            tokens.append(token)
        elif not work.recent.append_tokens(word, tokens):
            var first = len(tokens)
            self.encode(text.slice(start, length), tokens, work)
            work.recent.put(word, tokens, first)

    def encode(self, bytes: Tensor[U8], mut tokens: List[Int32], mut work: Workspace):
        """Appends the tokens of a piece by merging."""
        if bytes.size <= _SHORT:
            for i in range(self._merge_short(bytes, work)):
                tokens.append(work.parts[i])
        else:
            self._encode_long(bytes, tokens, work)

    def _merge_short(self, bytes: Tensor[U8], mut work: Workspace) -> Int:
        """Looks for the lowest merge among all, again and again: n^2, but fast for small n.

        Returns how many tokens there are at the start of `work.parts`.
        """
        var parts = work.parts.unsafe_ptr()
        var merged = work.merged.unsafe_ptr()
        var count = bytes.size
        for i in range(count):
            parts[unsafe_offset=i] = self._byte_tokens[Int(bytes[i])]
        for i in range(count - 1):
            merged[unsafe_offset=i] = self._pairs.find(parts[unsafe_offset=i], parts[unsafe_offset=i + 1])
        while True:
            var lowest = NO_TOKEN
            var at = 0
            for i in range(count - 1):
                if merged[unsafe_offset=i] < lowest:
                    lowest = merged[unsafe_offset=i]
                    at = i
            if lowest == NO_TOKEN:
                return count
            parts[unsafe_offset=at] = lowest
            count -= 1
            for i in range(at + 1, count):
                parts[unsafe_offset=i] = parts[unsafe_offset=i + 1]
                merged[unsafe_offset=i - 1] = merged[unsafe_offset=i]
            if at > 0:
                merged[unsafe_offset=at - 1] = self._pairs.find(parts[unsafe_offset=at - 1], lowest)
            if at + 1 < count:
                merged[unsafe_offset=at] = self._pairs.find(lowest, parts[unsafe_offset=at + 1])

    def _encode_long(self, bytes: Tensor[U8], mut tokens: List[Int32], mut work: Workspace):
        """Takes one token after the other and makes all merges that give it: n steps, and as many as there are tokens.

        That a merge makes others possible does not disturb the order: what is made of a token has a higher id.
        """
        ref piece = work.piece
        piece.start(bytes.size, self._num_tokens)
        for i in range(bytes.size):
            piece.parts[i].token = self._byte_tokens[Int(bytes[i])]
        for i in reversed(range(bytes.size - 1)):
            piece.enter(i, self._pairs.find(piece.parts[i].token, piece.parts[i + 1].token))
        var token = Int32(0)
        while token <= piece.highest:
            piece.take(token)
            for place in piece.taken:
                # Of three equal parts in a row, the second may have gone with the first.
                if piece.parts[Int(place)].merged == token:
                    self._merge(Int(place), token, piece)
            token += 1
        var at = 0
        while at < bytes.size:
            tokens.append(piece.parts[at].token)
            at = Int(piece.parts[at].next)

    @always_inline
    def _merge(self, at: Int, token: Int32, mut piece: LongPiece):
        """Makes one token of the part at a place and the next one."""
        var gone = Int(piece.parts[at].next)
        var after = Int(piece.parts[gone].next)
        var before = Int(piece.parts[at].previous)
        piece.leave(gone, token)
        piece.parts[at].token = token
        piece.parts[at].next = Int32(after)
        piece.parts[at].merged = NO_TOKEN
        if after < piece.size:
            piece.parts[after].previous = Int32(at)
            piece.enter(at, self._pairs.find(token, piece.parts[after].token))
        if before >= 0:
            piece.leave(before, token)
            piece.enter(before, self._pairs.find(piece.parts[before].token, token))


struct Workspace(Movable):
    """What one thread needs to encode, kept from piece to piece."""

    var recent: RecentWords
    var parts: List[Int32]
    """The tokens of a short piece so far."""
    var merged: List[Int32]
    """What each makes with the next one, or NO_TOKEN."""
    var piece: LongPiece

    def __init__(out self, text_bytes: Int):
        """Makes room for a text of about this size."""
        self.recent = RecentWords(text_bytes)
        self.parts = List[Int32](length=_SHORT, fill=0)
        self.merged = List[Int32](length=_SHORT, fill=NO_TOKEN)
        self.piece = LongPiece()


@fieldwise_init
struct Part(Copyable, Movable):
    """A token of a long piece; its place is where it begins. A place is -1 where there is none."""

    var token: Int32
    var merged: Int32
    """What it makes with the next one, or NO_TOKEN."""
    var next: Int32
    """The place of the next part."""
    var previous: Int32
    """The place of the part before."""
    var later: Int32
    """The place of another part that makes the same with its next one: the one after this in their list."""
    var earlier: Int32
    """The one before this in their list."""


struct LongPiece(Movable):
    """The parts of a long piece, and for each token the list of the places where it can be made."""

    var size: Int
    """Bytes of the piece, the place after the last part."""
    var parts: List[Part]
    """The part that begins at each byte, if one does."""
    var taken: List[Int32]
    """The places that were taken last."""
    var highest: Int32
    """No token above this one can be made."""
    var _lists: List[Int32]
    """The first place in the list of each token."""

    def __init__(out self):
        """Starts without room."""
        self.size = 0
        self.parts = List[Part]()
        self.taken = List[Int32]()
        self.highest = -1
        self._lists = List[Int32]()

    def start(mut self, size: Int, num_tokens: Int):
        """Begins another piece, of which every byte is a part; its tokens are not yet known."""
        self.size = size
        self.highest = -1
        self._lists.resize(num_tokens, -1)
        self.parts.clear()
        self.parts.reserve(size)
        for i in range(size):
            self.parts.append(Part(NO_TOKEN, NO_TOKEN, Int32(i + 1), Int32(i - 1), -1, -1))

    @always_inline
    def enter(mut self, at: Int, token: Int32):
        """Notes what the part at a place makes with the next one: a token, or NO_TOKEN."""
        self.parts[at].merged = token
        if token == NO_TOKEN:
            return
        var first = self._lists[Int(token)]
        self.parts[at].later = first
        self.parts[at].earlier = -1
        if first >= 0:
            self.parts[Int(first)].earlier = Int32(at)
        self._lists[Int(token)] = Int32(at)
        self.highest = max(self.highest, token)

    @always_inline
    def leave(mut self, at: Int, taken: Int32):
        """Takes a place out of its list, unless it has none or is among those taken."""
        var token = self.parts[at].merged
        self.parts[at].merged = NO_TOKEN
        if token == NO_TOKEN or token == taken:
            return
        var later = self.parts[at].later
        var earlier = self.parts[at].earlier
        if earlier >= 0:
            self.parts[Int(earlier)].later = later
        else:
            self._lists[Int(token)] = later
        if later >= 0:
            self.parts[Int(later)].earlier = earlier

    @always_inline
    def take(mut self, token: Int32):
        """Empties the list of a token into `taken`, in the order of the text."""
        self.taken.clear()
        var at = self._lists[Int(token)]
        self._lists[Int(token)] = -1
        var is_sorted = True
        while at >= 0:
            is_sorted = is_sorted and (len(self.taken) == 0 or self.taken[len(self.taken) - 1] < at)
            self.taken.append(at)
            at = self.parts[Int(at)].later
        if not is_sorted:
            sort(self.taken)


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
    def hash(self) -> UInt64:
        """Mixes all bits into the upper ones."""
        var mixed = (self.low ^ self.high * 0xC2B2_AE3D_27D4_EB4F) * 0x9E37_79B9_7F4A_7C15 + UInt64(self.length)
        return (mixed ^ mixed >> 29) * 0x9E37_79B9_7F4A_7C15


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
        var place = Int(word.hash() >> self._shift)
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
        var place = Int(word.hash() >> self._shift)
        while self._entries[3 * place + 2] != 0:
            place = (place + 1) & self._mask
        self._entries[3 * place] = word.low
        self._entries[3 * place + 1] = word.high
        self._entries[3 * place + 2] = UInt64(word.length) << 32 | UInt64(token)


struct RecentWords(Movable):
    """The tokens of words that came before, as texts repeat theirs. A new word takes the place of another one."""

    var _entries: List[UInt64]
    """For each place low, high, length << 32 | number of tokens, and two tokens in each of the others."""
    var _shift: UInt64

    def __init__(out self, text_bytes: Int):
        """Makes room for the words of a text of about this size."""
        self._shift = 64
        while self._shift > 51 and text_bytes >> 4 > 1 << (64 - Int(self._shift)):
            self._shift -= 1
        self._entries = List[UInt64](length=_ENTRY << (64 - Int(self._shift)), fill=0)

    @always_inline
    def append_tokens(self, word: Word, mut tokens: List[Int32]) -> Bool:
        """Appends the tokens of a word if it is here, and tells whether it is."""
        var entry = self._entries.unsafe_ptr().unsafe_offset(self._place(word))
        var numbers = entry[unsafe_offset=2]
        if (
            entry[unsafe_offset=0] != word.low
            or entry[unsafe_offset=1] != word.high
            or Int(numbers >> 32) != word.length
        ):
            return False
        for i in range(Int(numbers & 0xFFFF_FFFF)):
            tokens.append(Int32(entry[unsafe_offset=3 + i // 2] >> UInt64(32 * (i % 2)) & 0xFFFF_FFFF))
        return True

    def put(mut self, word: Word, tokens: List[Int32], first: Int):
        """Keeps the tokens of a word, those from the place `first` on, unless they are too many."""
        var count = len(tokens) - first
        if count > 2 * (_ENTRY - 3):
            return
        var place = self._place(word)
        self._entries[place] = word.low
        self._entries[place + 1] = word.high
        self._entries[place + 2] = UInt64(word.length) << 32 | UInt64(count)
        for i in range(0, count, 2):
            var second = UInt64(tokens[first + i + 1]) if i + 1 < count else 0
            self._entries[place + 3 + i // 2] = UInt64(tokens[first + i]) | second << 32

    @always_inline
    def _place(self, word: Word) -> Int:
        return _ENTRY * Int(word.hash() >> self._shift) if self._shift < 64 else 0
