"""What a run with --out keeps: how often, how much of it, and whether there is room."""

from llm.base.files import free_bytes
from llm.cli.arguments import Arguments
from llm.cli.plan import megabytes
from llm.optim.optimizer import Optimizer
from llm.train.run_folder import complete_checkpoints, size_of_checkpoints
from llm.train.trainer import Trainer

comptime PAUSE_NS = 300_000_000_000
"""At least so long lies between two checkpoints that nobody has asked for: five minutes."""
comptime _KEPT = 2
comptime _SMALL_BYTES = 128_000_000
"""A model that is written so fast that every best one is kept."""


def is_due(step: Int, every: Int, last: Bool) -> Bool:
    """Tells whether something happens now that happens every so many steps and after the last; never if every is 0."""
    return every > 0 and (step % every == 0 or last)


def saves_bfloat16(args: Arguments) -> Bool:
    """Tells whether models are written in bfloat16."""
    return args.choice("save-dtype") == "bf16"


struct Keeping(Copyable, Movable):
    """When a run saves. With -n and -nk as they say; else at validations, five minutes apart, the newest two and the best.
    """

    var keep: Int
    """Checkpoints to keep; 0: all."""
    var keeps_best: Bool
    """Whether the model with the lowest validation loss is kept too."""
    var _wanted: Bool
    var _every: Optional[Int]
    var _val_every: Int
    var _best_pause: Int
    var _last: Int
    var _last_best: Optional[Int]

    def __init__(out self, args: Arguments, num_parameters: Int, now: Int):
        """Takes what the flags say, for a model of so many parameters, at a time in nanoseconds."""
        var asked = args.given("checkpoint-every")
        self._wanted = args.given("out")
        self._every = args.int("checkpoint-every") if asked else Optional[Int](None)
        self._val_every = args.int("val-every")
        self.keep = args.int("keep") if args.given("keep") else (0 if asked else _KEPT)
        var patient = args.int("patience") > 0
        self.keeps_best = self._wanted and (not asked or args.int("checkpoint-every") > 0 or patient)
        self._best_pause = 0 if asked or patient or 4 * num_parameters <= _SMALL_BYTES else PAUSE_NS
        self._last = now
        self._last_best = None

    def is_due(self, step: Int, now: Int) -> Bool:
        """Tells whether a checkpoint is due after this step."""
        if not self._wanted:
            return False
        if self._every:
            return is_due(step, self._every.value(), False)
        return now - self._last >= PAUSE_NS and (self._val_every == 0 or step % self._val_every == 0)

    def saved(mut self, now: Int):
        """Notes that a checkpoint has been saved."""
        self._last = now

    def best_is_due(mut self, now: Int) -> Bool:
        """Tells whether a model that is the best so far is to be kept, and takes it that this is done."""
        if not self.keeps_best or (self._last_best and now - self._last_best.value() < self._best_pause):
            return False
        self._last_best = now
        return True

    def how_often(self, steps: Int) -> String:
        """Says in a few words what is kept of a run of so many steps."""
        var best = " and the best" if self.keeps_best else ""
        var kept = String(t"the newest {self.keep}{best}") if self.keep > 0 else String(t"all{best}")
        if not self._every:
            var places = "at validations, " if self._val_every > 0 else ""
            return String(t"{places}at most every 5 minutes, {kept}")
        if self._every.value() == 0:
            return "at the end"
        return String(t"every {self._every.value()} steps, {kept}")

    def most(self, steps: Int) -> Int:
        """Counts the checkpoints that lie on the disk at the same time; one that replaces another is written first."""
        if not self._every:
            return self.keep + 1 if self.keep > 0 else 1
        var every = self._every.value()
        var all = steps // every + 1 if every > 0 else 1
        return min(self.keep + 1, all) if self.keep > 0 else all


def room_for[
    dtype: DType, O: Optimizer, //
](run: Trainer[dtype, O], args: Arguments, keeping: Keeping, num_parameters: Int) raises -> String:
    """Compares what checkpoints need with what the disk has, and says it.

    Raises:
        If there is not even room for one: that is better known before than after hours.
    """
    var folder = args.string("out")
    var model = 2 * num_parameters if saves_bfloat16(args) else 4 * num_parameters
    # Two moments, and with a rounded model the exact one.
    var one = model + (12 if saves_bfloat16(args) else 8) * num_parameters
    var free = free_bytes(folder)
    if not free:
        return ""
    var resumes = run.state.step > 0
    # What a replaced run leaves, and checkpoints that are there and count, need no new room.
    var there = 0 if resumes else size_of_checkpoints(folder)
    var steps = run.config.steps - run.state.step
    var number = keeping.most(steps)
    if resumes:
        number = max(number - len(complete_checkpoints(folder)), 1)
    var needed = number * one + (model if keeping.keeps_best else 0)
    var room = free.value() + there
    if one > room:
        raise Error(
            t"disk: a checkpoint of this model needs {megabytes(one)}, {folder} has {megabytes(room)} free: make room,"
            t" choose another --out, or leave it out to keep nothing; nothing was trained"
        )
    var warning = String()
    if needed > room:
        warning = "; THAT IS NOT ENOUGH: make room, or keep fewer (-nk 1) before it is full"
    return String(
        t"checkpoints {keeping.how_often(steps)}: {megabytes(needed)} at most, {megabytes(room)} free{warning}\n"
    )
