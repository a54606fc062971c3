"""llm/cli/arguments.mojo: what it takes, what it says about mistakes, and the help."""

import pytest

DEFAULTS = {
    "batch-size": "4",
    "seq-len": "64",
    "learning-rate": "0.0001",
    "keep": "0",
    "schedule": "cosine",
    "shuffle": "True",
    "out": " False",
    "dry-run": "False",
}


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("tests/programs/arguments.mojo")


def values(output):
    """The values that the program read, after the block of settings."""
    return dict(line.split(" ", 1) for line in output.splitlines()[9:])


@pytest.mark.parametrize(
    ("words", "changed"),
    {
        "": {},
        "-b 8": {"batch-size": "8"},
        "--batch-size 8": {"batch-size": "8"},
        "--batch-size=8": {"batch-size": "8"},
        "-b=8": {"batch-size": "8"},
        "-b 8 -b 9": {"batch-size": "9"},
        "-nk 3": {"keep": "3"},
        "--seq-len 1 -t 1024": {"seq-len": "1024"},
        "-l 3e-4": {"learning-rate": "0.0003"},
        "--shuffle 0 --dry-run -k linear": {"shuffle": "False", "dry-run": "True", "schedule": "linear"},
        "-o a=b": {"out": "a=b True"},
        "-o=": {"out": " True"},
        "-o -": {"out": "- True"},
    }.items(),
)
def test_values(words, changed, program):
    assert values(program.output(*words.split())) == DEFAULTS | changed


def test_settings_are_aligned(program):
    assert program.output("-b", 12, "--dry-run").splitlines()[:9] == [
        "train-data     data/*.bin",
        "batch-size     12",
        "seq-len        64",
        "learning-rate  1e-4",
        "keep           0",
        "schedule       cosine",
        "shuffle        1",
        "out            none",
        "dry-run        on",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    {
        "-b 0": "--batch-size: expected an integer of at least 1, got '0'",
        "-b x": "--batch-size: expected an integer of at least 1, got 'x'",
        "-b 1.5": "--batch-size: expected an integer of at least 1, got '1.5'",
        "--batch-size=": "--batch-size: expected an integer of at least 1, got ''",
        "-b 99999999999999999999": "--batch-size: expected an integer of at least 1, got '99999999999999999999'",
        "-t 2000": "--seq-len: expected an integer from 1 to 1024, got '2000'",
        "-l -1": "--learning-rate: expected a number of at least 0.0, got '-1'",
        "-l nan": "--learning-rate: expected a number of at least 0.0, got 'nan'",
        "-l inf": "--learning-rate: expected a number of at least 0.0, got 'inf'",
        "-l fast": "--learning-rate: expected a number of at least 0.0, got 'fast'",
        "-k step": "--schedule: expected cosine|linear, got 'step'",
        "--shuffle 2": "--shuffle: expected an integer from 0 to 1, got '2'",
        "--dry-run=1": "--dry-run: expected no value, got '1'",
        "-b": "-b: expected a value (-b --batch-size N), got none",
        "--shuffle": "--shuffle: expected a value (--shuffle 0|1), got none",
        "-b --seq-len 4": "-b: expected a value (-b --batch-size N), got none",
        "data.bin": "unexpected 'data.bin': values follow their flag",
        "--batch 4": "unknown flag --batch; did you mean --batch-size?",
        "--batch_size=4": "unknown flag --batch_size; did you mean --batch-size?",
        "-batch-size 4": "unknown flag -batch-size; did you mean --batch-size?",
        "--bacth-size 4": "unknown flag --bacth-size; did you mean --batch-size?",
        "--learningrate 1": "unknown flag --learningrate; did you mean --learning-rate?",
        "--Seq-Len 4": "unknown flag --Seq-Len; did you mean --seq-len?",
        "--shedule linear": "unknown flag --shedule; did you mean --schedule?",
        "-B 4": "unknown flag -B; did you mean -b?",
        "-n 4": "unknown flag -n; did you mean -nk?",
        "--hlep": "unknown flag --hlep; did you mean --help?",
    }.items(),
)
def test_mistakes(words, message, program):
    error = program.error(*words.split(), status=2)
    assert error == f"arguments: {message}\n`arguments --help` lists the flags\n"


@pytest.mark.parametrize("words", ["-h", "--help", "-b 3 -h", "--wrong --help"])
def test_help(words, program):
    text = program.output(*words.split())
    assert text.startswith("usage: arguments [flags]\n\nShows its arguments.\n\n")
    assert "\n   -b --batch-size N            sequences per batch (B) (default: 4)\n" in text
    assert "\n  -nk --keep N                  checkpoints to keep (default: 0)\n" in text
    assert "\n      --dry-run                 plan only\n" in text
    assert text.endswith("\n   -h --help                    this text\n      --version                 the version\n")
