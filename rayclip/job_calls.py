"""jobs/ingest.py and jobs/train.py as functions, which return what a job prints and raise where a job exits.

In: a recipe and keys. Out: the result of the job, or an error of this package. The caller's process keeps its handlers of
signals and is never ended; Ray, once started, runs until the process ends or calls `ray.shutdown()`.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jobs.cli import runtime_env
from jobs.cli.command_line import connect_ray
from jobs.cli.config import Config, load_config
from jobs.cli.failures import EXIT_BAD_INPUT, EXIT_NOT_MEANT, explain
from jobs.cli.room import describe_cluster
from jobs.report import report_at_the_end
from jobs.train import train_run
from pipeline.errors import ConfigError, InputError, NotMeantError
from pipeline.ingest.summary import IngestSummary
from training.errors import RunError
from training.ray_internals import KEY_VALUES, quieten_ray_data
from training.record.run_record import TrainResult
from training.stop_signals import StoppedError

__all__ = ["IngestSummary", "TrainResult", "ingest", "train"]


def train(config: str | os.PathLike[str] = "default", overrides: Sequence[str] = (), **sections: Any) -> TrainResult:
    """Trains on a data set, as jobs/train.py does, or resumes a run that exists; waits for the end.

        rayclip.train("debug_cpu", data={"uri": "data/pairs"}, train={"max_steps": 30})
        rayclip.train("debug_cpu", ["data.uri=data/pairs", "train.max_steps=30"])

    Args:
        config: name or path of a recipe.
        overrides: keys as on a command line, section.key=value.
        sections: keys by section; they win over the others.

    Returns:
        The run's folder, step, samples seen, last checkpoint and the figures of the last evaluation. `finished` is False if
        Ctrl-C or SIGTERM stopped it, after it was saved; the same call resumes it.

    Raises:
        ConfigError: a key breaks a rule; nothing was started.
        InputError: the data cannot be used.
        RunError: the run cannot continue.
    """
    with _documented_errors():
        settings = _configured("train", config, overrides, sections)
        result = train_run(settings)
        if result.finished:
            report_at_the_end(settings)
        return result


def ingest(config: str | os.PathLike[str] = "default", overrides: Sequence[str] = (), **sections: Any) -> IngestSummary:
    """Ingests tables of URLs, as jobs/ingest.py does: only the rows that the data set lacks are fetched.

        rayclip.ingest(ingest={"input": "pairs.parquet", "output": "data/pairs", "caption_column": "alt"})

    Args:
        config: name or path of a recipe.
        overrides: keys as on a command line, section.key=value.
        sections: keys by section; they win over the others.

    Returns:
        The data set's address and version, and the rows of this run by reason; printed, it is the job's summary.

    Raises:
        ConfigError: a key breaks a rule; nothing was started.
        InputError: the table or the storage cannot be used.
        NotMeantError: less became samples than was meant; what did is committed.
        RunError: the ingestion cannot continue.
    """
    with _documented_errors():
        from pipeline.ingest.attempts import Attempts
        from pipeline.ingest.driver import run_ingest
        from pipeline.ingest.image_folder import as_table_input, list_new_images
        from pipeline.ingest.plan import plan_ingest

        settings = _configured("ingest", config, overrides, sections)
        tables = as_table_input(settings.ingest)
        images = list_new_images(settings.ingest)
        plan = plan_ingest(tables, output_is_checked=images > 0)  # refuses bad input before Ray starts
        if plan.partitions:
            connect_ray(settings.cluster)
            quieten_ray_data()
        summary = run_ingest(tables, plan, describe=describe_cluster, attempts=Attempts(*KEY_VALUES))
        if summary.shortfall:
            raise NotMeantError(f"{summary.shortfall}; what is committed stays")
        return summary


def _configured(job: str, config: str | os.PathLike[str], overrides: Sequence[str], sections: Mapping[str, Any]) -> Config:
    typed = [overrides] if isinstance(overrides, str) else list(overrides)
    try:
        found = load_config(os.fspath(config), [*typed, *_flattened(sections)], job)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--config=", "config=")) from None
    os.environ.update(runtime_env.variables_of(found.cluster.runtime_env))
    return found


def _flattened(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """section.key=value for every value; JSON is YAML."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}={json.dumps(value, default=str, ensure_ascii=False)}"


@contextlib.contextmanager
def _documented_errors() -> Iterator[None]:
    """Raises what a job reports as one message, also if Ray carried it from a worker, as an error of this package."""
    try:
        yield
    except (InputError, NotMeantError, RunError):
        raise
    except StoppedError as error:
        raise RunError("stopped while no worker trained; the same call resumes from the last checkpoint") from error
    except Exception as error:
        ending = explain(error)
        kinds: dict[int, type[Exception]] = {EXIT_BAD_INPUT: InputError, EXIT_NOT_MEANT: NotMeantError}
        raise kinds.get(ending.code, RunError)(ending.text) from error
