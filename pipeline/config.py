"""Configuration sections of the jobs that write data sets: ingest, curate, index. Imports neither torch nor img2dataset."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

DEFAULT_QUALITY, DEFAULT_PNG_LEVEL, MAX_PNG_LEVEL = 95, 3, 9


EXAMPLES = {"allow_addresses": "127.0.0.1/32", "allow_s3": "s3://BUCKET/photos/", "allow_files": "/data/photos"}
"""Values of `ingest.fetch.allow_*`, for messages."""


class Section(BaseModel):
    """A frozen part of the configuration tree that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FetchConfig(Section):
    """`ingest.fetch.*`: fetching of images. Changes no sample's bytes, so it is not part of the options fingerprint."""

    total_timeout_s: float = Field(20.0, gt=0)
    """Deadline for one URL, redirects and retries included."""
    read_timeout_s: float = Field(10.0, gt=0)
    """Longest wait for the next bytes of a server."""
    max_bytes: int = Field(32 << 20, ge=1)
    """Largest body, decompressed."""
    max_redirects: int = Field(5, ge=0)
    """Redirects that are followed for one URL."""
    attempts: int = Field(3, ge=1)
    """Attempts at a URL after 429, 5xx or a lost connection, the first one included."""
    concurrency: int = Field(64, ge=1)
    """Concurrent requests of one worker."""
    host_concurrency: int = Field(16, ge=1)
    """Concurrent requests of one worker to one host."""
    host_max_failures: int = Field(8, ge=1)
    """Failures in a row to connect to a host, or to get an answer from it, after which it is paused."""
    host_pause_s: float = Field(60.0, gt=0)
    """Length of that pause, in which the host's URLs fail at once as `host_down`."""
    allow_addresses: tuple[str, ...] = ()
    """Networks (CIDR) that may be reached although they are not public, e.g. 127.0.0.1/32 for a server on this machine."""
    allow_s3: tuple[str, ...] = ()
    """Prefixes (s3://bucket/photos/) under which s3:// addresses in the url column may be read, with this machine's keys."""
    allow_files: tuple[str, ...] = ()
    """Folders under which paths and file:// addresses in the url column may be read; one, or a list. A relative path is looked
    for beside its table, then in each of these folders."""
    user_agent_contact: str = ""
    """URL or e-mail address to send in the User-Agent."""

    @field_validator("allow_addresses", "allow_s3", "allow_files", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool):
            name = str(info.field_name)
            raise ValueError(f"{str(value).lower()} names none of them; write ingest.fetch.{name}={EXAMPLES[name]}")
        return (value,) if isinstance(value, str) and value else value


class CaptionConfig(Section):
    """`ingest.caption.*`: limits on captions, counted after cleaning. Part of the options fingerprint."""

    min_characters: int = Field(1, ge=1)
    """Shorter captions are dropped."""
    max_characters: int | None = Field(None, ge=1)
    """Longer captions are dropped; None: no limit."""
    min_words: int = Field(1, ge=1)
    """Captions with fewer words are dropped."""


class ImageConfig(Section):
    """`ingest.image.*`: size and encoding of stored images, and limits on fetched ones. Part of the options fingerprint."""

    size_px: int = Field(256, ge=1)
    """Target length of the shorter side (of the longer side for border and keep_ratio_largest)."""
    resize_mode: Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"] = "keep_ratio"
    """img2dataset's modes: keep_ratio resizes, center_crop also crops to a square, border also pads to a square."""
    resize_only_if_bigger: bool = True
    """Keep the size of images that are not larger than size_px."""
    format: Literal["jpg", "png", "webp"] = "jpg"
    """Format of stored images."""
    quality: int | None = Field(None, ge=0, le=100)
    """JPEG and WebP: quality, 95 if None. PNG: compression level 0 to 9, 3 if None; PNG loses nothing at any level."""
    keep_bytes: bool = True
    """Store the fetched bytes of an image that is already in the stored format, upright, RGB and small enough."""
    max_pixels: int = Field(64_000_000, ge=1)
    """Images with more pixels are refused by their header, before decoding."""
    min_side_px: int = Field(0, ge=0)
    """Images with a shorter side are dropped."""
    max_aspect_ratio: float | None = Field(None, ge=1)
    """Images with a larger ratio of long to short side are dropped; None: no limit."""

    @field_validator("resize_mode", mode="before")
    @classmethod
    def _yaml_reads_no_as_false(cls, value: Any) -> Any:
        return "no" if value is False else value

    @model_validator(mode="after")
    def _png_has_levels(self) -> Self:
        if self.format == "png" and self.quality is not None and self.quality > MAX_PNG_LEVEL:
            raise ValueError(
                f"quality={self.quality} is over {MAX_PNG_LEVEL}: for png it is the level of a lossless compression, 0 to "
                f"{MAX_PNG_LEVEL}; omit ingest.image.quality, also to grow a data set that was made with it"
            )
        return self

    @property
    def encoder_quality(self) -> int:
        """The quality or level to encode with."""
        if self.quality is not None:
            return self.quality
        return DEFAULT_PNG_LEVEL if self.format == "png" else DEFAULT_QUALITY

    def fingerprint_options(self) -> dict[str, Any]:
        """The options that change the bytes of a shard, as every release has named them: an absent quality is 95."""
        return self.model_dump() | {"quality": DEFAULT_QUALITY if self.quality is None else self.quality}


class IngestConfig(Section):
    """`ingest.*`: URL tables -> shards."""

    input: str = ""
    """Table, folder or glob of tables; parquet, csv, tsv or jsonl, also .gz; local or s3://. See captions_from for images."""
    captions_from: Literal["column", "txt", "txt_lines", "folder", "file_name"] = "column"
    """Place of the captions if the input is a folder of images: cat.txt for cat.jpg (txt_lines: several, one a line), or the
    name of the image's folder or file, with spaces for `_`. column: the input is tables."""
    output: str = ""
    """Root of the data set: a local folder or s3://bucket/prefix."""
    url_column: str = "url"
    """Column with the images' URLs."""
    caption_column: str = "caption"
    """Column with the captions."""
    bytes_column: str = ""
    """Column with the encoded images; if set, nothing is fetched, and a url column is optional."""
    column_names: tuple[str, ...] = ()
    """Names of all columns, in order, for csv and tsv tables without a header line, e.g. [caption, url]."""
    partition_size_rows: int = Field(10_000, ge=1)
    """Rows that are planned, fetched and committed together."""
    shard_size_bytes: int = Field(1 << 30, ge=1)
    """Tar size after which a partition continues in another shard."""
    memory_bytes: int = Field(512 << 20, ge=1)
    """Limit on fetched and stored images in one worker's memory; libraries and one decoded image come on top."""
    commit_every_s: float = Field(600.0, gt=0)
    """Interval at which a long run commits finished partitions as a new version; it also commits at its end."""
    num_workers: int | None = Field(None, ge=1)
    """Maximum number of Ray actors, one CPU each; None: limited by the work and by Ray's CPUs, also those that join later."""
    allow_copies: bool = False
    """Ingest a table that has 100 or more rows of another one of the data set: its pairs are there twice then."""
    single_writer: str = ""
    """Name of the only job that writes to the output, for a store without put-if-absent; "": any job may write."""
    min_success_share: float = Field(0.1, ge=0, le=1)
    """Share of a run's rows below which it ends with exit code 3, "done, but not what was meant"; 0: any share will do."""
    min_share_of_history: float = Field(0.5, ge=0, le=1)
    """The same, as a fraction of the share of the rows that the data set held before; 0: do not compare."""
    fetch: FetchConfig = FetchConfig()
    image: ImageConfig = ImageConfig()
    caption: CaptionConfig = CaptionConfig()


class CurateConfig(Section):
    """`curate.*`: a new version of a data set with some of its samples. Rules apply, and count their drops, in this order."""

    data: str = ""
    """Root of the data set."""
    version: int | Literal["latest"] = "latest"
    """Version to choose from; the newest, or one with the same rows and selections."""
    min_side_px: int = Field(0, ge=0)
    """Drop samples whose original image has a shorter side than this; where a tar does not tell its size, the stored one."""
    max_aspect_ratio: float | None = Field(None, ge=1)
    """Drop samples whose original image has a larger ratio of long to short side; None: no limit."""
    min_caption_characters: int = Field(0, ge=0)
    """Drop samples with a shorter caption."""
    max_caption_characters: int | None = Field(None, ge=1)
    """Drop samples with a longer caption; None: no limit."""
    min_caption_words: int = Field(0, ge=0)
    """Drop samples whose caption has fewer words."""
    exclude_hashes: str = ""
    """Text file with one sha256 per line, of images to drop, e.g. those of an evaluation set: as stored, as fetched, or as the
    input's own column sha256 has them."""
    where: str = ""
    """Condition on the sidecar's columns, in the syntax of pandas' query, e.g. "width >= 300 and lang == 'en'"."""
    scores: str = ""
    """Output of jobs/embed.py for these samples: adds its column clip_score for `where`, e.g. "clip_score > 0.28"."""
    sample_share: float = Field(1.0, gt=0, le=1)
    """Share of the remaining samples to keep, chosen by a hash of (seed, key)."""
    seed: int = Field(0, ge=0)
    """Seed of that choice."""
    drop_duplicates: bool = False
    """Keep only the first of equal images (by their sha256 as stored) in the whole data set."""
    single_writer: str = ""
    """Name of the only job that writes to the data set, as ingest.single_writer."""


class IndexConfig(Section):
    """`index.*`: WebDataset tars written by other tools -> a data set that reads them in place."""

    input: str = ""
    """Tar, folder or glob of tars, not compressed; local or s3://. Braces ({00000..00127}.tar) and `::` are read, too."""
    output: str = ""
    """Root of the data set: sidecars and manifests, but no images."""
    single_writer: str = ""
    """Name of the only job that writes to the output, as ingest.single_writer."""
    caption_key: str = ""
    """Key of the caption in the json member; "": use the txt member, or the json's `caption` if there is no txt member. A
    list of texts is several captions."""
