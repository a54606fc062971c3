"""`llm_mojo.train` from Python: the program's records, files and bits; stopped, resumed, wrong. And commands as functions."""

import json

import pytest

import llm_mojo
from llm_mojo import formats, notebook
from mojo_programs import ROOT
from tiny_run import STEPS, TIMES, V, checkpoints, final, flags

pytestmark = [pytest.mark.engine, pytest.mark.builds("train_gpt2.mojo")]


@pytest.fixture(scope="module")
def program(mojo_program):
    return mojo_program("train_gpt2.mojo")


@pytest.fixture(autouse=True)
def same_program(program, monkeypatch):
    """The trainer that the tests have built, in place of another build of it."""
    monkeypatch.setattr(llm_mojo.native, "program", lambda name: program.path)


def settings(data, out):
    """The flags of a tiny run as settings."""
    long = {"-i": "train_data", "-j": "val_data", "-b": "batch_size", "-t": "seq_len", "-x": "max_steps"}
    long |= {"-d": "total_batch_size", "-n": "checkpoint_every", "-v": "val_every", "-m": "val_batches"}
    long |= {"-s": "sample_every", "-g": "gen_len", "-l": "learning_rate", "-k": "schedule", "-u": "warmup"}
    long |= {"-q": "final_lr_fraction", "-c": "weight_decay", "-sl": "skip_loss_z", "-sg": "skip_norm_z", "-o": "out"}
    words = flags(data, out)
    return {long.get(flag, flag.lstrip("-").replace("-", "_")): value for flag, value in zip(words[::2], words[1::2])}


def records(run):
    return [{name: value for name, value in record.items() if name not in TIMES} for record in run]


def test_records_files_and_bits_are_the_programs(whole, data, tmp_path):
    seen = []
    found = records(llm_mojo.train(**settings(data, tmp_path / "run"), on_record=seen.append, show=False))
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert seen == log and found == records(log)
    assert final(tmp_path / "run") == final(whole)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(path.name for path in whole.iterdir())


def test_a_run_that_is_stopped_goes_on_with_the_same_bits(whole, data, tmp_path):
    given = settings(data, tmp_path / "run")
    run = llm_mojo.train(**given, show=False)
    for record in run:
        if record["step"] == 7 and "loss" in record:
            run.stop()
            break
    stopped = checkpoints(tmp_path / "run")[-1]
    assert 7 <= stopped < STEPS
    rest = records(llm_mojo.train(**given, resume=1, show=False))
    assert [record["step"] for record in rest if "loss" in record] == list(range(stopped + 1, STEPS + 1))
    assert final(tmp_path / "run") == final(whole)


def test_an_exception_in_a_callback_ends_the_run_and_saves_it(data, tmp_path):
    def fails(record):
        if record["step"] == 5:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        list(llm_mojo.train(**settings(data, tmp_path / "run"), on_record=fails, show=False))
    assert checkpoints(tmp_path / "run")[-1] >= 5


def test_without_a_folder_nothing_stays(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = settings(data, None) | {"max_steps": 6, "checkpoint_every": 0}
    with llm_mojo.train(**given, show=False) as run:
        assert len([record for record in run if "loss" in record]) == 6
    with pytest.raises(llm_mojo.Error, match="keeps nothing"):
        run.model()
    assert not list(tmp_path.iterdir())


def test_what_the_program_refuses_is_an_error(data, tmp_path):
    with pytest.raises(llm_mojo.Error, match="--learning-rate: expected a number"):
        list(llm_mojo.train(**settings(data, tmp_path / "run") | {"learning_rate": "fast"}, show=False))
    with pytest.raises(llm_mojo.Error, match="none.bin"):
        list(llm_mojo.train(train_data=tmp_path / "none.bin", init="d6", val_every=0, show=False))
    with pytest.raises(llm_mojo.Error, match="got both"):
        llm_mojo.train("my.txt", train_data="x.bin")


def test_a_text_is_prepared_trained_and_sampled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Where the trainer looks, which is not at home here.
    (tmp_path / "presets").symlink_to(ROOT / "presets")
    (tmp_path / "my.txt").write_text("a line of text that comes again and again.\n" * 200)
    run = llm_mojo.train("my.txt", max_minutes=0, max_steps=8, val_every=4, show=False)
    assert [record["step"] for record in run if "loss" in record] == list(range(1, 9))
    assert run.folder.name == "my"
    model = run.model()
    assert model.tokenizer.vocab_size == model.config.vocab_size
    assert isinstance(model.generate("a ", 5).text, str)


def test_commands_are_functions(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text("some words\n" * 500)
    llm_mojo.prepare("my.txt", out="shards", tokenizer="byte")
    assert (tmp_path / "shards/tokenizer.bin").is_file()
    with pytest.raises(llm_mojo.Error, match="prepare: .*--nothing"):
        llm_mojo.prepare("my.txt", nothing=1)
    with pytest.raises(llm_mojo.Error, match="no such run"):
        llm_mojo.plot("nowhere", out="x.png")
    with pytest.raises(llm_mojo.Error):
        llm_mojo.export("nowhere", to="hf")


def test_the_curve_of_a_notebook_has_every_point_in_its_frame():
    curve = notebook.Curve()
    assert "begins" in curve.picture(None)
    for step in range(1, 2001):
        curve.add({"step": step, "loss": 5 - step / 500, "ms": 10.0, "tokens_per_second": 5000})
    curve.add({"step": 2000, "val_loss": 1.25})
    picture = curve.picture(4000)
    points = picture.split('points="')[1].split('"')[0].split()
    assert 300 < len(points) < 1100
    for point in points:
        x, y = map(float, point.split(","))
        assert notebook.LEFT <= x <= notebook.WIDTH / 2 + notebook.LEFT and 8 <= y <= notebook.HEIGHT - notebook.BOTTOM
    assert "step 2,000 of 4,000" in picture and "val loss 1.2500" in picture and "0:20 left" in picture


def test_a_loss_that_is_no_number_does_not_spoil_the_curve():
    curve = notebook.Curve()
    for step, loss in enumerate([2.0, float("nan"), 1.0], 1):
        curve.add({"step": step, "loss": loss})
    assert "nan" not in curve.picture(3).split("<svg")[1]


def test_the_model_of_a_run_takes_no_other_tokenizer(data, tmp_path):
    run = llm_mojo.train(**settings(data, tmp_path / "run"), show=False)
    list(run)
    other = [bytes([80 + i]) for i in range(V)]
    formats.write_tokenizer(tmp_path / "other.bin", other, 0)
    with pytest.raises(llm_mojo.Error, match="is not the one that .* was trained with"):
        llm_mojo.GPT2.from_pretrained(tmp_path / "run", tokenizer=llm_mojo.Tokenizer(tmp_path / "other.bin"))
    assert llm_mojo.GPT2.from_pretrained(tmp_path / "run").tokenizer.sha256
