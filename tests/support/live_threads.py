"""Threads of libraries that are at work when a job fails. They abort an interpreter that frees its modules, or hang it."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any


def start_scanner() -> Any:
    """A reader of parquet files whose threads call Python for each read, as those of an S3 file system in Python do."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.dataset
    import pyarrow.fs
    import pyarrow.parquet as pq
    from fsspec.implementations.local import LocalFileSystem

    class SlowFile:
        def __init__(self, file: Any) -> None:
            self._file = file

        def read(self, *arguments: Any) -> bytes:
            time.sleep(0.002)
            return bytes(self._file.read(*arguments))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    class SlowFileSystem(LocalFileSystem):
        def _open(self, path: str, mode: str = "rb", **options: Any) -> SlowFile:
            return SlowFile(super()._open(path, mode, **options))

    folder = Path(tempfile.mkdtemp())
    for number in range(8):
        pq.write_table(pa.table({"a": np.arange(200_000)}), folder / f"{number}.parquet", row_group_size=2000)
    files = pa.fs.PyFileSystem(pa.fs.FSSpecHandler(SlowFileSystem()))
    data = pa.dataset.dataset(str(folder), filesystem=files, format="parquet")
    batches = data.scanner(batch_size=1000, batch_readahead=64, fragment_readahead=16).to_batches()
    next(batches)
    return batches


PEER = """
import sys, time
from datetime import timedelta
import torch.distributed as dist
dist.init_process_group("gloo", init_method=sys.argv[1], rank=1, world_size=2, timeout=timedelta(seconds=60))
time.sleep(20)
"""


def start_all_reduce() -> Any:
    """An exchange that waits for a peer which has joined the group but does not answer."""
    import torch
    import torch.distributed as dist

    address = f"file://{tempfile.mkdtemp()}/meeting"
    peer = subprocess.Popen([sys.executable, "-c", PEER, address])
    atexit.register(peer.kill)
    dist.init_process_group("gloo", init_method=address, rank=0, world_size=2, timeout=timedelta(seconds=60))
    return dist.all_reduce(torch.ones(1), async_op=True)


def write_for_ever() -> None:
    """A thread that prints like Ray's: at each moment, and past Python's own streams."""

    def write() -> None:
        while True:
            os.write(2, b"(raylet) a line of a library\n")
            time.sleep(0.001)

    threading.Thread(target=write, daemon=True).start()
    atexit.register(print, "a line at the end")
