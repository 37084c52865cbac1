"""Embeds a data set: features of its images and captions, and their CLIP scores, as one parquet file per shard.

    python jobs/embed.py run.name=demo embed.data=data/demo/train embed.output=data/features
    python jobs/embed.py --weights b32.pt --activation gelu embed.data=data/pairs embed.output=data/features
    ray job submit --working-dir . -- python jobs/embed.py run.dir=s3://BUCKET/runs run.name=vit_b_32 'embed.num_workers=[4,64]'
        embed.data=s3://BUCKET/pairs embed.output=s3://BUCKET/features embed.use_gpu=true embed.cpus_per_worker=11
    python jobs/curate.py curate.data=data/pairs curate.scores=data/features 'curate.where=clip_score > 0.28'

Safe to run again: only shards without a file are embedded, so the next run continues one that was killed, and a data set that
has grown only needs its new shards. Each model needs its own output; `embedding.json` there names the model and the data set.
A file is joined to the data set by the name of its shard, and its rows by key.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from jobs.cli.command_line import connect_ray, main, parser
from jobs.cli.config import Config
from jobs.cli.embed_config import EmbedConfig
from jobs.cli.job_parser import JobParser
from jobs.cli.open_model import add_weights_options, check_one_model, open_run, open_weights
from jobs.cli.room import Demand, refuse_on_a_ray_of_our_own
from jobs.cli.worker_watch import WorkerWatch
from pipeline.errors import ConfigError, InputError, WorkerDiedError
from training.config import TrainConfig, TrainingConfig, refuse_auto_on_an_empty_cluster
from training.errors import RunError
from training.ray_internals import KEY_VALUES, quieten_ray_data

if TYPE_CHECKING:
    from model.clip import CLIP
    from model.config import Architecture
    from pipeline.dataset.features import Embedding
    from pipeline.dataset.manifest import Manifest
    from pipeline.ingest.attempts import Attempts
    from pipeline.storage.base import Storage
    from training.shard_embedder import ShardEmbedder

CONCURRENT_SHARDS = 2
"""Shards per actor: one is read and decoded, or written, while the model works on the other."""


def job(config: Config, options: argparse.Namespace) -> None:
    from pipeline.dataset.features import claim_output, feature_name, feature_path, file_of, finish_output, names_held
    from pipeline.dataset.manifest import read_manifest
    from pipeline.ingest.attempts import Attempts
    from pipeline.storage.address import open_storage
    from pipeline.storage.put_if_absent import ensure_put_if_absent
    from training.data.caption_columns import check_captions

    check_one_model(options)
    embed = config.embed
    for key, value in (("data", embed.data), ("output", embed.output)):
        if not value:
            raise ConfigError(f"embed.{key}: is empty; name a folder or an s3://bucket/prefix")
    data, output = open_storage(embed.data), open_storage(embed.output)
    manifest = read_manifest(data, embed.version)
    if not manifest.num_samples:
        raise ConfigError(f"embed.data={embed.data}: version {manifest.version} holds no samples; name a data set that does")
    check_captions([(data, manifest)], config.data.captions, "data.captions")
    trained: TrainingConfig = config
    if options.weights:
        clip, address = open_weights(config, options), str(options.weights)
    else:
        clip, trained, address = open_run(config)
    train = trained.train
    wanted = _describe(config, clip, train, address, manifest)
    ensure_put_if_absent(output, embed.single_writer, "embed.single_writer")
    claim_output(output, wanted)
    held = names_held(output)
    shards = {number: shard for number, shard in enumerate(manifest.shards) if shard.num_samples}
    missing = {number: shard for number, shard in shards.items() if file_of(shard, held) is None}
    if missing:
        connect_ray(config.cluster)
        refuse_on_a_ray_of_our_own(_demand(embed, len(missing)))
        work = Work(
            embed.model_copy(update={"version": manifest.version}),
            train,
            clip.architecture,
            config.data.captions,
            config.data.on_damage == "skip",
            attempts=Attempts(*KEY_VALUES),
        )
        units = {number: shard.num_samples for number, shard in missing.items()}

        def forget(number: int) -> None:
            output.delete(feature_path(feature_name(missing[number])))

        print(follow(embed_shards(work, clip, list(units)), units, config.data.max_skipped_samples, forget))
    else:
        print(
            f"nothing to do: {output.uri} holds all {manifest.num_samples:,} samples of {data.uri} version {manifest.version}"
        )
    finish_output(output, wanted, manifest)


# ------------------------------------------------------------------------------------------------------------------- the model


def _describe(config: Config, clip: CLIP, train: TrainConfig, address: str, manifest: Manifest) -> Embedding:
    from pipeline.dataset.features import EmbeddedData, Embedding, EmbeddingModel
    from pipeline.storage.address import open_storage
    from training.shard_embedder import weights_sha256

    row = clip.architecture
    return Embedding(
        model=EmbeddingModel(
            address=address,
            name=row.name,
            activation=row.activation,
            image_size_px=row.image_size_px,
            weights_sha256=weights_sha256(clip),
        ),
        data=EmbeddedData(uri=open_storage(config.embed.data).uri, version=manifest.version, identity=manifest.identity),
        captions=config.data.captions,
        precision=train.precision,
        dtype=config.embed.dtype,
        embed_dim=row.embed_dim,
    )


# ------------------------------------------------------------------------------------------------------- the Ray Data graph


@dataclass(frozen=True)
class Work:
    """Settings of every actor.

    Attributes:
        embed: with the version pinned.
        train: only its `precision` is used.
        cpus: per actor; set once the pool is planned.
        attempts: bounds those at a shard whose worker dies each time.
    """

    embed: EmbedConfig
    train: TrainConfig
    architecture: Architecture
    captions: tuple[str, ...]
    skip_damaged: bool
    cpus: int = 1
    use_gpu: bool = False
    attempts: Attempts | None = None


@dataclass(frozen=True)
class Pool:
    """The pool of actors that hold the model: `first` at the start, then between `least` and `most`."""

    least: int
    first: int
    most: int
    cpus: int
    use_gpu: bool


def plan_pool(embed: EmbedConfig, resources: dict[str, float], num_units: int) -> Pool:
    """Plans as many actors as there are shards and resources for.

    Args:
        resources: the current resources of the cluster.
    """
    cpus, gpus = max(1, int(resources.get("CPU", 0))), int(resources.get("GPU", 0))
    use_gpu = gpus > 0 if embed.use_gpu == "auto" else embed.use_gpu
    share = max(1, cpus // max(1, gpus)) if use_gpu else 1
    each = share if embed.cpus_per_worker == "auto" else embed.cpus_per_worker
    room = max(1, min(cpus // each, gpus) if use_gpu else cpus // each)
    requested = embed.num_workers if embed.num_workers is not None else (1, room)
    least, most = (requested, requested) if isinstance(requested, int) else requested
    least, most = min(least, num_units), min(most, num_units)
    return Pool(least, first=min(max(least, room), most), most=most, cpus=each, use_gpu=use_gpu)


@dataclass(frozen=True)
class Done:
    """Result of one shard.

    Attributes:
        error: message that explains why no file was written; empty on success.
        may_pass: the error is not bad input; another run may succeed.
        problems: damaged samples, with their addresses.
        score_sum: CLIP scores of the undamaged samples, summed.
        decode_s, forward_s: time that the actor's threads spent on reading and decoding, and the model on computing.
        began_s, ended_s: by the actor's clock.
    """

    shard: int
    error: str = ""
    may_pass: bool = False
    problems: list[str] = field(default_factory=list)
    score_sum: float = 0.0
    decode_s: float = 0.0
    forward_s: float = 0.0
    began_s: float = 0.0
    ended_s: float = 0.0


class _EmbedActor:
    """Holds the model in a Ray process."""

    def __init__(self, work: Work, weights: Any) -> None:
        import ray
        import ray.util.metrics
        import torch

        from model.clip import CLIP
        from pipeline.dataset.manifest import read_manifest
        from pipeline.metrics import publish_requests
        from pipeline.storage.address import open_storage
        from training.data.shard_reader import ShardReader
        from training.shard_embedder import ShardEmbedder

        torch.set_num_threads(work.cpus)
        clip = CLIP(work.architecture)
        clip.load_state_dict(ray.get(weights[0]))
        data = open_storage(work.embed.data)
        publish_requests(ray.util.metrics, data_set=data.uri)
        threads = work.embed.decode_threads
        self._output, self._dtype = open_storage(work.embed.output), work.embed.dtype
        self._attempts = work.attempts
        self._embedder = ShardEmbedder(
            clip,
            ShardReader(data, read_manifest(data, work.embed.version), work.captions),
            torch.device("cuda" if work.use_gpu else "cpu"),
            work.train,
            work.embed.batch_size,
            max(1, work.cpus - 1) if threads == "auto" else threads,
            work.skip_damaged,
        )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = row["shard"]
        try:
            with self._attempts.at(self._embedder.reader.address(shard)) if self._attempts else contextlib.nullcontext():
                return asdict(embed_shard(self._embedder, self._output, self._dtype, shard))
        except WorkerDiedError as error:
            return asdict(Done(shard, error=str(error), may_pass=True))


def embed_shard(embedder: ShardEmbedder, output: Storage, dtype: str, shard: int) -> Done:
    """Embeds a shard and writes its file. Errors that a person can fix are returned, not raised."""
    from pipeline.dataset.features import write_features
    from pipeline.errors import StorageAwayError

    began_s, reader = time.time(), embedder.reader
    try:
        found = embedder.embed(shard)
        features = (found.image_features_NE, found.text_features_NE, found.clip_score_N)
        write_features(output, reader.manifest.shards[shard], found.keys, found.urls, features, found.problems, dtype)
    except InputError as error:
        return Done(shard, error=str(error), may_pass=isinstance(error, StorageAwayError))
    except OSError as error:
        message = f"embed.output={output.uri}: cannot be written ({error}); free some space or choose another output"
        return Done(shard, error=message, may_pass=True)
    good = [place not in found.problems for place in range(len(found.keys))]
    return Done(
        shard=shard,
        problems=[f"{reader.address(shard)}: {problem}" for problem in found.problems.values()],
        score_sum=float(found.clip_score_N[good].sum()),
        decode_s=found.decode_s,
        forward_s=found.forward_s,
        began_s=began_s,
        ended_s=time.time(),
    )


def follow(dones: Iterable[Done], units: dict[int, int], max_skipped_samples: int, forget: Callable[[int], None]) -> str:
    """Shows progress while shards are embedded, and returns a summary.

    Args:
        units: shard -> number of samples, for every shard of the run.
        forget: removes a shard's file; called for shards with damage if there is too much of it.

    Raises:
        InputError: damaged data, or a storage that cannot be used.
        RunError: a shard did not come back, or a storage does not respond or is full.
    """
    from pipeline.ingest.progress import Progress
    from training.data.damaged_samples import DamagedSamples

    began, missing, score, decode_s, forward_s = time.perf_counter(), set(units), 0.0, 0.0, 0.0
    damaged = DamagedSamples(max_skipped_samples)
    damaged_shards: list[int] = []
    with Progress(sum(units.values()), "samples", "embed", WorkerWatch()) as progress:
        for done in dones:
            if done.error:
                raise RunError(done.error) if done.may_pass else InputError(done.error)
            missing.discard(done.shard)
            damaged_shards += [done.shard] if done.problems else []
            try:
                for problem in done.problems:
                    damaged.skip(problem)
            except InputError:
                for shard in damaged_shards:  # otherwise the next run would keep their empty features
                    forget(shard)
                raise
            score, decode_s, forward_s = score + done.score_sum, decode_s + done.decode_s, forward_s + done.forward_s
            embedded = progress.n + units[done.shard] - damaged.skipped
            progress.update(units[done.shard], f"mean clip_score {score / max(1, embedded):.4f}")
    if missing:
        raise RunError(f"{len(missing)} shards are missing, no. {min(missing)} among them; run the job again")
    duration_s, samples = time.perf_counter() - began, sum(units.values())
    skipped = damaged.skipped
    mean = score / (samples - skipped) if samples > skipped else math.nan
    without = f", {skipped:,} of them damaged and without features" if skipped else ""
    return (
        f"{samples:,} samples in {len(units):,} shards{without}, in {duration_s:.1f} s ({samples / duration_s:,.1f} a second); "
        f"mean clip_score {mean:.4f}\n"
        f"per worker, a sample takes {decode_s / samples * 1e3:.2f} ms of a decoding thread and "
        f"{forward_s / samples * 1e3:.2f} ms of the model"
    )


def _demand(embed: EmbedConfig, num_units: int) -> Demand:
    """The actors that are needed at least: no more than there are shards."""
    asked = embed.num_workers or 1
    most = asked if isinstance(asked, int) else asked[0]
    return Demand("embed", min(most, num_units), embed.cpus_per_worker, embed.use_gpu)


def embed_shards(work: Work, clip: CLIP, numbers: list[int]) -> Iterator[Done]:
    """Embeds shards on a pool of actors; yields one result per shard."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    quieten_ray_data()
    DataContext.get_current().execution_no_progress_timeout_s = -1  # a large shard or a wait for nodes may take long
    refuse_auto_on_an_empty_cluster("embed", work.embed, ray.cluster_resources())
    pool = plan_pool(work.embed, ray.cluster_resources(), len(numbers))
    # In a list: a bare reference would put the weights into every call that creates an actor.
    weights = [ray.put({name: tensor.cpu() for name, tensor in clip.state_dict().items()})]
    stream = ray.data.from_items([{"shard": number} for number in numbers], override_num_blocks=len(numbers)).map(
        cast(Any, _EmbedActor),  # Ray's annotation lacks classes
        fn_constructor_args=(replace(work, cpus=pool.cpus, use_gpu=pool.use_gpu), weights),
        # Keep Ray's default of two tasks in flight per concurrent one: with fewer, the pool would never grow.
        compute=ActorPoolStrategy(
            min_size=pool.least,
            max_size=pool.most,
            initial_size=pool.first,
            max_concurrent_calls_per_actor=CONCURRENT_SHARDS,
            enable_true_multi_threading=True,
        ),
        num_cpus=pool.cpus,
        num_gpus=1 if pool.use_gpu else 0,
    )
    for row in stream.iter_rows():
        yield Done(**row)


def arguments() -> JobParser:
    result = parser(__doc__, "embed")
    add_weights_options(result)
    return result


if __name__ == "__main__":
    main(arguments(), job)
