"""Random images of every encoder and kind: decoded by ingestion, by training and by Pillow to the same pixels."""

import io
import random
import shutil
import subprocess
import warnings

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from model.image_loading import load_eval_image
from pipeline.config import ImageConfig
from pipeline.dataset.shard import StoredImage
from pipeline.errors import Failure
from pipeline.transform.image import prepare_image

Pixels = NDArray[np.uint8]
TURNS = [
    *[Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE],
    *[Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90],
]
"""For orientations 2 to 8."""
WHOLE = ImageConfig(format="png", quality=0, resize_mode="no", keep_bytes=False)
KEPT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def random_image(rng: random.Random) -> Image.Image:
    """Coarse noise, enlarged, so that formats with loss keep its shape."""
    noise = np.frombuffer(rng.randbytes(4 * 5 * 4), np.uint8).reshape(4, 5, 4)
    size = (rng.randint(1, 60), rng.randint(1, 60))
    return Image.fromarray(noise, "RGBA").resize(size, Image.Resampling.BICUBIC)


def by_pillow(rng: random.Random) -> bytes:
    image = random_image(rng)
    format = rng.choice(["JPEG", "JPEG", "PNG", "PNG", "WEBP", "TIFF", "AVIF", "GIF", "BMP", "MPO"])
    modes = {
        "JPEG": ["RGB", "L", "CMYK"],
        "PNG": ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"],
        "WEBP": ["RGB", "RGBA"],
        "TIFF": ["RGB", "RGBA", "L", "CMYK", "1", "I;16", "P"],
        "AVIF": ["RGB", "RGBA"],
        "GIF": ["P", "RGB", "L"],
        "BMP": ["RGB", "L", "1"],
        "MPO": ["RGB"],
    }
    mode = rng.choice(modes[format])
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257 + rng.randrange(2))
    else:
        image = image.convert("RGB").quantize(rng.choice([4, 64])) if mode == "P" else image.convert(mode)
    options: dict[str, object] = {}
    if format in ("JPEG", "MPO"):
        options = {"quality": rng.randint(20, 100), "progressive": rng.random() < 0.3, "optimize": rng.random() < 0.3}
        options |= {"subsampling": rng.choice([0, 1, 2])} if mode == "RGB" else {}
    elif format == "WEBP":
        options = {"lossless": rng.random() < 0.3, "quality": rng.randint(20, 100)}
    elif format == "TIFF":
        options = {"compression": rng.choice([None, "tiff_lzw", "tiff_deflate", "packbits"])}
    elif format == "AVIF":
        options = {"quality": rng.randint(30, 100)}
    if format in ("GIF", "WEBP", "AVIF", "TIFF", "MPO") and rng.random() < 0.3:
        options |= {"save_all": True, "append_images": [Image.new(image.mode, image.size)] * 2}
    animated_avif = format == "AVIF" and "save_all" in options  # with Exif, Pillow's encoder ends the process
    if format not in ("GIF", "BMP") and not animated_avif and rng.random() < 0.6:
        exif = Image.Exif()
        exif[0x0112] = rng.choice([*range(1, 9), *([] if format == "TIFF" else [0, 9, 300])])  # libtiff writes no others
        exif[0x0110] = "camera"
        options["exif"] = exif
    if format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") and rng.random() < 0.2:
        options["icc_profile"] = PROFILE
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def by_opencv(rng: random.Random) -> bytes:
    pixels = np.asarray(random_image(rng).convert(rng.choice(["RGB", "RGBA", "L"])))
    kind = rng.choice([".jpg", ".png", ".webp", ".tiff", ".bmp", ".avif"])
    options: list[int] = []
    if kind == ".jpg":
        options = [cv2.IMWRITE_JPEG_QUALITY, rng.randint(20, 100), cv2.IMWRITE_JPEG_PROGRESSIVE, rng.randrange(2)]
        options += [cv2.IMWRITE_JPEG_RST_INTERVAL, rng.choice([0, 1, 7])]
    elif kind == ".tiff":
        options = [cv2.IMWRITE_TIFF_COMPRESSION, rng.choice([1, 5, 8])]
    if kind == ".png" and rng.random() < 0.3:
        pixels = pixels.astype(np.uint16) * 257
    if kind in (".jpg", ".avif", ".webp", ".bmp") and pixels.ndim == 3:
        pixels = pixels[..., :3]
    if kind in (".avif", ".webp") and pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    done, data = cv2.imencode(kind, np.ascontiguousarray(pixels), options)
    assert done
    return data.tobytes()


def portable_pixmap(rng: random.Random) -> bytes:
    file = io.BytesIO()
    random_image(rng).convert("RGB").save(file, "PPM")
    return file.getvalue()


def by_cjpeg(rng: random.Random) -> bytes:
    kinds = [
        [],
        ["-progressive"],
        ["-arithmetic"],
        ["-arithmetic", "-progressive"],
        ["-grayscale"],
        ["-rgb"],
        ["-restart", "1"],
    ]
    sampling = rng.choice(["1x1", "2x1", "2x2", "1x2", "4x1", "4x2"])
    command = ["cjpeg", "-quality", str(rng.randint(20, 100)), "-sample", sampling, *rng.choice(kinds)]
    return subprocess.run(command, input=portable_pixmap(rng), capture_output=True, check=True).stdout


def by_imagemagick(rng: random.Random) -> bytes:
    kind = rng.choice(["jpg", "png", "tiff", "gif", "bmp", "webp", "png48", "png8"])
    options = rng.choice(
        [[], ["-colorspace", "CMYK"], ["-colorspace", "gray"], ["-depth", "16"], ["-interlace", "plane"], ["-type", "bilevel"]]
        if kind not in ("gif", "bmp", "webp", "png8")
        else [[], ["-colorspace", "gray"]]
    )
    if kind == "tiff":
        options = [*options, "-compress", rng.choice(["none", "lzw", "zip"])]
    turn = [
        "-orient",
        rng.choice(["top-left", "top-right", "bottom-right", "bottom-left", "left-top", "right-top", "left-bottom"]),
    ]
    command = ["convert", "ppm:-", *options, *(turn if kind in ("jpg", "tiff") else []), f"{kind}:-"]
    return subprocess.run(command, input=portable_pixmap(rng), capture_output=True, check=True).stdout


def reference(data: bytes) -> Pixels:
    """Decodes with Pillow alone, and turns as its tag said before decoding, unless Pillow has done so."""
    image: Image.Image = Image.open(io.BytesIO(data))
    image.load()
    orientation = image.getexif().get(0x0112)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) // 257).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    image = image.convert("RGB")
    return np.asarray(image.transpose(TURNS[orientation - 2]) if orientation in range(2, 9) else image)


def ours(data: bytes) -> Pixels | Failure:
    outcome = prepare_image(data, WHOLE)
    if isinstance(outcome, Failure):
        return outcome
    pixels = np.asarray(Image.open(io.BytesIO(outcome.data)))
    assert (outcome.original_width, outcome.original_height) == (pixels.shape[1], pixels.shape[0])
    return pixels


def check_image(data: bytes) -> None:
    """Compares all decoders, and what is stored unchanged."""
    expected = reference(data)
    pixels = ours(data)
    assert not isinstance(pixels, Failure), pixels
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= 1
    height, width = expected.shape[:2]
    side = min(height, width)
    left, top = round((width - side) / 2), round((height - side) / 2)
    trained = load_eval_image(data, side)
    assert np.abs(trained.astype(int) - expected[top : top + side, left : left + side]).max() <= 2
    format = Image.open(io.BytesIO(data)).format
    if format in KEPT:
        kept = prepare_image(data, ImageConfig(format=KEPT[format]))
        assert isinstance(kept, StoredImage)
        if kept.data == data:
            assert np.array_equal(reference(kept.data), expected)
            assert Image.open(io.BytesIO(data)).getexif().get(0x0112) in (None, 1), "readers that know no Exif show it upright"


def check_cut(data: bytes, rng: random.Random) -> None:
    """A cut image is a reason, or has all its pixels; and what Pillow reads of it, we read."""
    cut = data[: rng.randrange(len(data))]
    outcome = ours(cut)
    try:
        expected = reference(cut)
    except Exception:  # Pillow also refuses a PNG that is cut in a text after its pixels
        assert isinstance(outcome, Failure) or np.array_equal(outcome, ours(data)), "a part of an image was taken for all of it"
        return
    assert not isinstance(outcome, Failure), outcome
    assert np.abs(outcome.astype(int) - expected).max() <= 1


def check(seed: int, count: int, encoders: list) -> None:
    rng = random.Random(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about damaged metadata
        for number in range(count):
            data = rng.choice(encoders)(rng)
            try:
                check_image(data)
                check_cut(data, rng)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, image {number}, which begins {data[:24]!r}: {error}") from error


def test_random_images_are_decoded_as_pillow_decodes_them():
    check(seed=0, count=250, encoders=[by_pillow, by_pillow, by_opencv])


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2])
def test_many_random_images_are_decoded_as_pillow_decodes_them(seed):
    check(seed, count=20_000, encoders=[by_pillow, by_pillow, by_opencv])


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("cjpeg") is None, reason="cjpeg is not installed")
@pytest.mark.parametrize("seed", [1, 2])
def test_jpegs_of_cjpeg_are_decoded_as_pillow_decodes_them(seed):
    check(seed, count=3000, encoders=[by_cjpeg])


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("identify") is None, reason="ImageMagick is not installed")
@pytest.mark.parametrize("seed", [1, 2])
def test_images_of_imagemagick_are_decoded_as_pillow_decodes_them(seed):
    check(seed, count=1000, encoders=[by_imagemagick])
