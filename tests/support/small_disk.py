"""Commands on a small or read-only disk: a tmpfs in a mount namespace of its own, which needs no right of root's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
SET_UP = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"'


def has_namespaces() -> bool:
    """Returns True if this user may make mount namespaces here."""
    return shutil.which("unshare") is not None and subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0


def run_on_disk(options: str, folder: Path, command: list[str], **more: object) -> subprocess.CompletedProcess[str]:
    """Run a command for which `folder` is a tmpfs with mount options, e.g. `size=100k` or `ro`."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = [*NAMESPACE, "bash", "-c", SET_UP, "bash", options, str(folder), *command]
    return subprocess.run(whole, capture_output=True, text=True, check=False, timeout=200, **more)
