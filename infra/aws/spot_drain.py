"""Tells Ray when EC2 will interrupt this spot instance, so that training saves its work in time.

    python infra/aws/spot_drain.py        on a worker node, beside `ray start`; exits once Ray knows

In: the instance metadata service (IMDSv2), queried every 5 s as AWS recommends; a notice comes two minutes ahead. Out: one
`ray drain-node` per raylet on this node, with the remaining time as its deadline. Errors are logged and retried. Uses only the
standard library: it runs in any Python, and starts no Ray of its own.

The node's id is read from the raylet's command line. Without --node-id, `ray drain-node` calls `ray.init()`, which joins any
cluster that it finds, and starts a new one if there is none (docs/decisions/0012-deploy-files.md).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

METADATA = "http://169.254.169.254"
TOKEN_LIFETIME_S = 21600  # the maximum of IMDSv2
ANSWER_TIMEOUT_S = 5
DRAIN_TIMEOUT_S = 30
NOT_FOUND = 404


class Notice(NamedTuple):
    """The action that EC2 will take on this instance, and its time."""

    action: str
    time: datetime


class Raylet(NamedTuple):
    """A Ray node on this instance."""

    node_id: str
    gcs_address: str


class Metadata:
    """Client of the instance metadata service, with the token that IMDSv2 requires."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._token = ""
        # Link-local addresses must bypass any proxy of the environment.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def notice(self) -> Notice | None:
        """The interruption notice, or None while there is none.

        Raises:
            OSError: the service does not respond, or refuses the request.
            ValueError, KeyError: the response is not a valid notice.
        """
        if not self._token:
            self._token = self._ask("PUT", "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds", str(TOKEN_LIFETIME_S))
        try:
            answer = self._ask("GET", "/latest/meta-data/spot/instance-action", "X-aws-ec2-metadata-token", self._token)
        except urllib.error.HTTPError as error:
            if error.code == NOT_FOUND:
                return None
            self._token = ""  # it may have expired: the next query gets a new one
            raise
        notice = json.loads(answer)
        return Notice(notice["action"], datetime.fromisoformat(notice["time"]))

    def _ask(self, method: str, path: str, header: str, value: str) -> str:
        request = urllib.request.Request(self._url + path, method=method, headers={header: value})
        with self._opener.open(request, timeout=ANSWER_TIMEOUT_S) as answer:
            return str(answer.read().decode())


def local_raylets(address: str | None) -> Iterator[Raylet]:
    """Finds the Ray nodes on this machine by their command lines; only those of one cluster, if an address is given."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has exited, or belongs to another user
            continue
        if Path(words[0]).name != "raylet":
            continue
        options = dict(word.removeprefix("--").split("=", 1) for word in words[1:] if word.startswith("--") and "=" in word)
        if "node_id" in options and "gcs-address" in options and address in (None, options["gcs-address"]):
            yield Raylet(options["node_id"], options["gcs-address"])


def drain(raylet: Raylet, notice: Notice, options: argparse.Namespace) -> bool:
    """Drains a node. Returns whether Ray accepted it; logs why it did not."""
    left_s = (notice.time - datetime.now(UTC)).total_seconds() - options.margin_s
    command = [options.ray, "drain-node", "--address", raylet.gcs_address, "--node-id", raylet.node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", f"EC2 will {notice.action} this spot instance at {notice.time.isoformat()}"]
    command += ["--deadline-remaining-seconds", str(max(1, int(left_s)))]
    say(" ".join(command))
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DRAIN_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        say(f"not drained: {error}")
        return False
    if result.returncode:
        say(f"not drained: exit code {result.returncode}: {(result.stdout + result.stderr).strip()[-500:]}")
    return result.returncode == 0


def watch(options: argparse.Namespace) -> None:
    """Returns when every raylet of this node has been drained on a notice."""
    metadata, drained = Metadata(options.metadata), set[Raylet]()
    while True:
        try:
            notice = metadata.notice()
        except (OSError, ValueError, KeyError) as error:
            say(f"{options.metadata}: {error}")
            notice = None
        if notice:
            raylets = set(local_raylets(options.address))
            drained |= {raylet for raylet in raylets - drained if drain(raylet, notice, options)}
            if raylets and raylets <= drained:
                return
            if not raylets:
                say("a notice, but there is no raylet on this node")
        time.sleep(options.every_s)


def say(text: str) -> None:
    print(datetime.now(UTC).isoformat(timespec="seconds"), text, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", help="only nodes of this cluster (host:port, as given to the raylet)")
    parser.add_argument("--every-s", type=float, default=5.0, help="time between two queries")
    parser.add_argument("--margin-s", type=float, default=5.0, help="how long before EC2 the draining must end")
    parser.add_argument("--metadata", default=METADATA, help="address of the metadata service")
    parser.add_argument("--ray", default="ray", help="path of the ray command")
    watch(parser.parse_args(argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
