"""A real SLURM of two nodes on one machine, from Debian's slurmctld, slurmd, slurm-client and munge; needs root.

Each node is a process in network, PID, mount, UTS and IPC namespaces of its own, with its own /tmp/ray, /run and /dev/shm. A
pair of virtual interfaces joins the two; nothing else leaves them. In: a folder. Out: commands that run on a node.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

from tests.support import namespaces
from tests.support.namespaces import SEARCH, Namespaces, wait_until

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "mungekey")
KINDS = ("net", "pid", "mount", "uts", "ipc")
NODES = {"rayclip-1": "10.213.0.1", "rayclip-2": "10.213.0.2"}
FIRST, SECOND = NODES
CREDENTIALS_S = 10
"""SLURM starts a job that was queued again only after its credentials have expired; 120 s by default."""

CONFIGURATION = """
ClusterName=rayclip
SlurmctldHost={first}({address})
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire={credentials}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdParameters=config_overrides
SlurmdTimeout=15
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
GresTypes={gres}
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Return why a SLURM cannot be started here; "" if it can."""
    return namespaces.missing(*PROGRAMS, install="slurmctld slurmd slurm-client munge iproute2")


class SlurmCluster:
    """Two nodes with one CPU each, slurmctld on the first, from `__enter__` to `__exit__`.

    Args:
        folder: for configuration, logs and the home of the jobs; all nodes see it.
        gpus: GPUs per node that SLURM is told of, as plain numbers; None: it knows no GPUs.
    """

    def __init__(self, folder: Path, gpus: int | None = None) -> None:
        self.folder, self.home, self._gpus = folder, folder / "home", gpus
        self._nodes: dict[str, Namespaces] = {}
        self._dead: dict[str, int] = {}
        self._daemons: list[subprocess.Popen[bytes]] = []

    # --- life

    def __enter__(self) -> SlurmCluster:
        self._write_configuration()
        try:
            for name in NODES:
                self._start_node(name)
            self._join_nodes()
            self._start_daemon(FIRST, "slurmctld", "-D", "-i", "-f", str(self._conf))
            for name in NODES:
                self.start_slurmd(name)
            wait_until(lambda: self.idle_nodes() == len(NODES), 60, lambda: self.on(FIRST, "sinfo -N -l"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self._nodes.values():
            node.end()
        for daemon in self._daemons:
            daemon.wait(30)

    def kill_node(self, name: str) -> None:
        """Silences a node and ends all of its processes at once, as a power failure does."""
        first = self._nodes[name].first
        self._dead[name] = os.open(f"/proc/{first}/ns/net", os.O_RDONLY)  # else the other node would lose its interface
        self.on(name, "ip link set net0 down")
        os.kill(first, signal.SIGKILL)
        self._nodes[name].process.wait(30)

    def bring_back(self, name: str) -> None:
        """Starts a killed node again and waits until SLURM uses it."""
        self.on(next(node for node in NODES if node != name), "ip link delete net0")
        os.close(self._dead.pop(name))
        self._start_node(name)
        self._join_nodes()
        self.start_slurmd(name)
        wait_until(lambda: self.idle_nodes() == len(NODES), 60, lambda: self.on(FIRST, "sinfo -N -l"))

    def start_slurmd(self, name: str) -> None:
        self._start_daemon(
            name, "munged", "--foreground", "--force", f"--key-file={self._key}", f"--log-file=/run/munge/{name}.log"
        )
        wait_until(lambda: not self._run(name, "munge -n > /dev/null 2>&1").returncode, 30, lambda: f"munged of {name}")
        self._start_daemon(name, "slurmd", "-D", "-N", name, "-f", str(self._conf))

    # --- use

    def on(self, name: str, command: str, folder: Path | None = None, **variables: str) -> str:
        """Runs a command line on a node and returns what it prints.

        Raises:
            AssertionError: It fails; with its output.
        """
        result = self._run(name, command, folder, variables)
        assert result.returncode == 0, f"{command}: exit code {result.returncode}\n{result.stdout}"
        return result.stdout

    def submit(self, command: str, folder: Path, **variables: str) -> str:
        """Runs an `sbatch` command line on the first node and returns the job's number."""
        printed = self.on(FIRST, command, folder, **variables)
        return re.search(r"Submitted batch job (\d+)", printed).group(1)

    def job(self, number: str) -> dict[str, str]:
        """Return what SLURM knows of a job: JobState, ExitCode, Restarts, ..."""
        return dict(re.findall(r"(\w+)=(\S*)", self.on(FIRST, f"scontrol show job {number}")))

    def wait_for_end(self, number: str, seconds: float) -> dict[str, str]:
        """Waits until a job is over, all of its processes included."""
        going = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED"}
        wait_until(lambda: self.job(number)["JobState"] not in going, seconds, lambda: str(self.job(number)))
        return self.job(number)

    def idle_nodes(self) -> int:
        return self._run(FIRST, "sinfo -h -N -t idle -o %T").stdout.split().count("idle")

    def processes(self, name: str) -> str:
        """Return the command lines of all processes of a node."""
        return self.on(name, "ps -e -o pid,args")

    # --- inside

    @property
    def _conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def _key(self) -> Path:
        return self.folder / "munge.key"

    def _write_configuration(self) -> None:
        for name in ("state", "home", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        subprocess.run([_program("mungekey"), "--create", f"--keyfile={self._key}"], check=True)
        gres = "" if self._gpus is None else f" Gres=gpu:{self._gpus}"
        nodes = "\n".join(f"NodeName={name} NodeAddr={address} CPUs=1{gres} State=UNKNOWN" for name, address in NODES.items())
        values = {"first": FIRST, "address": NODES[FIRST], "folder": self.folder, "credentials": CREDENTIALS_S, "nodes": nodes}
        text = CONFIGURATION.format(**values, gres="" if self._gpus is None else "gpu")
        self._conf.write_text(text.replace("GresTypes=\n", ""))
        if self._gpus is not None:
            devices = [self.folder / f"gpu{number}" for number in range(self._gpus)]
            for device in devices:
                device.touch()
            (self.folder / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in devices))
        (self.folder / "hosts").write_text(
            "".join(f"{address} {name}\n" for name, address in NODES.items()) + "127.0.0.1 localhost\n"
        )

    def _start_node(self, name: str) -> None:
        Path("/tmp/ray").mkdir(exist_ok=True)
        private = "".join(f"mount -t tmpfs tmpfs {folder} && " for folder in ("/tmp/ray", "/run", "/dev/shm"))
        set_up = (
            f"hostname {name} && {private} mount --bind {self.folder}/hosts /etc/hosts && mkdir -m 755 /run/munge &&"
            " ip link set lo up"
        )
        self._nodes[name] = Namespaces(KINDS, set_up, self.folder / f"{name}.log")

    def _join_nodes(self) -> None:
        first, second = (str(self._nodes[name].first) for name in NODES)
        ends = ["ip", "link", "add", "net0", "netns", first, "type", "veth", "peer", "name", "net0", "netns", second]
        subprocess.run(ends, check=True)
        for name, address in NODES.items():
            self.on(name, f"ip address replace {address}/24 dev net0 && ip link set net0 up")

    def _start_daemon(self, name: str, program: str, *arguments: str) -> None:
        log = (self.folder / f"{program}-{name}.out").open("ab")
        command = [*self._nodes[name].enter(), _program(program), *arguments]
        self._daemons.append(
            subprocess.Popen(command, env=self._environment({}), stdout=log, stderr=log, start_new_session=True)
        )

    def _run(self, name: str, command: str, folder: Path | None = None, variables: dict[str, str] | None = None):
        return subprocess.run(
            [*self._nodes[name].enter(), f"--wdns={folder or self.folder}", "bash", "-c", command],
            env=self._environment(variables or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
            timeout=120,
        )

    def _environment(self, variables: dict[str, str]) -> dict[str, str]:
        return {"PATH": SEARCH, "HOME": str(self.home), "SLURM_CONF": str(self._conf), "LANG": "C.UTF-8", **variables}


def _program(name: str) -> str:
    path = shutil.which(name, path=SEARCH)
    assert path is not None, name
    return path
