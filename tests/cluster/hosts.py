"""Several hosts on one machine: network, PID, UTS and mount namespaces, a switch between them, sshd on each."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

INIT = Path(__file__).with_name("host_init.sh")
NETWORK = "10.77.0"
PROGRAMS = {"ip": "iproute2", "unshare": "util-linux", "sshd": "openssh-server", "pdsh": "pdsh", "munged": "munge"}
PROGRAMS |= {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_SSHD = """\
ListenAddress {address}
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/id_ed25519.pub
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
UseDNS no
MaxStartups 100
"""
_SSH = """\
Host *
  IdentityFile /etc/ssh/id_ed25519
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""


def what_is_missing() -> str | None:
    """Why no hosts can be made here: in a word for a test's skip; None when they can."""
    if os.geteuid() != 0:
        return "not root"
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program, path=SYSTEM_PATH) is None]
    if missing:
        return f"packages missing: {' '.join(sorted(set(missing)))} (make cluster-packages)"
    probe = subprocess.run(["unshare", "--net", "--pid", "--mount", "--fork", "true"], capture_output=True, check=False)
    return None if probe.returncode == 0 else "namespaces not allowed"


class Hosts:
    """Hosts node1, node2, ... with addresses 10.77.0.11, ...; a context manager. `folder` holds what they write.

    disk: a small file system that all of them see, which a test may fill.
    """

    def __init__(self, folder: Path, *, count: int) -> None:
        self.folder = folder
        self.disk = folder / "disk"
        self.names = [f"node{number}" for number in range(1, count + 1)]
        self._prefix = f"bertline-{os.getpid()}"
        self._running: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
        self._machine_name = Path("/etc/hostname")

    def __enter__(self) -> Hosts:
        self.disk.mkdir()
        # Before the first boot: what is mounted later, a host does not see.
        _call("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", self.disk)
        try:
            self._lay_cables()
            for name in ("id_ed25519", "host_key"):
                _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name)
            for name in self.names:
                self._write_etc(name)
                self.boot(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._running):
            self.power_off(name)
        for name in ("switch", *self.names):
            subprocess.run(["ip", "netns", "del", self._namespace(name)], capture_output=True, check=False)
        subprocess.run(["umount", self.disk], capture_output=True, check=False)

    def address(self, name: str) -> str:
        """A host's address on the switch."""
        return f"{NETWORK}.{11 + self.names.index(name)}"

    def etc(self, name: str) -> Path:
        """The folder whose contents a host sees in /etc."""
        return self.folder / "etc" / name

    def boot(self, name: str) -> None:
        """Power on, and wait until sshd answers."""
        # A host ends with the tests, however they end.
        argv = ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self._namespace(name)]
        argv += ["unshare", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
        argv += ["bash", str(INIT), name, str(self.etc(name))]
        with (self.folder / f"{name}.boot.log").open("ab") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_until(lambda: children.read_text().strip(), what=f"{name} to start")
        self._running[name] = (process, int(children.read_text()))
        wait_until(lambda: "LISTEN" in self._listening(name), what=f"sshd of {name}")

    def power_off(self, name: str) -> None:
        """End a host and everything on it at once, as a power cut does; its cable goes first, so that nobody hears."""
        process, init = self._running.pop(name)
        self.cut(name)
        os.kill(init, signal.SIGKILL)
        process.wait()

    def cut(self, name: str) -> None:
        """Pull a host's cable out of the switch."""
        _call("ip", "-n", self._namespace("switch"), "link", "set", f"port-{name}", "down")

    def heal(self, name: str) -> None:
        """Put it back."""
        _call("ip", "-n", self._namespace("switch"), "link", "set", f"port-{name}", "up")

    def argv(self, name: str, command: Sequence[object], *, cwd: Path) -> list[str]:
        """What runs a command on a host, seen from the machine."""
        init = self._running[name][1]
        enter = ["nsenter", f"--target={init}", "--mount", "--uts", "--net", "--pid", f"--wd={cwd}", "--"]
        return [*enter, *map(str, command)]

    def run(
        self,
        name: str,
        *command: object,
        cwd: Path = Path("/"),
        env: Mapping[str, str] | None = None,
        expect: int | None = 0,
        timeout_s: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host to its end; fails the test when the exit code is not as expected."""
        environment = {"PATH": SYSTEM_PATH, "HOME": os.environ.get("HOME", "/root"), **(env or {})}
        done = subprocess.run(
            self.argv(name, command, cwd=cwd),
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if expect is not None:
            assert done.returncode == expect, f"exit code {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def _namespace(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def _lay_cables(self) -> None:
        switch = self._namespace("switch")
        _call("ip", "netns", "add", switch)
        _call("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
        _call("ip", "-n", switch, "link", "set", "br0", "up")
        for name in self.names:
            own = self._namespace(name)
            _call("ip", "netns", "add", own)
            # DeepSpeed's own MPI runner looks for the name eth0.
            cable = ("type", "veth", "peer", "name", "eth0", "netns", own)
            _call("ip", "-n", switch, "link", "add", f"port-{name}", *cable)
            _call("ip", "-n", switch, "link", "set", f"port-{name}", "master", "br0", "up")
            _call("ip", "-n", own, "link", "set", "lo", "up")
            _call("ip", "-n", own, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            _call("ip", "-n", own, "link", "set", "eth0", "up")

    def _write_etc(self, name: str) -> None:
        etc = self.etc(name)
        for folder in ("ssh", "munge", "slurm"):
            (etc / folder).mkdir(parents=True)
        known = [f"{self.address(host)} {host}" for host in self.names]
        (etc / "hosts").write_text("\n".join(["127.0.0.1 localhost", *known]) + "\n")
        (etc / "hostname").write_text(f"{name}\n")
        for key in ("id_ed25519", "id_ed25519.pub", "host_key"):
            shutil.copy(self.folder / key, etc / "ssh" / key)
        (etc / "ssh/sshd_config").write_text(_SSHD.format(address=self.address(name)))
        (etc / "ssh/ssh_config").write_text(_SSH)
        (etc / "munge").chmod(0o700)

    def _listening(self, name: str) -> str:
        command = ["ip", "netns", "exec", self._namespace(name), "ss", "-Hltn", "sport = :22"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def wait_until(condition, *, what: str, timeout_s: float = 120.0, every_s: float = 0.05):
    """Look every so often until a condition holds, and give its value; fails the test when it never does."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(every_s)
    return value


def _call(*argv: object) -> None:
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
