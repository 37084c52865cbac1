"""The result of a run of ingestion: figures, the verdict on them, and what to type next.

In: what the driver counted, and the data set after the run. Out: the text for the terminal.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pipeline.config import IngestConfig
from pipeline.dataset.manifest import Manifest
from pipeline.ingest.failed_rows import advice, concerned_rows
from pipeline.ingest.hints import DROPPED
from pipeline.ingest.outcome import Held, Ledger, Lineage, count_held, read_outcomes, standing_shortfall
from pipeline.ingest.row_numbers import COUNTED
from pipeline.storage.base import Storage

SHOWN_REASONS = 3


@dataclass(frozen=True)
class IngestSummary:
    """The result of a run of ingestion.

    Attributes:
        version: version of the data set after the run; 0 if there is none.
        rows_held: rows of the input that the data set held before; after a retry, rows of the tables that were retried.
        counts: rows of this run by reason, including `success`.
        held_without_sample: of the rows that the data set holds of these tables, those that are no samples.
        held_text: the same for people, with reasons; "" if there are none.
        shortfall: figures and rule if this is not what was meant; "" if it is.
        advice: a line for each reason why rows failed, with examples.
        retry_reasons: rows that failed before and that a change of the settings concerns, by reason.
        retry_text: the same for people.
    """

    output: str
    version: int
    rows_held: int
    counts: dict[str, int]
    num_samples: int
    duration_s: float
    held_without_sample: int = 0
    held_text: str = ""
    shortfall: str = ""
    advice: list[str] = field(default_factory=list)
    retry_reasons: dict[str, int] = field(default_factory=dict)
    retry_text: str = ""

    @property
    def rows(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        lines = self._figures()
        if self.advice:
            lines += [
                f"what did not become samples (rows are {COUNTED}), and what to type:",
                *(f"  {line}" for line in self.advice),
            ]
        return "\n".join(lines)

    def _figures(self) -> list[str]:
        if not self.rows and not self.version:
            return ["nothing to do: the input has no rows yet"]
        empty = "" if self.num_samples else ": there is nothing to train on"
        if not self.rows:
            held = f"holds all {self.rows_held:,} rows" if self.rows_held else "holds no row of the input, which has none yet"
            text = f"nothing to do: {self.output} version {self.version} {held}{self.held_text}"
            return [text, f"{self.output} version {self.version}: 0 samples{empty}"] if empty and self.held_text else [text]
        rate = self.rows / max(self.duration_s, 1e-9)
        lines = [f"{self.rows:,} rows in {self.duration_s:.1f} s ({rate:,.0f} a second)"]
        for reason, count in sorted(self.counts.items(), key=lambda item: (item[0] != "success", -item[1])):
            lines.append(f"  {reason:20} {count:>10,}  {count / self.rows:7.2%}")
        lines.append(f"{self.output} version {self.version}: {self.num_samples:,} samples{empty}")
        return lines


def with_verdict(
    summary: IngestSummary, storage: Storage, manifest: Manifest, config: IngestConfig, ledger: Ledger
) -> IngestSummary:
    """Adds what the run's rows, and those that the data set holds of the same tables, have to say."""
    outcomes, tables = read_outcomes(storage), ledger.sources
    attempted = bool(summary.rows)
    shortfall = standing_shortfall(manifest, outcomes, tables, config, ledger.retrying, attempted)
    held = count_held(manifest, tables, DROPPED)
    failed = ledger.partitions
    if shortfall and not attempted:
        failed = {record.id for record in Lineage(manifest).of_tables(tables)}
    summary = replace(
        summary,
        rows_held=held.rows if ledger.retrying else summary.rows_held,
        held_without_sample=held.without_sample,
        held_text=_held_text(held),
        shortfall=shortfall or "",
        advice=advice(storage, manifest, failed, config),
    )
    if config.bytes_column or not held.without_sample:
        return summary
    concerned = concerned_rows(storage, manifest, outcomes, tables, config)
    if not concerned.counts:
        return summary
    return replace(summary, retry_reasons=concerned.counts, retry_text=str(concerned))


def _held_text(held: Held) -> str:
    """The rows without a sample, as an end of `holds all N rows`."""
    if not held.without_sample:
        return ""
    failed = sum(count for reason, count in held.reasons.items() if reason not in DROPPED)
    dropped = held.without_sample - failed
    if held.all_failed:
        text = f"{held.without_sample:,} failed"
    elif held.reasons:
        text = ", ".join([*[f"{failed:,} failed"] * bool(failed), f"{dropped:,} dropped by a rule"])
    else:
        text = f"{held.without_sample:,} failed, or dropped by a rule"
    reasons = [f"{reason} {count:,}" for reason, count in list(held.reasons.items())[:SHOWN_REASONS]]
    more = ["..."] * (len(held.reasons) > SHOWN_REASONS)
    shown = f" ({', '.join(reasons + more)})" if reasons else ""
    return f", of which {text}{shown}"
