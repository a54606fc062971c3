"""What each thread did and when, as a trace that Perfetto (ui.perfetto.dev) and Chrome (chrome://tracing) show.

Only in programs built with `-D TRACE`; in others nothing of this is compiled.
"""

from llm.base.formatting import fixed
from llm.base.memory import Tensor
from llm.base.written_files import AtomicFile
from llm.cpu.threads.crew import TRACING, Event
from llm.model.gpt2 import GPT2


struct Trace(Movable):
    """A trace file under way: one row for each thread, one for the steps. It appears when it is finished."""

    var _file: Optional[AtomicFile]
    var _threads: Int
    var _zero: Int
    """When the first event began, on the clock of `perf_counter_ns`."""
    var _count: Int

    def __init__(out self, path: String, threads: Int) raises:
        """Starts the file; an empty path is no trace.

        Raises:
            If the program was built without tracing, or the file cannot be made.
        """
        self._file = None
        self._threads = threads
        self._zero = 0
        self._count = 0
        if path.byte_length() == 0:
            return
        comptime if not TRACING:
            raise Error(
                t"trace {path}: this program was built without tracing; build it with:"
                t" mojo build -I . -D TRACE train_gpt2.mojo -o train_gpt2_trace"
            )
        self._file = AtomicFile("trace", path)
        self._write('{"displayTimeUnit": "ms", "traceEvents": [')
        self._name_row(threads, "steps")
        for member in range(threads):
            self._name_row(member, String(t"thread {member}"))

    def step[dtype: DType](mut self, model: GPT2[dtype], number: Int) raises:
        """Adds what the threads have done since the last call, and the step's number over it.

        Raises:
            If the file cannot be written.
        """
        comptime if TRACING:
            var begin = Int.MAX
            var end = 0
            for member in range(self._threads):
                for ref event in model.take_events(member):
                    if self._count == 0:
                        self._zero = event.begin
                    self._count += 1
                    begin = min(begin, event.begin)
                    end = max(end, event.end)
                    self._event(member, event)
            if end > 0:
                self._event(self._threads, Event("step", begin, end, 0, 0), String(t', "args": {{"step": {number}}}'))

    def finish(mut self) raises:
        """Completes the file.

        Raises:
            If the file cannot be written.
        """
        if self._file:
            self._write("\n]}\n")
            self._file.value().commit()
            self._file = None

    def _event(mut self, row: Int, event: Event, extra: String = "") raises:
        var args = extra
        if event.flops > 0:
            args = String(t', "args": {{"GFLOP": {fixed(Float64(event.flops) / 1e9, 6)}}}')
        elif event.bytes > 0:
            args = String(t', "args": {{"MB": {fixed(Float64(event.bytes) / 1e6, 6)}}}')
        var start = fixed(Float64(event.begin - self._zero) / 1000, 3)
        var duration = fixed(Float64(event.end - event.begin) / 1000, 3)
        self._write(
            String(
                t',\n{{"name": "{event.operation}", "ph": "X", "pid": 1, "tid": {row}, "ts": {start}, "dur":'
                t" {duration}{args}}}"
            )
        )

    def _name_row(mut self, row: Int, name: String) raises:
        var comma = "," if row < self._threads else ""
        self._write(
            String(
                t'{comma}\n{{"name": "thread_name", "ph": "M", "pid": 1, "tid": {row}, "args": {{"name": "{name}"}}}}'
            )
        )

    def _write(mut self, var text: String) raises:
        if self._file:
            var bytes = Tensor[DType.uint8](viewing=text.as_bytes())
            self._file.value().write(bytes)
            _ = text^
