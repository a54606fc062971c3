"""What a person sees of a training run, and the log that a program reads afterwards."""

from std.math import exp
from std.time import perf_counter_ns

from llm.base.formatting import duration, fixed, percent, scientific
from llm.base.json import json_number, json_text
from llm.base.written_files import AppendedFile, HeldFolder, make_folder
from llm.cli.logs import LogEnd, open_log
from llm.cli.screen import BOLD, GREEN, RED, YELLOW, Screen
from llm.cli.signals import stop_signal
from llm.train.step_record import StepRecord


comptime _LIVE_NS = 50_000_000


def is_worth_a_line(step: Int, steps: Int) -> Bool:
    """Tells whether a step gets a line where lines stay: all of a hundred, of more the first ten and every ninetieth part.
    """
    return steps <= 100 or step <= 10 or step == steps or step * 90 // steps != (step - 1) * 90 // steps


def live_line(step: StepRecord, share: Float64, seconds_left: Float64, width: Int) -> String:
    """Writes the line that lives: as much of it as fits, what matters least left out first. A share of 0 is unknown."""
    var head = String(t"{_steps(step)} | loss {fixed(Float64(step.loss), 4)}")
    var rate = String(t" | lr {scientific(step.learning_rate, 1)}")
    var speed = String(t" | {step.tokens_per_second()} tok/s")
    var peak = String(t" | {percent(share)} peak") if share > 0 else String()
    var eta = String(t" | ETA {duration(seconds_left)}")
    for line in [head + rate + speed + peak + eta, head + speed + peak + eta, head + speed + eta, head + eta]:
        if line.byte_length() <= width:
            return line
    return head


def skipped_line(step: StepRecord, screen: Screen, width: Int) -> String:
    """Writes what there is to say of a step whose update was left out, in so many columns if they suffice."""
    var loss = String(t"loss {fixed(Float64(step.loss), 4)}{_z(step.loss_z)}")
    var norm = String(t", norm {fixed(Float64(step.norm), 2)}{_z(step.norm_z)}")
    var line = String()
    for what in ["outlier, update skipped", "outlier skipped", "skipped"]:
        line = String(t"{_steps(step)} | {screen.coloured(what, RED)}: {loss}{norm}")
        if String(t"{_steps(step)} | {what}: {loss}{norm}").byte_length() <= width:
            break
    return line^


def step_line(step: StepRecord, screen: Screen) -> String:
    """Writes a step's line for where lines stay."""
    var loss = screen.coloured(fixed(Float64(step.loss), 6), BOLD)
    var skipped = screen.coloured(" | outlier, update skipped", RED) if step.skipped else String()
    return String(
        t"{_steps(step)} | loss {loss}{_z(step.loss_z)} | norm {fixed(Float64(step.norm), 4)}{_z(step.norm_z)} |"
        t" lr {scientific(step.learning_rate, 2)} | {fixed(step.milliseconds, 1)} ms | {step.tokens_per_second()}"
        t" tok/s{skipped}"
    )


def share_of_peak(step: StepRecord, flops_per_token: Int, peak: Float64) -> Float64:
    """Returns which part of the peak, in operations per second, a step has reached."""
    return Float64(step.tokens * flops_per_token) / (step.milliseconds / 1000) / peak


def step_json(step: StepRecord) -> String:
    """Writes a step's object for the log."""
    var extra = String()
    if step.loss_z:
        extra += String(t', "loss_z": {fixed(step.loss_z.value(), 3)}')
    if step.norm_z:
        extra += String(t', "norm_z": {fixed(step.norm_z.value(), 3)}')
    if step.skipped:
        extra += ', "skipped": true'
    if step.waited_ms:
        extra += String(t', "waited_ms": {fixed(step.waited_ms.value(), 3)}')
    return String(
        t'{{"step": {step.step}, "loss": {json_number(step.loss)}, "norm": {json_number(step.norm)}, "lr":'
        t' {json_number(step.learning_rate)}, "ms": {fixed(step.milliseconds, 3)}, "tokens": {step.tokens},'
        t' "tokens_per_second": {step.tokens_per_second()}, "shard": {step.shard}, "sample": {step.sample}, "epoch":'
        t" {step.epoch}{extra}}}"
    )


@fieldwise_init
struct Validation(Copyable, Movable):
    """One estimate of the validation loss."""

    var step: Int
    """Steps done before it."""
    var loss: Float32
    var best: Bool
    """Whether it is the lowest so far."""

    def line(self, screen: Screen) -> String:
        """Writes the line for the screen."""
        var loss = screen.coloured(fixed(Float64(self.loss), 6), GREEN if self.best else YELLOW)
        return String(t"val loss {loss} | perplexity {fixed(exp(Float64(self.loss)), 2)}")

    def json(self) -> String:
        """Writes the object for the log."""
        return String(t'{{"step": {self.step}, "val_loss": {json_number(self.loss)}}}')


struct Report(Movable):
    """Prints the run line by line, at once, and keeps `log.jsonl`, `samples.jsonl` and llm.c's `main.log` in the output folder if any.
    """

    var screen: Screen
    var _log: Optional[AppendedFile]
    var _main_log: Optional[AppendedFile]
    var _samples: Optional[AppendedFile]
    """Made when the first sample comes."""
    var _place: String
    var _resume: Optional[LogEnd]
    var _folder: Optional[HeldFolder]
    var _start: Int
    var _first_step: Int
    var _last: Optional[StepRecord]
    var _validations: Int
    var _validated: Int
    """Steps done before the validation that came last."""
    var _shown: Int
    """When the line of the steps was last shown."""
    var _waited_ms: Float64
    """Of all steps of this process, and what they took."""
    var _stepped_ms: Float64

    def __init__(out self, folder: String, resume: Optional[LogEnd] = None) raises:
        """Starts the logs; with `resume` goes on with those that are there. No folder (empty): no logs.

        Raises:
            If the folder or a log cannot be made, or another run is writing to them.
        """
        self.screen = Screen()
        self._folder = None
        self._log = None
        self._main_log = None
        self._samples = None
        self._place = folder
        self._resume = resume.copy()
        self._start = Int(perf_counter_ns())
        self._first_step = resume.value().step if resume else 0
        self._last = None
        self._validations = 0
        self._validated = 0
        self._shown = 0
        self._waited_ms = 0
        self._stepped_ms = 0
        if folder.byte_length() > 0:
            make_folder("report", folder)
            self._folder = HeldFolder("report", folder)
            self._log = open_log(folder + "/log.jsonl", resume)
            self._main_log = open_log(folder + "/main.log", resume)

    @no_inline
    def __deinit__(deinit self):
        """Frees what it owns. Not inlined, because every call that may raise is followed by a copy."""
        pass

    def step(mut self, step: StepRecord, flops_per_token: Int, peak: Float64) raises:
        """Reports a step, on a machine with this peak of floating-point operations per second (0: unknown).

        On a terminal in the line that lives, but for an outlier; elsewhere in some ninety lines of all steps.

        Raises:
            If a log cannot be written.
        """
        self._last = step.copy()
        self._waited_ms += step.waited_ms.or_else(0)
        self._stepped_ms += step.milliseconds
        if not self.screen.is_terminal:
            if is_worth_a_line(step.step, step.steps):
                self.screen.line(step_line(step, self.screen))
        else:
            if step.skipped:
                self.screen.line(skipped_line(step, self.screen, self.screen.columns() - 1))
            var now = Int(perf_counter_ns())
            if now - self._shown >= _LIVE_NS or step.step == step.steps or step.step == self._first_step + 1:
                self._shown = now
                var share = share_of_peak(step, flops_per_token, peak) if peak > 0 else Float64(0)
                self.screen.live(live_line(step, share, self._seconds_left(step), self.screen.columns() - 1))
        if self._log:
            self._log.value().write(step_json(step) + "\n")
            # llm.c counts the steps before this one.
            self._main_log.value().write(
                String(
                    t"s:{step.step - 1} trl:{fixed(Float64(step.loss), 4)} lr:{fixed(step.learning_rate, 6)}"
                    t" norm:{fixed(Float64(step.norm), 2)}\n"
                )
            )

    def validation(mut self, validation: Validation) raises:
        """Reports a validation loss.

        Raises:
            If a log cannot be written.
        """
        var line = validation.line(self.screen)
        if self.screen.is_terminal and self._last:
            ref step = self._last.value()
            var elapsed = duration(Float64(Int(perf_counter_ns()) - self._start) / 1e9)
            line = String(t"{_steps(step)} | train {fixed(Float64(step.loss), 4)} | {line} | {elapsed}")
        self._validations += 1
        if self.screen.is_terminal or self._is_worth_a_line(validation.step):
            self.screen.line(line)
        self._validated = validation.step
        if self._log:
            self._log.value().write(validation.json() + "\n")
            self._main_log.value().write(String(t"s:{validation.step} tel:{fixed(Float64(validation.loss), 4)}\n"))

    def sample(mut self, step: Int, text: String) raises:
        """Keeps a text that the model wrote after so many steps; it is on the screen already.

        Raises:
            If a log cannot be written.
        """
        if not self._log:
            return
        if not self._samples:
            self._samples = open_log(self._place + "/samples.jsonl", self._resume)
        self._samples.value().write(String(t'{{"step": {step}, "sample_text": {json_text(text)}}}\n'))

    def hellaswag(mut self, step: Int, acc: Float64, acc_norm: Float64) raises:
        """Reports the accuracy on HellaSwag after so many steps; llm.c logs the one by the probability per token.

        Raises:
            If a log cannot be written.
        """
        self.screen.line(String(t"hellaswag acc {fixed(acc, 4)} | acc_norm {fixed(acc_norm, 4)}"))
        if self._log:
            self._log.value().write(
                String(
                    t'{{"step": {step}, "hellaswag_acc": {json_number(acc)}, "hellaswag_acc_norm":'
                    t" {json_number(acc_norm)}}}\n"
                )
            )
            self._main_log.value().write(String(t"s:{step} eval:{fixed(acc_norm, 4)}\n"))

    def _is_worth_a_line(self, step: Int) -> Bool:
        """Tells whether a validation after so many steps gets a line where lines stay: some fifty do."""
        if not self._last:
            return True
        ref last = self._last.value()
        if self._validations <= 50:
            return True
        return step == last.steps or step * 50 // last.steps != self._validated * 50 // last.steps

    def messages(self) -> String:
        """Says what the steps have waited for other ranks; nothing of a single one."""
        if not self._last or not self._last.value().waited_ms:
            return ""
        var share = self._waited_ms / max(self._stepped_ms, 1e-3)
        var steps = Float64(self._last.value().step - self._first_step)
        return String(
            t"messages    {fixed(self._waited_ms / steps, 1)} ms a step ({percent(share)}) were spent waiting for them"
        )

    def stops(self) -> Bool:
        """Tells whether the run has to end now: a signal has come, or the screen can no longer be written to."""
        return stop_signal() != 0 or Bool(self.screen.failure)

    def has_folder(self) raises -> Bool:
        """Tells whether the run has a folder, and it is still under its name.

        Raises:
            If the disk fails.
        """
        return Bool(self._folder) and self._folder.value().is_there()

    def copy_logs(self, folder: String) raises:
        """Writes what the logs have so far to another folder; they may have no name any more.

        Raises:
            If they cannot be written there.
        """
        if self._log:
            self._log.value().copy_to(folder + "/log.jsonl")
            self._main_log.value().copy_to(folder + "/main.log")

    def before_saving(mut self) raises:
        """Brings the logs to the disk.

        Raises:
            If the disk is full or fails, or the folder is gone: what has its name now is another run's.
        """
        if self._folder and not self._folder.value().is_there():
            raise Error(
                t"save: the folder {self._folder.value().path} is gone, or another has its name; nothing was saved:"
                t" make it again and resume from a copy"
            )
        if self._log:
            self._log.value().flush()
            self._main_log.value().flush()

    def _seconds_left(self, step: StepRecord) -> Float64:
        """Expects the steps that are left to take as long as those so far, validations and checkpoints included."""
        var elapsed = Float64(Int(perf_counter_ns()) - self._start) / 1e9
        return elapsed / Float64(max(step.step - self._first_step, 1)) * Float64(step.steps - step.step)


def _steps(step: StepRecord) -> String:
    var steps = String(step.steps)
    return String(t"step {String(step.step).ascii_rjust(max(4, steps.byte_length()))}/{steps}")


def _z(z: Optional[Float64]) -> String:
    """Writes a z-score as llm.c does."""
    if not z:
        return ""
    var sign = "+" if z.value() >= 0 else ""
    return String(t" ({sign}{fixed(z.value(), 2)}z)")
