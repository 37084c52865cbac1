"""A real headless Chromium that renders pages; tests that need one are skipped where none is installed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.report import BROWSER_OPTIONS, BROWSERS

CHROMIUM = next((found for name in BROWSERS if (found := shutil.which(name))), None)
NO_CHROMIUM = "Chromium is not installed: apt-get install chromium"


@dataclass
class Visit:
    """An open page, its console messages and the addresses that it requested."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser that makes no requests of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER_OPTIONS) as browser:
        yield browser


@contextmanager
def visit(browser: Any, file: Path, size: tuple[int, int] = (1280, 900), scheme: str = "light") -> Iterator[Visit]:
    """Open a local page in its own tab."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    seen = Visit(context.new_page())
    seen.page.on("console", lambda message: seen.said.append(message.text) if message.type in ("error", "warning") else None)
    seen.page.on("pageerror", lambda error: seen.said.append(str(error)))
    seen.page.on("dialog", lambda dialog: (seen.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    seen.page.on("request", lambda request: seen.asked.append(request.url))
    seen.page.goto(file.as_uri())
    yield seen
    context.close()
