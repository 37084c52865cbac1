"""The configuration sections that training owns. Imports no torch, so that a bad key is reported in milliseconds.

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
    """`run.*`: a training run's name, the folder of its record, and how it resumes."""

    name: str = Field("default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its folder in run.dir."""
    dir: str = "runs"
    """Parent of the run's folder: a local folder that every node sees, or s3://bucket/prefix."""
    resume: str = Field("auto", min_length=1)
    """auto: resume a name from its last checkpoint. never: refuse a name that has checkpoints. Else the address of a checkpoint
    or of a run: a new run starts from there, at its step and sample."""
    allow_config_changes: bool = False
    """Resume with settings that differ from the checkpoint's and affect the result; the changes are printed."""
    single_writer: str = ""
    """Name of the only job that writes to the run's folder, as ingest.single_writer."""

    @property
    def uri(self) -> str:
        """Address of the run's folder."""
        return f"{self.dir.rstrip('/')}/{self.name}"


class ModelConfig(Section):
    """`model.*`: the architecture and its initial weights."""

    name: str = "ViT-B/32"
    """Architecture, one of those in model/config.py."""
    weights: str = ""
    """Initial weights: a state dict, a run, or a folder of an export, open_clip or Hugging Face. Empty: the paper's own."""
    allow_torchscript: bool = False
    """Load weights from a TorchScript archive, as OpenAI's are. It is a program: allow only one whose origin you trust."""
    activation: Literal["quick_gelu", "gelu"] | None = None
    """Activation that the weights were trained with. None: as their file states, or quick_gelu without weights."""
    image_size_px: Annotated[int, Field(ge=1)] | None = None
    """Image size, if not the architecture's; learned positions are interpolated."""
    lock: tuple[Literal["image", "text"], ...] = ()
    """Encoders that are not trained, which saves their backward pass. They need model.weights."""


class MixturePart(Section):
    """`data.mixture[n].*`: one data set of several."""

    uri: str
    """Root of the data set, as data.uri."""
    version: int | Literal["latest"] = "latest"
    """Version of the data set, as data.version."""
    weight: float = Field(1.0, gt=0, le=1e6)
    """Times that an epoch shows the data set: 1 once, 2.5 twice and another half of it, 0.1 a tenth."""


class DataConfig(Section):
    """`data.*`: the data set, the order of its samples (training/data/sample_order.py), and how they are read."""

    uri: str = ""
    """Root of a data set that jobs/ingest.py wrote: a local folder or s3://bucket/prefix."""
    version: int | Literal["latest"] = "latest"
    """Version of the data set. latest: the newest when the run begins, which it then keeps."""
    mixture: tuple[MixturePart, ...] = ()
    """Several data sets with weights, instead of uri and version."""
    captions: tuple[str, ...] = Field(("caption",), min_length=1)
    """Sources of captions: `caption`, another column of the sidecar (a string or a list of them), or `json.KEY`. With several,
    a seeded choice is made for each sample and epoch."""
    num_streams: int = Field(64, ge=1)
    """Streams that a step draws from; use several times the number of workers. Fewer are used where these would skip samples
    of a small data set. Part of the order's identity."""
    block_size_samples: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Samples that are shuffled together within a stream. More mix better and cost memory; auto: all streams together hold 32
    global batches. Part of the order's identity."""
    run_size_samples: int = Field(16, ge=1)
    """Neighbours in a shard that are read at a time. Fewer mix better, more make larger reads. Part of the order's identity."""
    shuffle_shards: int = Field(16, ge=1)
    """Shards whose runs of neighbours are permuted together. Part of the order's identity."""
    prefetch_bytes: int = Field(1 << 30, ge=1)
    """Upper bound on the undecoded bytes that one rank holds, in all its processes together."""
    prefetch_batches: int = Field(2, ge=1)
    """Decoded batches that wait for the model."""
    read_threads: int = Field(8, ge=1)
    """Threads that read shards, on each rank; divided among its processes."""
    decode_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Threads of a rank that decode, up to four to a process, which also reads and tokenizes; 0: one in the training process.
    auto: 0 on a CPU, one less than the worker's CPUs on a GPU."""
    cache_dir: str = ""
    """Local folder that keeps what was read from object storage for later epochs. The ranks of a node share it."""
    cache_bytes: int = Field(100 << 30, ge=1)
    """Upper bound on the size of cache_dir."""
    on_damage: Literal["fail", "skip"] = "fail"
    """Response to a sample that is missing, changed or cannot be decoded. skip: another one takes its place."""
    max_skipped_samples: int = Field(1000, ge=0)
    """Damaged samples that one rank may skip with on_damage=skip before the run fails."""
    stall_warning_s: float = Field(30.0, gt=0)
    """Time after which a step that waits for its data reports, repeatedly, what it waits for."""
    crop_scale_min: float = Field(0.9, gt=0, le=1)
    """Smallest share of an image's area that the random resized crop keeps."""

    @model_validator(mode="after")
    def _one_way_to_name_the_data(self) -> DataConfig:
        if self.mixture and self.uri:
            raise ValueError(f"uri={self.uri}: mixture names data sets too; give one of the two")
        return self

    @property
    def parts(self) -> tuple[MixturePart, ...]:
        """The data sets, from `mixture` or from `uri` and `version`."""
        return self.mixture or (MixturePart(uri=self.uri, version=self.version),)

    def with_versions(self, versions: Sequence[int]) -> DataConfig:
        """A copy with the version of each part pinned."""
        if not self.mixture:
            return self.model_copy(update={"version": versions[0]})
        parts = (part.model_copy(update={"version": one}) for part, one in zip(self.mixture, versions, strict=True))
        return self.model_copy(update={"mixture": tuple(parts)})


class TrainConfig(Section):
    """`train.*`: the loop."""

    global_batch_size: int = Field(256, ge=2)
    """Samples of a step, over all workers."""
    min_steps_per_epoch: int = Field(1, ge=1)
    """Fewest steps of an epoch: for a small data set, global_batch_size is halved until an epoch has as many, which is said.
    1: a data set that does not fill one batch is refused."""
    num_epochs: int = Field(32, ge=1)
    """Epochs to train for, unless max_steps or max_samples ends the run first."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps after which the run and its schedule end, even if epochs are left."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """Samples after which the run and its schedule end, rounded down to whole steps."""
    seed: int = Field(0, ge=0)
    """Seed of initial weights, sample order, augmentation and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of each worker's model. auto: CUDA where there is any, else the CPU."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of both encoders; weights and loss are always float32. auto: float32 on a CPU; on CUDA bfloat16 autocast, or
    float16 with a loss scale on a GPU that has no bfloat16 (T4, V100, RTX 20).
    float32 on CUDA keeps PyTorch's default, by which convolutions round their inputs to TF32."""
    loss: Literal["contrastive", "sigmoid"] = "contrastive"
    """contrastive: the paper's softmax over rows and columns. sigmoid: SigLIP's, each pair on its own, with a bias."""
    repeated_captions: Literal["negatives", "positives"] = "negatives"
    """Pairs of an image with the caption of another sample, where the two samples' captions are the same: negatives of each
    other as in the paper, or positives. Metric repeated_caption_share tells how many repeat."""
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """Samples that a rank embeds at a time. A larger slice is accumulated exactly, at the cost of a second forward pass.
    None: the whole slice. auto: as many as memory holds, determined at the start."""
    sync_batch_norm: bool = False
    """Use batch-norm statistics of the global batch, for ResNets on GPUs. Not with micro-batches."""
    patch_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of a ViT's patches that training drops, a random set for each sample and epoch (FLIP)."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Decay of a moving average of weights that evaluation then uses, at most (1 + step) / (10 + step). None: no average."""
    activation_checkpointing: tuple[Literal["image", "text"], ...] = ()
    """Encoders that recompute their blocks in the backward pass, which saves memory."""
    compile: Literal["auto"] | bool = "auto"
    """Use torch.compile for both encoders: minutes at the start, for faster steps on GPUs. auto: no, until it is measured."""
    loss_tile_size: Annotated[int, Field(ge=1)] | None = None
    """Columns of the similarity matrix that exist at a time. None: 4096 on CUDA, 1024 elsewhere."""
    log_every_steps: int = Field(1, ge=1)
    """Steps from one row of metrics.jsonl to the next."""
    on_non_finite: Literal["fail", "skip"] = "fail"
    """Response to a step with a non-finite loss or gradient. skip: keep the weights unchanged and continue."""
    max_skipped_steps: int = Field(100, ge=0)
    """Steps that a run may skip with on_non_finite=skip before it fails."""
    hang_timeout_s: float = Field(1200.0, gt=0)
    """Time after which a step is taken to hang: the rank reports where and ends, so that workers are started again. The first
    step of a start, an evaluation, and a checkpoint with the step after it may take three times as long."""


class OptimizerConfig(Section):
    """`optimizer.*`: AdamW and its schedule, with the paper's values for ViTs as defaults (Table 18)."""

    learning_rate: float = Field(5e-4, gt=0)
    """Peak learning rate, at the end of the warm-up."""
    weight_decay: float = Field(0.2, ge=0)
    """Weight decay of everything that is not a gain or a bias."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's decay of the first moment."""
    beta2: float = Field(0.98, ge=0, lt=1)
    """AdamW's decay of the second moment."""
    eps: float = Field(1e-6, gt=0)
    """AdamW's term for numerical stability."""
    schedule: Literal["cosine", "constant", "constant_with_cooldown"] = "cosine"
    """Learning rate after the warm-up: a cosine to zero, constant, or constant until a linear cooldown to zero."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Linear warm-up in steps. Default, if no warmup_ key is given: 2000, or a tenth of a shorter run."""
    warmup_samples: Annotated[int, Field(ge=0)] | None = None
    """Linear warm-up in samples."""
    warmup_epochs: Annotated[float, Field(ge=0)] | None = None
    """Linear warm-up in epochs."""
    cooldown_steps: Annotated[int, Field(ge=1)] | None = None
    """Cooldown of schedule=constant_with_cooldown in steps."""
    cooldown_samples: Annotated[int, Field(ge=1)] | None = None
    """Cooldown in samples."""
    cooldown_epochs: Annotated[float, Field(gt=0)] | None = None
    """Cooldown in epochs."""
    max_grad_norm: float | None = Field(None, gt=0)
    """Norm that gradients are clipped to, all together. None: no clipping."""

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
    """`checkpoint.*`: how often a run saves, and which checkpoints it keeps."""

    every_steps: Annotated[int, Field(ge=1)] | None = 1000
    """Steps from one checkpoint to the next. None: not by steps. One is always written at the end and when a run is stopped."""
    every_minutes: Annotated[float, Field(gt=0)] | None = None
    """Age of the last checkpoint at which another is written as well."""
    keep_last: int = Field(2, ge=1)
    """Checkpoints to keep, the newest ones."""
    keep_best: int = Field(0, ge=0)
    """Checkpoints to keep besides the last: those with the best best_metric, among steps that were evaluated."""
    best_metric: str = "evaluation/image_to_text_r1"
    """Metric that the best checkpoints are chosen by, as it is called in metrics.jsonl."""
    best_is: Literal["highest", "lowest"] = "highest"
    """Direction in which best_metric is better."""


class TrackingConfig(Section):
    """`tracking.*`: W&B follows metrics.jsonl, which is always written."""

    wandb_mode: Literal["offline", "online", "disabled"] | None = None
    """Mode of W&B. offline: files in the run's folder, for `wandb sync`. None: WANDB_MODE, else offline."""
    wandb_project: str | None = None
    """W&B project of the run. None: WANDB_PROJECT, else rayclip."""
    wandb_entity: str | None = None
    """W&B user or team. None: WANDB_ENTITY, else your default one."""


PLACES = ("{}", "{c}")
"""Placeholders of the class name in a template; the second is what the clip-benchmark community writes."""


def check_templates(templates: Sequence[str]) -> None:
    """Raises ConfigError for a template that would give the same prompt for every class."""
    for template in templates:
        if not any(place in template for place in PLACES):
            raise ConfigError(f"template {template!r}: has no place for the class name; write {{}} or {{c}} where it belongs")


class ZeroShotConfig(Section):
    """`evaluation.zero_shot.*`: classification of images by the names of their classes."""

    uri: str
    """Images to classify: a data set of ours, clip-benchmark tars, or a folder a class (docs/decisions/0008-evaluation.md)."""
    label_column: str = ""
    """Column of the input table that holds each sample's class, for a data set of ours."""
    class_names_file: str = ""
    """File with a class name a line, by label, or LABEL, tab, name. Empty: the data set's classnames.txt, else the labels."""
    templates: tuple[str, ...] = ()
    """Prompts with `{}` or `{c}` for the class name; a class's feature is their mean. Empty: those of templates_file, else of
    the data set's zeroshot_classification_templates.txt, else "a photo of a {}."."""
    templates_file: str = ""
    """File with one prompt a line."""
    allow_empty_classes: bool = False
    """Accept class names without an image, which only make the task harder."""

    @model_validator(mode="after")
    def _templates_hold_a_place(self) -> ZeroShotConfig:
        check_templates(self.templates)
        if self.templates and self.templates_file:
            raise ValueError(f"templates_file={self.templates_file}: templates are given too; give one of the two")
        return self


class LinearProbeConfig(Section):
    """`evaluation.linear_probe.*`: logistic regression on the frozen image encoder's features (paper, appendix A.3)."""

    train_uri: str
    """Images to learn from; an address like evaluation.zero_shot.uri."""
    test_uri: str
    """Images to measure on; an address like evaluation.zero_shot.uri."""
    validation_uri: str | None = None
    """Images to choose the strength of the L2 penalty on. None: a fifth of each class of train_uri."""
    label_column: str = ""
    """Column that holds each sample's class, as in evaluation.zero_shot."""


class EvaluationConfig(Section):
    """`evaluation.*`: evaluation on held-out data, during and after training."""

    every_steps: int | None = Field(None, ge=1)
    """Steps from one evaluation to the next. None: only at the end."""
    batch_size: int = Field(256, ge=1)
    """Images, or captions, that a rank embeds at a time."""
    retrieval_uri: str | None = None
    """Images and captions to retrieve from each other, both ways; an address like evaluation.zero_shot.uri."""
    retrieval_captions: tuple[str, ...] = Field(("caption",), min_length=1)
    """Sources of captions in a data set of ours, as data.captions; all captions of an image are right."""
    zero_shot: ZeroShotConfig | None = None
    """Zero-shot classification. None: skip it."""
    linear_probe: LinearProbeConfig | None = None
    """Linear probe. None: skip it."""
    on_failure: Literal["fail", "warn"] = "fail"
    """Response to an evaluation that fails during training, once the run is saved. fail: the run fails, and the same command
    tries the evaluation again. warn: training continues without its figures."""


_Workers = Annotated[int, Field(ge=1)]


class ClusterConfig(Section):
    """`cluster.*`: the workers and resources that training requests from Ray."""

    num_workers: _Workers | tuple[_Workers, _Workers] = 1
    """Number of workers, or [min, max]: as many as the cluster has room for. The batches do not depend on it."""
    resize_every_s: float = Field(60.0, gt=0)
    """Time between two checks whether a group with a range of workers could be larger. It then saves and starts again."""
    cpus_per_worker: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """CPUs of a worker. auto: the cluster's CPUs divided by the (max) workers, no more than one node has."""
    use_gpu: bool | Literal["auto"] = "auto"
    """Give each worker one GPU. auto: where the cluster has any."""
    max_failures: int = Field(3, ge=0)
    """Restarts of the worker group after failures before the run fails. A node that leaves with notice is no failure."""
    runtime_env: dict[str, Any] = {}
    """Ray's runtime_env of the job's processes: env_vars, pip, uv, py_modules, ... No secrets (jobs/cli/runtime_env.py)."""

    @model_validator(mode="after")
    def _least_before_most(self) -> ClusterConfig:
        if self.min_workers > self.max_workers:
            raise ValueError(f"num_workers={[self.min_workers, self.max_workers]}: is [min, max]; give the smaller first")
        return self

    @property
    def min_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


def refuse_auto_on_an_empty_cluster(name: str, section: Section, resources: Mapping[str, float]) -> None:
    """Raises ConfigError where `auto` depends on nodes that have not joined yet.

    Args:
        section: cluster.* or embed.*, which have the same keys.
        resources: of the cluster, now.
    """
    keys = [key for key in ("use_gpu", "cpus_per_worker") if getattr(section, key) == "auto"]
    if keys and not any(resources[kind] for kind in ("CPU", "GPU") if kind in resources):
        raise ConfigError(
            f"{name}.{keys[0]}=auto: the cluster has no worker node yet; give the value, "
            f"e.g. {name}.use_gpu=true {name}.cpus_per_worker=11"
        )


class TrainingConfig(Section):
    """Everything that a training run depends on. jobs/cli/config.py adds the section of ingestion."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
