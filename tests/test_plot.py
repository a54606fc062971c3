"""`python -m llm_mojo plot`: what is read from logs, how it is smoothed, what is on the chart, and what it says."""

import json
import re
import sys

import matplotlib
import matplotlib.image
import numpy as np
import pytest

from llm_mojo.__main__ import main
from llm_mojo.charts import LIGHT
from llm_mojo.plot import names_of, read_curves, smoothed
from run_logs import write_log


def plot(*arguments):
    return main(["plot", *map(str, arguments)])


def test_curves_are_what_the_log_says(tmp_path):
    log = write_log(tmp_path / "run", [4, None, 2.5], {0: 5, 2: 3, 3: 2}) / "log.jsonl"
    with log.open("a") as file:
        file.write('{"step": 4, "lo')  # the run is writing this line
    curves = read_curves(log, "run")
    np.testing.assert_array_equal(curves.loss, [4, np.nan, 2.5])
    np.testing.assert_array_equal(curves.val_loss, [5, 3, 2])
    for axis, x, val_x in [
        ("steps", [1, 2, 3], [0, 2, 3]),
        ("tokens", [100, 200, 300], [0, 200, 300]),
        ("time", [30, 60, 90], [0, 60, 90]),
    ]:
        np.testing.assert_array_equal(curves.axes[axis], x)
        np.testing.assert_array_equal(curves.x_of_validations(axis), val_x)


def test_validations_after_steps_that_are_not_there(tmp_path):
    """As after a resume from llm.c's checkpoint: the log begins at step 10."""
    log = tmp_path / "log.jsonl"
    rows = [{"step": 11, "loss": 1, "ms": 5, "tokens": 7}, {"step": 11, "val_loss": 2}]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_curves(log, "run").x_of_validations("tokens").tolist() == [7]


@pytest.mark.parametrize("window", [1, 2, 5, 8, 100])
def test_smoothing_is_a_mean(window):
    values = np.random.default_rng(0).normal(size=50)
    values[[3, 20, 21]] = np.nan
    around = [values[max(i - (window - 1) // 2, 0) : i + window // 2 + 1] for i in range(50)]
    expected = [np.nan if np.isnan(part).all() else np.nanmean(part) for part in around]
    np.testing.assert_allclose(smoothed(values, window), expected, rtol=1e-12, atol=1e-12)


def test_the_legend_tells_runs_apart():
    assert names_of(["/a/runs/x", "/a/runs/y"]) == ["x", "y"]
    assert names_of(["/a/one/run", "/a/two/run"]) == ["one/run", "two/run"]
    assert names_of(["/a/x"]) == ["x"]


def rgb(colour):
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def test_a_png_with_a_line_for_each_run(tmp_path, capsys):
    lows = {"a": 1, "b": 2}
    runs = [write_log(tmp_path / name, list(np.linspace(4, low, 300)), {300: low}) for name, low in lows.items()]
    assert plot(*runs, "--out", tmp_path / "new" / "chart.png") == 0
    assert capsys.readouterr().out.splitlines() == [
        "a: 300 steps, validation loss 1.0000 at best",
        "b: 300 steps, validation loss 2.0000 at best",
        f"wrote {tmp_path / 'new' / 'chart.png'}",
    ]
    image = matplotlib.image.imread(tmp_path / "new" / "chart.png")[:, :, :3]
    assert image.shape == (600, 960, 3)
    # Where the last pixels of each colour are: the run with the lower loss ends lower.
    ends = []
    for colour in LIGHT.series[:2]:
        rows, columns = np.where(np.abs(image - rgb(colour)).max(2) < 0.02)
        right = columns > columns.max() - 5
        assert columns.max() > 800
        ends.append(rows[right].mean())
    assert ends[0] > ends[1] + 80
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "chart.png"]


@pytest.mark.parametrize(
    ("axis", "label"), [("steps", "step"), ("tokens", "tokens"), ("time", "time of training steps (minutes)")]
)
def test_the_labels(axis, label, tmp_path, monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    runs = [write_log(tmp_path / name, [3, 2, 1, 1, 1, 1], {6: 1}) for name in ("first", "second")]
    assert plot(*runs, "--out", tmp_path / "chart.svg", "--axis", axis) == 0
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / "chart.svg").read_text())
    assert {label, "loss (nats per token)", "training", "validation", "first", "second"} <= set(texts)


def test_one_spike_does_not_flatten_the_rest(tmp_path):
    losses = [2.0] * 500
    losses[250] = 1e6
    assert plot(write_log(tmp_path / "run", losses, {500: 2.5}), "--out", tmp_path / "a.png") == 0
    image = matplotlib.image.imread(tmp_path / "a.png")[:, :, :3]
    rows, _ = np.where(np.abs(image - rgb(LIGHT.series[0])).max(2) < 0.02)
    assert rows.max() - rows.min() > 240  # from the losses at the bottom up to the validation


def test_all_losses_the_same_or_none_finite(tmp_path):
    assert plot(write_log(tmp_path / "a", [1.0] * 3), "--out", tmp_path / "a.png") == 0
    assert plot(write_log(tmp_path / "b", [None]), "--out", tmp_path / "b.png", "--smooth", 1) == 0
    assert plot(write_log(tmp_path / "c", [], {0: 1.0}), "--out", tmp_path / "c.png", "--axis", "time") == 0


@pytest.mark.parametrize(
    ("text", "message"),
    {
        "": "no step is in the log yet",
        '{"step": 1, "los': "no step is in the log yet",
        '{"step": 1}\n': "no step is in the log yet",
        "step 1\n": """log.jsonl, line 1: expected an object with a "step", found 'step 1'""",
        '{"step": 1, "loss": 2, "ms": 1, "tokens": 1}\n[]\n': "log.jsonl, line 2: expected an object",
        '{"step": 1, "loss": 2, "tokens": 1}\n': "expected a number ms in every record",
        "[" * 100_000 + "\n": "log.jsonl, line 1: expected an object",
        '{"step": 1e30, "loss": 2}\n': "log.jsonl, line 1: expected an object",
        '{"step": ' + "9" * 30 + ', "loss": 2}\n': "log.jsonl, line 1: expected an object",
        '{"step": 1, "loss": ' + "9" * 400 + "}\n": "log.jsonl, line 1: expected loss up to 1e+300",
        '{"step": 1, "loss": 1e999}\n': "log.jsonl, line 1: expected loss up to 1e+300",
        '{"step": 1, "loss": {}, "ms": 1, "tokens": 1}\n': "expected a number loss in every record",
        '{"step": 1, "loss": "x", "ms": 1, "tokens": 1}\n': "expected a number loss in every record",
    }.items(),
)
def test_wrong_logs(text, message, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text(text)
    assert plot(tmp_path / "run", "--out", tmp_path / "a.png") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and str(tmp_path / "run" / "log.jsonl") in error and message in error
    assert not (tmp_path / "a.png").exists()


def test_wrong_names(tmp_path, capsys):
    run = write_log(tmp_path / "run", [1.0])
    for arguments, message in [
        ([tmp_path / "none"], f"{tmp_path / 'none'}: no such run"),
        ([tmp_path], f"{tmp_path}: expected log.jsonl in the folder of a run, found none"),
        ([run, "--out", tmp_path / "chart.xyz"], "chart.xyz: expected a name that ends in .png, .svg or .pdf"),
        ([run, "--out", run / "log.jsonl" / "a.png"], "log.jsonl"),
    ]:
        assert plot(*arguments) == 1
        assert message in capsys.readouterr().err
    for arguments in ([], [run, "--smooth", 0], [run, "--axis", "epochs"]):
        with pytest.raises(SystemExit) as end:
            plot(*arguments)
        assert end.value.code == 2
    assert not list(tmp_path.glob("chart*"))


def test_without_matplotlib(tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("llm_mojo.charts")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = write_log(tmp_path / "run", [1.0])
    assert plot(run, "--out", tmp_path / "a.png") == 1
    assert "needs the Python package matplotlib; install it with: pip install -e '.[plot]'" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_only_a_chart_of_ours_is_replaced(suffix, tmp_path, capsys):
    run, out = write_log(tmp_path / "run", [4.0, 3.0]), tmp_path / f"a{suffix}"
    assert plot(run, "--out", out) == 0 and plot(run, "--out", out) == 0
    out.write_bytes(b"mine")
    assert plot(run, "--out", out) == 1
    assert "is there, and is no chart of ours; --force replaces it" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert plot(run, "--out", out, "--force") == 0 and out.read_bytes() != b"mine"
