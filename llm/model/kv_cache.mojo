"""Keys and values of the texts that a decoder has under way, so that a step computes one position of each."""

from llm.base.memory import Arena
from llm.cpu.cached_attention import CachedText, Pages
from llm.model.config import GPT2Config

comptime F32 = DType.float32


struct KVCache(Movable):
    """Room for some texts, each by itself: they begin, grow and end at different times.

    What follows a prompt starts on a page of its own. So several texts can go on from the pages of one prompt, and a text
    has the same bits whether or not others do.
    """

    var context: Int
    """Longest text."""
    var _pages: List[Pages]
    """Each text's room: for its prompt, if that is not another's, and then for its own positions."""
    var _prompt_of: List[Int]
    """The text whose room holds the prompt."""
    var _prompt_length: List[Int]
    var _own_length: List[Int]
    var _arena: Arena

    def __init__(out self, config: GPT2Config, texts: Int, context: Int) raises:
        """Reserves room for texts of so many positions; it costs memory where it is used.

        Raises:
            If the system has no room.
        """
        self = Self(config, texts, context, Arena(cache_bytes(config, texts, context)))

    def __init__(out self, config: GPT2Config, texts: Int, context: Int, var arena: Arena) raises:
        self.context = context
        self._arena = arena^
        self._pages = List[Pages](capacity=texts)
        self._prompt_of = List[Int](capacity=texts)
        self._prompt_length = List[Int](length=texts, fill=0)
        self._own_length = List[Int](length=texts, fill=0)
        var L, NH, HS = config.num_layers, config.num_heads, config.head_size()
        # The prompt's last page and the last of what follows may both be begun.
        var size = Pages.size(Pages.count(context) + 1, layers=L, heads=NH, HS=HS)
        for i in range(texts):
            self._pages.append(Pages(self._arena.carve[F32](size), layers=L, heads=NH, HS=HS))
            self._prompt_of.append(i)

    def length(self, text: Int) -> Int:
        """Counts the positions of a text."""
        return self._prompt_length[text] + self._own_length[text]

    def view(self, text: Int) -> CachedText:
        """Views a text as attention reads it."""
        var own = self._pages[text]
        if self._prompt_of[text] == text:
            own = own.after(self._prompt_length[text])
        var prompt = self._pages[self._prompt_of[text]]
        return CachedText(prompt, self._prompt_length[text], own, self._own_length[text])

    def begin(mut self, text: Int, length: Int) raises -> Pages:
        """Starts a text with a prompt of so many positions, and returns where they go.

        Raises:
            If another text goes on from the prompt that is in this one's room.
        """
        self._check_unshared(text)
        self._prompt_of[text] = text
        self._prompt_length[text] = length
        self._own_length[text] = 0
        return self._pages[text]

    def share(mut self, text: Int, other: Int) raises:
        """Starts a text with the prompt of another one, which stays as long as this text does.

        Raises:
            If another text goes on from the prompt that is in this one's room.
        """
        self._check_unshared(text)
        self._prompt_of[text] = self._prompt_of[other]
        self._prompt_length[text] = self._prompt_length[other]
        self._own_length[text] = 0

    def restart(mut self, text: Int, length: Int) raises -> Pages:
        """Starts a text without a prompt, with so many positions of its own, and returns where they go.

        Raises:
            If another text goes on from the prompt that is in this one's room.
        """
        self._check_unshared(text)
        self._prompt_of[text] = text
        self._prompt_length[text] = 0
        self._own_length[text] = length
        return self._pages[text]

    def advance(mut self, text: Int):
        """Counts the position that a step has appended."""
        self._own_length[text] += 1

    def end(mut self, text: Int):
        """Forgets a text; its room is free, once no other text goes on from the prompt in it."""
        self._own_length[text] = 0
        if self._prompt_of[text] != text:
            self._prompt_of[text] = text
            self._prompt_length[text] = 0

    def _check_unshared(self, text: Int) raises:
        for other in range(len(self._prompt_of)):
            if other != text and self._prompt_of[other] == text and self._prompt_length[other] > 0:
                raise Error(
                    t"decode: text {other} goes on from the prompt of text {text}, whose room is wanted; end it first"
                )


def cache_bytes(config: GPT2Config, texts: Int, context: Int) raises -> Int:
    """Counts the bytes that a cache reserves."""
    return KVCache(config, texts, context, Arena.counting())._arena.used
