"""A job of the project's that ends as its option says, through the command line of all jobs.

python tests/support/tiny_job.py --end bad-input
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from jobs.cli.command_line import EXIT_STOPPED, main, parser
from jobs.cli.config import Config
from pipeline.errors import ConfigError, NotMeantError, StorageAwayError


def job(_config: Config, options: argparse.Namespace) -> int:
    print(f"works until {options.end}")
    if options.end == "away":
        raise StorageAwayError("s3://bucket: cannot be reached")
    if options.end == "bad-input":
        raise ConfigError("a=1: is wrong; set it to 2")
    if options.end == "not-meant":
        raise NotMeantError("1 of 2 lines matched; fix the list")
    if options.end == "unexpected":
        raise KeyError("a mistake of ours")
    if options.end == "arrow-threads":
        from tests.support.live_threads import start_scanner

        scanner = start_scanner()
        raise ValueError(f"while threads of {scanner} read")
    if options.end == "gloo-threads":
        from tests.support.live_threads import start_all_reduce

        work = start_all_reduce()
        raise ValueError(f"while {work} waits for a peer")
    if options.end == "lines-after":
        from tests.support.live_threads import write_for_ever

        write_for_ever()
        raise ConfigError("a=1: is wrong; set it to 2")
    if options.end == "terminated":
        os.kill(os.getpid(), signal.SIGTERM)
    return EXIT_STOPPED if options.end == "stopped" else 0


def arguments() -> argparse.ArgumentParser:
    result = parser(__doc__)
    result.add_argument("--end", required=True)
    return result


if __name__ == "__main__":
    main(arguments(), job)
