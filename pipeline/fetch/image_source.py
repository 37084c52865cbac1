"""Fetches an image from anywhere: `fetch(url) -> Fetched | Failure` for http, https, s3 and file addresses.

http and https addresses go to http_client.py. s3:// addresses and files are read only under the prefixes and folders that
the configuration allows: a table written by somebody else must not reach everything that this machine can read.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pipeline.config import FetchConfig
from pipeline.errors import Failure, StorageError
from pipeline.fetch.http_client import Fetched, Fetcher, download_failure
from pipeline.fetch.memory_budget import Claim
from pipeline.storage.address import open_storage

READERS = 16
"""Threads that read objects and files."""
_WEB = re.compile(r"\s*https?:", re.IGNORECASE)
"""Begins a web address, also one that is written `http:/host/path`."""
_FILE = re.compile(r"file:/", re.IGNORECASE)
"""Begins the address of a file; Java writes `file:/path`."""
_DATA = re.compile(r"data:", re.IGNORECASE)


class ImageSource:
    """Fetches images for one event loop; an async context, like `Fetcher`."""

    def __init__(self, config: FetchConfig, table: str = "") -> None:
        """
        Args:
            table: address of the table whose URLs are fetched: relative paths are looked for beside it first.
        """
        self.config = config
        self._beside = Path(table).resolve().parent if table and "://" not in table else None
        self._web = Fetcher(config)
        self._s3 = tuple(prefix.rstrip("/") + "/" for prefix in config.allow_s3)
        self._folders = tuple(Path(folder).expanduser().resolve() for folder in config.allow_files)
        self._storages = {prefix: open_storage(prefix) for prefix in self._s3}
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="read")

    async def __aenter__(self) -> ImageSource:
        await self._web.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._web.__aexit__(kind, error, trace)
        self._readers.shutdown(wait=False)

    async def fetch(self, url: str, claim: Claim) -> Fetched | Failure:
        """Returns the image's bytes. A bad URL or answer never raises."""
        if self._s3 and url.startswith("s3://"):
            return await self._read(lambda: self._object(url), claim)
        is_path = "://" not in url and not _WEB.match(url) and not _DATA.match(url)
        if self._folders and (is_path or _FILE.match(url)):
            return await self._read(lambda: self._file(url), claim)
        return await self._web.fetch(url, claim)

    async def _read(self, read: Callable[[], bytes | Failure], claim: Claim) -> Fetched | Failure:
        await claim.grow(self.config.max_bytes)  # the size is known only after reading
        body = await asyncio.get_running_loop().run_in_executor(self._readers, read)
        if isinstance(body, Failure):
            return body
        if len(body) > self.config.max_bytes:
            return download_failure("too_large", f"more than {self.config.max_bytes} bytes")
        claim.settle(len(body))
        return Fetched(body) if body else download_failure("empty_body", "the object or file is empty")

    def _object(self, url: str) -> bytes | Failure:
        prefix = next((prefix for prefix in self._s3 if url.startswith(prefix)), None)
        if prefix is None:
            return download_failure("address_refused", "the address is under none of ingest.fetch.allow_s3")
        try:
            return self._storages[prefix].read_range(url.removeprefix(prefix), 0, self.config.max_bytes + 1)
        except FileNotFoundError:
            return download_failure("not_found", "there is no such object")
        except StorageError as error:
            return download_failure("s3_error", str(error))

    def _file(self, url: str) -> bytes | Failure:
        try:
            is_url = _FILE.match(url) is not None
            if is_url and urlsplit(url).netloc not in ("", "localhost"):
                return download_failure("bad_url", f"a file of another machine, {urlsplit(url).netloc}; write its path here")
            named = Path(url2pathname(urlsplit(url).path)) if is_url else Path(url)
            paths = {folder: (folder / named).resolve() for folder in self._folders}
            allowed = {path for folder, path in paths.items() if path.is_relative_to(folder)}
            if self._beside is not None and not is_url:
                near = (self._beside / named).resolve()
                if near.is_file() and any(near.is_relative_to(folder) for folder in self._folders):
                    allowed = {near}
            files = [path for path in allowed if path.is_file()]
            if len(files) == 1:
                with files[0].open("rb") as file:
                    return file.read(self.config.max_bytes + 1)
        except (OSError, ValueError, RuntimeError) as error:
            return download_failure("bad_url", " ".join(str(error).split()))
        if files:
            return download_failure(
                "bad_url", "several folders of ingest.fetch.allow_files have this file: write its whole path"
            )
        if not allowed:
            return download_failure("address_refused", "the path is under none of ingest.fetch.allow_files")
        return download_failure("not_found", "there is no such file")
