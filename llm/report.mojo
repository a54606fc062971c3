"""What a person sees of a training run, and the log that a program reads afterwards."""

from std.ffi import external_call
from std.math import isfinite

from llm.files import AppendedFile, make_folder


def fixed(value: Float64, decimals: Int) -> String:
    """Writes a number with this many decimals, as C's %.*f does."""
    return _formatted(value, String(t"%.{decimals}f"))


def scientific(value: Float64, decimals: Int) -> String:
    """Writes a number with an exponent and this many decimals, as C's %.*e does."""
    return _formatted(value, String(t"%.{decimals}e"))


def grouped(value: Int) -> String:
    """Writes an integer with a comma before every three digits."""
    var digits = String(abs(value))
    var text = String("-") if value < 0 else String()
    var length = digits.byte_length()
    for i in range(length):
        if i > 0 and (length - i) % 3 == 0:
            text += ","
        text += digits[byte=i]
    return text^


def aligned(rows: List[Tuple[String, String]]) -> String:
    """Writes rows of a name and a value, the values under each other."""
    var width = 0
    for ref row in rows:
        width = max(width, row[0].byte_length())
    var text = String()
    for ref row in rows:
        text += String(t"{row[0].ascii_ljust(width)}  {row[1]}\n")
    return text^


@fieldwise_init
struct Step(Copyable, Movable):
    """One step of training, as it is printed and logged."""

    var step: Int
    """Steps done, this one included."""
    var steps: Int
    """Steps in all."""
    var loss: Float32
    var norm: Optional[Float32]
    """Norm of the gradient, if it was computed."""
    var learning_rate: Float64
    var tokens: Int
    """Tokens of this step."""
    var milliseconds: Float64
    var shard: Int
    """Place in the data after the step: the shard, and the sample that comes next."""
    var sample: Int

    def tokens_per_second(self) -> Int:
        """Returns the speed of this step."""
        return Int(Float64(self.tokens) / self.milliseconds * 1000 + 0.5)

    def line(self) -> String:
        """Writes the line for the screen."""
        var steps = String(self.steps)
        var step = String(self.step).ascii_rjust(max(4, steps.byte_length()))
        var norm = String()
        if self.norm:
            norm = String(t" | norm {fixed(Float64(self.norm.value()), 4)}")
        return String(
            t"step {step}/{steps} | loss {fixed(Float64(self.loss), 6)}{norm} | lr"
            t" {scientific(self.learning_rate, 2)} | {fixed(self.milliseconds, 1)} ms |"
            t" {self.tokens_per_second()} tok/s"
        )

    def json(self) -> String:
        """Writes the object for the log."""
        var norm = _json(self.norm.value()) if self.norm else "null"
        return String(
            t'{{"step": {self.step}, "loss": {_json(self.loss)}, "norm": {norm}, "lr": {_json(self.learning_rate)},'
            t' "ms": {fixed(self.milliseconds, 3)}, "tokens_per_second": {self.tokens_per_second()},'
            t' "shard": {self.shard}, "sample": {self.sample}}}'
        )


@fieldwise_init
struct Validation(Copyable, Movable):
    """One estimate of the validation loss."""

    var step: Int
    """Steps done before it."""
    var loss: Float32

    def line(self) -> String:
        """Writes the line for the screen."""
        return String(t"val loss {fixed(Float64(self.loss), 6)}")

    def json(self) -> String:
        """Writes the object for the log."""
        return String(t'{{"step": {self.step}, "val_loss": {_json(self.loss)}}}')


struct Report(Movable):
    """Prints the run line by line, at once, and keeps `log.jsonl` in the output folder if there is one."""

    var _log: Optional[AppendedFile]

    def __init__(out self, folder: String, *, resume: Bool = False) raises:
        """Starts a log; with `resume` goes on with the one that is there. No folder (empty): no log.

        Raises:
            If the folder or the log cannot be made.
        """
        self._log = None
        if folder.byte_length() > 0:
            make_folder("report", folder)
            self._log = AppendedFile("report", folder + "/log.jsonl", keep=resume)

    def step(mut self, step: Step) raises:
        """Reports a step.

        Raises:
            If the log cannot be written.
        """
        print(step.line(), flush=True)
        self._write(step.json())

    def validation(mut self, validation: Validation) raises:
        """Reports a validation loss.

        Raises:
            If the log cannot be written.
        """
        print(validation.line(), flush=True)
        self._write(validation.json())

    def _write(mut self, line: String) raises:
        if self._log:
            self._log.value().write(line + "\n")


def _json[dtype: DType](value: Scalar[dtype]) -> String:
    """Writes a number with as few digits as give it back exactly; `null` for NaN and infinities, which JSON lacks."""
    if not isfinite(value):
        return "null"
    var text = String()
    for digits in range(6, 18):
        text = _formatted(Float64(value), String(t"%.{digits}g"))
        try:
            if Float64(text).cast[dtype]() == value:
                break
        except:
            pass
    return text^


def _formatted(value: Float64, var format: String) -> String:
    var buffer = List[UInt8](length=512, fill=0)
    var length = external_call["strfromd", Int32](
        buffer.unsafe_ptr(), len(buffer), format.as_c_string_span().ptr(), value
    )
    return String(StringSlice(unsafe_from_utf8=Span(buffer)[: Int(length)]))
