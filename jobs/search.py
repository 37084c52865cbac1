"""Searches images by a text or by another image: those of a data set, or the image files of a folder.

    python jobs/search.py photos --weights ViT-B-32.pt --activation quick_gelu --text "a red bicycle"
    python jobs/search.py data/pairs --run mine --image query.jpg --top 20 --page found.html
    python jobs/search.py data/pairs --run mine --features data/features --text "a dog"       features of jobs/embed.py
    python jobs/search.py s3://BUCKET/pairs run.dir=s3://BUCKET/runs run.name=vit_b_32 --text "a dog" --json hits.json

Prints score, key, file or URL, and caption, best first; --page writes one self-contained page of thumbnails. The model is that
of a run's last checkpoint, or of weights (ours, open_clip's, Hugging Face's), which tell their architecture. Images that cannot
be read are named and counted. Without --features, all images are read and encoded here, in this process and without Ray; to
search a large data set again and again, let jobs/embed.py store its features.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.cli.command_line import check_folder, main, parser
from jobs.cli.config import Config
from jobs.cli.job_parser import JobParser
from jobs.cli.open_model import add_weights_options, check_one_model, last_checkpoint, told_architecture
from pipeline.errors import ConfigError, InputError, NotMeantError

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.dataset.features import ImageFeatures
    from training.encoder import Encoder
    from training.image_search import Found, SearchedImages

STANDARD_OUTPUT = "-"
CAPTION_CHARACTERS = 60
PROBLEMS_SHOWN = 10


def job(config: Config, options: argparse.Namespace) -> None:
    config = _with_run(config, options)
    if options.top < 1:
        raise ConfigError(f"--top={options.top}: must be at least 1; give the number of images to find")
    check_folder("--page", options.page)
    check_folder("--json", None if options.json == STANDARD_OUTPUT else options.json)
    query = options.text if options.text is not None else options.image
    if not query.strip():
        raise ConfigError("--text: is empty; say what to search for")
    images = _open_images(options)
    encoder, address = _open_encoder(config, options)
    if options.features:
        _check_model(images[1], encoder, address)
    found = _search(images[0], encoder, _query(encoder, options), options)
    _report_problems(found)
    if options.json == STANDARD_OUTPUT:
        print(_json(found))
    else:
        print(f"{found.num_images:,} images compared by {encoder.clip.architecture.name} of {address}")
        print(table(found))
    if options.json and options.json != STANDARD_OUTPUT:
        Path(options.json).write_text(_json(found) + "\n", encoding="utf-8")
    if options.page:
        from jobs.reporting.hits_page import render

        page = render(query, found, [images[0].read(hit) for hit in found.hits], address)
        Path(options.page).write_text(page, encoding="utf-8")
        print(f"page: {options.page}", file=sys.stderr if options.json == STANDARD_OUTPUT else sys.stdout)
    if not found.hits:
        raise NotMeantError(f"{options.data}: none of its {len(found.problems):,} images can be read; give others")


def _with_run(config: Config, options: argparse.Namespace) -> Config:
    """The configuration with the run of --run. Raises ConfigError unless exactly one model is named."""
    typed = [override for override in options.overrides if override.startswith("run.name=")]
    if options.run and (options.weights or typed):
        other = f"--weights={options.weights}" if options.weights else typed[0]
        raise ConfigError(f"--run={options.run}: {other} names a model too; give one of them")
    if not (options.run or options.weights or typed or options.config != "default"):
        raise ConfigError("--run, --weights: no model is named; give --run NAME of a trained run, or --weights PATH")
    check_one_model(options)
    if not options.run:
        return config
    return config.model_copy(update={"run": config.run.model_copy(update={"name": options.run})})


def _open_images(options: argparse.Namespace) -> tuple[SearchedImages, ImageFeatures | None]:
    from pipeline.dataset.features import ImageFeatures
    from pipeline.dataset.manifest import list_versions
    from pipeline.storage.address import open_storage
    from training.image_search import open_images

    place = open_storage(options.data)
    features = ImageFeatures(open_storage(options.features)) if options.features else None
    return open_images(place, bool(list_versions(place)), features), features


def _open_encoder(config: Config, options: argparse.Namespace) -> tuple[Encoder, str]:
    """The model on its device, and the address that it comes from."""
    from training.distributed import pick_device
    from training.encoder import Encoder
    from training.trained_model import open_model, open_trained_model

    if options.weights:
        name = told_architecture(config, options)
        opened = open_trained_model(options.weights, name, options.activation, allow_torchscript=options.allow_torchscript)
        clip, address, train = opened.clip, opened.address, config.train
    else:
        checkpoint = last_checkpoint(config)
        (clip, trained), address = open_model(checkpoint), checkpoint.address
        train = trained.train
    return Encoder(clip, pick_device(config.train.device), train), address


def _check_model(features: ImageFeatures | None, encoder: Encoder, address: str) -> None:
    """Raises ConfigError for features of another model."""
    from training.shard_embedder import weights_sha256

    assert features is not None
    held = features.embedding.model
    if held.weights_sha256 != weights_sha256(encoder.clip):
        raise ConfigError(
            f"--features={features.storage.uri}: are of {held.name} of {held.address}, and not of {address}; name that model, "
            "or omit the option"
        )


def _query(encoder: Encoder, options: argparse.Namespace) -> Tensor:
    """The features of the text or the image that is searched for."""
    from model.preprocess import eval_pixels

    if options.text is not None:
        return encoder.encode_texts([options.text], 1)[0]
    try:
        pixels = eval_pixels(options.image, encoder.clip.architecture.image_size_px)
    except OSError as error:
        raise InputError(f"--image={options.image}: cannot be read ({error.strerror}); give an image file") from None
    except ValueError as error:
        raise InputError(f"--image={options.image}: {error}; give another one") from None
    return encoder.encode_pixels(pixels[None])[0]


def _search(images: SearchedImages, encoder: Encoder, query_E: Tensor, options: argparse.Namespace) -> Found:
    from pipeline.ingest.progress import Progress
    from training.image_search import search

    with Progress(images.num_images, "images", "search") as progress:
        return search(images, encoder, query_E, options.top, progress=progress.update)


# ------------------------------------------------------------------------------------------------------------------ results


def table(found: Found) -> str:
    """The hits, one a line."""
    rows = [("score", "key", "file or URL", "caption")]
    for hit in found.hits:
        caption = hit.caption if len(hit.caption) <= CAPTION_CHARACTERS else f"{hit.caption[: CAPTION_CHARACTERS - 3]}..."
        rows.append((f"{hit.score:.4f}", printable(hit.key), printable(hit.address), printable(caption)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def printable(text: str) -> str:
    """A text in one line that any terminal takes: file names may hold everything but `/`."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _json(found: Found) -> str:
    hits = [{name: value for name, value in asdict(hit).items() if name != "index"} for hit in found.hits]
    return json.dumps({"hits": hits, "num_images": found.num_images, "problems": found.problems}, indent=1)


def _report_problems(found: Found) -> None:
    for problem in found.problems[:PROBLEMS_SHOWN]:
        print(f"skipped: {printable(problem)}", file=sys.stderr)
    if found.problems:
        total = found.num_images + len(found.problems)
        print(f"{len(found.problems):,} of {total:,} images cannot be read and were skipped", file=sys.stderr)


def arguments() -> JobParser:
    result = parser(__doc__, "search", place="a data set, or a folder of image files; local or s3://")
    result.add_argument("--run", metavar="NAME", help="a trained run, the same as run.name=NAME")
    add_weights_options(result)
    query = result.add_mutually_exclusive_group(required=True)
    query.add_argument("--text", metavar="TEXT", help="what to search for, in words")
    query.add_argument("--image", metavar="FILE", help="an image to which similar ones are searched")
    result.add_argument("--top", type=int, default=10, metavar="N", help="images to find (default: %(default)s)")
    result.add_argument("--features", metavar="FOLDER", help="an output of jobs/embed.py by the same model, for a data set")
    result.add_argument("--page", metavar="FILE", help="also write a page of thumbnails to FILE")
    result.add_argument("--json", metavar="FILE", help="also write the hits to FILE; -: print them as JSON instead of a table")
    return result


if __name__ == "__main__":
    main(arguments(), job)
