"""Compares ingestion with img2dataset: the same server, images, sizes, options and cores, in one run.

CPU seconds are those of the whole machine minus the server's, so that they cover every process of both sides; nothing else may
run. Each side ingests a small and a large table: their difference is the steady state, and the excess of the small table is
the start-up. Needs Linux and the `test` extra.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
Job = Callable[[Path, Path, int], list[str]]
"""(table, output, cores) -> command."""

ROWS_PER_PARTITION = 2_500
THREADS = 64
TIMEOUT_S = 10


@dataclass(frozen=True)
class Measurement:
    """Cost and result of one job.

    Attributes:
        cpu_s: of the whole machine without the server.
        num_images: successes.
    """

    wall_s: float
    cpu_s: float
    num_images: int


@dataclass(frozen=True)
class Side:
    """The small and the large job of one program."""

    small: Measurement
    large: Measurement

    @property
    def cpu_ms_per_image(self) -> float:
        return 1e3 * (self.large.cpu_s - self.small.cpu_s) / (self.large.num_images - self.small.num_images)

    @property
    def images_per_s(self) -> float:
        return (self.large.num_images - self.small.num_images) / (self.large.wall_s - self.small.wall_s)

    @property
    def startup_s(self) -> float:
        return self.small.wall_s - self.small.num_images / self.images_per_s


def run(scheme: str, small: int, large: int, repeats: int) -> str:
    """Runs both programs on a well-behaved server, in turns, several times. Returns a table of medians."""
    cores = os.cpu_count() or 1
    sides: dict[str, list[Side]] = {"ours": [], "img2dataset": []}
    decode_ms = []
    with tempfile.TemporaryDirectory() as temporary, _server(Path(temporary), scheme == "https") as server:
        for _ in range(repeats):
            for name, job in (("ours", _ours), ("img2dataset", _theirs)):
                small_run, large_run = (_measure(job, server, "good", rows, cores) for rows in (small, large))
                sides[name].append(Side(small_run, large_run))
            decode_ms.append(_decode_alone_ms(cores))
    lines = [f"{scheme}, {large - small:,} images in steady state, {cores} cores, medians of {repeats}"]
    lines.append(f"{'':14}{'CPU ms/image':>14}{'images/s':>10}{'start-up s':>12}{'success':>9}")
    for name, side in sides.items():
        cost, rate, startup = (
            median(getattr(one, field) for one in side) for field in ("cpu_ms_per_image", "images_per_s", "startup_s")
        )
        success = min(one.large.num_images for one in side) / large
        lines.append(f"{name:14}{cost:>14.2f}{rate:>10.0f}{startup:>12.1f}{success:>9.1%}")
    pairs = list(zip(sides["ours"], sides["img2dataset"], strict=True))
    lines.append(
        _ratios("images per CPU-second over img2dataset's", [b.cpu_ms_per_image / a.cpu_ms_per_image for a, b in pairs])
    )
    lines.append(_ratios("images per second over img2dataset's", [a.images_per_s / b.images_per_s for a, b in pairs]))
    whole = [side.cpu_ms_per_image / alone for side, alone in zip(sides["ours"], decode_ms, strict=True)]
    lines.append(_ratios(f"whole path over its decode + resize + encode ({median(decode_ms):.2f} ms)", whole))
    return "\n".join(lines)


def _ratios(name: str, values: list[float]) -> str:
    return f"{name}: {median(values):.2f}x ({', '.join(f'{value:.2f}' for value in values)})"


def run_yield(rows: int) -> str:
    """Runs both programs on a server that misbehaves: their yield and time."""
    cores = os.cpu_count() or 1
    lines = [f"misbehaving server, {rows:,} rows, {TIMEOUT_S} s for each URL, {cores} cores"]
    for name, job in (("ours", _ours), ("img2dataset", _theirs)):
        # a new server for each, since some URLs misbehave only on the first request
        with tempfile.TemporaryDirectory() as temporary, _server(Path(temporary), tls=False) as server:
            one = _measure(job, server, "mixed", rows, cores)
        lines.append(f"{name:14}{one.num_images / rows:>9.1%} success{one.wall_s:>9.1f} s")
    return "\n".join(lines)


def run_plan(sizes: tuple[int, ...]) -> str:
    """Seconds and memory in which the driver plans generated tables."""
    lines = [f"{'rows':>12}{'seconds':>10}{'driver MiB':>12}"]
    for rows in sizes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            _write_large_table(folder / "table.parquet", rows)
            command = [sys.executable, str(ROOT / "jobs" / "ingest.py"), f"ingest.input={folder / 'table.parquet'}"]
            began = time.perf_counter()
            process = subprocess.Popen([*command, f"ingest.output={folder / 'out'}", "--dry-run"], stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            if status != 0:
                raise RuntimeError(f"planning {rows:,} rows failed; see its output above")
            lines.append(f"{rows:>12,}{time.perf_counter() - began:>10.1f}{usage.ru_maxrss / 1024:>12.0f}")
    return "\n".join(lines)


def _write_large_table(path: Path, rows: int, chunk_rows: int = 250_000) -> None:
    writer = None
    for first in range(0, rows, chunk_rows):
        numbers = range(first, min(first + chunk_rows, rows))
        table = pa.table(
            {
                "url": [f"https://images.example.com/{number % 9973}/{number}.jpg?size=large" for number in numbers],
                "caption": [f"a photograph of thing number {number} in a place" for number in numbers],
                "width": pa.array(numbers),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


@dataclass(frozen=True)
class _Server:
    folder: Path
    process: int
    address: str

    @property
    def environment(self) -> dict[str, str]:
        authority = self.folder / "ca.pem"
        return dict(os.environ) | ({"SSL_CERT_FILE": str(authority)} if authority.exists() else {})


@contextmanager
def _server(folder: Path, tls: bool) -> Iterator[_Server]:
    command = [
        sys.executable,
        str(ROOT / "jobs" / "benchmarks" / "image_server.py"),
        "--folder",
        str(folder),
        *["--tls"][: int(tls)],
    ]
    with subprocess.Popen(command) as process:
        try:
            while not (folder / "address").exists():
                if process.poll() is not None:
                    raise RuntimeError("the server of the benchmark did not start; see its output above")
                time.sleep(0.05)
            yield _Server(folder, process.pid, (folder / "address").read_text())
        finally:
            process.kill()


def _measure(job: Job, server: _Server, kind: str, rows: int, cores: int) -> Measurement:
    with tempfile.TemporaryDirectory(dir=server.folder) as temporary:
        folder = Path(temporary)
        urls = [f"{server.address}/{kind}/{number}.jpg" for number in range(rows)]
        captions = [f"image number {number}" for number in range(rows)]
        pq.write_table(pa.table({"url": urls, "caption": captions}), folder / "table.parquet")
        server_before, machine_before, began = _process_cpu_s(server.process), _machine_cpu_s(), time.perf_counter()
        with (folder / "output.txt").open("w") as output:
            command = job(folder / "table.parquet", folder / "out", cores)
            done = subprocess.run(command, env=server.environment, stdout=output, stderr=output, cwd=ROOT, check=False)
        wall_s = time.perf_counter() - began
        if done.returncode != 0:
            raise RuntimeError((folder / "output.txt").read_text())
        cpu_s = _machine_cpu_s() - machine_before - (_process_cpu_s(server.process) - server_before)
        statistics = [json.loads(path.read_text()) for path in (folder / "out").rglob("*_stats.json")]
        return Measurement(wall_s, cpu_s, sum(item["successes"] for item in statistics))


def _ours(table: Path, output: Path, cores: int) -> list[str]:
    settings = [
        f"ingest.input={table}",
        f"ingest.output={output}",
        f"ingest.num_workers={cores}",
        f"ingest.partition_size_rows={ROWS_PER_PARTITION}",
        f"ingest.fetch.total_timeout_s={TIMEOUT_S}",
        f"ingest.fetch.host_concurrency={THREADS}",
        "ingest.fetch.allow_addresses=[127.0.0.1/32]",
    ]
    return [sys.executable, str(ROOT / "jobs" / "ingest.py"), *settings]


def _theirs(table: Path, output: Path, cores: int) -> list[str]:
    options = {
        "url_list": str(table),
        "output_folder": str(output),
        "input_format": "parquet",
        "caption_col": "caption",
        "output_format": "webdataset",
        "image_size": 256,
        "resize_mode": "keep_ratio",
        "resize_only_if_bigger": True,
        "encode_quality": 95,
        "processes_count": cores,
        "thread_count": THREADS,
        "number_sample_per_shard": ROWS_PER_PARTITION,
        "timeout": TIMEOUT_S,
        "retries": 2,
    }
    code = f"import img2dataset\nif __name__ == '__main__':\n    img2dataset.download(**{options!r})"
    script = table.with_suffix(".py")
    script.write_text(code)
    return [sys.executable, str(script)]


def _decode_alone_ms(cores: int) -> float:
    """CPU milliseconds of `prepare_image`, on all cores at once, since cores that share a pipeline slow each other."""
    code = (
        "import time\n"
        "from jobs.benchmarks.image_server import photographs\n"
        "from pipeline.config import ImageConfig\n"
        "from pipeline.transform.image import prepare_image\n"
        "pictures, config = photographs(), ImageConfig()\n"
        "began = time.process_time()\n"
        "for _ in range(40):\n"
        "    for picture in pictures: prepare_image(picture, config)\n"
        "print((time.process_time() - began) / 40 / len(pictures) * 1e3)\n"
    )
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(cores)]
    return sum(float(process.communicate()[0]) for process in processes) / cores


def _machine_cpu_s() -> float:
    """Busy seconds of all cores, from Linux's /proc/stat."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, interrupts, soft_interrupts = (int(field) for field in fields[:7])
    return (user + nice + system + interrupts + soft_interrupts) / os.sysconf("SC_CLK_TCK")


def _process_cpu_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
