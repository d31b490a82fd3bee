"""A real SLURM on the hosts: munged and slurmd on each, slurmctld on the first, two GPUs a node by name only."""

from __future__ import annotations

import os
import secrets
import stat
import time
from pathlib import Path

from hosts import Hosts, wait_until

CONTROLLER = "node1"

_CONF = """\
ClusterName=test
SlurmctldHost={controller}
SlurmUser=root
SlurmdUser=root
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={state}/controller
SlurmdSpoolDir={state}/spool-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={state}/slurmctld.log
SlurmdLogFile={state}/slurmd-%n.log
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait=5
MessageTimeout=10
GresTypes=gpu
NodeName={nodes} CPUs=4 RealMemory=1000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


class Slurm:
    """SLURM's daemons; they end with their hosts."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        state = hosts.folder / "slurm"
        (state / "controller").mkdir(parents=True)
        for number in range(2):
            # gres.conf asks for devices; these two are /dev/null.
            os.mknod(state / f"gpu{number}", mode=stat.S_IFCHR | 0o666, device=os.makedev(1, 3))
        key, nodes = secrets.token_bytes(128), ",".join(hosts.names)
        for name in hosts.names:
            (state / f"spool-{name}").mkdir()
            self._configure(hosts.etc(name), key=key, nodes=nodes, state=state)
            self.start(name)
        wait_until(lambda: self._idle() == len(hosts.names), what="SLURM's nodes to be idle")

    def start(self, name: str) -> None:
        """Start the daemons of a host."""
        files = [f"--{what}-file=/run/munge/{what}" for what in ("log", "pid", "seed")]
        self._hosts.run(name, "munged", "--key-file=/etc/munge/munge.key", *files)
        if name == CONTROLLER:
            self._hosts.run(name, "slurmctld")
        self._hosts.run(name, "slurmd")

    def state_of(self, job_id: str) -> dict[str, str]:
        """A job's fields as `scontrol show job` gives them."""
        told = self._hosts.run(CONTROLLER, "scontrol", "--oneliner", "show", "job", job_id).stdout
        return dict(part.partition("=")[::2] for part in told.split())

    def wait(self, job_id: str, *, states: tuple[str, ...] = ("COMPLETED",), timeout_s: float = 180) -> dict[str, str]:
        """Wait until a job is in one of the states, and give its fields."""

        def fields() -> dict[str, str] | None:
            found = self.state_of(job_id)
            return found if found["JobState"] in states else None

        # Asking takes a part of the core that the job runs on.
        return wait_until(fields, what=f"job {job_id}", timeout_s=timeout_s, every_s=0.3)

    def start_requeued(self, job_id: str) -> None:
        """Start a job again that SLURM, after its first end, would hold for two minutes.

        It does because nodes tell credentials of a job apart by whole seconds: one of the second in which they
        revoked the last is refused as that one, and the job ends with 1:0 before it begins.
        """
        wait_until(lambda: self._idle() == len(self._hosts.names), what="the nodes to be free again")
        time.sleep(1.1)
        start = ("scontrol", "update", f"JobId={job_id}", "StartTime=now")
        wait_until(
            lambda: self._hosts.run(CONTROLLER, *start, expect=None).returncode == 0, what="SLURM to let the job start"
        )

    def _idle(self) -> int:
        done = self._hosts.run(CONTROLLER, "sinfo", "--noheader", "--states=idle", "--format=%D", expect=None)
        return int(done.stdout.strip() or 0)

    def _configure(self, etc: Path, *, key: bytes, nodes: str, state: Path) -> None:
        (etc / "munge/munge.key").write_bytes(key)
        (etc / "munge/munge.key").chmod(0o400)
        (etc / "slurm/slurm.conf").write_text(_CONF.format(controller=CONTROLLER, state=state, nodes=nodes))
        (etc / "slurm/gres.conf").write_text(f"NodeName={nodes} Name=gpu File={state}/gpu[0-1]\n")
        # Without these two lines slurmd looks for cgroups that are not there, and ends.
        (etc / "slurm/cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
