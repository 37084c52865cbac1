"""Qualifies this machine's GPU: correctness, speed and memory of training, in about 30 minutes, against stated aims.

    python jobs/qualify.py                                 all sections; results in qualification/
    python jobs/qualify.py --only machine forced loss      these alone, again if they were done before
    python jobs/qualify.py --minutes 9                     as many as fit; the same command continues with the rest
    python jobs/qualify.py --tiny                          every section on a CPU, in seconds, to check that it works

Needs torch, numpy, pyarrow, pydantic, simplejpeg, ftfy, tokenizers, pyyaml, safetensors and Pillow: no Ray. With pytest it also
runs tests/gpu, with open_clip it compares. docs/gpu.md says what each section shows.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from jobs.cli.failures import EXIT_BAD_INPUT, EXIT_DONE, EXIT_NOT_MEANT
from jobs.cli.stopping import run_until_stopped
from jobs.qualification.guarded import read_outcome, run_guarded
from jobs.qualification.judgement import Outcome, misses, table
from jobs.qualification.scale import Scale
from jobs.qualification.sections import SECTIONS, Section

TABLE = "table.md"


def main(argv: list[str] | None = None) -> int:
    names = [section.name for section in SECTIONS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, metavar="SECTION", help=f"of {', '.join(names)}")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="(default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes; no figure means anything")
    parser.add_argument("--output", type=Path, default=Path("qualification"), help="folder (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=30.0, help="time for all sections (default: %(default)s)")
    options = parser.parse_args(argv)
    return run_until_stopped(lambda: _qualify(options))


def _qualify(options: argparse.Namespace) -> int:
    device, problem = _device(options.device, options.tiny)
    if problem:
        print(f"qualify.py: {problem}", file=sys.stderr)
        return EXIT_BAD_INPUT
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    scale, deadline = Scale(device, options.tiny), time.monotonic() + options.minutes * 60
    for section in SECTIONS:
        if options.only is not None and section.name not in options.only:
            continue
        before = read_outcome(folder, section.name)
        if options.only is None and before is not None and _is_kept(before, scale):
            print(f"{section.name}: {before.status} before; --only {section.name} measures it again")
            continue
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            print(f"{section.name}: no time is left; the same command continues here")
            break
        _tell(section, run_guarded(section, scale, folder, min(left_s, section.minutes * 60)))
    return _sum_up(folder)


def _device(wish: str, tiny: bool) -> tuple[str, str]:
    """(the device, the problem with it or nothing)"""
    import torch

    found = torch.cuda.is_available()
    if wish == "cuda" and not found:
        build = f"torch {torch.__version__} for CUDA {torch.version.cuda}" if torch.version.cuda else "a torch without CUDA"
        return "cuda", f"--device cuda: {build} finds no GPU or no driver; nvidia-smi should list the card"
    if wish == "auto" and not found and not tiny:
        return "cpu", "no GPU is found; --tiny checks the sections on a CPU, --device cpu measures it at full size, for hours"
    if wish == "auto":
        return ("cuda" if found and not tiny else "cpu"), ""
    return wish, ""


def _is_kept(before: Outcome, scale: Scale) -> bool:
    same = before.tiny == scale.tiny and before.card.partition(":")[0] == scale.device
    return same and before.status in ("done", "skipped")


def _tell(section: Section, outcome: Outcome) -> None:
    reason = f" ({outcome.reason})" if outcome.reason else ""
    print(f"{section.name}: {outcome.status}{reason} in {outcome.seconds:.0f} s: {section.about}")
    for figure in outcome.figures:
        print(f"    {figure.name}: {figure} {figure.unit}".rstrip(), flush=True)


def _sum_up(folder: Path) -> int:
    """Prints the table of everything in the folder. Returns the exit code."""
    found = [read_outcome(folder, section.name) or Outcome(section.name, "not run") for section in SECTIONS]
    text = table(found)
    (folder / TABLE).write_text(text + "\n")
    print(f"\n{text}\n\n{folder / TABLE}")
    return EXIT_NOT_MEANT if misses(found) else EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
