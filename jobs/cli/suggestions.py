"""Answers a key that does not exist with the key that was meant.

In: a dotted name from a command line or a recipe, and the keys that exist. Out: the end of an error message.

Tried in this order:
    1. names used by other programs (open_clip, img2dataset, common ones), with or without one of our sections in front
    2. a key of the same name in another section
    3. a spelling that differs in a letter or two
    4. otherwise the keys of the section, or the sections
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence

NEAR = 0.8
"""Least similarity (difflib's ratio) of a misspelling: about one letter in five may differ."""

FOREIGN: dict[str, tuple[str, ...]] = {
    # ---- data
    "train_data": ("data.uri", "data.mixture"),
    "data_path": ("data.uri",),
    "data_dir": ("data.uri",),
    "dataset": ("data.uri",),
    "dataset_path": ("data.uri",),
    "train_data_upsampling_factors": ("data.mixture",),
    "val_data": ("evaluation.retrieval_uri",),
    "val_dataset": ("evaluation.retrieval_uri",),
    "eval_data": ("evaluation.retrieval_uri",),
    "imagenet_val": ("evaluation.zero_shot.uri", "evaluation.zero_shot.label_column", "evaluation.zero_shot.templates"),
    "imagenet_v2": ("evaluation.zero_shot.uri",),
    "csv_img_key": ("ingest.url_column", "ingest.bytes_column"),
    "csv_caption_key": ("ingest.caption_column",),
    "workers": ("data.decode_workers", "data.read_threads", "ingest.num_workers", "embed.num_workers", "cluster.num_workers"),
    "num_workers": ("cluster.num_workers", "ingest.num_workers", "embed.num_workers"),
    "dataloader_num_workers": ("data.decode_workers",),
    "aug_cfg": ("data.crop_scale_min",),
    # ---- model
    "model": ("model.name",),
    "arch": ("model.name",),
    "architecture": ("model.name",),
    "model_name": ("model.name",),
    "pretrained": ("model.weights",),
    "checkpoint_path": ("model.weights",),
    "lock_image": ("model.lock",),
    "lock_text": ("model.lock",),
    "freeze": ("model.lock",),
    "force_image_size": ("model.image_size_px",),
    "force_quick_gelu": ("model.activation",),
    # ---- training
    "batch_size": ("train.global_batch_size", "evaluation.batch_size", "embed.batch_size"),
    "global_batch": ("train.global_batch_size",),
    "train_batch_size": ("train.global_batch_size",),
    "per_device_train_batch_size": ("train.global_batch_size", "train.micro_batch_size"),
    "accum_freq": ("train.micro_batch_size",),
    "gradient_accumulation_steps": ("train.micro_batch_size",),
    "microbatch_size": ("train.micro_batch_size",),
    "epochs": ("train.num_epochs",),
    "epoch": ("train.num_epochs",),
    "max_epochs": ("train.num_epochs",),
    "num_train_epochs": ("train.num_epochs",),
    "steps": ("train.max_steps",),
    "num_steps": ("train.max_steps",),
    "train_steps": ("train.max_steps",),
    "precision": ("train.precision",),
    "amp": ("train.precision",),
    "bf16": ("train.precision",),
    "dtype": ("train.precision", "embed.dtype"),
    "device": ("train.device", "cluster.use_gpu"),
    "gpus": ("cluster.num_workers", "cluster.use_gpu"),
    "num_gpus": ("cluster.num_workers", "cluster.use_gpu"),
    "nproc_per_node": ("cluster.num_workers",),
    "seed": ("train.seed", "curate.seed"),
    "use_bn_sync": ("train.sync_batch_norm",),
    "grad_checkpointing": ("train.activation_checkpointing",),
    "gradient_checkpointing": ("train.activation_checkpointing",),
    "force_patch_dropout": ("train.patch_dropout",),
    "torchcompile": ("train.compile",),
    "torch_compile": ("train.compile",),
    "siglip": ("train.loss",),
    "ema": ("train.ema_decay",),
    "log_every_n_steps": ("train.log_every_steps",),
    "logging_steps": ("train.log_every_steps",),
    # ---- optimizer
    "lr": ("optimizer.learning_rate",),
    "base_lr": ("optimizer.learning_rate",),
    "wd": ("optimizer.weight_decay",),
    "beta_1": ("optimizer.beta1",),
    "beta_2": ("optimizer.beta2",),
    "adam_beta1": ("optimizer.beta1",),
    "adam_beta2": ("optimizer.beta2",),
    "adam_epsilon": ("optimizer.eps",),
    "epsilon": ("optimizer.eps",),
    "warmup": ("optimizer.warmup_steps",),
    "warmup_ratio": ("optimizer.warmup_epochs", "optimizer.warmup_steps"),
    "skip_scheduler": ("optimizer.schedule",),
    "lr_scheduler": ("optimizer.schedule",),
    "lr_scheduler_type": ("optimizer.schedule",),
    "scheduler": ("optimizer.schedule",),
    "epochs_cooldown": ("optimizer.cooldown_epochs",),
    "cooldown": ("optimizer.cooldown_steps",),
    "grad_clip_norm": ("optimizer.max_grad_norm",),
    "grad_clip": ("optimizer.max_grad_norm",),
    "clip_grad_norm": ("optimizer.max_grad_norm",),
    # ---- run, checkpoints, evaluation, tracking
    "name": ("run.name",),
    "run_name": ("run.name",),
    "logs": ("run.dir",),
    "output_dir": ("run.dir", "ingest.output", "embed.output"),
    "remote_sync": ("run.dir",),
    "resume": ("run.resume",),
    "resume_from_checkpoint": ("run.resume",),
    "save_frequency": ("checkpoint.every_steps", "checkpoint.every_minutes"),
    "save_steps": ("checkpoint.every_steps",),
    "save_most_recent": ("checkpoint.keep_last",),
    "delete_previous_checkpoint": ("checkpoint.keep_last",),
    "save_total_limit": ("checkpoint.keep_last",),
    "zeroshot_frequency": ("evaluation.every_steps",),
    "val_frequency": ("evaluation.every_steps",),
    "eval_steps": ("evaluation.every_steps",),
    "report_to": ("tracking.wandb_mode",),
    "wandb": ("tracking.wandb_mode",),
    "wandb_project_name": ("tracking.wandb_project",),
    "project": ("tracking.wandb_project",),
    "entity": ("tracking.wandb_entity",),
    # ---- ingestion
    "url_list": ("ingest.input",),
    "input_folder": ("ingest.input",),
    "output_folder": ("ingest.output",),
    "size": ("ingest.image.size_px", "model.image_size_px"),
    "image_size": ("ingest.image.size_px", "model.image_size_px"),
    "resize_mode": ("ingest.image.resize_mode",),
    "resize_only_if_bigger": ("ingest.image.resize_only_if_bigger",),
    "encode_quality": ("ingest.image.quality",),
    "encode_format": ("ingest.image.format",),
    "skip_reencode": ("ingest.image.keep_bytes",),
    "url_col": ("ingest.url_column",),
    "caption_col": ("ingest.caption_column",),
    "processes_count": ("ingest.num_workers",),
    "num_processes": ("ingest.num_workers",),
    "thread_count": ("ingest.fetch.concurrency",),
    "threads": ("ingest.fetch.concurrency",),
    "number_sample_per_shard": ("ingest.partition_size_rows", "ingest.shard_size_bytes"),
    "samples_per_shard": ("ingest.partition_size_rows", "ingest.shard_size_bytes"),
    "timeout": ("ingest.fetch.total_timeout_s", "ingest.fetch.read_timeout_s"),
    "retries": ("ingest.fetch.attempts",),
    "subjob_size": ("ingest.commit_every_s",),
    "min_image_size": ("ingest.image.min_side_px", "curate.min_side_px"),
    "max_image_area": ("ingest.image.max_pixels",),
    "max_aspect_ratio": ("ingest.image.max_aspect_ratio", "curate.max_aspect_ratio"),
    "user_agent_token": ("ingest.fetch.user_agent_contact",),
    "wandb_project": ("tracking.wandb_project",),
}
"""Name in another program -> our keys, the closest first (docs/coming-from.md says what differs)."""

WITHOUT_KEY: dict[str, str] = {
    "local_loss": "the loss is always local: each rank has its own rows and columns",
    "gather_with_grad": "always on: the gradient is that of the global batch",
    "train_num_samples": "the data set's manifest has the number of samples",
    "val_num_samples": "the data set's manifest has the number of samples",
    "dataset_type": "there is one kind of data set, with a manifest",
    "dataset_resampled": "an epoch shows a sample at most once; data.mixture weights data sets",
    "momentum": "the optimizer is always AdamW",
    "opt": "the optimizer is always AdamW",
    "optimizer": "the optimizer is always AdamW; optimizer.* sets its keys",
    "local_rank": "Ray gives each worker its rank and its device",
    "dist_url": "Ray connects the workers",
    "dist_backend": "nccl on GPUs, gloo elsewhere",
    "input_format": "the file's ending says it: parquet, csv, tsv or jsonl",
    "output_format": "shards are always WebDataset tars with a parquet sidecar",
    "distributor": "Ray distributes the work",
    "incremental_mode": "ingestion is always incremental, row by row",
    "compute_hash": "sha256 is always computed",
    "csv_separator": "the file's ending says it: commas in .csv, tabs in .tsv",
    "log_local": "rank 0 writes the record; Ray keeps every worker's output",
    "lock_image_freeze_bn_stats": "a frozen encoder's statistics are frozen too",
    "force_custom_text": "such state dicts load as well",
    "copy_codebase": "jobs/submit.py --working-dir . runs a copy",
    "ddp_static_graph": "micro-batches and checkpointing work without it",
    "no_set_device_rank": "Ray gives each worker its device",
    "lock_text_freeze_layer_norm": "an encoder is frozen as a whole",
    "remote_sync_frequency": "checkpoints are written to their final place",
    "remote_sync_protocol": "s3:// or a folder",
    "loss_dist_impl": "one implementation, exact at any number of ranks",
    "extract_exif": "EXIF is always column of the sidecar",
    "save_additional_columns": "all columns of the table go into the sidecar",
    "enable_wandb": "the job's option --wandb",
    "wandb_notes": "W&B reads WANDB_NOTES",
    "oom_shard_count": "shards are named by their content",
    "max_shard_retry": "the next run does unfinished shards",
}
"""Names of other programs that need no key here, and why."""

WITHOUT_EQUIVALENT: dict[str, str] = {
    "lr_cooldown_end": "the cooldown ends at zero",
    "lr_cooldown_power": "the cooldown is linear",
    "pretrained_image": "model.weights takes only weights of a whole CLIP",
    "lock_image_unlocked_groups": "an encoder is frozen as a whole",
    "image_mean": "always CLIP's own",
    "image_std": "always CLIP's own",
    "image_interpolation": "always bicubic",
    "image_resize_mode": "always the shortest side, then centre crop",
    "force_context_length": "always 77; batches are cut to their longest caption without loss",
    "torchscript": "train.compile compiles the model",
    "trace": "train.compile compiles the model",
    "debug": "train.log_every_steps=1 is the default",
    "horovod": "training uses PyTorch's DDP on Ray",
    "lock_text_unlocked_layers": "an encoder is frozen as a whole",
    "coca_caption_loss_weight": "there is no CoCa",
    "coca_contrastive_loss_weight": "there is no CoCa",
    "distill_model": "there is no distillation",
    "distill_pretrained": "there is no distillation",
    "use_bnb_linear": "float32 weights, bfloat16 or float32 arithmetic",
    "upscale_interpolation": "Lanczos, as theirs by default",
    "downscale_interpolation": "an area filter that agrees with theirs to 40 dB",
    "bbox_col": "nothing is blurred",
    "verify_hash": "the sidecar holds the sha256 of the fetched image, to compare with the table's",
    "disable_all_reencoding": "an image is always checked; ingest.image.resize_mode=no and keep_bytes keep its bytes",
    "disallowed_header_directives": "noai, noimageai, noindex, noimageindex, noml and none are always respected",
}
"""Names of other programs for something that this one does not do, and what it does instead."""


def suggest(dotted: str, keys: Sequence[str], used: Collection[str] = ()) -> str:
    """The remedy for an unknown name.

    Args:
        dotted: as typed; option dashes and hyphens are accepted.
        keys: every key of the tree.
        used: the keys that the job uses; preferred if several fit.
    """
    parts = [part for part in dotted.lstrip("-").replace("-", "_").split(".") if not part.isdigit()]
    section, name = ".".join(parts[:-1]), parts[-1]
    if ".".join(parts) in keys:
        return f"write {'.'.join(parts)}=VALUE"
    if name in WITHOUT_KEY:
        return f"not needed: {WITHOUT_KEY[name]}"
    if name in WITHOUT_EQUIVALENT:
        return f"no equivalent: {WITHOUT_EQUIVALENT[name]}"
    same_name = [key for key in keys if key.rpartition(".")[2] == name]
    for found in (FOREIGN[name] if name in FOREIGN else (), same_name, _near(section, name, keys)):
        if found:
            return f"did you mean {_either(_closest(section, found, used))}?"
    sections = _sections(keys)
    near_sections = difflib.get_close_matches(".".join(parts), sections, n=1, cutoff=NEAR) if len(parts) == 1 else []
    if near_sections:
        return f"did you mean the section {near_sections[0]}?"
    if section in sections:
        return f"{section} has {', '.join(_members(section, keys))}"
    return f"the sections are {', '.join(name for name in _sections(used or keys) if '.' not in name)}"


def _near(section: str, name: str, keys: Sequence[str]) -> list[str]:
    """The nearest spelling: in the given section, or else anywhere."""
    siblings = [key for key in keys if key.startswith(f"{section}.")] if section else []
    for candidates in (siblings, keys):
        names = {key.rpartition(".")[2]: key for key in reversed(candidates)}
        close = difflib.get_close_matches(name, names, n=1, cutoff=NEAR)
        if close:
            return [names[close[0]]]
    return []


def _closest(section: str, found: Sequence[str], used: Collection[str]) -> list[str]:
    """Selects keys of the given section, else keys that the job uses; all of one top-level section."""
    inside = [key for key in found if section and key.startswith(f"{section}.")]
    best = inside or [key for key in found if key in used] or list(found)
    return [key for key in best if key.partition(".")[0] == best[0].partition(".")[0]][:3]


def _either(keys: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(keys[:-1]), keys[-1])))


def _sections(keys: Iterable[str]) -> list[str]:
    """Every section of the tree, including nested ones."""
    found: dict[str, None] = {}
    for key in keys:
        parents = key.split(".")[:-1]
        found.update(dict.fromkeys(".".join(parents[: length + 1]) for length in range(len(parents))))
    return list(found)


def _members(section: str, keys: Iterable[str]) -> list[str]:
    """The keys of a section; a section within it is listed as `name.*`."""
    rests = [key.removeprefix(f"{section}.") for key in keys if key.startswith(f"{section}.")]
    return list(dict.fromkeys(f"{rest.partition('.')[0]}.*" if "." in rest else rest for rest in rests))
