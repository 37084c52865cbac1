"""Makes a run's report: one page that holds everything and fetches nothing, legible on a phone and on a desk.

    python jobs/report.py run.name=demo                          writes RUN_DIR/demo/report.html, also of a run that is going on
    python jobs/report.py run.name=demo --output demo.html       writes it there
    python jobs/report.py run.name=demo --picture demo.png       also what Chromium shows of it, where there is one
    python jobs/report.py run.dir=s3://BUCKET/runs run.name=vit_b_32

jobs/train.py makes the same at the end of a run. It reads the run's record and its data set's manifest and a few sidecars; what
is not there is said on the page. Runs in this process, without Ray.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from jobs.command import parser, run
from jobs.config import Config
from pipeline.storage import Storage, open_storage
from training.config import ConfigError, RunError

logger = logging.getLogger(__name__)

PAGE = "report.html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PICTURE_PX, PICTURE_COLOURS = (1280, 1600), 128


def job(config: Config, options: argparse.Namespace) -> None:
    page = make_report(open_storage(config.run.uri), config.run.name)
    if options.output:
        Path(options.output).write_text(page, encoding="utf-8")
        print(f"report: {options.output}")
    else:
        print(f"report: {write_report(open_storage(config.run.uri), page)}")
    if options.picture:
        take_picture(page, Path(options.picture))
        print(f"picture: {options.picture}")


def make_report(storage: Storage, name: str) -> str:
    """The page of a run. Raises ConfigError where there is no such run, StorageError where it cannot be read."""
    from jobs.report_data import read_run
    from jobs.report_page import render

    return render(read_run(storage, name))


def write_report(storage: Storage, page: str) -> str:
    """Puts the page into the run's folder. Returns its address."""
    storage.write(PAGE, page.encode())
    return storage.address(PAGE)


def report_at_the_end(config: Config) -> str:
    """The report of a run that has just ended; empty, and a warning, where it cannot be made."""
    try:
        storage = open_storage(config.run.uri)
        return write_report(storage, make_report(storage, config.run.name))
    except Exception as error:  # the run is done, and its record is there: the page can be made at any time
        logger.warning("the report was not made (%s: %s); try jobs/report.py", type(error).__name__, error)
        return ""


def take_picture(page: str, picture: Path) -> None:
    """What a browser shows of the page's upper part. Raises ConfigError where there is no browser, RunError where it fails."""
    from PIL import Image

    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise ConfigError(f"--picture={picture}: needs a browser; install one of {', '.join(BROWSERS)}, or leave it out")
    with tempfile.TemporaryDirectory() as folder:
        source, shot = Path(folder) / PAGE, Path(folder) / "shot.png"
        source.write_text(page, encoding="utf-8")
        size = ",".join(map(str, PICTURE_PX))
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/profile",
        ]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
        command += [f"--window-size={size}", "--virtual-time-budget=20000", f"--screenshot={shot}", source.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if not shot.exists():
            raise RunError(f"--picture={picture}: {browser} made none: {done.stderr.strip()[-300:]}")
        with Image.open(shot) as image:
            image.convert("RGB").quantize(PICTURE_COLOURS).save(picture, optimize=True)


def arguments() -> argparse.ArgumentParser:
    result = parser(__doc__)
    result.add_argument("--output", metavar="FILE", help="write the page there instead of into the run's folder")
    result.add_argument("--picture", metavar="FILE", help="also a PNG of the page's upper part; needs Chromium or Chrome")
    return result


if __name__ == "__main__":
    sys.exit(run(arguments(), job))
