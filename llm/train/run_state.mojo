"""What a run knows of itself beside model, moments and data: the sidecar `extra_STEP.json` of a checkpoint."""

from llm.base.files import AtomicFile, read_text
from llm.base.json import JsonObject, json_number, json_numbers, json_text
from llm.formats.training_state import IN_ORDER, RANDOM_WINDOWS
from llm.train.outliers import WINDOW, OutlierDetector


comptime _LLM_C_OPTIMIZER = "adamw"


struct Progress(Movable):
    """How far a run is, and what it remembers of the way."""

    var step: Int
    """Steps done."""
    var evaluated: Bool
    """Whether the validation and the sample that are due after these steps have been made."""
    var epoch: Int
    """Epochs of the training data begun before this one."""
    var order: Int
    """The order of the training data, of which a state in llm.c's format knows only the first two."""
    var optimizer: String
    """Its name."""
    var sampler: UInt64
    """State of the generator that draws samples; 0 if it is not known."""
    var best_loss: Optional[Float32]
    """Lowest validation loss so far."""
    var best_step: Int
    """Steps done when it was measured."""
    var bad_validations: Int
    """Validations since then."""
    var losses: OutlierDetector
    var norms: OutlierDetector

    def __init__(out self):
        """Starts a run."""
        self.step = 0
        self.evaluated = False
        self.epoch = 0
        self.order = IN_ORDER
        self.optimizer = _LLM_C_OPTIMIZER
        self.sampler = 0
        self.best_loss = None
        self.best_step = 0
        self.bad_validations = 0
        self.losses = OutlierDetector()
        self.norms = OutlierDetector()

    def validated(mut self, loss: Float32) -> Bool:
        """Takes a validation loss and tells whether it is the lowest so far."""
        if self.best_loss and not (loss < self.best_loss.value()):
            self.bad_validations += 1
            return False
        self.best_loss = loss
        self.best_step = self.step
        self.bad_validations = 0
        return True

    def json(self) -> String:
        """Writes the object that `read_progress` reads."""
        # A checkpoint that says nothing is one of the optimizer that llm.c has.
        var optimizer = String()
        if self.optimizer != _LLM_C_OPTIMIZER:
            optimizer = String(t'\n  "optimizer": {json_text(self.optimizer)},')
        var best = json_number(self.best_loss.value()) if self.best_loss else String("null")
        return String(
            t'{{\n  "version": 1,{optimizer}\n  "step": {self.step},\n  "evaluated": {"true" if self.evaluated else "false"},\n '
            t' "epoch": {self.epoch},\n  "shuffle": {self.order},\n  "sampler": "{self.sampler}",\n  "best_loss":'
            t' {best},\n  "best_step": {self.best_step},\n  "bad_validations":'
            t' {self.bad_validations},\n{_members("loss", self.losses)},\n{_members("norm", self.norms)}\n}}\n'
        )


def progress_file(path: String, progress: Progress) raises -> AtomicFile:
    """Writes the sidecar up to the last byte; it appears under its name when the caller commits the file.

    Raises:
        If the file cannot be written.
    """
    var file = AtomicFile("save", path)
    file.write(progress.json())
    file.flush()
    return file^


def read_progress(path: String, step: Int) raises -> Progress:
    """Reads the sidecar of the checkpoint after `step` steps.

    Raises:
        If it does not hold what belongs there.
    """
    var text = read_text("resume", path)
    try:
        return _parsed(text, step)
    except error:
        raise Error(t"resume: {path}: {error}; the file is damaged: remove it, and the run goes on without it")


def _parsed(text: String, step: Int) raises -> Progress:
    var json = JsonObject(text)
    var progress = Progress()
    _ = json.int("version", 1, 1)
    progress.step = json.int("step", step, step)
    progress.evaluated = json.bool("evaluated")
    progress.epoch = json.int("epoch", 0, Int(Int32.MAX))
    progress.order = json.int("shuffle", IN_ORDER, RANDOM_WINDOWS)
    if json.has("optimizer"):
        progress.optimizer = json.text("optimizer")
    var sampler = json.text("sampler")
    try:
        progress.sampler = _parse_uint64(sampler)
    except:
        raise Error(t"expected sampler to be a 64-bit number, found {sampler}")
    if json.has("best_loss"):
        progress.best_loss = Float32(json.float("best_loss"))
    progress.best_step = json.int("best_step", 0, step)
    progress.bad_validations = json.int("bad_validations", 0, Int(Int32.MAX))
    progress.losses = _read_detector(json, "loss")
    progress.norms = _read_detector(json, "norm")
    return progress^


def _members(name: String, detector: OutlierDetector) -> String:
    return String(
        t'  "{name}_sum": {json_number(detector.sum)},\n  "{name}_sum_of_squares":'
        t' {json_number(detector.sum_of_squares)},\n  "{name}_oldest": {detector.oldest},\n  "{name}_window":'
        t" {json_numbers(detector.values)}"
    )


def _read_detector(json: JsonObject, name: String) raises -> OutlierDetector:
    var detector = OutlierDetector()
    detector.sum = json.float(name + "_sum")
    detector.sum_of_squares = json.float(name + "_sum_of_squares")
    detector.oldest = json.int(name + "_oldest", 0, WINDOW - 1)
    detector.values = json.floats(name + "_window")
    if len(detector.values) > WINDOW:
        raise Error(t"expected at most {WINDOW} values in {name}_window, found {len(detector.values)}")
    return detector^


def _parse_uint64(text: String) raises -> UInt64:
    var value = UInt64(0)
    for c in text.as_bytes():
        if c < UInt8(ord("0")) or c > UInt8(ord("9")):
            raise Error("not a digit")
        value = value * 10 + UInt64(c - UInt8(ord("0")))
    return value
