"""The section of the configuration that ingestion owns. Imports neither torch nor img2dataset."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Section(BaseModel):
    """A frozen part of the configuration tree that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FetchConfig(Section):
    """`ingest.fetch.*`: how one picture is fetched. None of it changes the bytes of a sample, so none is in the fingerprint."""

    total_timeout_s: float = Field(20.0, gt=0)
    """Deadline for one URL from its first byte sent, redirects and retries included."""
    read_timeout_s: float = Field(10.0, gt=0)
    """Longest silence of a server that was asked."""
    max_bytes: int = Field(32 << 20, ge=1)
    """Of the decoded body."""
    max_redirects: int = Field(5, ge=0)
    attempts: int = Field(3, ge=1)
    """How often a URL is asked for when the answer may be better in a moment: 429, 5xx, a lost connection."""
    concurrency: int = Field(64, ge=1)
    """Requests under way at once in one worker."""
    host_concurrency: int = Field(16, ge=1)
    """Of these, to one host."""
    host_max_failures: int = Field(8, ge=1)
    """After so many failures in a row to connect to a host or to get an answer from it, it is left alone for a while."""
    host_pause_s: float = Field(60.0, gt=0)
    """How long: its URLs fail at once as `host_down`."""
    allow_addresses: tuple[str, ...] = ()
    """Networks (CIDR) that are reached although they are not public, e.g. 127.0.0.1/32 for a server on this machine."""
    allow_s3: tuple[str, ...] = ()
    """Prefixes (s3://bucket/photos/) under which s3:// addresses in the url column are read, with this machine's keys."""
    allow_files: tuple[str, ...] = ()
    """Folders under which paths and file:// addresses in the url column are read."""
    user_agent_contact: str = ""
    """A URL or e-mail address that is sent in the User-Agent."""


class CaptionConfig(Section):
    """`ingest.caption.*`: which captions are stored, counted after cleaning. In the options fingerprint."""

    min_characters: int = Field(1, ge=1)
    max_characters: int | None = Field(None, ge=1)
    min_words: int = Field(1, ge=1)


class ImageConfig(Section):
    """`ingest.image.*`: what is stored. All of it is in the options fingerprint."""

    size_px: int = Field(256, ge=1)
    resize_mode: Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"] = "keep_ratio"
    resize_only_if_bigger: bool = True
    format: Literal["jpg", "png", "webp"] = "jpg"
    quality: int = Field(95, ge=0, le=100)
    """JPEG and WebP: quality; PNG: compression level 0 to 9."""
    keep_bytes: bool = True
    """A picture that is already in the stored format, upright, RGB and small enough is not compressed a second time."""
    max_pixels: int = Field(64_000_000, ge=1)
    """Pictures with more are refused from their header, before any decode."""
    min_side_px: int = Field(0, ge=0)
    max_aspect_ratio: float | None = Field(None, ge=1)

    @field_validator("resize_mode", mode="before")
    @classmethod
    def _yaml_reads_no_as_false(cls, value: Any) -> Any:
        return "no" if value is False else value


class IngestConfig(Section):
    """`ingest.*`: URL tables -> shards."""

    input: str = ""
    """Table, folder or glob of tables; parquet, csv, tsv or jsonl; local or s3://."""
    output: str = ""
    """Root of the data set: a local folder or s3://bucket/prefix."""
    url_column: str = "url"
    caption_column: str = "caption"
    bytes_column: str = ""
    """A column that holds the pictures themselves; where it is set, nothing is fetched, and a url column is optional."""
    partition_size_rows: int = Field(10_000, ge=1)
    """Rows that are planned, fetched and committed together."""
    shard_size_bytes: int = Field(1 << 30, ge=1)
    """A partition whose tar would grow beyond this goes on in another."""
    memory_bytes: int = Field(512 << 20, ge=1)
    """Upper bound on bodies and stored pictures that one worker holds; libraries and a decoded picture come on top."""
    commit_every_s: float = Field(600.0, gt=0)
    """How often a long run adds what is done as a new version of the data set; it also does so at its end."""
    num_workers: int | None = Field(None, ge=1)
    """Most Ray actors that ingest, of one CPU each; None: as many as there is work for and Ray has CPUs, or gets on the way."""
    fetch: FetchConfig = FetchConfig()
    image: ImageConfig = ImageConfig()
    caption: CaptionConfig = CaptionConfig()


class CurateConfig(Section):
    """`curate.*`: a new version of a data set from a choice of its samples. Rules count what they drop, in this order."""

    data: str = ""
    """Root of the data set."""
    version: int | Literal["latest"] = "latest"
    """The version that is chosen from."""
    min_side_px: int = Field(0, ge=0)
    """Shorter side of the original picture."""
    max_aspect_ratio: float | None = Field(None, ge=1)
    min_caption_characters: int = Field(0, ge=0)
    max_caption_characters: int | None = Field(None, ge=1)
    min_caption_words: int = Field(0, ge=0)
    exclude_hashes: str = ""
    """A text file with a sha256 a line, of stored or of original pictures, e.g. those of an evaluation set."""
    where: str = ""
    """A condition on the sidecar's columns, in pandas' words, e.g. "width >= 300 and lang == 'en'"."""
    scores: str = ""
    """What jobs/embed.py has written of these samples: its clip_score is a column for `where`, e.g. "clip_score > 0.28"."""
    sample_share: float = Field(1.0, gt=0, le=1)
    """Keep so large a share of what is left, by a hash of (seed, key)."""
    seed: int = Field(0, ge=0)
    drop_duplicates: bool = False
    """Of equal pictures (sha256 as stored) in the whole data set the first stays."""


class IndexConfig(Section):
    """`index.*`: WebDataset tars that others wrote -> a data set that reads them where they lie."""

    input: str = ""
    """Tar, folder or glob of tars; local or s3://."""
    output: str = ""
    """Root of the data set: sidecars and manifests, no pictures."""
    caption_key: str = ""
    """The key of the json member that is the caption; "": the txt member, or `caption` in the json where there is none."""
