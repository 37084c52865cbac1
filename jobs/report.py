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
import io
import logging
import shutil
import sys
import tempfile
from pathlib import Path

from jobs.cli.command_line import check_folder, parser, run
from jobs.cli.config import Config
from jobs.cli.job_parser import JobParser
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage

logger = logging.getLogger(__name__)

PAGE = "report.html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
BROWSER_OPTIONS += ["--disable-component-update", "--disable-sync"]
PICTURE_PX = (1600, 2560)
PAINTED_AFTER_MS = 1500
"""That charts have been laid out does not say that their canvas is painted."""


def job(config: Config, options: argparse.Namespace) -> None:
    check_folder("--output", options.output)
    check_folder("--picture", options.picture)
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
    from jobs.reporting.page import render
    from jobs.reporting.run_data import read_run

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
    """What a browser shows of the page's upper part. Raises ConfigError where there is none, or nothing to drive it."""
    from PIL import Image

    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise ConfigError(f"--picture={picture}: needs the package playwright; install it, or leave the option out") from None
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise ConfigError(f"--picture={picture}: needs a browser; install one of {', '.join(BROWSERS)}, or leave it out")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        source = Path(folder) / PAGE
        source.write_text(page, encoding="utf-8")
        with playwright.chromium.launch(executable_path=browser, args=BROWSER_OPTIONS) as chromium:
            width_px, height_px = PICTURE_PX
            tab = chromium.new_page(viewport={"width": width_px, "height": height_px})
            tab.goto(source.as_uri())
            tab.evaluate("drawAll()")
            tab.wait_for_timeout(PAINTED_AFTER_MS)
            shot = tab.screenshot()
    with Image.open(io.BytesIO(shot)) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(picture, optimize=True)


def arguments() -> JobParser:
    result = parser(__doc__, "report")
    result.add_argument("--output", metavar="FILE", help="write the page there instead of into the run's folder")
    result.add_argument("--picture", metavar="FILE", help="also a PNG of the page's top; needs Chromium and playwright")
    return result


if __name__ == "__main__":
    sys.exit(run(arguments(), job))
