"""The sections of the configuration that training owns. Imports no torch, so that a bad key is reported in milliseconds.

Every section is frozen and refuses unknown keys. Units sit in the names: `_steps _samples _epochs _s _px _bytes _tokens`.
`jobs/cli/config.py` composes the sections into one tree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.errors import ConfigError


class Section(BaseModel):
    """A frozen part of the configuration tree that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RunConfig(Section):
    """`run.*`: what a training run is called, where its record goes, and how it goes on."""

    name: str = Field("default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    dir: str = "runs"
    """Parent of the run's folder: a local folder that every node sees, or s3://bucket/prefix."""
    resume: str = Field("auto", min_length=1)
    """auto: a name that has checkpoints goes on from its last one. never: such a name is refused. Else a checkpoint's folder,
    or a run's: a new run starts from there, at its step and sample."""
    allow_config_changes: bool = False
    """Resume although settings that the result depends on are not those of the checkpoint; they are shown."""

    @property
    def uri(self) -> str:
        """Address of the run's folder."""
        return f"{self.dir.rstrip('/')}/{self.name}"


class ModelConfig(Section):
    """`model.*`"""

    name: str = "ViT-B/32"
    """A row of model/config.py."""
    weights: str = ""
    """What a new run starts from: a state dict (.safetensors, .pt), or a folder of one (an export's, open_clip's, Hugging
    Face's), local or s3://; empty: the published initialisation."""
    allow_torchscript: bool = False
    """Load `weights` that are a TorchScript archive, as OpenAI's are: a program, so only one whose origin you trust."""
    activation: Literal["quick_gelu", "gelu"] | None = None
    """What the weights were trained with; None: what their file states, or without weights quick_gelu."""
    image_size_px: Annotated[int, Field(ge=1)] | None = None
    """Other than the architecture's; learned positions are interpolated."""
    lock: tuple[Literal["image", "text"], ...] = ()
    """Encoders that are not trained, at no cost of a backward pass; they come from the weights."""


class MixturePart(Section):
    """`data.mixture[n].*`: one data set of several."""

    uri: str
    version: int | Literal["latest"] = "latest"
    weight: float = Field(1.0, gt=0)
    """How often an epoch shows it: 1 once, 2.5 twice and another half of it, 0.1 a tenth."""


class DataConfig(Section):
    """`data.*`: which data set, and the order in which its samples come (see training/data/sample_order.py)."""

    uri: str = ""
    """Root of a data set that jobs/ingest.py wrote: a local folder or s3://bucket/prefix."""
    version: int | Literal["latest"] = "latest"
    """latest: the newest when the run begins; it keeps that one."""
    mixture: tuple[MixturePart, ...] = ()
    """Several data sets with weights, instead of uri and version."""
    captions: tuple[str, ...] = Field(("caption",), min_length=1)
    """Where captions come from: `caption`, another column of the sidecar (a string or a list of them), or `json.KEY`. Of
    several a seeded choice is made for each sample and epoch."""
    num_streams: int = Field(64, ge=1)
    """Streams that a step draws from; several times the number of workers. Part of the order's identity."""
    block_size_samples: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Samples that are shuffled together within a stream; auto: all streams together hold 32 global batches. More mix better
    and cost memory. Part of the order's identity."""
    run_size_samples: int = Field(16, ge=1)
    """Neighbours in a shard that are read at a time: fewer mix better, more make larger reads. Part of the order's identity."""
    shuffle_shards: int = Field(16, ge=1)
    """Shards whose runs are permuted together. Part of the order's identity."""
    prefetch_bytes: int = Field(1 << 30, ge=1)
    """Upper bound on undecoded bytes that one rank holds."""
    prefetch_batches: int = Field(2, ge=1)
    """Decoded batches that wait for the model."""
    read_threads: int = Field(8, ge=1)
    """Reads that are under way at a time."""
    decode_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Processes that decode, augment and tokenize; 0: a thread of the training process. auto: 0 on a CPU, and one less than
    the worker's CPUs on a GPU."""
    cache_dir: str = ""
    """Local folder where what was read from object storage is kept for later epochs; the ranks of a node share it."""
    cache_bytes: int = Field(100 << 30, ge=1)
    on_damage: Literal["fail", "skip"] = "fail"
    """What to do about a sample that is missing, changed or cannot be decoded; skip: another one takes its place."""
    max_skipped_samples: int = Field(1000, ge=0)
    """With on_damage=skip: how many one rank may skip before the run fails all the same."""
    stall_warning_s: float = Field(30.0, gt=0)
    """A step that waits longer for its data says what it waits for, again and again."""
    crop_scale_min: float = Field(0.9, gt=0, le=1)
    """Smallest share of the picture's area that the random resized crop keeps."""

    @model_validator(mode="after")
    def _one_way_to_name_the_data(self) -> DataConfig:
        if self.mixture and self.uri:
            raise ValueError(f"uri={self.uri}: mixture names data sets too; give one of the two")
        return self

    @property
    def parts(self) -> tuple[MixturePart, ...]:
        """The data sets, whichever way they were named."""
        return self.mixture or (MixturePart(uri=self.uri, version=self.version),)

    def with_versions(self, versions: Sequence[int]) -> DataConfig:
        """The same, with the version of each part pinned."""
        if not self.mixture:
            return self.model_copy(update={"version": versions[0]})
        parts = (part.model_copy(update={"version": one}) for part, one in zip(self.mixture, versions, strict=True))
        return self.model_copy(update={"mixture": tuple(parts)})


class TrainConfig(Section):
    """`train.*`: the loop."""

    global_batch_size: int = Field(256, ge=2)
    num_epochs: int = Field(32, ge=1)
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many steps although epochs are left. The schedule then ends there too."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """Likewise, after so many samples as whole steps hold."""
    seed: int = Field(0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast on CUDA, float32 elsewhere. Weights and loss are float32 always. float32 on CUDA leaves PyTorch's
    default, by which convolutions round their inputs to TF32."""
    loss: Literal["contrastive", "sigmoid"] = "contrastive"
    """contrastive: the paper's softmax over rows and columns; sigmoid: SigLIP's, each pair on its own, with a bias."""
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """Samples that a rank embeds at a time; a slice that is larger is accumulated exactly, for a second forward pass.
    None: the whole slice. auto: as many as memory holds, found at the start."""
    sync_batch_norm: bool = False
    """Of ResNets on GPUs: statistics of the global batch instead of each rank's. Not with micro-batches."""
    patch_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of a ViT's patches that training leaves out, others for each sample and epoch (FLIP)."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Also keep a moving average of the weights, which evaluation uses then: share of it that a step leaves as it is. It is
    smaller at first: (1 + step) / (10 + step)."""
    activation_checkpointing: tuple[Literal["image", "text"], ...] = ()
    """Encoders that compute their blocks again in the backward pass instead of keeping what they hold."""
    compile: bool = False
    """torch.compile for both encoders: a start that is minutes longer, for faster steps (on GPUs)."""
    loss_tile_size: int = Field(1024, ge=1)
    """Columns of the similarity matrix that exist at a time."""
    log_every_steps: int = Field(1, ge=1)
    on_non_finite: Literal["fail", "skip"] = "fail"
    """What to do about a step whose loss or gradient is no number: stop the run, or leave the weights as they are and go on."""
    max_skipped_steps: int = Field(100, ge=0)
    """With on_non_finite=skip: how many steps of a run may be skipped before it fails all the same."""
    hang_timeout_s: float = Field(1200.0, gt=0)
    """A step that takes longer is taken to hang: the rank says where, and ends, so that the workers are started anew. The first
    step of a start, an evaluation, and a checkpoint with the step after it may take three times as long."""


class OptimizerConfig(Section):
    """`optimizer.*`: AdamW and its schedule, with the paper's values for ViTs as defaults (Table 18)."""

    learning_rate: float = Field(5e-4, gt=0)
    weight_decay: float = Field(0.2, ge=0)
    """Applied to everything that is not a gain or a bias."""
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.98, ge=0, lt=1)
    eps: float = Field(1e-6, gt=0)
    schedule: Literal["cosine", "constant", "constant_with_cooldown"] = "cosine"
    """After the warm-up: a cosine to zero; no change; or none until the cooldown, a line to zero."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """2000, or a tenth of a shorter run, where no warmup_ key is given."""
    warmup_samples: Annotated[int, Field(ge=0)] | None = None
    warmup_epochs: Annotated[float, Field(ge=0)] | None = None
    cooldown_steps: Annotated[int, Field(ge=1)] | None = None
    cooldown_samples: Annotated[int, Field(ge=1)] | None = None
    cooldown_epochs: Annotated[float, Field(gt=0)] | None = None
    max_grad_norm: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _one_unit_each(self) -> OptimizerConfig:
        warmup = [key for key in ("warmup_steps", "warmup_samples", "warmup_epochs") if getattr(self, key) is not None]
        cooldown = [key for key in ("cooldown_steps", "cooldown_samples", "cooldown_epochs") if getattr(self, key) is not None]
        for keys in (warmup, cooldown):
            if len(keys) > 1:
                raise ValueError(f"{' and '.join(keys)} say the same in two units; give one of them")
        if bool(cooldown) != (self.schedule == "constant_with_cooldown"):
            raise ValueError(
                f"schedule={self.schedule} with {cooldown[0] if cooldown else 'no cooldown_ key'}: constant_with_cooldown "
                "needs one of cooldown_steps, cooldown_samples, cooldown_epochs, and no other schedule has any"
            )
        return self


class CheckpointConfig(Section):
    """`checkpoint.*`"""

    every_steps: Annotated[int, Field(ge=1)] | None = 1000
    """None: not by steps. There is always one at the end, and when a run is asked to stop."""
    every_minutes: Annotated[float, Field(gt=0)] | None = None
    """Also, whenever the last one is so old."""
    keep_last: int = Field(2, ge=1)
    keep_best: int = Field(0, ge=0)
    """Kept besides the last ones: those with the best `best_metric`, which they must have been evaluated for."""
    best_metric: str = "evaluation/image_to_text_r1"
    """As metrics.jsonl calls it."""
    best_is: Literal["highest", "lowest"] = "highest"


class TrackingConfig(Section):
    """`tracking.*`: W&B follows metrics.jsonl, which is always written."""

    wandb_mode: Literal["offline", "online", "disabled"] = "offline"
    wandb_project: str = "rayclip"
    wandb_entity: str | None = None


PLACES = ("{}", "{c}")
"""Where a template takes the class name; the second is what the clip-benchmark community writes."""


def check_templates(templates: Sequence[str]) -> None:
    """Raises ConfigError where a prompt would be the same for every class."""
    for template in templates:
        if not any(place in template for place in PLACES):
            raise ConfigError(f"template {template!r} has no place for the class name; write {{}} (or {{c}}) where it goes")


class ZeroShotConfig(Section):
    """`evaluation.zero_shot.*`: classification of `uri`'s pictures by what their classes are called."""

    uri: str
    """A data set of ours, a folder of clip-benchmark tars or one of its splits, or a folder with a folder for each class
    (docs/decisions/0008-evaluation.md)."""
    label_column: str = ""
    """Of a data set of ours: the column of its input table that holds the class of each sample."""
    class_names_file: str = ""
    """One class name a line, in the order of the labels, or LABEL, a tab and the name; empty: the data set's classnames.txt,
    else the labels themselves."""
    templates: tuple[str, ...] = ()
    """Prompts; `{}` or `{c}` is the class name; a class's feature is the mean over all of them. Empty: those of
    templates_file, else of the data set's zeroshot_classification_templates.txt, else "a photo of a {}."."""
    templates_file: str = ""
    """One prompt a line."""
    allow_empty_classes: bool = False
    """Class names without a picture, which only make the task harder, are meant."""

    @model_validator(mode="after")
    def _templates_hold_a_place(self) -> ZeroShotConfig:
        check_templates(self.templates)
        if self.templates and self.templates_file:
            raise ValueError(f"templates_file={self.templates_file}: templates are given too; give one of the two")
        return self


class LinearProbeConfig(Section):
    """`evaluation.linear_probe.*`: logistic regression on the frozen image encoder's features (paper, appendix A.3)."""

    train_uri: str
    """What it learns from; an address like evaluation.zero_shot.uri."""
    test_uri: str
    validation_uri: str | None = None
    """What the strength of its L2 penalty is chosen on; None: a fifth of each class of train_uri."""
    label_column: str = ""
    """As of evaluation.zero_shot."""


class EvaluationConfig(Section):
    """`evaluation.*`: held-out data that is measured during and after training."""

    every_steps: int | None = Field(None, ge=1)
    """None: only at the end."""
    batch_size: int = Field(256, ge=1)
    """Pictures, or captions, that a rank embeds at a time."""
    retrieval_uri: str | None = None
    """Pictures and captions that are retrieved from each other, both ways; an address like evaluation.zero_shot.uri."""
    retrieval_captions: tuple[str, ...] = Field(("caption",), min_length=1)
    """Of a data set of ours: where a picture's captions come from, as data.captions says it; all of them are right."""
    zero_shot: ZeroShotConfig | None = None
    linear_probe: LinearProbeConfig | None = None


_Workers = Annotated[int, Field(ge=1)]


class ClusterConfig(Section):
    """`cluster.*`: what training asks of Ray."""

    num_workers: _Workers | tuple[_Workers, _Workers] = 1
    """[least, most]: as many as the cluster has room for, at any time; the result is the same for any number."""
    resize_every_s: float = Field(60.0, gt=0)
    """How often a running group with a range of workers looks whether it could be larger. It saves a checkpoint, and starts
    anew."""
    cpus_per_worker: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """auto: the cluster's CPUs shared out over the (most) workers, no more than one node has."""
    use_gpu: bool | Literal["auto"] = "auto"
    """auto: one GPU a worker where the cluster has any."""
    max_failures: int = Field(3, ge=0)
    """How often the worker group may be started anew after a failure before the run fails. A node that says beforehand that it
    will go is no failure."""
    runtime_env: dict[str, Any] = {}
    """What Ray sets up for all processes of the job, as its runtime_env takes it: env_vars, pip, uv, py_modules, ... No secrets
    (jobs/cli/runtime_env.py)."""

    @model_validator(mode="after")
    def _least_before_most(self) -> ClusterConfig:
        if self.min_workers > self.max_workers:
            raise ValueError(f"num_workers={[self.min_workers, self.max_workers]}: is [least, most]; give the smaller first")
        return self

    @property
    def min_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


def refuse_auto_on_an_empty_cluster(name: str, section: ClusterConfig | EmbedConfig, resources: Mapping[str, float]) -> None:
    """Raises ConfigError where `auto` would have to look at nodes that are still to come.

    Args:
        name: of the section.
        resources: of the cluster, as it is now.
    """
    keys = [key for key in ("use_gpu", "cpus_per_worker") if getattr(section, key) == "auto"]
    if keys and not any(resources[kind] for kind in ("CPU", "GPU") if kind in resources):
        raise ConfigError(
            f"{name}.{keys[0]}=auto: the cluster has no worker node yet to look at; say what it should get, "
            f"e.g. {name}.use_gpu=true {name}.cpus_per_worker=11"
        )


class EmbedConfig(Section):
    """`embed.*`: features of a data set's pictures and captions. The captions are those of `data.captions`, and damaged samples
    are treated as `data.on_damage` says."""

    data: str = ""
    """Root of the data set."""
    version: int | Literal["latest"] = "latest"
    output: str = ""
    """Where the features go, of one model: a local folder that every node sees, or s3://bucket/prefix."""
    dtype: Literal["float16", "float32"] = "float16"
    """Of the stored features."""
    batch_size: int = Field(256, ge=1)
    """Samples that one worker embeds at a time."""
    num_workers: _Workers | tuple[_Workers, _Workers] | None = None
    """[least, most] Ray actors that hold the model; None: from one to as many as the cluster has room for."""
    cpus_per_worker: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """auto: one; with GPUs the cluster's CPUs shared out over its GPUs."""
    use_gpu: bool | Literal["auto"] = "auto"
    """auto: one GPU a worker where the cluster has any."""
    decode_threads: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Of one worker; auto: one less than its CPUs, and at least one."""

    @model_validator(mode="after")
    def _least_before_most(self) -> EmbedConfig:
        if isinstance(self.num_workers, tuple) and self.num_workers[0] > self.num_workers[1]:
            raise ValueError(f"num_workers={list(self.num_workers)}: is [least, most]; give the smaller first")
        return self


class TrainingConfig(Section):
    """All that a training run depends on. jobs/cli/config.py adds the section of ingestion."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
