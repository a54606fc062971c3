"""Texts from a model: one token after another, each drawn from the logits of the last position."""

from llm.infer.sampler import Sampler
from llm.model.decoder import Decoder

comptime F32 = DType.float32


struct Generator[dtype: DType](Movable):
    """Continues one prompt in as many texts as there are samplers, all in step.

    Each text follows from the prompt and its own sampler alone. Where a text would outgrow the context, its older half
    is dropped and the rest is read again.
    """

    var decoder: Decoder[Self.dtype]
    var samplers: List[Sampler]
    var active: List[Int]
    """The texts that are being continued."""
    var has_dropped: Bool
    """Whether something has been dropped since `begin`."""
    var _tokens: List[List[Int32]]
    """What the context holds of each text; the last one is still to be read."""

    def __init__(out self, var decoder: Decoder[Self.dtype], var samplers: List[Sampler]):
        """Takes a decoder for as many texts as there are samplers."""
        self._tokens = List[List[Int32]]()
        self.active = List[Int]()
        self.has_dropped = False
        self.decoder = decoder^
        self.samplers = samplers^

    def begin(mut self, prompt: List[Int32]) raises:
        """Forgets what was, and reads a prompt; of one that is longer than the context only the end.

        Raises:
            If there is no token, or one that the model does not know.
        """
        if len(prompt) == 0:
            raise Error("generate: expected a prompt of at least one token, got none")
        self.has_dropped = len(prompt) > self.decoder.context
        var kept = self._newest(prompt) if self.has_dropped else prompt.copy()
        for text in range(len(self.samplers)):
            self.decoder.end(text)
        self.decoder.begin(0, List(kept[: len(kept) - 1]))
        for text in range(1, len(self.samplers)):
            self.decoder.share(text, 0)
        self._tokens = List[List[Int32]](length=len(self.samplers), fill=kept)
        self.active = List[Int]()
        for text in range(len(self.samplers)):
            self.active.append(text)

    def next(mut self) raises -> List[Int]:
        """Appends one token to every active text and returns them, in the order of `active`.

        Raises:
            If the model has diverged.
        """
        if self.decoder.length(self.active[0]) == self.decoder.context:
            self._drop_older_half()
        var last = List[Int32]()
        for text in self.active:
            last.append(self._tokens[text][len(self._tokens[text]) - 1])
        self.decoder.step(last, self.active)
        var V = self.decoder.config.vocab_size
        var drawn = List[Int]()
        for row in range(len(self.active)):
            var token = self.samplers[self.active[row]].sample(self.decoder.logits.slice(row * V, V))
            self._tokens[self.active[row]].append(Int32(token))
            drawn.append(token)
        return drawn^

    def end(mut self, text: Int) raises:
        """Lets a text be; the others go on."""
        self.decoder.end(text)
        var rest = List[Int]()
        for other in self.active:
            if other != text:
                rest.append(other)
        self.active = rest^

    def _drop_older_half(mut self) raises:
        self.has_dropped = True
        # Backwards: the first text has the prompt that the others share.
        for text in reversed(self.active):
            self._tokens[text] = self._newest(self._tokens[text])
            self.decoder.restart(text, List(self._tokens[text][: len(self._tokens[text]) - 1]))

    def _newest(self, tokens: List[Int32]) -> List[Int32]:
        """Returns half a context of tokens, and the one that is still to be read."""
        return List(tokens[len(tokens) - self.decoder.context // 2 - 1 :])
