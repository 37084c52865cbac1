"""The section of the configuration that ingestion owns. Imports neither torch nor img2dataset."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A frozen part of the configuration tree that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FetchConfig(Section):
    """`ingest.fetch.*`: how one URL is fetched. None of it changes the bytes of a sample, so none is in the fingerprint."""

    total_timeout_s: float = Field(20.0, gt=0)
    """Deadline for one URL, redirects included."""
    read_timeout_s: float = Field(10.0, gt=0)
    max_bytes: int = Field(32 << 20, ge=1)
    """Of the decoded body."""
    max_redirects: int = Field(5, ge=0)
    concurrency: int = Field(64, ge=1)
    """Requests under way at once in one worker."""
    allow_addresses: tuple[str, ...] = ()
    """Networks (CIDR) that are reached although they are not public, e.g. 127.0.0.1/32 for a server on this machine."""
    user_agent_contact: str = ""
    """A URL or e-mail address that is sent in the User-Agent."""


class ImageConfig(Section):
    """`ingest.image.*`: what is stored. All of it is in the options fingerprint."""

    size_px: int = Field(256, ge=1)
    resize_mode: Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"] = "keep_ratio"
    resize_only_if_bigger: bool = True
    format: Literal["jpg", "png", "webp"] = "jpg"
    quality: int = Field(95, ge=0, le=100)
    """JPEG and WebP: quality; PNG: compression level 0 to 9."""
    max_pixels: int = Field(64_000_000, ge=1)
    """Pictures with more are refused from their header, before any decode."""
    min_side_px: int = Field(0, ge=0)
    max_aspect_ratio: float | None = Field(None, ge=1)


class IngestConfig(Section):
    """`ingest.*`: URL tables -> shards."""

    input: str = ""
    """Table, folder or glob of tables; parquet, csv, tsv or jsonl; local or s3://."""
    output: str = ""
    """Root of the data set: a local folder or s3://bucket/prefix."""
    url_column: str = "url"
    caption_column: str = "caption"
    partition_size_rows: int = Field(10_000, ge=1)
    num_workers: int | None = Field(None, ge=1)
    """Ray actors that ingest; None: one for each CPU that Ray has."""
    fetch: FetchConfig = FetchConfig()
    image: ImageConfig = ImageConfig()
