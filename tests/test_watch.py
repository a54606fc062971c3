"""`python -m llm_mojo watch`: read back with TensorBoard's own reader and W&B's own messages."""

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import threading

import pytest

from llm_mojo.__main__ import main
from llm_mojo.run_log import Follower
from llm_mojo.watch import follow, settings_of, values_of
from mojo_programs import ENVIRONMENT, ROOT, TIMEOUT, wait_for
from run_logs import write_log
from tiny_run import make_data, settings


def scalars(run):
    """All that TensorBoard finds: {tag: [(step, value)]}."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def watch(*arguments):
    return main(["watch", *map(str, arguments)])


class Sink:
    """Keeps what it is sent."""

    def __init__(self):
        self.sent, self.flushes = [], 0

    def send(self, step, values, seconds):
        self.sent.append((step, values, seconds))

    def flush(self):
        self.flushes += 1


def test_the_names_of_the_curves():
    step = {"step": 3, "loss": 2, "lr": 0.5, "norm": None, "skipped": True, "note": "x"}
    assert values_of(step) == {"train/loss": 2.0, "train/lr": 0.5, "train/skipped": 1.0}
    assert values_of({"step": 3, "val_loss": 2}) == {"val/loss": 2.0}
    assert values_of({"step": 3, "hellaswag_accuracy": 0.25}) == {"hellaswag/accuracy": 0.25}


def test_a_finished_run_in_tensorboard(tmp_path, capsys):
    run = write_log(tmp_path / "run", [4.0, 3.0, 2.5], {0: 5.0, 2: 3.5})
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "hellaswag_acc": 0.25}\n')
    for _ in range(2):  # the second time replaces what the first has written
        assert watch(run, "--to", "tensorboard") == 0
        found = scalars(run)
        assert found["train/loss"] == [(1, 4.0), (2, 3.0), (3, 2.5)]
        assert found["val/loss"] == [(0, 5.0), (2, 3.5)]
        assert found["hellaswag/acc"] == [(2, 0.25)]
        others = {"train/norm", "train/lr", "train/ms", "train/tokens"}
        assert set(found) == {"train/loss", "val/loss", "hellaswag/acc"} | others
    output = capsys.readouterr().out
    assert f"tensorboard --logdir {run / 'tensorboard'}" in output and "the run has ended after step 3" in output


def test_a_real_run_is_followed_to_its_end(mojo_program, tmp_path):
    """Watched from its first step on, until the trainer lets go of its log."""
    make_data(tmp_path)
    run = tmp_path / "run"
    command = [mojo_program("train_gpt2.mojo").path, *settings(tmp_path, run, "-x", 500, "-v", 100)]
    with subprocess.Popen([str(word) for word in command], env=ENVIRONMENT, stdout=subprocess.DEVNULL) as process:
        wait_for((run / "log.jsonl").exists)
        assert watch(run, "--to", "tensorboard") == 0
        assert process.wait() == 0
    found = scalars(run)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [step for step, _ in found["train/loss"]] == list(range(1, 501))
    for tag, name in {"train/loss": "loss", "train/lr": "lr", "val/loss": "val_loss"}.items():
        expected = [(row["step"], row[name]) for row in rows if name in row]
        assert found[tag] == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]


def test_a_growing_log(tmp_path):
    """Half a line waits for its end; steps that a resumed run does again are sent once."""
    log = write_log(tmp_path / "run", [4.0, 3.0, 2.0], {2: 3.5}, ms=500) / "log.jsonl"
    whole = log.read_text()
    sink = Sink()
    with log.open("a") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)  # as the trainer does
        thread = threading.Thread(target=follow, args=(log, sink, 0.01))
        thread.start()

        def sent(count):
            wait_for(lambda: len(sink.sent) >= count)
            flushes = sink.flushes
            wait_for(lambda: sink.flushes >= flushes + 2)  # it has looked again since
            return len(sink.sent) == count

        assert sent(4)
        half = '{"step": 4, "loss": 1.5, '
        writer.write(half)
        writer.flush()
        assert sent(4)
        writer.write('"ms": 500, "tokens": 9}\n')
        writer.flush()
        assert sent(5)
        writer.truncate(whole.index("\n") + 1)
        writer.flush()
        assert sent(5)
        rest = whole[whole.index("\n") + 1 :] + half + '"ms": 500, "tokens": 9}\n{"step": 5, "loss": 1.0, "ms": 500}\n'
        writer.write(rest)
        writer.flush()
        assert sent(6)
        assert thread.is_alive()
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    assert [step for step, values, _ in sink.sent if "train/loss" in values] == [1, 2, 3, 4, 5]
    assert [step for step, values, _ in sink.sent if "val/loss" in values] == [2]
    assert [seconds for _, _, seconds in sink.sent] == [0.5, 1.0, 1.0, 1.5, 2.0, 2.5]


def test_ctrl_c_stops_watching(tmp_path):
    run = write_log(tmp_path / "run", [4.0, 3.0])
    command = [sys.executable, "-m", "llm_mojo", "watch", str(run), "--to", "tensorboard"]
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT / "pysrc")}
    with (run / "log.jsonl").open("a") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline().startswith("writing ")
        wait_for(lambda: scalars(run).get("train/loss") == [(1, 4.0), (2, 3.0)])
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert "stopped watching; the run goes on" in process.communicate(timeout=TIMEOUT)[0]
        assert process.returncode == 0
    assert scalars(run)["train/loss"] == [(1, 4.0), (2, 3.0)]


def test_settings_are_read_from_the_folder(tmp_path):
    assert settings_of(tmp_path) == {}
    text = '# train -l 1\nschedule = "cosine"\nbatch-size = 4\ndecay-all = true\ni = "a\\\\b"\n'
    (tmp_path / "run.toml").write_text(text)
    assert settings_of(tmp_path) == {"schedule": "cosine", "batch-size": 4, "decay-all": True, "i": "a\\b"}


def records(path):
    """The records of an offline run: LevelDB's log format after seven bytes of W&B's own, in blocks of 32 KiB."""
    data, place, record = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        _, size, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def history(run, count):
    """The rows of all offline runs, (run id, {name: value}), when there are as many; W&B writes in the background."""
    wait_for(lambda: len(rows_of(run)) >= count)
    return rows_of(run)


def rows_of(run):
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime):
        for record in map(Record.FromString, records(path)):
            if record.WhichOneof("record_type") == "history":
                values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                rows.append((path.stem, values))
    return rows


def test_wandb_offline(tmp_path, monkeypatch):
    """Watched twice, with steps added in between: one run of W&B, each step once. A run that replaces it is another."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = write_log(tmp_path / "run", [4.0, 3.0], {0: 5.0, 2: 3.5})
    assert watch(run, "--to", "wandb", "--offline") == 0
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 2.0, "ms": 1}\n{"step": 4, "val_loss": 2.5}\n')
    assert watch(run, "--to", "wandb", "--offline") == 0
    rows = history(run, 6)
    assert len({name for name, _ in rows}) == 1
    steps = [(row["step"], row["train/loss"]) for _, row in rows if "train/loss" in row]
    assert steps == [(1, 4.0), (2, 3.0), (3, 2.0)]
    assert [(row["step"], row["val/loss"]) for _, row in rows if "val/loss" in row] == [(0, 5.0), (2, 3.5), (4, 2.5)]
    # Its own steps, by which W&B merges what it gets in parts.
    assert [row["_step"] for _, row in rows] == [1, 2, 4, 5, 6, 9]
    (run / "log.jsonl").unlink()
    write_log(tmp_path / "other", [9.0], ms=31)
    (tmp_path / "other" / "log.jsonl").rename(run / "log.jsonl")
    assert watch(run, "--to", "wandb", "--offline") == 0
    rows = history(run, 7)
    assert len({name for name, _ in rows}) == 2 and rows[-1][1]["train/loss"] == 9.0


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_without_the_package(package, tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    run = write_log(tmp_path / "run", [1.0])
    assert watch(run, "--to", package) == 1
    assert f"the Python package {package}; install it with: pip install -e '.[{package}]'" in capsys.readouterr().err
    assert sorted(path.name for path in run.iterdir()) == ["log.jsonl"]


def test_no_log(tmp_path, capsys):
    assert watch(tmp_path / "none", "--to", "tensorboard") == 1
    assert "no such run" in capsys.readouterr().err


def test_whether_a_run_is_running(tmp_path):
    log = write_log(tmp_path / "run", [1.0]) / "log.jsonl"
    assert not Follower(log).is_running()
    with log.open("a") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert Follower(log).is_running()
    assert not Follower(log).is_running()


@pytest.mark.parametrize(
    "text",
    [
        '{"step": 1}',
        '{"step": 1, "loss": "x", "ms": "y"}',
        '{"step": 1, "loss": null, "ms": null}',
        '{"step": 1, "loss": {}, "ms": []}',
        '{"step": 1, "\\ud800": 3}',
        '{"step": 0, "note": "x"}',
    ],
)
def test_records_of_other_kinds_are_passed_over(text, tmp_path):
    run = write_log(tmp_path / "run", [4.0])
    with (run / "log.jsonl").open("a") as file:
        file.write(text.replace('"step": 1', '"step": 2') + "\n")
    assert watch(run, "--to", "tensorboard") == 0
    assert scalars(run)["train/loss"] == [(1, 4.0)]


def test_only_our_own_event_files_are_replaced(tmp_path, capsys):
    run = write_log(tmp_path / "run", [4.0])
    other = run / "tensorboard/events.out.tfevents.123.host.1.0"
    other.parent.mkdir()
    other.write_bytes(b"")
    for _ in range(2):
        assert watch(run, "--to", "tensorboard") == 0
        assert len(list(other.parent.iterdir())) == 2 and other.exists()
    elsewhere = tmp_path / "elsewhere"
    other.parent.rename(elsewhere)
    other.parent.symlink_to(elsewhere)
    before = sorted(elsewhere.iterdir())
    assert watch(run, "--to", "tensorboard") == 1
    assert "found a symbolic link" in capsys.readouterr().err and sorted(elsewhere.iterdir()) == before


def test_settings_as_any_name_makes_them(tmp_path):
    """Names that are no UTF-8, and lines that are none of ours."""
    lines = [
        b"# train_gpt2",
        b"max-steps = 5",
        b'train-data = "d\xa9 \\"x\\"\\n[y]_*.bin"',
        b"note = [",
        b'tab = "a\tb"',
        b"x",
    ]
    (tmp_path / "run.toml").write_bytes(b"\n".join(lines))
    found = settings_of(tmp_path)
    assert found == {"max-steps": 5, "train-data": os.fsdecode(b'd\xa9 "x"\n[y]_*.bin'), "tab": "a\tb"}


# ----- in the terminal


def test_a_finished_run_in_a_pipe(tmp_path, capsys):
    losses = [5 - 4 * step / 400 for step in range(400)]
    run = write_log(tmp_path / "my run", losses, {0: 5.5, 200: 3.2, 400: 1.25, 300: 1.1})
    (run / "run.toml").write_text("max-steps = 1000\n")
    assert watch(run) == 0
    head, *chart = capsys.readouterr().out.splitlines()
    assert head == "my run: step 400 of 1,000 | loss 1.0100 | validation 1.2500, best 1.1000 after 3"[:80]
    assert max(map(len, chart)) == 80 and len(chart) <= 23
    text = "\n".join(chart)
    assert "training" in text and "validation" in text and "step" in text
    # Falling losses: the first dots of the line are in the upper rows, the last in the lower.
    dots = [[x for x, c in enumerate(row) if 0x2800 < ord(c) < 0x2900] for row in chart]
    tops = {x: y for y, row in reversed(list(enumerate(dots))) for x in row if len(row)}
    assert tops[min(tops)] < 8 and tops[max(tops)] > 14


def test_a_run_without_steps_and_without_numbers(tmp_path, capsys):
    run = write_log(tmp_path / "run", [])
    assert watch(run) == 0
    assert "no step is in the log yet" in capsys.readouterr().out
    (run / "log.jsonl").write_text('{"step": 1, "loss": null}\n{"step": 1, "val_loss": null}\n')
    assert watch(run) == 0
    assert "step 1 | loss nan" in capsys.readouterr().out


def test_a_running_run_on_a_terminal(tmp_path):
    """It is drawn again as the log grows, until the trainer is gone."""
    run = write_log(tmp_path / "run", [4.0, 3.0], {0: 5.0})
    terminal, other_end = os.openpty()
    with open(run / "log.jsonl", "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        command = [sys.executable, "-m", "llm_mojo", "watch", run]
        process = subprocess.Popen(command, stdout=other_end, env=ENVIRONMENT | {"PYTHONPATH": str(ROOT / "pysrc")})
        os.close(other_end)
        shown = b""
        while b"step 2 |" not in shown:
            shown += os.read(terminal, 65536)
        held.write('{"step": 3, "loss": 2.5, "norm": 1, "lr": 0.1, "ms": 1, "tokens": 1}\n')
        held.flush()
        while b"step 3 | loss 2.5000" not in shown:
            shown += os.read(terminal, 65536)
    while True:
        try:
            shown += os.read(terminal, 65536)
        except OSError:
            break
    assert process.wait() == 0 and shown.count(b"\x1b[H\x1b[J") >= 2
