"""Whatever is passed to the Python API ends in a result or in a Python exception, and the interpreter goes on."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llm_mojo
from llm_mojo import formats

pytestmark = pytest.mark.engine
CONFIG = formats.ModelConfig(max_seq_len=16, vocab_size=257, num_layers=1, num_heads=2, channels=16)
REFUSALS = (llm_mojo.Error, ValueError, TypeError, OverflowError, MemoryError)

numbers = st.one_of(
    st.integers(-(2**70), 2**70), st.integers(-3, 300), st.floats(), st.booleans(), st.none(), st.text(max_size=3)
)
arrays = st.builds(
    lambda shape, dtype, fill, flip: np.full(shape, fill).astype(dtype)[:: -1 if flip else 1],
    st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple),
    st.sampled_from(["i1", "u8", "i4", ">i4", "f4", "f8", "b1", "O", "S3", "c8"]),
    st.integers(-1, 100),
    st.booleans(),
)
tokens = st.one_of(
    st.lists(st.integers(0, 256), max_size=20),
    st.lists(st.lists(st.integers(0, 256), min_size=2, max_size=2), max_size=4),
    arrays,
    st.text(max_size=20),
    st.binary(max_size=20),
    st.lists(st.text(max_size=4), max_size=3),
    numbers,
)
names = st.sampled_from(list(formats.parameter_shapes(CONFIG)))
draws = st.fixed_dictionaries(
    {},
    optional={
        "temperature": numbers,
        "top_k": numbers,
        "top_p": numbers,
        "stop": st.one_of(numbers, st.lists(st.text(max_size=2), max_size=2)),
        "seed": numbers,
        "n": st.integers(-1, 3),
        "logprobs": numbers,
    },
)
CALLS = st.one_of(
    st.tuples(st.just("logits"), st.tuples(tokens)),
    st.tuples(st.just("loss"), st.tuples(tokens, tokens)),
    st.tuples(st.just("losses"), st.tuples(tokens, tokens)),
    st.tuples(
        st.just("backward"),
        st.tuples(tokens, tokens),
        st.fixed_dictionaries({}, optional={"weight": numbers, "accumulate": st.booleans()}),
    ),
    st.tuples(st.just("attention"), st.tuples(tokens, numbers)),
    st.tuples(st.just("hidden_states"), st.tuples(tokens)),
    st.tuples(st.just("load_parameters"), st.tuples(st.dictionaries(names, st.one_of(arrays, numbers), max_size=2))),
    st.tuples(st.just("step"), st.tuples(numbers)),
    st.tuples(st.just("generate"), st.tuples(tokens, st.integers(-2, 9)), draws),
    st.tuples(st.just("batch"), st.tuples(st.integers(-2, 9), numbers)),
    st.tuples(st.just("tokenizer.encode"), st.tuples(st.one_of(st.text(), st.binary(), numbers))),
    st.tuples(st.just("tokenizer.decode"), st.tuples(tokens)),
)
SIZES = st.tuples(*[st.one_of(st.integers(-1, 40), st.sampled_from([0, 2**20, 2**31 - 1, 2**63, 1.5, None]))] * 5)


def make():
    model = llm_mojo.GPT2(CONFIG, threads=2, tokenizer=llm_mojo.Tokenizer.load("byte"))
    return model


def check(model, call):
    name, arguments, *more = call
    target = model
    for part in name.split("."):
        target = getattr(target, part)
    try:
        target(*arguments, **(more[0] if more else {}))
    except REFUSALS:
        pass


def fuzz(examples):
    model = make()
    good = model.logits([1, 2, 3])
    quiet = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))

    @quiet
    @given(CALLS)
    def calls(call):
        check(model, call)

    @settings(quiet, max_examples=examples // 10)
    @given(SIZES, numbers, st.sampled_from(["fp32", "bf16", "fp16", None]))
    def models(sizes, threads, dtype):
        try:
            llm_mojo.GPT2(formats.ModelConfig(*sizes), threads=threads if threads != 1024 else 4, dtype=dtype)
        except REFUSALS:
            pass

    with np.errstate(all="ignore"):
        calls()
        models()
    assert make().logits([1, 2, 3]).tobytes() == good.tobytes()


def test_200_calls():
    fuzz(200)


@pytest.mark.long
def test_2000_calls():
    fuzz(2000)
