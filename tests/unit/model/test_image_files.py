"""Image files look the same to ingestion and to training (tests/world/test_images.py has the files that people have)."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin

from model.image_files import loses_pixels, orientation, prepare_image_file, read_exif, refuse_lost_pixels, to_rgb
from tests.support.runs import ROOT


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def reopened(image: Image.Image, format: str, **options) -> Image.Image:
    data = encoded(image, format, **options)
    found = Image.open(io.BytesIO(data))
    prepare_image_file(found, data)
    return found


def test_ingestion_imports_it_without_torch():
    code = "import sys, pipeline.transform.image; assert 'torch' not in sys.modules; assert 'model.image_files' in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (Image.new("RGB", (4, 4), (1, 2, 3)), (1, 2, 3)),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("LA", (4, 4), (0, 128)), (127, 127, 127)),
        (Image.fromarray(np.full((4, 4), 257 * 100, np.uint16)), (100, 100, 100)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_every_mode_becomes_rgb(image, pixel):
    assert to_rgb(image).mode == "RGB"
    assert to_rgb(image).getpixel((1, 1)) == pixel


def test_values_of_no_known_range_are_refused():
    with pytest.raises(ValueError, match="have no range that says which are black and white"):
        to_rgb(Image.new("F", (4, 4), 0.5))


def test_exif_that_cannot_be_read_states_nothing():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert orientation(reopened(Image.new("RGB", (4, 4)), "JPEG", exif=exif)) == 6
    broken = reopened(Image.new("RGB", (4, 4)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert (read_exif(broken), orientation(broken)) == ({}, 1)


def test_a_jpeg_with_lost_pixels_is_refused_and_an_odd_one_is_not():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), "JPEG", quality=90)
    refuse_lost_pixels(whole)
    refuse_lost_pixels(whole[:-2] + bytes(8) + whole[-2:])
    with pytest.raises(ValueError, match="premature end of data segment"):
        refuse_lost_pixels(whole[: len(whole) // 2] + whole[-2:])


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(rows: int, height: int = 8, interlace: int = 0, parts: int = 1) -> bytes:
    """A grey PNG, 4 pixels wide, that states `height` rows and has `rows`, in so many IDAT chunks."""
    packed = zlib.compress((b"\0" + b"\x80" * 4) * rows)
    size = -(-len(packed) // parts)
    data = [chunk(b"IDAT", packed[at : at + size]) for at in range(0, len(packed), size)]
    header = struct.pack(">IIBBBBB", 4, height, 8, 0, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", header), *data, chunk(b"IEND", b"")])


@pytest.mark.parametrize("parts", [1, 3])
def test_a_png_whose_rows_end_early_is_refused(parts):
    whole, short = png(8, parts=parts), png(5, parts=parts)
    prepare_image_file(Image.open(io.BytesIO(whole)), whole)
    with pytest.raises(ValueError, match="ends after 25 of 40 bytes of its rows"):
        prepare_image_file(Image.open(io.BytesIO(short)), short)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (17, 9), (33, 2)])
def test_whole_pngs_of_each_mode_and_odd_size_are_taken(mode, size):
    data = encoded(Image.new(mode, size), "PNG")
    prepare_image_file(Image.open(io.BytesIO(data)), data)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (17, 9)])
def test_a_whole_interlaced_png_is_taken_and_a_short_one_refused(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0]), np.uint8)
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    parts = [pixels[y::dy, x::dx] for x, y, dx, dy in passes]
    rows = [b"\0" + row.tobytes() for part in parts if part.size for row in part]
    for kept, whole in ((rows, True), (rows[:-1], False)):
        header = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 1)
        data = b"".join(
            [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"".join(kept))), chunk(b"IEND", b"")]
        )
        image = Image.open(io.BytesIO(data))
        if whole:
            prepare_image_file(image, data)
            assert np.array_equal(np.asarray(image), pixels)
        else:
            with pytest.raises(ValueError, match="bytes of its rows"):
                prepare_image_file(image, data)


def tiff(tags: dict[int, object], mode: str = "P") -> bytes:
    image = Image.new(mode, (4, 4), 1)
    if mode == "P":
        image.putpalette([0, 0, 0, 200, 100, 50] + [0] * 762)
    found = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        found[tag] = value
    return encoded(image, "TIFF", tiffinfo=found)


def test_the_small_copy_before_a_raw_picture_is_refused():
    data = tiff({254: 1}, "RGB")
    with pytest.raises(ValueError, match=r"small copy of the picture, as in a camera's raw file \(DNG\); convert it"):
        prepare_image_file(Image.open(io.BytesIO(data)), data)


def test_a_tiff_palette_of_8_bits_has_its_colours():
    data = tiff({})
    sixteen = struct.pack("<768H", *(value << 8 for value in planes()))
    assert sixteen in data, "as Pillow writes it"
    data8 = data.replace(sixteen, struct.pack("<768H", *planes()))
    for written in (data, data8):
        image = Image.open(io.BytesIO(written))
        prepare_image_file(image, written)
        assert to_rgb(image).getpixel((1, 1)) == (200, 100, 50)


def planes() -> list[int]:
    """The palette's reds, greens and blues."""
    return [0, 200] + [0] * 254 + [0, 100] + [0] * 254 + [0, 50] + [0] * 254


def test_imagemagicks_orientation_in_a_png_turns_nothing_as_in_browsers():
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(exif.tobytes())}\n{exif.tobytes().hex()}")
    assert orientation(reopened(Image.new("RGB", (4, 4)), "PNG", pnginfo=text)) == 1
    assert orientation(reopened(Image.new("RGB", (4, 4)), "PNG", exif=exif)) == 6


def png_of_16_bits(colours: list[tuple[int, int, int]], transparent: tuple[int, int, int], interlace: int = 0) -> bytes:
    """One pixel for each colour, side by side."""
    row = b"\0" + b"".join(struct.pack(">HHH", *colour) for colour in colours)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", len(colours), 1, 16, 2, 0, 0, interlace)),
        (b"tRNS", struct.pack(">HHH", *transparent)),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in (*chunks, (b"IDAT", zlib.compress(row)), (b"IEND", b"")))


@pytest.mark.parametrize("transparent", [(0, 0, 0), (0x1234, 0x5678, 0x9ABC), (255, 255, 255), (256, 0, 0)])
def test_the_transparent_colour_of_48_bits_is_compared_exactly(transparent):
    near = [tuple(value ^ (place == number) for number, value in enumerate(transparent)) for place in range(3)]
    far = tuple(value ^ 0x0100 for value in transparent)
    data = png_of_16_bits([transparent, *near, far], transparent)
    image = Image.open(io.BytesIO(data))
    prepare_image_file(image, data)
    found = np.asarray(to_rgb(image))[0].tolist()
    assert found == [[255] * 3, *[[value >> 8 for value in colour] for colour in (*near, far)]]


def test_odd_bytes_in_place_of_a_scan_are_lost_pixels():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for progressive in (False, True):
        whole = encoded(Image.fromarray(noise), "JPEG", quality=90, progressive=progressive)
        scan = whole.rindex(b"\xff\xda")
        refuse_lost_pixels(whole[:-2] + bytes(800) + whole[-2:])
        with pytest.raises(ValueError, match=r"extraneous bytes before marker|premature end"):
            refuse_lost_pixels(whole[: scan + 20] + whole[-2:] if not progressive else whole[:scan] + bytes(800) + whole[-2:])
    assert not loses_pixels(ValueError("unknown JFIF revision number 9.01"), whole)
