"""The configuration section of jobs/embed.py. Imports no torch, so that a bad key is reported in milliseconds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from training.config import Section

_Workers = Annotated[int, Field(ge=1)]


class EmbedConfig(Section):
    """`embed.*`: features of a data set's images and captions. Captions come from `data.captions`; `data.on_damage` applies."""

    data: str = ""
    """Root of the data set: a local folder or s3://bucket/prefix."""
    version: int | Literal["latest"] = "latest"
    """Version of the data set."""
    output: str = ""
    """Folder for the features of one model: a local one that every node sees, or s3://bucket/prefix."""
    single_writer: str = ""
    """Name of the only job that writes to the output, as ingest.single_writer."""
    dtype: Literal["float16", "float32"] = "float16"
    """Type of the stored features."""
    batch_size: int = Field(256, ge=1)
    """Samples that one worker embeds at a time."""
    num_workers: _Workers | tuple[_Workers, _Workers] | None = None
    """Ray actors that hold the model, or [min, max]. None: from one to as many as the cluster has room for."""
    cpus_per_worker: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """CPUs of a worker. auto: one; with GPUs the cluster's CPUs divided by its GPUs."""
    use_gpu: bool | Literal["auto"] = "auto"
    """Give each worker one GPU. auto: where the cluster has any."""
    decode_threads: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Threads of one worker that decode. auto: one less than its CPUs, and at least one."""

    @model_validator(mode="after")
    def _least_before_most(self) -> EmbedConfig:
        if isinstance(self.num_workers, tuple) and self.num_workers[0] > self.num_workers[1]:
            raise ValueError(f"num_workers={list(self.num_workers)}: is [min, max]; give the smaller first")
        return self
