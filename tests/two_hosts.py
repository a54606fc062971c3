"""Two hosts on this machine: network namespaces with names and addresses of their own, a link of 1 Gbit/s between them, ssh.

For root, on a Linux with the commands of NEEDED.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("alpha", "beta")
NEEDED = ("ip", "tc", "ssh", "sshd", "ssh-keygen", "unshare")
RATE = "1gbit"
LINK = "cable"
_PORT = 2222


def are_possible():
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    return os.geteuid() == 0 and all(shutil.which(name, path=path) for name in NEEDED)


def _call(*words, **options):
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True, **options)


class TwoHosts:
    """Used with `with`; `folder` is for keys."""

    def __init__(self, folder):
        self.folder = folder
        self.shell = folder / "ssh.sh"
        self._daemons = []

    def __enter__(self):
        self._remove()
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_):
        self._remove()

    def command(self, name, words):
        """The command that runs another on a host."""
        in_place = [
            "ip",
            "netns",
            "exec",
            _space(name),
            "unshare",
            "--uts",
            "sh",
            "-c",
            f'hostname {name}; exec "$@"',
            "sh",
        ]
        return [*in_place, *(str(word) for word in words)]

    def pids(self, name, executable=None):
        """The processes of a host; those of one program."""
        pids = [int(pid) for pid in _call("ip", "netns", "pids", _space(name)).stdout.split()]
        return [pid for pid in pids if executable is None or _runs(pid, executable)]

    def cut(self):
        """Takes the link down."""
        _call("ip", "-n", _space("alpha"), "link", "set", LINK, "down")

    def mend(self):
        """Brings the link up again."""
        _call("ip", "-n", _space("alpha"), "link", "set", LINK, "up")

    def _make(self):
        for name in NAMES:
            _call("ip", "netns", "add", _space(name))
            hosts = Path("/etc/netns", _space(name), "hosts")
            hosts.parent.mkdir(parents=True, exist_ok=True)
            lines = [f"10.77.0.{number} {each}" for number, each in enumerate(NAMES, 1)]
            hosts.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        a, b = map(_space, NAMES)
        _call("ip", "link", "add", LINK, "netns", a, "type", "veth", "peer", "name", LINK, "netns", b)
        for number, space in enumerate((a, b), 1):
            _call("ip", "-n", space, "addr", "add", f"10.77.0.{number}/24", "dev", LINK)
            _call("ip", "-n", space, "link", "set", "lo", "up")
            _call("ip", "-n", space, "link", "set", LINK, "up")
            limit = ["rate", RATE, "burst", "256kb", "latency", "50ms"]
            _call("tc", "-n", space, "qdisc", "add", "dev", LINK, "root", "tbf", *limit)
        self._start_ssh()

    def _start_ssh(self):
        for key in "host", "user":
            _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / key)
        Path("/run/sshd").mkdir(exist_ok=True)
        daemon, client = self.folder / "sshd_config", self.folder / "ssh_config"
        daemon.write_text(
            f"Port {_PORT}\nHostKey {self.folder}/host\nAuthorizedKeysFile {self.folder}/user.pub\nStrictModes no\n"
            "PermitRootLogin yes\nPidFile none\nUsePAM no\nPermitUserEnvironment no\nMaxStartups 100\n"
        )
        client.write_text(
            f"Port {_PORT}\nIdentityFile {self.folder}/user\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n"
            "LogLevel ERROR\nBatchMode yes\nConnectTimeout 10\n"
        )
        self.shell.write_text(f'#!/bin/sh\nexec ssh -F {client} "$@"\n')
        self.shell.chmod(0o755)
        sshd = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin")
        for name in NAMES:
            words = self.command(name, [sshd, "-D", "-f", daemon])
            self._daemons.append(subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        for name in NAMES:
            self._wait_for_ssh(name)

    def _wait_for_ssh(self, name):
        for _ in range(100):
            if subprocess.run(self.command("alpha", [self.shell, name, "true"]), capture_output=True).returncode == 0:
                return
            time.sleep(0.1)
        raise AssertionError(f"no sshd on {name}")

    def _remove(self):
        for daemon in self._daemons:
            daemon.kill()
            daemon.wait()
        self._daemons = []
        for name in NAMES:
            if Path("/run/netns", _space(name)).exists():
                for pid in self.pids(name):
                    os.kill(pid, 9)
                _call("ip", "netns", "delete", _space(name))
            shutil.rmtree(Path("/etc/netns", _space(name)), ignore_errors=True)


def _space(name):
    return f"llm-mojo-{name}"


def _runs(pid, executable):
    try:
        return Path(f"/proc/{pid}/exe").resolve() == Path(executable).resolve()
    except OSError:
        return False
