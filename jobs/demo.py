"""Runs the whole path on real images: URL table -> shards -> two training workers -> evaluation -> figures.

    make demo                                              installs the requirements and runs this
    python jobs/demo.py --seed 1                           another seed
    python jobs/demo.py --concepts 20 train.max_steps=20   a quick look: fewer images, fewer steps
    python jobs/demo.py --data-dir s3://BUCKET/demo run.dir=s3://BUCKET/runs     in object storage
    python jobs/demo.py --pictures-only images             only the images and their table, for your own web server

Renders some 3,000 emoji drawings with their English names, serves them on loopback, ingests them, and trains a small CLIP to
match names and images. Then it is tested on pairs it has never seen: a known concept in another skin tone. The data and run
folders of an earlier demo are replaced; any other folder stays untouched.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.cli.command_line import EXIT_STOPPED, connect_ray, main, parser
from jobs.cli.config import Config
from jobs.cli.job_parser import JobParser
from jobs.cli.open_model import last_checkpoint
from jobs.cli.room import refuse_on_a_ray_of_our_own, training_demand
from jobs.cli.worker_watch import WorkerWatch
from jobs.export import export_checkpoint
from jobs.report import report_at_the_end
from jobs.train import print_sync
from pipeline.errors import ConfigError
from training.ray_internals import KEY_VALUES, quieten_ray_data

if TYPE_CHECKING:
    from jobs.demonstration.drawings import Pair
    from jobs.demonstration.results import Figures
    from pipeline.storage.base import Storage

MARKER = "made-by-the-demo"


def job(config: Config, options: argparse.Namespace) -> int:
    from jobs.demonstration.drawings import ATTRIBUTION, render_pairs, write_images
    from pipeline.storage.address import open_storage
    from training.record.run_record import check_run_folder
    from training.worker import run_training

    if options.images_only:
        pairs = render_pairs(options.concepts)
        table = write_images(pairs, options.served_at.rstrip("/"), Path(options.images_only))
        print(f"{len(pairs):,} distinct images, and the table of the training split: {table}\n{ATTRIBUTION}")
        return 0
    clock = Phases()
    uris = data_uris(options.data_dir)
    run_storage = open_storage(config.run.uri)
    _start_afresh(run_storage)
    check_run_folder(run_storage, config.run.single_writer)
    make_data_sets(options.data_dir, config, options.concepts, clock)
    with clock.phase("train"):
        trained = run_training(_training_config(config, options.seed, uris))
    if not trained.finished:
        print_sync(trained.wandb_sync)
        return EXIT_STOPPED
    with clock.phase("evaluate"):
        figures, written = _evaluate(config, run_storage, uris)
    with clock.phase("report"):
        page = report_at_the_end(config)
    with clock.phase("export"):
        exported = open_storage(run_storage.address("export"))
        export_checkpoint(last_checkpoint(config), exported)
    print(f"\n{figures.table()}\n")
    (written / "demo.json").write_text(
        json.dumps({"figures": figures.as_dict(), "seconds": clock.seconds}, indent=1), encoding="utf-8"
    )
    print(f"time: {clock}")
    print(f"report:   {page or 'not written; see the warning above'}")
    print(f"export:   {exported.uri} (loads in open_clip; see its README.md)")
    print(f"curves:   {written / 'curves.png'}\ngallery:  {written / 'gallery.png'}\nfigures:  {written / 'demo.json'}")
    print(f"metrics:  {run_storage.address('metrics.jsonl')}\nshards:   {uris['train']}")
    print(f"\n{ATTRIBUTION}\n")
    print_sync(trained.wandb_sync)
    print("next: python jobs/train.py              (the default recipe on the same shards)")
    print("      python jobs/ingest.py --help      (your own table of URLs)")
    return 0


def data_uris(data_dir: str) -> dict[str, str]:
    """Addresses of the demo's data sets: split -> root."""
    from jobs.demonstration.drawings import SPLITS

    root = data_dir.rstrip("/") if "://" in data_dir else str(Path(data_dir).absolute())
    return {split: f"{root}/{split}" for split in SPLITS}


def make_data_sets(data_dir: str, config: Config, concepts: int | None = None, clock: Phases | None = None) -> None:
    """Renders the images and ingests them on Ray. Replaces the folder of an earlier demo."""
    from jobs.demonstration.drawings import SPLITS, render_pairs
    from pipeline.storage.address import open_storage

    clock, uris = clock or Phases(), data_uris(data_dir)
    _start_afresh(open_storage(uris["train"].rpartition("/")[0]))
    with clock.phase("render"):
        print("rendering emoji ...", flush=True)
        pairs = render_pairs(concepts)
        print(f"{len(pairs):,} distinct images: " + ", ".join(f"{_count(pairs, split):,} {split}" for split in SPLITS))
    with clock.phase("start Ray"):
        connect_ray(config.cluster)
        refuse_on_a_ray_of_our_own(training_demand(config.cluster))
    with clock.phase("ingest"):
        _ingest(pairs, uris, config)


def _start_afresh(storage: Storage) -> None:
    """Empties the folder of an earlier demo. Raises ConfigError for any other folder that is not empty."""
    found = [item.path for item in storage.list("")]
    if found and MARKER not in found:
        raise ConfigError(f"{storage.uri}: is not empty, and not from an earlier demo; choose another --data-dir or run.name")
    for path in found:
        storage.delete(path)
    storage.write(MARKER, b"The demo made this folder and empties it when it runs again.\n")


def _ingest(pairs: list[Pair], uris: dict[str, str], config: Config) -> None:
    """Ingests each split's table into its data set, over HTTP."""
    from jobs.demonstration.drawings import NUM_BROKEN, serve, write_tables
    from pipeline.ingest.attempts import Attempts
    from pipeline.ingest.driver import run_ingest

    quieten_ray_data()
    with tempfile.TemporaryDirectory() as folder, serve(pairs) as address:
        for split, table in write_tables(pairs, address, Path(folder)).items():
            if _count(pairs, split) == 0:
                continue
            print(f"\ningesting {split} from {address} into {uris[split]}", flush=True)
            if split == "train":
                print(f"(its table has {NUM_BROKEN} broken rows on purpose, to show how failures are reported)", flush=True)
            ingest = config.ingest.model_copy(update={"input": str(table), "output": uris[split]})
            print(run_ingest(ingest, describe=WorkerWatch(), attempts=Attempts(*KEY_VALUES)), flush=True)


def _training_config(config: Config, seed: int | None, uris: dict[str, str]) -> Config:
    """The recipe with the addresses of this demo's data sets."""
    tree = config.model_dump()
    tree["data"]["uri"] = uris["train"]
    if seed is not None:
        tree["train"]["seed"] = seed
    if tree["evaluation"]["retrieval_uri"] is not None:
        tree["evaluation"]["retrieval_uri"] = uris["heldout"]
    if tree["evaluation"]["zero_shot"] is not None:
        tree["evaluation"]["zero_shot"]["uri"] = uris["heldout"]
    return Config.model_validate(tree)


def _evaluate(config: Config, run_storage: Storage, uris: dict[str, str]) -> tuple[Figures, Path]:
    """Evaluates the last checkpoint. Returns the figures, and the folder with the plots."""
    from jobs.demonstration import results
    from training.trained_model import open_model

    clip, _ = open_model(last_checkpoint(config))
    encoded = results.encode(clip, uris)
    folder = run_storage.local_path("") or Path("runs").absolute() / f"{config.run.name}-pictures"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in run_storage.read("metrics.jsonl").splitlines()]
    results.draw_curves(rows, folder / "curves.png")
    results.draw_gallery(encoded, uris, folder / "gallery.png")
    return results.measure(encoded), folder


def _count(pairs: list[Pair], split: str) -> int:
    return sum(pair.split == split for pair in pairs)


class Phases:
    """Records the seconds of each phase, for the end of the output."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 1)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())
        return f"{sum(self.seconds.values()):.0f} s ({parts})"


def arguments() -> JobParser:
    result = parser(__doc__, "demo")
    result.set_defaults(config="demo")
    result.add_argument("--seed", type=int, default=None, help="seed of the initial weights and the sample order (default: 0)")
    result.add_argument(
        "--data-dir", default="data/demo", help="folder or s3://bucket/prefix of the data sets (default: %(default)s)"
    )
    result.add_argument("--concepts", type=int, default=None, help="limit on the concepts with and without skin tones")
    result.add_argument(
        "--pictures-only", dest="images_only", metavar="FOLDER", help="write the images and their table to FOLDER, then exit"
    )
    result.add_argument("--served-at", metavar="URL", default="http://127.0.0.1:8000", help="start of the URLs in that table")
    return result


if __name__ == "__main__":
    main(arguments(), job)
