"""Writes a run's report: one self-contained page that fetches nothing and fits a phone as well as a desktop.

    python jobs/report.py run.name=demo                          writes RUN_DIR/demo/report.html, also during the run
    python jobs/report.py run.name=demo --output demo.html       writes to another file
    python jobs/report.py run.name=demo --picture demo.png       also a PNG of its top, with Chromium
    python jobs/report.py run.dir=s3://BUCKET/runs run.name=vit_b_32

jobs/train.py writes the same page at the end of a run. The page is made from the run's record, its data set's manifest and a
few sidecars; it says which of them are missing. Runs in this process, without Ray.
"""

from __future__ import annotations

import argparse
import io
import logging
import shutil
import tempfile
from pathlib import Path

from jobs.cli.command_line import check_folder, main, parser
from jobs.cli.config import Config
from jobs.cli.job_parser import JobParser
from jobs.cli.whole_file import write_whole
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage

logger = logging.getLogger(__name__)

PAGE = "report.html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
BROWSER_OPTIONS += ["--disable-component-update", "--disable-sync"]
SCREENSHOT_PX = (1600, 2560)
PAINTED_AFTER_MS = 1500
"""Charts are painted some time after they are laid out."""


def job(config: Config, options: argparse.Namespace) -> None:
    check_folder("--output", options.output)
    check_folder("--picture", options.screenshot)
    page = make_report(open_storage(config.run.uri), config.run.name)
    if options.output:
        write_whole(options.output, page)
        print(f"report: {options.output}")
    else:
        print(f"report: {write_report(open_storage(config.run.uri), page)}")
    if options.screenshot:
        take_screenshot(page, Path(options.screenshot))
        print(f"picture: {options.screenshot}")


def make_report(storage: Storage, name: str) -> str:
    """Renders the page of a run. Raises ConfigError if there is no such run, StorageError if it cannot be read."""
    from jobs.reporting.page import render
    from jobs.reporting.run_data import read_run

    return render(read_run(storage, name))


def write_report(storage: Storage, page: str) -> str:
    """Writes the page to the run's folder. Returns its address."""
    storage.write(PAGE, page.encode())
    return storage.address(PAGE)


def report_at_the_end(config: Config) -> str:
    """Writes the report of a finished run. Returns its address, or "" after a warning if it cannot be made."""
    try:
        storage = open_storage(config.run.uri)
        return write_report(storage, make_report(storage, config.run.name))
    except Exception as error:  # the record of the run is complete, so the page can be made later
        logger.warning("the report was not made (%s: %s); try jobs/report.py", type(error).__name__, error)
        return ""


def take_screenshot(page: str, path: Path) -> None:
    """Saves the top of the page as a PNG. Raises ConfigError if there is no browser, or no playwright to drive it."""
    from PIL import Image

    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise ConfigError(f"--picture={path}: needs the package playwright; install it, or omit the option") from None
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise ConfigError(f"--picture={path}: needs a browser; install one of {', '.join(BROWSERS)}, or omit the option")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        source = Path(folder) / PAGE
        source.write_text(page, encoding="utf-8")
        with playwright.chromium.launch(executable_path=browser, args=BROWSER_OPTIONS) as chromium:
            width_px, height_px = SCREENSHOT_PX
            tab = chromium.new_page(viewport={"width": width_px, "height": height_px})
            tab.goto(source.as_uri())
            tab.evaluate("drawAll()")
            tab.wait_for_timeout(PAINTED_AFTER_MS)
            shot = tab.screenshot()
    with Image.open(io.BytesIO(shot)) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def arguments() -> JobParser:
    result = parser(__doc__, "report")
    result.add_argument("--output", metavar="FILE", help="write the page to FILE instead of the run's folder")
    result.add_argument(
        "--picture", dest="screenshot", metavar="FILE", help="also write a PNG of the page's top; needs Chromium and playwright"
    )
    return result


if __name__ == "__main__":
    main(arguments(), job)
