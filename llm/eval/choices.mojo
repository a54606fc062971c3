"""Questions with four endings, HellaSwag's for example: which one a model finds likeliest."""

from std.math import isfinite

from llm.base.memory import Arena, Tensor, aligned_bytes
from llm.dist.ranks import Ranks
from llm.eval.judgement import Accuracy, Judgement
from llm.eval.watcher import Unwatched, Watcher
from llm.formats.choices import NUM_ENDINGS, ChoicesFile
from llm.model.gpt2 import GPT2

comptime U16 = DType.uint16
comptime I32 = DType.int32
comptime _NO_TARGET = Int32(-1)
comptime _FIELDS = 2 + 2 * NUM_ENDINGS
"""Numbers of a judgement on its way to other ranks: whether to stop, the label, losses, lengths."""


struct Choices(Movable):
    """The examples of a file, and room for one of them."""

    var file: ChoicesFile
    var _inputs: Tensor[I32]
    var _targets: Tensor[I32]
    var _arena: Arena

    def __init__(out self, path: String, *, vocab_size: Int, context: Int) raises:
        """Opens a file for models of this vocabulary and context.

        Raises:
            If there is no such file, it is damaged, has a token beyond the vocabulary or an example that is too long.
        """
        self.file = ChoicesFile(path, vocab_size=vocab_size, context=context)
        self._arena = Arena(2 * aligned_bytes[I32](NUM_ENDINGS * self.file.longest))
        self._inputs = self._arena.carve[I32](NUM_ENDINGS * self.file.longest)
        self._targets = self._arena.carve[I32](NUM_ENDINGS * self.file.longest)

    @no_inline
    def __deinit__(deinit self):
        """Frees what it owns. Not inlined, because every call that may raise is followed by a copy."""
        pass

    def judge[dtype: DType](mut self, mut model: GPT2[dtype], example: Int) raises -> Judgement:
        """Has a model judge how likely each ending is after the context.

        Raises:
            If a loss is not a number, or the file has changed since it was checked.
        """
        self.file.read(example)
        var context = self.file.context()
        var endings = self.file.endings()
        var T = 0
        for ending in endings:
            T = max(T, context.size + ending.size - 1)

        var judgement = Judgement(self.file.label())
        # As many endings side by side as the model has room for.
        var most = min(NUM_ENDINGS, model.acts.rows // T)
        for first in range(0, NUM_ENDINGS, most):
            var B = min(most, NUM_ENDINGS - first)
            for b in range(B):
                self._fill(b * T, T, context, endings[first + b])
            model.forward(self._inputs.slice(0, B * T), B, T)
            var losses = model.losses(self._targets.slice(0, B * T))
            for b in range(B):
                ref ending = endings[first + b]
                var sum = Float64(0)
                for i in range(ending.size):
                    sum += losses[b * T + context.size - 1 + i].cast[DType.float64]()
                if not isfinite(sum):
                    raise Error(
                        t"hellaswag: {self.file.path}: example {example}: the loss is {sum}: the model's parameters are"
                        t" not finite or have diverged; use an earlier checkpoint"
                    )
                judgement.losses.append(sum)
                judgement.lengths.append(ending.size)
        return judgement^

    def _fill(self, start: Int, T: Int, context: Tensor[U16], ending: Tensor[U16]):
        """Lays out one sequence; only the tokens of the ending are targets."""
        for t in range(T):
            self._inputs[start + t] = 0
            self._targets[start + t] = _NO_TARGET
        for t in range(context.size):
            self._inputs[start + t] = context[t].cast[I32]()
        for i in range(ending.size):
            if context.size + i < T:
                self._inputs[start + context.size + i] = ending[i].cast[I32]()
            self._targets[start + context.size + i - 1] = ending[i].cast[I32]()


def judge_all[
    dtype: DType, W: Watcher = Unwatched
](mut questions: Choices, mut model: GPT2[dtype], limit: Int = 0, var watcher: W = Unwatched()) raises -> List[
    Judgement
]:
    """Has a model judge the first `limit` examples (0: all), or fewer if the watcher ends it.

    Raises:
        If a loss is not a number, or the file has changed since it was checked.
    """
    var count = questions.file.num_examples if limit == 0 else min(limit, questions.file.num_examples)
    var judgements = List[Judgement](capacity=count)
    var accuracy = Accuracy()
    for i in range(count):
        if watcher.stopped():
            break
        judgements.append(questions.judge(model, i))
        accuracy.add(judgements[i])
        watcher.show(i + 1, count, String(t"acc_norm {accuracy.right_per_token}/{accuracy.examples}"))
    return judgements^


def judge_together[
    dtype: DType, W: Watcher
](mut questions: Choices, mut model: GPT2[dtype], mut ranks: Ranks, limit: Int, var watcher: W) raises -> List[
    Judgement
]:
    """Has all ranks judge the first `limit` examples (0: all), each its part, or fewer if rank 0's watcher ends it.

    Returns:
        The judgements of all, in every rank.

    Raises:
        If a loss is not a number, the file has changed since it was checked, or MPI fails.
    """
    var count = questions.file.num_examples if limit == 0 else min(limit, questions.file.num_examples)
    var judgements = List[Judgement](capacity=count)
    var accuracy = Accuracy()
    for first in range(0, count, ranks.size):
        var own = List[Float64](length=_FIELDS, fill=0)
        own[0] = Float64(Int(watcher.stopped()))
        if first + ranks.rank < count:
            var judgement = questions.judge(model, first + ranks.rank)
            own[1] = Float64(judgement.label)
            for i in range(NUM_ENDINGS):
                own[2 + i] = judgement.losses[i]
                own[2 + NUM_ENDINGS + i] = Float64(judgement.lengths[i])
        var all = ranks.numbers(own)
        if all[0] != 0:
            break
        for rank in range(min(ranks.size, count - first)):
            var at = rank * _FIELDS
            var judgement = Judgement(Int(all[at + 1]))
            for i in range(NUM_ENDINGS):
                judgement.losses.append(all[at + 2 + i])
                judgement.lengths.append(Int(all[at + 2 + NUM_ENDINGS + i]))
            accuracy.add(judgement)
            judgements.append(judgement^)
        watcher.show(len(judgements), count, String(t"acc_norm {accuracy.right_per_token}/{accuracy.examples}"))
    return judgements^
