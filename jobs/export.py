"""Exports a model as a folder that open_clip, Hugging Face transformers and RayCLIP load, with a model card.

    python jobs/export.py run.name=demo --output exports/demo                 a run's last checkpoint
    python jobs/export.py --checkpoint runs/demo/checkpoints/step_00000300 --output exports/demo-300
    python jobs/export.py --weights clip.pt --activation quick_gelu --output s3://BUCKET/exports/clip

    open_clip_model.safetensors, open_clip_config.json   weights with the published keys; RayCLIP loads them too
    hf/                                                  a CLIPModel and its CLIPProcessor (ViTs only)
    README.md                                            model card: data, recipe, results, code to load it
    export.json                                          the same for programs, with the size and sha256 of every file

The folder appears whole or not at all; in object storage, export.json is written last. Runs in this process, without Ray.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.cli.command_line import main, parser
from jobs.cli.config import Config
from jobs.cli.job_parser import JobParser
from jobs.cli.open_model import add_weights_options, last_checkpoint, open_weights
from pipeline.errors import ConfigError
from training.config import TrainingConfig

if TYPE_CHECKING:
    from jobs.reporting.model_card import Origin
    from model.clip import CLIP
    from pipeline.storage.base import Storage
    from training.checkpoint.store import Checkpoint

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
RECORD, CARD, HUGGING_FACE = "export.json", "README.md", "hf"


def job(config: Config, options: argparse.Namespace) -> None:
    from pipeline.storage.address import open_storage

    target = open_storage(options.output.rstrip("/"))
    check_target(target, options.overwrite)
    if options.weights:
        from jobs.reporting.model_card import Origin

        clip, origin = open_weights(config, options), Origin(Path(options.weights).stem, options.weights)
        _export(clip, origin, target)
    else:
        export_checkpoint(_checkpoint(config, options), target)


def export_checkpoint(checkpoint: Checkpoint, target: Storage) -> None:
    """Exports a checkpoint's model, replacing an existing export, and reports it to W&B if the run uses it."""
    from jobs.reporting.model_card import Origin
    from training.trained_model import open_model

    clip, trained = open_model(checkpoint)
    origin = Origin(
        name=trained.run.name,
        address=checkpoint.address,
        step=checkpoint.position.step,
        samples_seen=checkpoint.position.samples_seen,
        is_average=checkpoint.has_average,
        data_sets=tuple(checkpoint.data_sets),
        metrics=checkpoint.metrics,
        config=trained.model_dump(mode="json"),
        packages=checkpoint.packages,
    )
    _export(clip, origin, target)
    _report_to_wandb(trained, checkpoint, target)


def _checkpoint(config: Config, options: argparse.Namespace) -> Checkpoint:
    from training.checkpoint.store import open_checkpoint

    if not options.checkpoint:
        return last_checkpoint(config)
    try:
        return open_checkpoint(options.checkpoint)
    except ConfigError as error:  # its message names the key of a run
        raise ConfigError(str(error).replace("run.resume=", "--checkpoint=")) from None


def _export(clip: CLIP, origin: Origin, target: Storage) -> None:
    with staged(target) as folder:
        notices = write_export(folder, clip, origin)
        publish(folder, target)
    for notice in notices:
        print(notice)
    print(f"{clip.architecture.name} of {origin.address} is in {target.uri}; see {target.uri}/{CARD} for loading it")


def _report_to_wandb(trained: TrainingConfig, checkpoint: Checkpoint, target: Storage) -> None:
    """Declares the export as an output of its W&B run. Errors of W&B do not stop the export."""
    from model.weight_files import OPEN_CLIP_WEIGHTS
    from pipeline.storage.address import open_storage
    from training.record.lineage import log_model
    from training.wandb_environment import with_environment

    if with_environment(trained.tracking, os.environ).wandb_mode == "disabled":
        return
    try:
        place = open_storage(checkpoint.address.rpartition("/checkpoints/")[0])
        run_id = json.loads(place.read("run.json"))["id"]
        files = json.loads(target.read(RECORD))["files"]
        about = {"sha256": files[OPEN_CLIP_WEIGHTS]["sha256"], "step": checkpoint.position.step, **checkpoint.metrics}
        folder = place.local_path("") or Path(tempfile.gettempdir()) / "rayclip" / run_id
        folder.mkdir(parents=True, exist_ok=True)
        sync = log_model(trained.tracking, trained.run.name, run_id, str(folder), target.uri, about)
        if sync:
            print(f"W&B has this export once you upload it, after its run: {sync}")
    except Exception as error:
        logger.warning("the export was not reported to W&B (%s: %s)", type(error).__name__, error)


def write_export(folder: Path, clip: CLIP, origin: Origin) -> list[str]:
    """Writes all files of an export into an empty folder. Returns notices for the user."""
    from jobs.reporting.model_card import card, package_versions
    from model.foreign_config import OPEN_CLIP_CONFIG, open_clip_config
    from model.weight_files import OPEN_CLIP_WEIGHTS
    from model.weights import save_weights

    row = clip.architecture
    save_weights(clip, folder / OPEN_CLIP_WEIGHTS)
    _write_json(folder / OPEN_CLIP_CONFIG, open_clip_config(row))
    notices = []
    if row.patch_size_px is None:
        notices.append(
            f"{HUGGING_FACE}/ is not written: transformers' CLIPModel has no ResNets such as {row.name}; use open_clip"
        )
    else:
        write_hugging_face(folder / HUGGING_FACE, clip)
    if row.patch_size_px is not None and clip.logit_bias is not None:
        notices.append(
            f"{HUGGING_FACE}/ lacks logit_bias={clip.logit_bias.item():.4g}, which CLIPModel does not support; features and "
            "the order of logits are the same; add it to logits_per_image before a sigmoid"
        )
    (folder / CARD).write_text(card(clip, origin, notices), encoding="utf-8")
    record = {
        "format_version": FORMAT_VERSION,
        "architecture": asdict(row),
        "origin": asdict(origin),
        "packages": package_versions(),
        "files": {path.relative_to(folder).as_posix(): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()},
    }
    _write_json(folder / RECORD, record)
    return notices


def write_hugging_face(folder: Path, clip: CLIP) -> None:
    """Writes the files that `CLIPModel.from_pretrained` and `CLIPProcessor.from_pretrained` read."""
    from model.foreign_config import (
        HUGGING_FACE_CONFIG,
        HUGGING_FACE_PREPROCESSORS,
        hugging_face_config,
        preprocessor_config,
        tokenizer_config,
    )
    from model.state_dict_keys import to_hugging_face
    from model.vocabulary import merges, vocabulary
    from model.weight_files import HUGGING_FACE_WEIGHTS
    from model.weights import save_readable

    folder.mkdir()
    row = clip.architecture
    tensors = {key: value.detach().cpu().contiguous() for key, value in to_hugging_face(clip.state_dict()).items()}
    save_readable(tensors, folder / HUGGING_FACE_WEIGHTS, {"format": "pt", "activation": row.activation})
    _write_json(folder / HUGGING_FACE_CONFIG, hugging_face_config(row))
    _write_json(folder / HUGGING_FACE_PREPROCESSORS[0], preprocessor_config(row))
    _write_json(folder / "tokenizer_config.json", tokenizer_config(row))
    (folder / "vocab.json").write_text(json.dumps(vocabulary(), ensure_ascii=False), encoding="utf-8")
    lines = "".join(f"{first} {second}\n" for first, second in merges())
    (folder / "merges.txt").write_text(f"#version: 0.2\n{lines}", encoding="utf-8")


def check_target(target: Storage, overwrite: bool) -> None:
    """Raises ConfigError if the target holds an export and `overwrite` is false, or if it holds other files."""
    place = target.local_path("")
    if place is not None and place.exists() and not place.is_dir():
        raise ConfigError(f"--output={target.uri}: is a file; give a folder")
    names = {item.path for item in target.list("")} if place is None or place.is_dir() else set()
    if RECORD in names:
        if not overwrite:
            raise ConfigError(f"--output={target.uri}: holds an export already; choose another folder or pass --overwrite")
    elif names and not (
        place is None and all(map(_is_ours, names))
    ):  # without a record they are from an upload that was killed
        raise ConfigError(f"--output={target.uri}: holds other files, which --overwrite does not remove; choose a new folder")


@contextlib.contextmanager
def staged(target: Storage) -> Iterator[Path]:
    """A folder to write to: beside the target, so that it can be renamed; a temporary one for object storage."""
    place = target.local_path("")
    if place is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    folder = place.with_name(f".{place.name}.{uuid.uuid4().hex}.part")
    try:
        folder.mkdir(parents=True)
        yield folder
    except OSError as error:
        raise ConfigError(f"--output={target.uri}: cannot be written ({error.strerror}); choose a writable folder") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, target: Storage) -> None:
    """Makes a staged export visible and replaces an older one."""
    place = target.local_path("")
    if place is not None:
        old = folder.with_suffix(".old")
        if place.exists():
            place.rename(old)
        folder.rename(place)
        shutil.rmtree(old, ignore_errors=True)
        return
    for item in sorted(target.list(""), key=lambda item: item.path != RECORD):
        if _is_ours(item.path):
            target.delete(item.path)  # the record of an older export first, so that no mix of two exports looks complete
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    for name in sorted(names, key=lambda name: name == RECORD):
        target.write_file(name, folder / name)


def _is_ours(name: str) -> bool:
    return name in (RECORD, CARD) or name.startswith(("open_clip_", f"{HUGGING_FACE}/"))


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size_bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def arguments() -> JobParser:
    result = parser(__doc__, "export")
    result.add_argument("--output", metavar="FOLDER", required=True, help="a new folder, or s3://BUCKET/PREFIX")
    result.add_argument("--overwrite", action="store_true", help="replace an existing export")
    result.add_argument("--checkpoint", metavar="ADDRESS", help="folder of a checkpoint or of a run, instead of run.name")
    add_weights_options(result)
    return result


if __name__ == "__main__":
    main(arguments(), job)
