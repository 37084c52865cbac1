"""Ingests tables of URLs: fetches the images, writes shards, and commits a new version of a data set.

    python jobs/ingest.py ingest.input=pairs.parquet ingest.output=data/pairs
    python jobs/ingest.py ingest.input='s3://BUCKET/tables/*.parquet' ingest.output=s3://BUCKET/pairs ingest.caption_column=alt
    python jobs/submit.py --working-dir . -- python jobs/ingest.py ingest.input=s3://BUCKET/t.csv ingest.output=s3://BUCKET/pairs
    python jobs/ingest.py ingest.input=photos ingest.captions_from=txt ingest.output=data/photos     cat.jpg beside cat.txt, ...
    python jobs/ingest.py ingest.output=data/pairs --retry-failed timeout,http_503
    python jobs/ingest.py ingest.output=data/pairs --verify

Safe to run again at any time, by hand or by a scheduler: rows that the data set holds are not fetched again. When the table
grows, only the new rows are fetched; without new rows a run ends in seconds. The next run continues one that was killed. The
endpoint and the keys of S3 come from the environment (AWS_ENDPOINT_URL, ...).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jobs.cli.command_line import EXIT_FAILED, connect_ray, main, parser
from jobs.cli.config import Config
from jobs.cli.job_parser import JobParser
from jobs.cli.whole_file import write_whole
from jobs.cli.worker_watch import WorkerWatch
from pipeline.errors import InputError, NotMeantError
from pipeline.storage.url_credentials import without_userinfo
from training.ray_internals import KEY_VALUES, quieten_ray_data
from training.wandb_environment import with_environment

if TYPE_CHECKING:
    from pipeline.config import IngestConfig
    from pipeline.dataset.manifest import Manifest
    from pipeline.ingest.driver import Log
    from pipeline.storage.base import Storage


def job(config: Config, options: argparse.Namespace) -> int:
    if options.verify:
        return _verify(config.ingest)
    if options.clean:
        return _clean(config.ingest, options.older_than_h)
    if options.wandb:
        with_environment(config.tracking, os.environ)  # refuses bad input before Ray starts
    from pipeline.ingest.image_folder import as_table_input, list_new_images
    from pipeline.ingest.plan import plan_ingest

    as_tables = as_table_input(config.ingest)
    images = 0 if options.retry_failed else list_new_images(config.ingest, options.dry_run)
    config = config.model_copy(update={"ingest": as_tables})
    if options.retry_failed and options.dry_run:
        return _show_retries(config.ingest, options.retry_failed)
    ingest = _retries_as_input(config.ingest, options.retry_failed) if options.retry_failed else config.ingest
    if ingest is None:
        print(f"nothing to do: every row that failed for {options.retry_failed} was tried again already")
        _repeat_verdict(config.ingest)
        return 0
    if images and options.dry_run:
        print(f"{images:,} images to list and to fetch, beside those of earlier runs")
        return 0
    # refuses bad input before Ray starts
    plan = plan_ingest(ingest, dry_run=options.dry_run, output_is_checked=bool(options.retry_failed or images))
    if options.dry_run:
        print(plan)
        return 0
    if plan.partitions:
        connect_ray(config.cluster)
        quieten_ray_data()
    from pipeline.ingest.attempts import Attempts
    from pipeline.ingest.driver import run_ingest

    attempts = Attempts(*KEY_VALUES)
    with _wandb_run(config, wanted=options.wandb and bool(plan.partitions)) as wandb_run:
        summary = run_ingest(ingest, plan, None if wandb_run is None else _log_to(wandb_run), WorkerWatch(), attempts)
        _declare_version(wandb_run, ingest, summary.version)
    print(summary)
    if summary.counts.get("success"):
        _say_what_is_raw(config.ingest, summary.version)
    if summary.version == 1:
        data = shlex.quote(f"data.uri={_output(config.ingest)}")
        print(f"next: python jobs/train.py --config small {data}   (jobs/recipes has larger ones)")
    if summary.retry_reasons:
        print(f"the settings have changed for {summary.retry_text}; this fetches them again:")
        print(f"  {_command(options, ','.join(summary.retry_reasons))}")
    _say_how_to_upload(wandb_run)
    if options.summary:
        write_whole(options.summary, json.dumps(asdict(summary), indent=1))
    if summary.shortfall:
        raise NotMeantError(f"{summary.shortfall}; {_remedy(config.ingest)}")
    return 0


def _say_what_is_raw(config: IngestConfig, version: int) -> None:
    from pipeline.dataset.manifest import read_manifest
    from pipeline.storage.address import open_storage
    from pipeline.versions.curation import note_on_new_rows

    note = note_on_new_rows(read_manifest(open_storage(_output(config)), version))
    if note:
        print(note)


def _repeat_verdict(config: IngestConfig) -> None:
    """Raises NotMeantError if the newest run over any table of the data set missed what was meant, and so does none since."""
    from pipeline.dataset.manifest import read_manifest
    from pipeline.ingest.outcome import read_outcomes, standing_shortfall
    from pipeline.storage.address import open_storage

    storage = open_storage(_output(config))
    manifest = read_manifest(storage)
    tables = {record.input_path for record in manifest.partitions}
    shortfall = standing_shortfall(manifest, read_outcomes(storage), tables, config, retrying=True, attempted=False)
    if shortfall:
        raise NotMeantError(f"{shortfall}; {_remedy(config)}")


def _remedy(config: IngestConfig) -> str:
    again = "ingest the table into a new ingest.output" if config.bytes_column else "--retry-failed REASONS fetches them again"
    return f"what is committed stays; fix the cause, then {again}; if no more are meant to succeed, lower the key"


def _command(options: argparse.Namespace, reasons: str) -> str:
    """The command in progress, as one that retries rows."""
    recipe = [] if options.config == "default" else ["--config", options.config]
    words = [*recipe, *map(without_userinfo, options.overrides), "--retry-failed", reasons]
    return f"python jobs/ingest.py {shlex.join(words)}"


def _verify(config: IngestConfig) -> int:
    from pipeline.dataset.manifest import read_manifest
    from pipeline.storage.address import open_storage
    from pipeline.versions.audit import verify

    storage = open_storage(_output(config))
    manifest = read_manifest(storage)
    problems = verify(storage, manifest)
    for problem in problems:
        print(problem)
    print(f"{storage.uri} version {manifest.version}: {len(manifest.shards):,} shards, {len(problems):,} problems")
    return EXIT_FAILED if problems else 0


def _clean(config: IngestConfig, older_than_h: float) -> int:
    from pipeline.storage.address import open_storage
    from pipeline.versions.audit import clean

    removed = clean(open_storage(_output(config)), older_than_h * 3600)
    for path in removed:
        print(path)
    print(f"{len(removed):,} objects removed: no version names them, and they are older than {older_than_h:g} hours")
    return 0


def _retries_as_input(config: IngestConfig, reasons: str) -> IngestConfig | None:
    """Makes the tables of failures the input; None when no failure is left to retry."""
    from pipeline.ingest.retry import FOLDER, write_retry_tables
    from pipeline.storage.put_if_absent import ensure_put_if_absent

    chosen = _chosen_failures(config, reasons)
    storage = chosen[0]
    ensure_put_if_absent(storage, config.single_writer, "ingest.single_writer")
    rows = write_retry_tables(*chosen)
    return _retried(storage, config) if rows or any(storage.list(f"{FOLDER}/")) else None


def _show_retries(config: IngestConfig, reasons: str) -> int:
    """Prints what a retry would fetch, and writes nothing."""
    from pipeline.ingest.plan import plan_ingest
    from pipeline.ingest.retry import FOLDER, count_new_retries

    chosen = _chosen_failures(config, reasons)
    storage = chosen[0]
    new, unfinished = count_new_retries(*chosen), 0
    if any(storage.list(f"{FOLDER}/")):
        unfinished = plan_ingest(_retried(storage, config), dry_run=True).num_rows
    more = f", {unfinished:,} of them left unfinished by an earlier retry" if unfinished else ""
    print(f"{new + unfinished:,} failed rows to fetch again{more}")
    return 0


def _retried(storage: Storage, config: IngestConfig) -> IngestConfig:
    from pipeline.ingest.retry import FOLDER

    return config.model_copy(update={"input": storage.address(FOLDER), "column_names": ()})  # the retries' columns have names


def _chosen_failures(config: IngestConfig, reasons: str) -> tuple[Storage, Manifest, list[str], IngestConfig, set[str] | None]:
    """Arguments for the functions of pipeline/ingest/retry.py: the failures of these reasons, in the tables of the input."""
    from pipeline.dataset.manifest import read_manifest
    from pipeline.ingest.outcome import Lineage
    from pipeline.ingest.retry import in_retries
    from pipeline.ingest.table_files import tables_named
    from pipeline.storage.address import open_storage

    if config.bytes_column:
        raise InputError(
            f"ingest.bytes_column={config.bytes_column}: --retry-failed needs URLs, and this table holds the bytes; "
            "repair its rows and ingest them as a new table"
        )
    storage = open_storage(_output(config))
    manifest = read_manifest(storage)
    wanted = _reasons(reasons, {reason for record in manifest.partitions for reason in record.counts} - {"success"})
    if "bad_row" in wanted:
        raise InputError(
            "--retry-failed bad_row: these lines have no URL that could be fetched; fix the lines that error_message in the "
            "sidecars names, and ingest them as a new table"
        )
    if not config.input:
        return storage, manifest, wanted, config, None
    known = sorted({record.input_path for record in manifest.partitions if not in_retries(record.input_path)})
    tables = tables_named(config.input, known)
    if not tables:
        raise InputError(
            f"ingest.input={config.input}: --retry-failed fetches failed rows of these tables, and the data set has "
            f"none of them (it has {', '.join(known[:3])}{', ...' if len(known) > 3 else ''}); name some of those, or "
            "leave ingest.input empty to retry the failures of all"
        )
    return storage, manifest, wanted, config, {record.id for record in Lineage(manifest).of_tables(tables)}


def _reasons(text: str, known: set[str]) -> list[str]:
    """The reasons of --retry-failed. Raises InputError for a word that is none."""
    from pipeline.ingest.hints import is_reason

    words = [word.strip() for word in text.split(",") if word.strip()]
    unknown = next((word for word in words if word not in known and not is_reason(word)), None)
    if unknown is not None or not words:
        raise InputError(
            f"--retry-failed {unknown or text!r}: is no reason for a failure; name those of the summary or of the sidecars, "
            "as in --retry-failed timeout,http_503"
        )
    return words


def _output(config: IngestConfig) -> str:
    if not config.output:
        raise InputError("ingest.output: is empty; name the folder or the s3://bucket/prefix of the data set")
    return config.output


@contextlib.contextmanager
def _wandb_run(config: Config, wanted: bool) -> Iterator[Any]:
    """The job as a W&B run, or None. Errors of W&B do not stop the ingestion."""
    from training.record.wandb_run import open_run

    wandb_run = None
    if wanted:
        with _complaints():
            ingest = config.ingest.model_dump(mode="json")
            wandb_run = open_run(config.tracking, None, None, None, ingest, job_type="ingest")
    yield wandb_run
    if wandb_run is not None:
        with _complaints():
            wandb_run.finish()


def _say_how_to_upload(wandb_run: Any) -> None:
    from training.record.wandb_run import sync_command

    command = "" if wandb_run is None else sync_command(wandb_run)
    if command:
        print(f"W&B has this ingestion once you upload it: {command}")


def _log_to(wandb_run: Any) -> Log:
    def log(state: dict[str, float]) -> None:
        with _complaints():
            wandb_run.log(state)

    return log


def _declare_version(wandb_run: Any, config: IngestConfig, version: int) -> None:
    """Declares the data set version as the output of the W&B run."""
    if wandb_run is None or not version:
        return
    from pipeline.dataset.manifest import read_manifest
    from pipeline.storage.address import open_storage
    from training.record.lineage import declare_output

    with _complaints():
        storage = open_storage(_output(config))
        manifest = read_manifest(storage, version)
        declare_output(wandb_run, {"uri": storage.uri, "version": manifest.version, "identity": manifest.identity})


@contextlib.contextmanager
def _complaints() -> Iterator[None]:
    """Prints an error of W&B and suppresses it."""
    try:
        yield
    except Exception as error:
        print(f"W&B: {error}; the ingestion continues", file=sys.stderr)


def arguments() -> JobParser:
    result = parser(__doc__, "ingest")
    actions = result.add_argument_group("ingestion")
    actions.add_argument("--dry-run", action="store_true", help="print the plan; write nothing")
    actions.add_argument(
        "--retry-failed",
        metavar="REASONS",
        help="fetch failed rows again, e.g. timeout,http_503; of ingest.input's tables, if it is set",
    )
    actions.add_argument(
        "--verify", action="store_true", help="compare every object with the latest version; exit code 1 on a problem"
    )
    actions.add_argument("--clean", action="store_true", help="remove files that killed or repeated attempts left behind")
    actions.add_argument(
        "--older-than-h", type=float, default=24.0, metavar="HOURS", help="with --clean: minimum age of a file (default: 24)"
    )
    actions.add_argument("--summary", metavar="FILE", help="also write the summary to FILE, as JSON")
    actions.add_argument("--wandb", action="store_true", help="also send the progress to W&B (tracking.*)")
    return result


if __name__ == "__main__":
    main(arguments(), job)
