"""Training and evaluation as a library: no flags, no screen, no signals; who waits is told, and may end it."""

from std.tempfile import mkdtemp
from std.testing import TestSuite, assert_equal, assert_false, assert_raises, assert_true
from std.utils.numerics import inf, nan

from llm.base.memory import Arena
from llm.cpu.adamw import AdamWSettings
from llm.data.loader import DataLoader
from llm.data.token_spool import TokenSpool
from llm.eval.watcher import Watcher
from llm.eval.windows import SlidingWindow, evaluate_shards
from llm.formats.training_state import SHUFFLED
from llm.model.config import GPT2Config
from llm.model.gpt2 import GPT2
from llm.optim.adamw import AdamW
from llm.optim.schedule import Schedule
from llm.train.config import TrainConfig
from llm.train.run_folder import load_checkpoint, save_checkpoint
from llm.train.trainer import Trainer

comptime F32 = DType.float32
comptime B = 2
comptime T = 5
comptime V = 23
comptime TOKENS = 97


@fieldwise_init
struct Impatient(Watcher):
    """Ends a job after so many calls, and writes down what it is told."""

    var patience: Int
    var told: Pointer[List[Int], MutUntrackedOrigin]

    def stopped(self) -> Bool:
        return len(self.told[]) // 2 >= self.patience

    def show(mut self, done: Int, total: Int, what: String):
        self.told[].append(done)
        self.told[].append(total)


def shard(folder: String) raises -> String:
    """Writes tokens that follow a rule, and returns their file."""
    var spool = TokenSpool(folder + "/all.bin", V)
    var tokens = List[Int32]()
    for i in range(TOKENS):
        tokens.append(Int32(i * i % V))
    spool.append(tokens)
    var file = spool.shard(folder + "/tokens.bin", 0, TOKENS)
    file.commit()
    return file.path


def model(seed: Int) raises -> GPT2[F32]:
    var made = GPT2[F32](GPT2Config(max_seq_len=T, vocab_size=V, num_layers=2, num_heads=2, channels=16), 2, B, T)
    made.initialize(seed)
    return made^


def trainer(path: String, var config: TrainConfig, seed: Int = 1) raises -> Trainer[F32, AdamW]:
    var train_data = DataLoader(path, B, T, vocab_size=V, order=SHUFFLED)
    var val_data = DataLoader(path, B, T, vocab_size=V)
    var gpt2 = model(seed)
    var optimizer = AdamW(gpt2.config, AdamWSettings())
    return Trainer(config^, gpt2^, optimizer^, train_data^, val_data^)


def refuse(config: TrainConfig, expected: String) raises:
    with assert_raises(contains=expected):
        config.validate()


def test_settings_that_make_no_sense() raises:
    TrainConfig().validate()
    TrainConfig(steps=0, val_batches=-1, schedule=Schedule("wsd", peak=0, final_fraction=0)).validate()
    refuse(TrainConfig(steps=-1), "training: expected steps of at least 0, got -1")
    refuse(TrainConfig(passes=0), "training: expected passes of at least 1, got 0")
    refuse(TrainConfig(val_batches=-2), "training: expected val_batches of at least -1, got -2")
    refuse(TrainConfig(dropout=1), "training: expected a dropout from 0 to below 1, got 1.0")
    refuse(TrainConfig(dropout=nan[DType.float64]()), "training: expected a dropout from 0 to below 1, got nan")
    refuse(TrainConfig(grad_clip=inf[DType.float64]()), "training: expected a grad_clip of at least 0, got inf")
    refuse(TrainConfig(skip_loss_z=-1), "training: expected a skip_loss_z of at least 0, got -1.0")
    refuse(TrainConfig(skip_norm_z=-1), "training: expected a skip_norm_z of at least 0, got -1.0")
    refuse(TrainConfig(schedule=Schedule("step")), "expected cosine, linear, constant or wsd, got 'step'")
    refuse(TrainConfig(schedule=Schedule(peak=-1)), "schedule: expected a peak of at least 0, got -1.0")
    refuse(TrainConfig(schedule=Schedule(warmup=-1)), "schedule: expected a warmup of at least 0 steps, got -1")
    refuse(TrainConfig(schedule=Schedule(final_fraction=2)), "schedule: expected a final_fraction from 0 to 1, got 2.0")


def test_a_trainer_refuses_them() raises:
    with assert_raises(contains="training: expected passes of at least 1, got 0"):
        _ = trainer(shard(mkdtemp()), TrainConfig(passes=0))


def test_validation_is_the_mean_over_its_batches() raises:
    var path = shard(mkdtemp())
    var run = trainer(path, TrainConfig(val_batches=3))
    var data = DataLoader(path, B, T, vocab_size=V)
    var arena = Arena(4096)
    var inputs = arena.carve[DType.int32](B * T)
    var targets = arena.carve[DType.int32](B * T)
    var sum = Float64(0)
    var other = model(1)
    for _ in range(3):
        data.next_batch(inputs, targets)
        other.forward(inputs, B, T)
        sum += other.loss(targets).cast[DType.float64]()
    _ = arena^
    assert_equal(run.validate().value(), Float32(sum / 3))
    assert_equal(run.validate().value(), Float32(sum / 3))
    run.config.val_batches = 0
    with assert_raises(contains="validate: expected val_batches of at least 1, or -1 for all, got 0"):
        _ = run.validate()


def test_a_validation_is_followed_and_ended() raises:
    var run = trainer(shard(mkdtemp()), TrainConfig(val_batches=-1))
    var batches = (TOKENS - 1) // (B * T)
    var told = List[Int]()
    var address = Pointer[List[Int], MutUntrackedOrigin](unsafe_from_address=Int(Pointer(to=told)))
    assert_true(run.validate(Impatient(batches + 1, address)))
    assert_equal(len(told), 2 * batches)
    for i in range(batches):
        assert_equal(told[2 * i], i + 1)
        assert_equal(told[2 * i + 1], batches)
    for patience in range(2):
        told.clear()
        assert_false(run.validate(Impatient(patience, address)))
        assert_equal(len(told), 2 * patience)
    _ = told^


def test_an_evaluation_is_followed_and_ended() raises:
    var path = shard(mkdtemp())
    var judge = model(1)
    var windows = SlidingWindow(path, T, T)
    var whole = evaluate_shards(judge, windows)
    assert_equal(whole.targets, TOKENS - 1)
    var told = List[Int]()
    var address = Pointer[List[Int], MutUntrackedOrigin](unsafe_from_address=Int(Pointer(to=told)))
    var begun = evaluate_shards(judge, windows, watcher=Impatient(2, address))
    assert_equal(begun.targets, 2 * B * T)
    assert_equal(told, [B, windows.num_windows, 2 * B, windows.num_windows])
    _ = told^


def test_a_checkpoint_takes_another_trainer_to_the_same_place() raises:
    """Over the end of an epoch, with dropout, accumulation and a sampler that has drawn."""
    var folder = mkdtemp()
    var path = shard(folder)
    var config = TrainConfig(steps=20, passes=2, dropout=0.1, grad_clip=1, schedule=Schedule("cosine", peak=1e-2))
    var first = trainer(path, config.copy())
    for _ in range(6):
        _ = first.step()
    _ = first.state.validated(first.validate().value())
    first.state.sampler.set_rng_state(99)
    save_checkpoint(folder, first)

    var second = trainer(path, config.copy(), seed=2)
    load_checkpoint(folder, 6, second)
    assert_equal(second.state.json(), first.state.json())
    for _ in range(6):
        var ours = second.step()
        var expected = first.step()
        assert_equal(ours.loss, expected.loss)
        assert_equal(ours.norm, expected.norm)
        assert_equal(ours.sample, expected.sample)
        assert_equal(ours.epoch, expected.epoch)
    assert_equal(first.train_data.epoch, 2)
    assert_equal(second.validate().value(), first.validate().value())


def main() raises:
    TestSuite.discover_tests[__functions_in_module()]().run()
