"""The bench: the C port trains as the Mojo programs do, and every published figure comes from a committed file."""

import copy
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from llm_mojo import Error, charts, formats, reference
from llm_mojo.__main__ import main
from llm_mojo.bench import charts as bench_charts
from llm_mojo.bench import loss, report, results, steps, torch_loss, torch_step
from llm_mojo.bench.compare import changes, overtakings
from llm_mojo.bench.contestants import CONTESTANTS, MAX_LINALG, Contestant
from llm_mojo.bench.measure import Bench, Progress
from llm_mojo.bench.runner import Pace, run_steps
from llm_mojo.bench.sizes import SIZES
from llm_mojo.bench.steps import check_losses
from llm_mojo.bench.workshop import Command, Missing, Workshop
from mojo_programs import ROOT

# ----- the contestants train the same model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Flags for a tiny ragged model and two shards of several samples each."""
    folder = tmp_path_factory.mktemp("bench")
    config = formats.ModelConfig(max_seq_len=13, vocab_size=61, num_layers=2, num_heads=3, channels=12)
    formats.write_checkpoint(folder / "tiny.bin", config, reference.init_tensors(config, seed=1, spread=True))
    random = np.random.default_rng(2)
    for i in range(2):
        tokens = random.integers(61, size=200 + 50 * i, dtype=np.uint16)
        formats.write_tokens(folder / f"shard_{i}.bin", tokens)
    formats.write_tokens(folder / "batch.bin", random.integers(61, size=3 * 11 + 1, dtype=np.uint16))
    return folder


def losses(program, tiny, data, steps, *flags):
    command = [program, "-e", tiny / "tiny.bin", "-i", tiny / data, "-j", tiny / data, "-b", 3, "-t", 11]
    command += ["-x", steps, "-v", 4, "-m", 3, *flags]
    output = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout
    return [float(loss) for loss in re.findall(r"loss +([\d.]+)", output)]


@pytest.fixture(scope="module", params=["one thread", "OpenMP"])
def c_program(request, tmp_path_factory):
    if not shutil.which("gcc"):
        pytest.skip("there is no gcc")
    openmp = ["-fopenmp"] if request.param == "OpenMP" else []
    program = tmp_path_factory.mktemp("c") / "train_gpt2"
    flags = ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror", "-Ofast", "-march=native", *openmp]
    command = ["gcc", *flags, ROOT / "bench" / "train_gpt2.c", "-o", program, "-lm"]
    result = subprocess.run(command, capture_output=True, text=True)
    if openmp and "libgomp" in result.stderr:
        pytest.skip("gcc has no libgomp")
    assert result.returncode == 0, result.stderr
    return program


def test_c_trains_as_mojo(c_program, tiny, mojo_program):
    """Ten shuffled steps over two epochs and three validations."""
    c = losses(c_program, tiny, "shard_*.bin", 10)
    assert len(c) == 13
    for source in ("train_gpt2_basic.mojo", "train_gpt2.mojo"):
        mojo = losses(mojo_program(source).path, tiny, "shard_*.bin", 10, "-s", 0)
        # train_gpt2.mojo validates after the last step too.
        assert c == pytest.approx(mojo[: len(c)], rel=2e-5)


def test_c_trains_as_pytorch(c_program, tiny):
    command = [sys.executable, "-m", "llm_mojo.bench.torch_step", "--init", tiny / "tiny.bin"]
    command += ["--data", tiny / "batch.bin", "-b", 3, "-t", 11, "-x", 4]
    output = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout
    torch = [float(loss) for loss in re.findall(r"loss +([\d.]+)", output)]
    assert losses(c_program, tiny, "batch.bin", 4, "-v", 0) == pytest.approx(torch, rel=2e-5)


def test_c_explains_mistakes(c_program, tiny):
    for flags, status, words in [
        (["-q", "1"], 2, "unknown"),
        (["-e", "nowhere.bin"], 1, "nowhere.bin"),
        (["-e", tiny / "tiny.bin", "-t", "14"], 1, "takes no such"),
        (["-e", tiny / "batch.bin"], 1, "another kind of file"),
    ]:
        result = subprocess.run([c_program, *flags], capture_output=True, text=True)
        assert result.returncode == status and words in result.stderr


# ----- the runner


def script(text):
    return Command(["sh", "-c", text])


COUNTING = 'i=0; while true; do i=$((i+1)); echo "step $i: train loss 2.5 (took $i.0 ms)"; sleep 0.02; done'


def run_of(text, **pace):
    return run_steps(script(text), Pace(**pace))


def test_a_process_counts_and_ends(tmp_path):
    """It leaves the first steps out, and ends a program that would go on for ever."""
    run = run_of(f"echo $$ > {tmp_path}/pid; {COUNTING}", seconds=100, most=5, warm_up=2)
    assert run.ms == [1, 2, 3, 4, 5, 6, 7] and run.timed == [3, 4, 5, 6, 7]
    assert set(run.losses) == {2.5}
    assert run.first_step_s > 0 and run.peak_mb > 0 and 0 <= run.others <= 1
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_a_slow_step_is_enough():
    slow = 'for i in 1 2 3; do echo "step $i: train loss 1.0 (took 9000.0 ms)"; sleep 0.05; done; sleep 9'
    assert run_of(slow, seconds=5).ms == [9000, 9000]


def test_rounds(monkeypatch, tmp_path):
    """Two that run as long as they may, one that always fails, and one that fails the second time."""
    once_lucky = f"mkdir {tmp_path}/used 2>&- || {{ echo out of luck >&2; exit 1; }}; {COUNTING}"
    commands = {"a": COUNTING, "b": COUNTING, "c": "echo 'no luck' >&2; exit 1", "d": once_lucky}
    contestants = [Contestant(name, name, lambda _, __, text=text: script(text)) for name, text in commands.items()]
    monkeypatch.setattr(steps, "CONTESTANTS", contestants)
    bench = Bench(Workshop(folder=tmp_path), tmp_path / "x.json", 3, Progress({"124m": 1}))
    monkeypatch.setattr(bench, "measure_limits", lambda: None)
    monkeypatch.setattr(bench, "wait_for_quiet", lambda: None)
    steps.time_steps(bench, dataclasses.replace(SIZES[0], seconds=0.005, turn_s=0))
    entries = results.read(tmp_path / "x.json")["steps"]
    assert [(entry["contestant"], len(entry["rounds"])) for entry in entries] == [("a", 3), ("b", 3), ("d", 1)]
    for entry in entries:
        # Every process begins anew.
        assert all(each["ms"] == [1, 2, 3] and each["warm_up"] == 1 for each in entry["rounds"])
        assert entry["losses"] == [2.5, 2.5, 2.5]
    reasons = [(entry["label"], entry["reason"]) for entry in bench.results["missing"]]
    assert reasons == [("c", "no luck"), ("d", "out of luck")]


def test_a_process_tells_why_there_is_nothing():
    with pytest.raises(Missing, match="no such model"):
        run_of("echo 'error: no such model' >&2; exit 1", seconds=1)
    with pytest.raises(Missing, match="unknown flag"):
        run_of("echo 'unknown flag' >&2; echo 'see --help' >&2; exit 2", seconds=1)
    with pytest.raises(Missing, match="ended with status 0"):
        run_of("echo 'step 1: train loss 1.0 (took 10.0 ms)'", seconds=1)
    with pytest.raises(Missing, match="printed nothing"):
        run_of("exec sleep 100", seconds=1, patience=0.2)


@pytest.mark.parametrize("path", sorted((ROOT / "bench" / "results").glob("*.json")), ids=lambda path: path.name)
def test_no_row_of_a_table_of_kernels_comes_twice(path):
    section = report.kernels_section(results.read(path))
    for table in section.split("**")[::2]:
        rows = [line.split("|")[1] for line in table.splitlines() if re.match(r"\| [\d\w]", line)]
        assert len(rows) == len(set(rows))


def test_more_of_the_same_is_added_to_what_is_there():
    entries = []
    for ms, peak in (([1.0, 2.0], 400.0), ([3.0], 500.0), ([4.0], 450.0)):
        results.add(entries, {"T": 64, "ms": ms, "peak_gflops": peak})
    results.add(entries, {"T": 128, "ms": [5.0], "peak_gflops": 1.0})
    assert entries[0] == {"T": 64, "ms": [1.0, 2.0, 3.0, 4.0], "peak_gflops": 500.0}
    assert entries[1:] == [{"T": 128, "ms": [5.0], "peak_gflops": 1.0}]


def test_interval_of_the_median():
    """The coverage of the published tables of the sign test: 6 values 96.9%, 9 values without the outer ones 96.1%."""
    assert results.interval([3, 1, 2]) == (1, 3)
    assert results.interval([5, 3, 6, 1, 4, 2]) == (1, 6)
    assert results.interval(range(9)) == (1, 7)
    assert results.interval(range(100)) == (39, 60)
    assert results.interval([7]) == (7, 7)


def test_different_losses_are_refused():
    entry = {"precision": "fp32", "ours": True, "label": "a", "losses": [4.0, 3.0]}
    other = entry | {"label": "b", "ours": False}
    check_losses({"a": entry, "b": other | {"losses": [4.0, 3.0005]}})
    with pytest.raises(Error, match="b has loss 3.01 in step 2 where a has 3.0"):
        check_losses({"a": entry, "b": other | {"losses": [4.0, 3.01]}})


def test_names_are_unique():
    assert len({contestant.name for contestant in CONTESTANTS}) == len(CONTESTANTS)


def test_flops_of_a_step():
    """The published figure: 189.7 GFLOP of products at B=4, T=64; a step of the character model is 3.81 GFLOP."""
    sizes = {size.name: size for size in SIZES}
    attention = 6 * 12 * 768 * 64**2 * 4
    assert (sizes["124m"].flops - attention) / 1e9 == pytest.approx(189.7, abs=0.05)
    assert sizes["characters"].flops / 1e9 == pytest.approx(3.81, abs=0.005)


# ----- compare


@pytest.fixture
def measured():
    """A small file of results."""
    entry = {"size": "124m", "title": "124M", "B": 4, "T": 64, "gflop": 190.0, "floor_mb": 3500.0, "flags": ""}
    entry |= {"contestant": "mojo", "label": "train_gpt2.mojo", "precision": "fp32", "ours": True, "losses": [1.0]}
    one = {"ms": [900.0, *(500.0 + i for i in range(10))], "warm_up": 1, "first_step_s": 2.0}
    rounds = [one | {"peak_mb": 2500.0, "others": 0.01}]
    other = entry | {"contestant": "torch", "label": "PyTorch", "ours": False}
    empty = {key: [] for key in ("waits", "missing", *results.PARTS)}
    file = {
        "format": results.FORMAT,
        "date": "2026-11-21 12:00 UTC",
        "commit": "abc",
        "machine": {"cpu": "x", "family": "1/2", "vectors": [], "cores": 2, "memory_gb": 8},
        "versions": {"mojo-compiler": "1", "torch": "2", "gcc": "gcc 12"},
        "limits": [{"gflops": 500.0, "bf16_gflops": 1000.0, "read_gbs": 90.0, "copy_gbs": 70.0, "adamw_gbs": 130.0}],
    }
    return empty | file | {"steps": [entry | {"rounds": rounds}, other | {"rounds": copy.deepcopy(rounds)}]}


def slowed(measured, contestant, factor):
    changed = copy.deepcopy(measured)
    for entry in changed["steps"]:
        if entry["contestant"] == contestant:
            entry["rounds"][0]["ms"] = [ms * factor for ms in entry["rounds"][0]["ms"]]
    return changed


@pytest.mark.parametrize(
    "contestant, factor, status, verdict",
    [
        ("mojo", 1.1, 1, "slower"),
        ("mojo", 0.9, 0, "FASTER"),
        ("mojo", 1.03, 0, "same"),
        ("torch", 1.5, 0, "slower"),
    ],
)
def test_compare(contestant, factor, status, verdict, measured, tmp_path, capsys):
    results.write(tmp_path / "old.json", measured)
    results.write(tmp_path / "new.json", slowed(measured, contestant, factor))
    assert main(["bench", "compare", str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == status
    output = capsys.readouterr()
    assert verdict in output.out
    assert ("train_gpt2.mojo (124M)" in output.err) == (status == 1)


def test_noise_is_no_regression(measured):
    """A median that is 8% higher, of timings that scatter as widely."""
    measured["steps"][0]["rounds"][0]["ms"] = [0, 400, 450, 500, 550, 600, 650]
    noisy = slowed(measured, "mojo", 1.08)
    change = changes(measured, noisy)[0]
    assert change.percent == pytest.approx(8) and not change.beyond_noise and change.verdict(5) == "same"


def test_ranking(measured):
    """Two change places; who is within the threshold before and after shares a place with the other."""
    measured["steps"][1]["rounds"][0]["ms"] = [ms * 1.03 for ms in measured["steps"][0]["rounds"][0]["ms"]]
    assert overtakings(measured, slowed(measured, "mojo", 1.06), 5) == {"124M": []}
    assert overtakings(measured, slowed(measured, "mojo", 1.1), 5) == {"124M": [("train_gpt2.mojo", "PyTorch")]}


def test_compare_refuses_other_files(tmp_path, capsys):
    (tmp_path / "x.json").write_text("{}")
    assert main(["bench", "compare", str(tmp_path / "x.json"), str(tmp_path / "y.json")]) == 1
    assert f"expected format {results.FORMAT}" in capsys.readouterr().err


# ----- what is published


def test_results_survive_the_file(measured, tmp_path):
    results.write(tmp_path / "x.json", measured)
    found = results.read(tmp_path / "x.json")
    expected = {"median": 504.5, "low": 500, "high": 509, "count": 10, "from": 501, "to": 508}
    assert found["steps"][0].pop("summary") == expected
    found["steps"][1].pop("summary")
    assert found == measured


def test_warm_up_does_not_count(measured):
    s = results.summary(measured["steps"][0])
    assert (s.low, s.high, s.count, s.median) == (500, 509, 10, 504.5)
    floor = 190 / 500 * 1000 + 3500 / 130
    assert results.floor_ms(measured["steps"][0], measured) == pytest.approx(floor)


def test_shares_are_of_what_was_measured_beside(measured):
    """Writing text at 40 and 80 GB/s beside sums at 80 and 100; AdamW at 50 beside a pass at 100."""
    text = {"task": "continue", "title": "One text", "label": "ours", "weights_mb": 500.0}
    measured["generation"] = [text | {"tokens_per_second": [80.0, 160.0], "sum_gbs": [80.0, 100.0]}]
    assert "| ours | 120 (80.0 to 160) | 60.0 | 65% |" in report.generation(measured)
    measured["memory"] = [{"name": "adamw_update", "gigabytes": 1.0, "ms": [20.0], "limits_gbs": [100.0]}]
    assert "| adamw_update | 50 | 50% |" in report.memory_table(measured)


def test_table_of_tokens(measured):
    rates = {"a": [130.0], "b": [1.0, 3.0]}
    measured["tokens"] = [{"text": name, "label": "ours", "mb_per_second": each} for name, each in rates.items()]
    assert "| | a | b |" in report.tokens(measured)
    assert "| ours | 130 (130 to 130) | 2.0 (1.0 to 3.0) |" in report.tokens(measured)


def test_charts_keep_their_data(measured, tmp_path):
    paths = bench_charts.draw_all({"x.json": measured}, tmp_path)
    names = {path.name for path in paths}
    assert names >= {f"training_loop_times_chart-other-vectors{theme}.png" for theme in ("", "-dark")}
    for path in paths:
        name = path.stem.removesuffix("-dark").removesuffix("-other-vectors")
        assert charts.read_data(path) == bench_charts.CHARTS[name].data(measured)


def two_kinds(measured):
    """The same figures of a machine with AVX-512 and of one without, where PyTorch is twice as fast."""
    older = slowed(measured, "torch", 0.5)
    measured["machine"]["vectors"], older["machine"]["vectors"] = ["avx2", "avx512f"], ["avx2"]
    return {"new.json": measured, "old.json": older}


def test_readme_has_a_column_for_each_kind_of_machine(measured):
    section = report.section(two_kinds(measured))
    assert "| ms a step | 124M, B=4, T=64, AVX-512 | 124M, B=4, T=64, AVX2 |" in section
    assert "| train_gpt2.mojo | **504** | 504 |" in section and "| PyTorch | **504** | **252** |" in section
    assert "Not first: 124M, B=4, T=64, AVX2, fp32: PyTorch takes 0.50 of our time." in section


def test_the_newest_file_of_each_kind_is_reported(measured, tmp_path):
    files = two_kinds(measured)
    for name, found in files.items():
        results.write(tmp_path / name, found)
    results.write(tmp_path / "older.json", files["old.json"] | {"date": "2025-11-21 12:00 UTC"})
    assert {path.name for path in report.newest(tmp_path)} == {"new.json", "old.json"}
    assert list(report.read_machines(report.newest(tmp_path))) == ["new.json", "old.json"]
    with pytest.raises(Error, match="found two of AVX2"):
        report.read_machines([tmp_path / "old.json", tmp_path / "older.json"])


def published(readme="README.md"):
    """The files of results that the README's table names, and what stands between a page's markers."""
    text = (ROOT / "README.md").read_text()
    sources = re.findall(r"\((bench/results/\S+\.json)\)", text.partition(report.BEGIN)[2].partition(report.END)[0])
    assert sources, "the README has no table of the bench"
    for source in sources:
        tracked = subprocess.run(["git", "ls-files", source], cwd=ROOT, capture_output=True, text=True)
        assert tracked.returncode or tracked.stdout.strip() == source, f"{source} is not committed"
    section = (ROOT / readme).read_text().partition(report.BEGIN)[2].partition(report.END)[0]
    return report.read_machines(ROOT / source for source in sources), section


def test_readme_is_the_results():
    """Every figure of the README's table follows from the files that it names."""
    machines, section = published()
    assert section == "\n" + report.section(machines)


def test_bench_readme_is_the_results():
    machines, section = published("bench/README.md")
    assert section == "\n" + report.bench_section(machines)


@pytest.mark.parametrize("readme", ["README.md", "bench/README.md"])
def test_links_lead_somewhere(readme):
    text = (ROOT / readme).read_text()
    links = re.findall(r'\]\(([^)#:]+)\)|(?:src|srcset)="([^":]+)"', text)
    for link in {"".join(pair) for pair in links}:
        assert (ROOT / readme).parent.joinpath(link).exists(), f"{readme} links {link}"


def test_pictures_are_the_results():
    """Every bar of every chart follows from the same files, and no chart is left over from another."""
    expected = {}
    for found in published()[0].values():
        for name, chart in bench_charts.CHARTS.items():
            if data := chart.data(found):
                for theme in ("", "-dark"):
                    expected[f"{results.chart_name(name, found)}{theme}.png"] = data
    assert {path.name for path in (ROOT / "imgs").iterdir()} == expected.keys()
    for name, data in expected.items():
        assert charts.read_data(ROOT / "imgs" / name) == data, name


# ----- programs that only the bench builds


@pytest.mark.long
def test_max_trains_as_ours(tiny, mojo_program):
    """The step with MAX's products in place of ours, ragged and padded sizes, two threads."""
    program = Workshop().mojo("train_gpt2.mojo", MAX_LINALG)
    flags = ["-s", 0, "--threads", 2]
    ours = losses(mojo_program("train_gpt2.mojo").path, tiny, "shard_*.bin", 6, *flags)
    assert losses(program, tiny, "shard_*.bin", 6, *flags) == pytest.approx(ours, rel=2e-5)


@pytest.mark.long
@pytest.mark.parametrize("source", sorted(path.name for path in (ROOT / "bench").glob("*_*.mojo")))
def test_programs_build(source):
    program = Workshop().mojo(f"bench/{source}", options=["--Werror", "-D", "TRACE"])
    if source == "bench_limits.mojo":
        found = json.loads(subprocess.run([program], capture_output=True, text=True, check=True).stdout)
        assert min(found.values()) > 0
    else:
        help_text = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
        assert help_text.startswith(f"usage: {Path(source).stem}")


@pytest.mark.long
def test_rungs_of_the_ladder_agree():
    """Each rung of bench/story/ladder.mojo computes what the first does, or the program ends with status 1."""
    program = Workshop().mojo("bench/story/ladder.mojo", options=["--Werror"])
    found = json.loads(subprocess.run([program], capture_output=True, text=True, check=True).stdout)
    kept = json.loads((ROOT / "bench/story/story.json").read_text())["ladder"]
    assert [rung["name"] for rung in found["rungs"]] == [rung["name"] for rung in kept["rungs"]]


# ----- loss over seconds


def test_curves_of_losses_count_the_seconds_of_steps_only():
    times = [900.0, 20.0, 10.0, 10.0, 12.0]
    records = [{"step": 0, "val_loss": 4.0}]
    for step, ms in enumerate(times, 1):
        records += [{"step": step, "loss": 3.0, "ms": ms}]
        records += [{"step": step, "val_loss": 4.0 - step / 2}] if step % 2 == 0 else []
    curve = loss.curve_of(records)
    assert curve == [
        {"step": 0, "seconds": 0.0, "val_loss": 4.0},
        {"step": 2, "seconds": 0.024, "val_loss": 3.0},
        {"step": 4, "seconds": 0.046, "val_loss": 2.0},
    ]
    assert loss.seconds_to(curve, 4.5) == 0 and loss.seconds_to(curve, 1.9) == float("inf")
    assert loss.seconds_to(curve, 2.25) == pytest.approx(0.024 + 0.75 * 0.022)
    with pytest.raises(Error, match="no times of steps"):
        loss.curve_of(records[:1])


def test_pytorch_follows_the_recipe_of_the_trainer(tiny, mojo_program, tmp_path):
    """The same rates, and the same validation loss of the same weights."""
    config, tensors = formats.read_checkpoint(tiny / "tiny.bin")
    data = ["-e", tiny / "tiny.bin", "-i", tiny / "shard_*.bin", "-j", tiny / "shard_1.bin", "-b", 1, "-t", 13]
    flags = [*data, "--preset", ROOT / "presets" / "shakespeare-char.toml", "-x", 30, "-u", 7, "-v", 30, "-s", 0]
    flags += ["-n", 0, "-o", tmp_path / "run"]
    mojo_program("train_gpt2.mojo").run(*[str(flag) for flag in flags if flag is not None])
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    settings = loss.recipe() | {"max-steps": 30, "warmup": 7}
    expected = [torch_loss.rate(step, settings) for step in range(30)]
    assert [record["lr"] for record in records if "lr" in record] == pytest.approx(expected, rel=1e-5)

    model = torch_step.GPT2(config)
    model.load(tensors)
    tokens = torch.from_numpy(np.array(formats.read_tokens(tiny / "shard_1.bin"))).long()
    assert records[0]["val_loss"] == pytest.approx(torch_loss.validate(model, tokens, 13), abs=1e-5)


def test_losses_in_tables_and_charts(tmp_path):
    entries = []
    for seed, end in (1, 1.7), (2, 2.0):
        curve = [{"step": 0, "seconds": 0.0, "val_loss": 4.0}, {"step": 10, "seconds": 2.0, "val_loss": end}]
        entry = {"contestant": "mojo-muon", "label": "Muon", "precision": "fp32", "flags": "", "ours": True}
        entries.append(entry | {"seed": seed, "curve": curve})
    text = report.loss({"loss": entries})
    seconds = 2 * (4 - loss.TARGET) / (4 - 1.7)
    assert f"| **Muon** | {seconds:.1f} (in 1 of 2) | 10 | 2.0 (2.0 to 2.0) | 1.850 (1.700 to 2.000) |" in text
    data = bench_charts.loss_over_seconds({"loss": entries})
    paths = charts.save(lambda figure, theme: bench_charts.draw_loss(figure, theme, data), tmp_path / "a.png", 4, data)
    assert charts.read_data(paths[0])[0]["curves"][1] == [[0.0, 4.0], [2.0, 2.0]]
    assert report.loss({"loss": []}) == "" and bench_charts.loss_over_seconds({"loss": []}) is None
