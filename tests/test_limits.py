"""How many threads and how much memory the programs take for granted: cores, and the limits of control groups (cgroups).

Both versions of cgroups are tried on trees of files that a test makes, and whichever this machine has, live.
"""

import contextlib
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llm_mojo import formats
from mojo_programs import ROOT

MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
CPUS = len(os.sched_getaffinity(0))
NO_LIMIT = "9223372036854771712"
V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1_CPU = "32 31 0:29 {} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct"
V1_MEMORY = "35 31 0:32 {} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("tests/programs/limits.mojo")


def found(program, root="", cpus="0"):
    """(threads, memory, cores) as the program finds them."""
    return tuple(map(int, program.output(root, cpus).split()))


def machine(root, cgroup, mounts, files):
    """Makes the files of a machine: those of this process, and others by their path."""
    files = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": "\n".join(mounts), **files}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


# ----- cores


@pytest.mark.parametrize("name", ["core_cpus_list", "thread_siblings_list"])
@pytest.mark.parametrize(
    "siblings, cpus, expected",
    [
        # Intel's numbers, neighbours, four threads a core, and a machine of which half may be used.
        ({0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}, "0-7", 4),
        ({0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, "0-3", 2),
        ({cpu: "0-3" if cpu < 4 else "4-7" for cpu in range(8)}, "0-7", 2),
        ({0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}, "1,4-7", 4),
        ({0: "0-1", 1: "0-1", 70: "70", 71: "71,9"}, "0-1,70-71", 3),
        ({}, "0-4", 5),
        ({0: "nonsense"}, "0-1", 2),
    ],
)
def test_hyperthreads_share_a_core(name, siblings, cpus, expected, program, tmp_path):
    files = {f"sys/devices/system/cpu/cpu{cpu}/topology/{name}": text for cpu, text in siblings.items()}
    assert found(program, machine(tmp_path, "0::/", [V2], files), cpus)[2] == expected


def test_cores_of_this_machine(program):
    """As lscpu counts them, within this process's affinity mask."""
    lines = subprocess.run(["lscpu", "-p=cpu,core,socket"], capture_output=True, text=True, check=True).stdout.split()
    cores = {}
    for line in lines:
        if re.fullmatch(r"\d+,\d+,\d+", line):
            cpu, core, socket = map(int, line.split(","))
            cores[cpu] = (socket, core)
    assert cores
    every = ",".join(map(str, cores))
    assert found(program, cpus=every)[2] == len(set(cores.values()))
    mine = {cores[cpu] for cpu in os.sched_getaffinity(0)}
    assert found(program)[0] <= len(mine)


# ----- control groups on made machines


@pytest.mark.parametrize(
    "quotas, expected",
    [
        # From the process's group up to the root, which has none: processors, None for "max".
        ([None, None], CPUS),
        ([1, None], 1),
        ([None, 1], 1),
        ([0.2, 4], 1),
        ([8, 1], 1),
        ([1.2, None], min(2, CPUS)),
        ([1000, None], CPUS),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_quota_of_processors(version, quotas, expected, program, tmp_path):
    files = {}
    for folder, quota in zip(["jobs/mine", "jobs"], quotas):
        if version == 2:
            text = "max 100000" if quota is None else f"{int(50000 * quota)} 50000"
            files[f"sys/fs/cgroup/{folder}/cpu.max"] = text
        else:
            files[f"sys/fs/cgroup/cpu,cpuacct/{folder}/cpu.cfs_quota_us"] = -1 if quota is None else int(50000 * quota)
            files[f"sys/fs/cgroup/cpu,cpuacct/{folder}/cpu.cfs_period_us"] = 50000
    if version == 2:
        machine(tmp_path, "0::/jobs/mine", [V2], files)
    else:
        cgroup = "9:name=systemd:/jobs/mine\n3:cpu,cpuacct:/jobs/mine\n2:memory:/\n0::/"
        machine(tmp_path, cgroup, [V1_CPU.format("/"), V1_MEMORY.format("/")], files)
    assert found(program, tmp_path)[0] == expected


@pytest.mark.parametrize(
    "limits, expected",
    [
        ([None, None], MEMORY),
        ([10**9, None], 10**9),
        ([None, 10**9], 10**9),
        ([3 * 10**8, 10**9], 3 * 10**8),
        ([10**9, 3 * 10**8], 3 * 10**8),
        ([10 * MEMORY, None], MEMORY),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_limit_of_memory(version, limits, expected, program, tmp_path):
    names = {1: "sys/fs/cgroup/memory/{}/memory.limit_in_bytes", 2: "sys/fs/cgroup/{}/memory.max"}
    none = {1: NO_LIMIT, 2: "max"}
    files = {
        names[version].format(folder): none[version] if limit is None else limit
        for folder, limit in zip(["jobs/mine", "jobs"], limits)
    }
    if version == 2:
        machine(tmp_path, "0::/jobs/mine", [V2], files)
    else:
        cgroup = "3:cpu,cpuacct:/\n2:memory:/jobs/mine\n0::/"
        machine(tmp_path, cgroup, [V1_CPU.format("/"), V1_MEMORY.format("/")], files)
    assert found(program, tmp_path)[1] == expected


def test_a_container_that_sees_only_its_own_group(program, tmp_path):
    """Docker with version 1: the group's path is the host's, of which only the end is mounted."""
    group = "/docker/0123"
    files = {
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": 100000,
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": 100000,
        "sys/fs/cgroup/memory/memory.limit_in_bytes": 10**9,
        # Not on the way: that of another group.
        "sys/fs/cgroup/memory/docker/memory.limit_in_bytes": 5,
    }
    mounts = [V1_CPU.format(group), V1_MEMORY.format(group)]
    cgroup = f"3:cpu,cpuacct:{group}\n2:memory:{group}"
    assert found(program, machine(tmp_path, cgroup, mounts, files))[:2] == (1, 10**9)


def test_a_process_outside_of_what_its_container_sees(program, tmp_path):
    files = {"sys/fs/cgroup/memory.max": 10**9, "sys/fs/cgroup/cpu.max": "100000 100000", "sys/fs/memory.max": 5}
    assert found(program, machine(tmp_path, "0::/../other", [V2], files))[:2] == (1, 10**9)


@pytest.mark.parametrize("cgroup", ["", "0::/gone", "nonsense", "0::", ":::::"])
@pytest.mark.parametrize("mounts", [[], [V2], ["nonsense"], [" - "], ["a b c d e - cgroup2 x y"]])
def test_without_limits_there_is_the_machine(cgroup, mounts, program, tmp_path):
    assert found(program, machine(tmp_path, cgroup, mounts, {}))[:2] == (CPUS, MEMORY)


def test_files_that_say_nothing(program, tmp_path):
    files = {"sys/fs/cgroup/cpu.max": "", "sys/fs/cgroup/memory.max": "many"}
    assert found(program, machine(tmp_path, "0::/", [V2], files))[:2] == (CPUS, MEMORY)


# ----- live


def group_of(controller):
    """(version, folder) of this process's group as the kernel shows it, read in another way than the program's."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for _, controllers, path in lines:
        if controller in controllers.split(","):
            return 1, Path(f"/sys/fs/cgroup/{controller}{path}")
    return 2, Path(f"/sys/fs/cgroup{next(path for _, controllers, path in lines if not controllers)}")


@contextlib.contextmanager
def live_group(controller, **values):
    """Makes a group below this process's with these values in its files, and yields what moves a process into it."""
    version, parent = group_of(controller)
    folder = parent / f"llm-mojo-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            for name, value in values[f"version_{version}"].items():
                (folder / name).write_text(f"{value}\n")
        except OSError as error:
            pytest.skip(f"the control group's {controller} cannot be limited here: {error}")
        yield lambda: (folder / "cgroup.procs").write_text(f"{os.getpid()}\n")
    finally:
        folder.rmdir()


def quota(processors):
    return live_group(
        "cpu",
        version_1={"cpu.cfs_period_us": 100_000, "cpu.cfs_quota_us": int(100_000 * processors)},
        version_2={"cpu.max": f"{int(100_000 * processors)} 100000"},
    )


def memory_limit(size):
    return live_group("memory", version_1={"memory.limit_in_bytes": size}, version_2={"memory.max": size})


@pytest.mark.parametrize("processors", [1, 0.5])
def test_a_live_quota_of_one_processor(processors, program):
    with quota(processors) as enter:
        assert program.output("", "0", preexec_fn=enter).split()[0] == "1"


def test_a_live_quota_of_more_than_one(program):
    with quota(1.5) as enter:
        assert int(program.output("", "0", preexec_fn=enter).split()[0]) == min(2, found(program)[0])


def test_a_live_limit_of_memory(program):
    with memory_limit(1 << 30) as enter:
        assert int(program.output("", "0", preexec_fn=enter).split()[1]) == 1 << 30


def test_training_takes_one_thread_in_a_quota_of_one(tmp_path, mojo_program):
    """And it says so."""
    formats.write_tokens(tmp_path / "tokens.bin", np.zeros(100, "u2"))
    flags = ["-e", "d6", "--n-embd", 16, "--n-head", 1, "--vocab-size", 7, "--block-size", 8, "--dry-run"]
    flags += ["-i", tmp_path / "tokens.bin", "-j", tmp_path / "tokens.bin", "-b", 1, "-t", 8, "-s", 0]
    train = mojo_program("train_gpt2.mojo")
    with quota(1) as enter:
        assert "measured on 1 threads" in train.output(*flags, preexec_fn=enter)


@pytest.fixture(scope="module")
def vast(tmp_path_factory):
    """The checkpoint of a model of 2 GB, all holes, with tokens and a tokenizer of its vocabulary."""
    folder = tmp_path_factory.mktemp("vast")
    config = formats.ModelConfig(max_seq_len=8, vocab_size=97, num_layers=10, num_heads=8, channels=2048)
    size = 4 * formats.num_parameters(config)
    assert 2.0e9 < size < 2.1e9
    header = np.zeros(256, "<i4")
    header[:8] = [20240326, 3, 8, 97, 10, 8, 2048, 128]
    with open(folder / "model.bin", "wb") as file:
        file.write(header.tobytes())
        file.truncate(header.nbytes + size)
    formats.write_tokens(folder / "tokens.bin", np.zeros(100, "u2"))
    formats.write_tokenizer(folder / "tokenizer.bin", [b"%d " % token for token in range(97)], 96)
    return folder


@pytest.mark.parametrize(
    "name, flags",
    [
        ("train_gpt2", ["-i", "{}/tokens.bin", "-j", "{}/tokens.bin", "-b", 1, "-t", 8, "-s", 0]),
        ("sample_gpt2", ["--tokenizer", "{}/tokenizer.bin", "--prompt", "1 2 "]),
        ("eval_gpt2", ["-j", "{}/tokens.bin"]),
    ],
)
def test_a_model_beyond_a_live_limit_is_refused(name, flags, vast, mojo_program):
    """With a message, where the system would kill the program without one."""
    programs = {
        "train_gpt2": mojo_program("train_gpt2.mojo"),
        "sample_gpt2": mojo_program("sample_gpt2.mojo"),
        "eval_gpt2": mojo_program("eval_gpt2.mojo"),
    }
    flags = ["-e", vast / "model.bin", *(str(flag).format(vast) for flag in flags)]
    with memory_limit(10**9) as enter:
        said = programs[name].error(*flags, preexec_fn=enter)
    assert re.search(r"memory: .* needs [\d,]+ MB, this machine, or its container, has 1,000 MB; use ", said)


def test_a_run_beyond_a_live_limit_is_told_what_fits(tmp_path, mojo_program):
    """About 2 GB of activations: a quarter of the batch fits, or all of it with --recompute 1, and what is named does fit."""
    formats.write_tokens(tmp_path / "tokens.bin", np.zeros(16 * 1024 + 1, "u2"))
    files = ["-i", "tokens.bin", "-j", "tokens.bin", "--tokenizer", ""]
    flags = [*files, "-e", "d6", "--n-embd", 384, "--vocab-size", 7, "-b", 16, "-t", 1024]
    program = mojo_program("train_gpt2.mojo")
    with memory_limit(10**9) as enter:
        said = program.error(*flags, cwd=tmp_path, preexec_fn=enter)
        ways = re.search(r"; use (--.*) \([\d,]+ MB\), or (--.*) \([\d,]+ MB\) \(--dry-run", said).groups()
        assert ways == ("--batch-size 4 --total-batch-size 16384", "--recompute 1")
        plans = [program.output(*flags, *way.split(), "--dry-run", cwd=tmp_path, preexec_fn=enter) for way in ways]
    assert all(re.search(r"\nfits +as it is\n", plan) for plan in plans)


# ----- addresses (ulimit -v)


def limited_to(addresses):
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))


@pytest.mark.parametrize("name", ["train_gpt2", "sample_gpt2", "eval_gpt2", "tokenize_text", "test_gpt2"])
def test_too_few_addresses_for_the_allocator(name, mojo_program):
    programs = {
        "train_gpt2": mojo_program("train_gpt2.mojo"),
        "sample_gpt2": mojo_program("sample_gpt2.mojo"),
        "eval_gpt2": mojo_program("eval_gpt2.mojo"),
        "tokenize_text": mojo_program("tokenize_text.mojo"),
        "test_gpt2": mojo_program("test_gpt2.mojo"),
    }
    for addresses in 2_100_000_000, 1_600_000_000:
        said = programs[name].error("--help", preexec_fn=limited_to(addresses))
        assert said.endswith("say ulimit -v unlimited before (it limits addresses, not memory)\n")
        assert "Stack" not in said and "ABORT" not in said
    programs[name].output("--help", preexec_fn=limited_to(3_000_000_000))


def test_too_few_addresses_for_a_model(mojo_program, tmp_path):
    formats.write_tokens(tmp_path / "tokens.bin", np.zeros(1000, "u2"))
    flags = ["-i", tmp_path / "tokens.bin", "-j", tmp_path / "tokens.bin", "--tokenizer", "", "-e", "d12"]
    said = mojo_program("train_gpt2.mojo").error(*flags, preexec_fn=limited_to(3_000_000_000))
    assert re.search(
        r"memory: cannot reserve \d+ bytes: Cannot allocate memory; this process may have 3000000000 bytes of addresses",
        said,
    )


def test_too_few_addresses_for_python():
    limit = "resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9))"
    code = f"import resource; from llm_mojo import native; {limit}; native.program('sample_gpt2')"
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "pysrc")}
    said = subprocess.run(command, capture_output=True, text=True, env=environment).stderr
    assert "expected a limit of 2.2 GB of addresses or more, found 1.0 GB; say ulimit -v unlimited" in said
