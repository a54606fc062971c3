"""What a person sees of texts that are being written."""

from std.time import perf_counter_ns

from llm.base.formatting import fixed
from llm.cli.screen import Screen, complain
from llm.cli.signals import stop_signal
from llm.infer.generator import Generator
from llm.infer.sampler import Sampler
from llm.model.decoder import Decoder
from llm.model.gpt2 import GPT2
from llm.text.tokenizer import TextStream, Tokenizer, first_token

comptime F32 = DType.float32


def write_texts[
    dtype: DType, //
](
    mut generator: Generator[dtype],
    tokenizer: Tokenizer,
    mut screen: Screen,
    *,
    prompt: String,
    count: Int,
    stop: String,
) raises:
    """Prints up to `count` tokens of each text behind the prompt: one text as it is drawn, several one by one at the end.

    A text ends early at its end-of-text token and before `stop`; a signal ends all. Says on stderr how fast it went.

    Raises:
        If the model has diverged, or what was printed has not arrived.
    """
    var start = perf_counter_ns()
    var num_texts = len(generator.active)
    var streams = num_texts == 1
    var writers = List[TextWriter](length=len(generator.samplers), fill=TextWriter(stop))
    var texts = List[String](length=len(generator.samplers), fill=prompt)
    var shown = generator.active.copy()
    if streams:
        screen.text(prompt)
    var tokens = 0
    var steps = 0
    var ended = 0
    while steps < count and ended < num_texts and stop_signal() == 0 and not screen.failure:
        var active = generator.active.copy()
        var drawn = generator.next()
        steps += 1
        tokens += len(drawn)
        for i in range(len(active)):
            var text = active[i]
            var piece = writers[text].push(tokenizer, drawn[i])
            if streams:
                screen.text(piece)
            texts[text] += piece
            if writers[text].ended:
                ended += 1
                if ended < num_texts:
                    generator.end(text)
    for i in range(num_texts):
        var rest = writers[shown[i]].finish()
        if streams:
            screen.text(rest + "\n")
        else:
            screen.text(texts[shown[i]] + rest + ("\n---\n" if i + 1 < num_texts else "\n"))
    var seconds = Float64(perf_counter_ns() - start) / 1e9
    var note = String()
    if generator.has_dropped:
        note = String(t"; beyond the context of {generator.decoder.context} tokens the older half was dropped")
    screen.check()
    complain(String(t"({tokens} tokens, {fixed(Float64(tokens) / seconds, 1)} tok/s{note})"))


def generate[
    dtype: DType, //
](model: GPT2[dtype], mut sampler: Sampler, tokenizer: Tokenizer, mut screen: Screen, count: Int) raises -> String:
    """Prints `count` tokens as they are drawn, starting from the token that begins a text. The model stays as it is.

    Returns:
        The text.

    Raises:
        If the model has diverged, or has another vocabulary than the tokenizer.
    """
    var decoder = Decoder[F32](model.config, model.params, model.num_threads(), texts=1, context=model.acts.max_seq_len)
    var generator = Generator(decoder^, [sampler.copy()])
    generator.begin([Int32(first_token(tokenizer))])
    var stream = TextStream()
    var text = String()
    for _ in range(count):
        var drawn = generator.next()
        var piece = stream.push(tokenizer.decode(drawn[0]))
        screen.text(piece)
        text += piece
    var rest = stream.finish()
    screen.text(rest + "\n")
    sampler.set_rng_state(generator.samplers[0].rng_state())
    return text + rest


struct TextWriter(Copyable, Movable):
    """Turns the tokens of a text into what may be shown of it: whole characters, and nothing from a stop text on."""

    var ended: Bool
    """Whether the text has come to its end: the end-of-text token, or the stop text."""
    var _stop: String
    var _held: String
    """The beginning, perhaps, of the stop text."""
    var _stream: TextStream

    def __init__(out self, stop: String = ""):
        """Starts a text that ends before `stop`, if that is not empty."""
        self.ended = False
        self._stop = stop
        self._held = String()
        self._stream = TextStream()

    def push(mut self, tokenizer: Tokenizer, token: Int) raises -> String:
        """Takes the next token and returns what can be shown now.

        Raises:
            If the token is not in the vocabulary.
        """
        if token == tokenizer.end_of_text:
            self.ended = True
            return self.finish()
        self._held += self._stream.push(tokenizer.decode(token))
        var length = self._held.byte_length()
        if self._stop.byte_length() > 0:
            var found = self._held.find(self._stop)
            if found >= 0:
                self.ended = True
                var text = String(self._held[byte=:found])
                self._held = String()
                return text^
            length -= self._overlap()
        var text = String(self._held[byte=:length])
        var rest = String(self._held[byte=length:])
        self._held = rest^
        return text^

    def finish(mut self) -> String:
        """Returns what was held back, when no more tokens come."""
        var text = self._held + self._stream.finish()
        self._held = String()
        return text^

    def _overlap(self) -> Int:
        """Counts the bytes at the end of what is held with which the stop text may begin."""
        for length in range(min(self._held.byte_length(), self._stop.byte_length() - 1), 0, -1):
            # Compared as bytes: the cut may lie within a character.
            if self._held.as_bytes()[self._held.byte_length() - length :] == self._stop.as_bytes()[:length]:
                return length
        return 0
