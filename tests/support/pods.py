"""A kubelet's part for one machine: runs pods as processes in network, PID, mount, UTS and IPC namespaces; needs root.

In: pod specs, with the operator's additions (tests/support/kuberay_pods.py). Out: processes with the pod's command as process
1, its environment, user, capabilities and mounts, its probes, and its grace period when it is told to end. A bridge joins the
pods; nothing leads out of it. Not done: the API server (so the autoscaler's container is left out), cgroups, seccomp, images
(the file system is this machine's, read-only, with the repository at the image's place).
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.support import name_server, namespaces
from tests.support.deploy_checks import INFRA, ROOT
from tests.support.kuberay_rules import DEFAULT_GRACE_S, quantity
from tests.support.namespaces import SEARCH, Namespaces, child_of, wait_until

NETWORK = "10.214.0"
MACHINE = f"{NETWORK}.1"
"""Address of the machine outside of the pods, where the kubelet and the tests' servers are."""
OPEN_FILES = "ulimit -n 1048576 2> /dev/null || ulimit -n $(ulimit -Hn)"
"""The limit that containers get from containerd, or what this machine allows."""
DOCKERFILE = (INFRA / "docker" / "Dockerfile").read_text(encoding="utf-8")
WORKDIR = re.findall(r"^WORKDIR (\S+)$", DOCKERFILE, re.MULTILINE)[-1]
((UID, HOME),) = re.findall(r"useradd --create-home --uid (\d+) .* (\w+)$", DOCKERFILE, re.MULTILINE)
NOT_HERE = {"autoscaler": "needs an API server"}
"""Containers that are not run, each with the reason."""


def missing() -> str:
    """Return why no pod can be run here; "" if it can."""
    return namespaces.missing("setpriv", "chroot", "wget", install="iproute2 util-linux wget")


def image_environment() -> dict[str, str]:
    """Return the variables that infra/docker/Dockerfile sets, and a PATH on which `python` and `ray` are this environment's."""
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)
    words = dict(word.split("=", 1) for word in shlex.split(block.replace("\\\n", " ")))
    return {**words, "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": WORKDIR}


class Kubelet:
    """Runs pods, from `__enter__` to `__exit__`.

    Args:
        folder: for logs; its path must be short.
        secrets: name -> key -> value.
        accounts: service account -> variables that its pods get, as a cloud's webhook adds them.
        variables: of all containers, to fit this machine.
    """

    def __init__(
        self,
        folder: Path,
        secrets: dict[str, dict[str, str]],
        accounts: dict[str, dict[str, str]],
        variables: dict[str, str],
    ) -> None:
        self.folder, self.secrets, self.accounts, self.variables = folder, secrets, accounts, variables
        self.pods: list[Pod] = []
        self.hosts = folder / "hosts"
        self.passwords, self.resolver = folder / "passwd", folder / "resolv.conf"
        self._servers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Kubelet:
        self.hosts.write_text("127.0.0.1 localhost\n")
        self.passwords.write_text(f"root:x:0:0::/root:/bin/bash\n{HOME}:x:{UID}:{UID}::/home/{HOME}:/bin/bash\n")
        self.resolver.write_text(f"nameserver {MACHINE}\n")
        bridge = "ip link add pods type bridge && ip link set pods up && ip link set lo up"
        address = f"ip address add {MACHINE}/24 dev pods"
        self.machine = Namespaces(["net"], f"{bridge} && {address}", self.folder / "machine.log")
        self.serve(sys.executable, name_server.__file__, str(self.hosts), MACHINE)
        return self

    def __exit__(self, *_: object) -> None:
        for pod in self.pods:
            pod.kill()
        for server in self._servers:
            server.kill()
            server.wait(30)
        self.machine.end()

    def serve(self, *command: str, **variables: str) -> None:
        """Start a server on the machine outside of the pods."""
        with (self.folder / "servers.log").open("ab") as log:
            environment = os.environ | variables
            self._servers.append(subprocess.Popen([*self.machine.enter(), *command], env=environment, stdout=log, stderr=log))

    def on_the_machine(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | variables
        return subprocess.run(
            [*self.machine.enter(), *command], env=environment, capture_output=True, text=True, check=False, timeout=600
        )

    def run(self, name: str, spec: dict[str, Any], *services: str) -> Pod:
        """Start a pod.

        Args:
            services: names that lead to it from now on, within its namespace and by their full name.

        Raises:
            AssertionError: Kubernetes would not start it: it would run as root, or an account, a secret or a volume is missing.
        """
        address = f"{NETWORK}.{10 + len(self.pods)}"
        names = [name, *(form for service in services for form in (service, f"{service}.rayclip.svc.cluster.local"))]
        others = [line for line in self.hosts.read_text().splitlines() if not set(line.split()[1:]) & set(services)]
        self.hosts.write_text("\n".join([*others, f"{address} {' '.join(names)}", ""]))
        self.pods.append(Pod(self, name, spec, address, len(self.pods)))
        self.pods[-1].start()
        return self.pods[-1]


class Pod:
    """A pod that runs; its first container is the one that counts."""

    def __init__(self, kubelet: Kubelet, name: str, spec: dict[str, Any], address: str, number: int) -> None:
        self.kubelet, self.name, self.spec, self.address = kubelet, name, spec, address
        self.log_file = kubelet.folder / f"{name}.log"
        self.main, self.process = spec["containers"][0], None
        assert {container["name"] for container in spec["containers"][1:]} <= set(NOT_HERE), "a container without a stand-in"
        self._account = kubelet.accounts[spec["serviceAccountName"]] if "serviceAccountName" in spec else {}
        security = spec["securityContext"]
        assert security["runAsNonRoot"], f"{name}: may run as root"
        assert security["runAsUser"] != 0, f"{name}: would run as root"
        self._user, self._group = security["runAsUser"], security["fsGroup"]
        self._sandbox = Namespaces(["net", "uts", "ipc"], f"hostname {name} && ip link set lo up", self.log_file)
        self._end, self._ended = f"pod{number}", threading.Event()
        self.results: dict[str, list[bool]] = {kind: [] for kind in ("readinessProbe", "livenessProbe") if kind in self.main}

    # --- life

    def start(self) -> None:
        """Join the network, run the init containers, then start the first container and its probes."""
        machine, inside = self.kubelet.machine, str(self._sandbox.first)
        ends = ["ip", "link", "add", "eth0", "netns", inside, "type", "veth", "peer", "name", self._end]
        bridge = f"ip link set {self._end} master pods && ip link set {self._end} up"
        route = f"ip address add {self.address}/24 dev eth0 && ip link set eth0 up && ip route add default via {MACHINE}"
        for command in (
            [*ends, "netns", str(machine.first)],
            [*machine.enter(), "bash", "-c", bridge],
            [*self._sandbox.enter(), "bash", "-c", route],  # of a way out, which the machine does not have
        ):
            subprocess.run(command, check=True, env=os.environ | {"PATH": SEARCH})
        for container in self.spec.get("initContainers", []):
            self.process = self._start(container)
            assert self.process.wait(300) == 0, self.log()
        self.began = time.monotonic()
        self.process = self._start(self.main)
        for kind in self.results:
            threading.Thread(target=self._keep_probing, args=(kind,), daemon=True).start()

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait(self, seconds: float) -> int:
        """Wait for the end; return the container's exit code, in the form of a shell."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {seconds} s\n{self.log()}") from None
        finally:
            self._ended.set()
        return code if code >= 0 else 128 - code

    def terminate(self) -> tuple[int, float]:
        """Do what `kubectl delete pod` does: SIGTERM to process 1, and SIGKILL when the grace period is over.

        Returns:
            the exit code, 137 if it had to be killed, and the seconds that it took.
        """
        began, grace = time.monotonic(), self.spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE_S)
        self._ended.set()
        os.kill(child_of(self.process), signal.SIGTERM)
        try:
            self.process.wait(grace)
        except subprocess.TimeoutExpired:
            self.kill()
        return self.wait(30), time.monotonic() - began

    def kill(self) -> None:
        """End all of its processes at once, as a node that fails does."""
        self._ended.set()
        if self.process and self.process.poll() is None:  # `unshare --kill-child` no longer reaches a process with another user
            os.kill(child_of(self.process), signal.SIGKILL)
            self.process.wait(30)
        self._sandbox.end()

    # --- probes

    def probe(self, kind: str) -> bool:
        """Ask as the kubelet does: over the pod's address, from outside of it."""
        probe = self.main[kind]
        url = f"http://{self.address}:{probe['httpGet']['port']}{probe['httpGet']['path']}"
        asked = self.kubelet.on_the_machine("wget", "--tries=1", f"--timeout={probe['timeoutSeconds']}", "-q", "-O-", url)
        return asked.returncode == 0

    def becomes_ready(self, seconds: float) -> bool:
        """Wait for a readiness probe that passes; return False if the container ends before."""
        wait_until(lambda: any(self.results["readinessProbe"]) or self.process.poll() is not None, seconds, self.log)
        return self.process.poll() is None

    def failures_in_a_row(self, kind: str) -> int:
        """Return the longest series of failures after the first success."""
        marks = "".join("+" if passed else "-" for passed in self.results[kind])
        return max(map(len, marks.lstrip("-").split("+")))

    def execute(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command line in the container, as `kubectl exec` does."""
        inside = ["nsenter", f"--target={child_of(self.process)}", "--net", "--pid", "--mount", "--uts", "--ipc", "--root"]
        line = [*inside, *self._as_its_user(), "bash", "-c", f"cd {WORKDIR} && {command}"]
        return subprocess.run(line, env=self._environment(self.main), capture_output=True, text=True, check=False, timeout=600)

    def _keep_probing(self, kind: str) -> None:
        probe = self.main[kind]
        self._ended.wait(probe["initialDelaySeconds"])
        while not self._ended.is_set():
            self.results[kind].append(self.probe(kind))
            self._ended.wait(probe["periodSeconds"])

    # --- inside

    def _start(self, container: dict[str, Any]) -> subprocess.Popen[bytes]:
        """Start a container: its command is process 1 of its PID namespace, as under a container runtime."""
        command = [*self._as_its_user(), *container["command"], *container.get("args", [])]
        root = self.kubelet.folder / "root"
        root.mkdir(exist_ok=True)
        inside = f"{OPEN_FILES}; exec /usr/sbin/chroot {root} bash -c 'cd {WORKDIR} && exec \"$@\"' - {shlex.join(command)}"
        made = [
            "unshare",
            "--pid",
            "--mount",
            "--fork",
            "--kill-child",
            "bash",
            "-ec",
            f"{self._mounts(container, root)}\n{inside}",
        ]
        with self.log_file.open("ab") as log:
            return subprocess.Popen(
                [*self._sandbox.enter(), *made],
                env=self._environment(container),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _as_its_user(self) -> list[str]:
        user = [f"--reuid={self._user}", f"--regid={UID}", f"--groups={self._group}"]
        return ["setpriv", *user, "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]

    def _environment(self, container: dict[str, Any]) -> dict[str, str]:
        found = image_environment() | self.kubelet.variables | self._account | {"HOSTNAME": self.name}
        for variable in container.get("env", []):
            if "valueFrom" in variable:
                secret = variable["valueFrom"]["secretKeyRef"]
                assert secret["name"] in self.kubelet.secrets, f"{self.name}: there is no secret {secret['name']}"
                found[variable["name"]] = self.kubelet.secrets[secret["name"]][secret["key"]]
            else:
                found[variable["name"]] = variable["value"]
        return found

    def _mounts(self, container: dict[str, Any], root: Path) -> str:
        """Return the commands that make a container's file system: the image's parts read-only, then the pod's volumes."""
        system = [Path(path) for path in ("/usr", "/etc", "/bin", "/lib", "/lib64", "/sbin", "/sys")]
        python = {Path(path).resolve() for path in (sys.base_prefix, ROOT, *sys.path) if path and Path(path).is_dir()}
        roots = [path for path in python if not any(path.is_relative_to(other) for other in python - {path} | {Path("/usr")})]
        lines = [f"mount -t tmpfs -o mode=755 tmpfs {root}", f"mkdir -p {root}/proc {root}/dev {root}{WORKDIR}"]
        for path in [*(path for path in system if path.exists()), *sorted(roots)]:
            lines.append(f"cp -P {path} {root}{path}" if path.is_symlink() else f"mkdir -p {root}{path}")
            lines += [] if path.is_symlink() else _read_only(path, f"{root}{path}")
        lines += _read_only(ROOT, f"{root}{WORKDIR}")
        for file in (self.kubelet.hosts, self.kubelet.passwords, self.kubelet.resolver):
            lines.append(f"mount --bind {file} {root}/etc/{file.name}")
        lines += [f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev"]
        lines += [f"install -d -m 1777 {root}/tmp", f"install -d -o {UID} -g {UID} {root}/home/{HOME}"]
        volumes = {volume["name"]: volume["emptyDir"] for volume in self.spec.get("volumes", [])}
        shm = {"name": "of a container", "mountPath": "/dev/shm"}
        volumes[shm["name"]] = {"sizeLimit": "64Mi"}
        for mount in [shm, *container.get("volumeMounts", [])]:
            size = (
                f",size={int(quantity(volumes[mount['name']]['sizeLimit']))}" if "sizeLimit" in volumes[mount["name"]] else ""
            )
            place = f"{root}{mount['mountPath']}"
            lines += [f"mkdir -p {place}", f"mount -t tmpfs -o mode=2777,gid={self._group}{size} tmpfs {place}"]
        return "\n".join(lines)


def _read_only(path: Path, place: str) -> list[str]:
    return [f"mount --bind {path} {place}", f"mount -o remount,bind,ro {place}"]
