"""Measures this system against its peers, in one run on one machine, as ratios.

    python jobs/benchmark.py ingest                 images per CPU-second and per second against img2dataset, HTTP and HTTPS
    python jobs/benchmark.py ingest --scheme http   the same, shorter
    python jobs/benchmark.py ingest-yield           successes on a server that misbehaves
    python jobs/benchmark.py ingest-plan            the driver's memory for one and for ten million rows
    python jobs/benchmark.py data                   the training stream against webdataset and Ray Data: cost, memory, mixing
    python jobs/benchmark.py train --model RN50     a step of a model against open_clip's
    python jobs/benchmark.py loss                   memory and time of the loss against the plain local loss

Needs the `test` extra (the peers are in it) and a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import sys

from jobs import benchmark_data, benchmark_ingest, benchmark_train


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    ingest = commands.add_parser("ingest", help="ingestion's cost and speed")
    ingest.add_argument("--rows", type=int, default=15_000, help="of the large table (default: %(default)s)")
    ingest.add_argument("--small-rows", type=int, default=5_000, help="of the small table (default: %(default)s)")
    ingest.add_argument("--repeats", type=int, default=3, help="of the whole comparison (default: %(default)s)")
    ingest.add_argument("--scheme", choices=("http", "https", "both"), default="both")
    misbehaving = commands.add_parser("ingest-yield", help="ingestion's yield on a server that misbehaves")
    misbehaving.add_argument("--rows", type=int, default=2_000)
    planning = commands.add_parser("ingest-plan", help="the driver's memory")
    planning.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    data = commands.add_parser("data", help="the training stream's cost, memory, time to the first batch, and mixing")
    data.add_argument("--samples", type=int, default=12_000)
    data.add_argument("--repeats", type=int, default=3, help="of the whole comparison (default: %(default)s)")
    train = commands.add_parser("train", help="pairs per second of a model's step")
    train.add_argument("--model", default="ViT-B/32")
    train.add_argument("--batch-size", type=int, default=32)
    train.add_argument("--repeats", type=int, default=5)
    train.add_argument("--threads", type=int, help="of torch (default: as torch chooses)")
    loss = commands.add_parser("loss", help="memory and time of the loss")
    loss.add_argument("--global-batches", type=int, nargs="+", default=[4_096, 8_192, 16_384, 32_768, 65_536])
    loss.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(argv)
    if options.command == "ingest":
        for scheme in ("http", "https") if options.scheme == "both" else (options.scheme,):
            print(benchmark_ingest.run(scheme, options.small_rows, options.rows, options.repeats), flush=True)
    elif options.command == "ingest-yield":
        print(benchmark_ingest.run_yield(options.rows))
    elif options.command == "data":
        print(benchmark_data.run(options.samples, options.repeats))
    elif options.command == "train":
        print(benchmark_train.run(options.model, options.batch_size, options.repeats, options.threads))
    elif options.command == "loss":
        print(benchmark_train.run_loss(tuple(options.global_batches), options.repeats))
    else:
        print(benchmark_ingest.run_plan(tuple(options.rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
