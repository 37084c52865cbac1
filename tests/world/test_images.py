"""Images with the orientations, metadata and modes that cameras and programs really write."""

import io
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from sklearn.datasets import load_sample_image

from model.image_loading import load_eval_image
from pipeline.config import ImageConfig, IngestConfig
from pipeline.dataset.shard import StoredImage
from pipeline.errors import Failure
from pipeline.ingest.options import options_fingerprint
from pipeline.transform.image import prepare_image

CORNERS = ((220, 40, 40), (40, 200, 60), (40, 60, 220), (235, 220, 60))
"""Colours of the upright image: top left, top right, bottom left, bottom right."""
STORED_AS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a camera stores an upright image, so that the orientation turns it back."""


def upright() -> Image.Image:
    image = Image.new("RGB", (64, 48))
    for number, colour in enumerate(CORNERS):
        image.paste(colour, (32 * (number % 2), 24 * (number // 2), 32 * (number % 2) + 32, 24 * (number // 2) + 24))
    return image


def stored_as(orientation: int) -> Image.Image:
    return upright().transpose(STORED_AS[orientation]) if orientation in STORED_AS else upright()


def encode(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def tiff_directory(entries: list[tuple[int, int, int, bytes]], order: str = "<") -> bytes:
    """Exif data by hand: (tag, type, count, four bytes of value or offset)."""
    data = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return data + b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries) + bytes(4)


def jpeg_with(segments: bytes, image: Image.Image) -> bytes:
    data = encode(image, "JPEG", quality=95, subsampling=0)
    return data[:2] + segments + data[2:]


def app1(payload: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def prepare(data: bytes, **options) -> StoredImage:
    outcome = prepare_image(data, ImageConfig(**({"size_px": 48, "format": "png"} | options)))
    assert isinstance(outcome, StoredImage), outcome
    return outcome


def is_upright(pixels: NDArray[np.uint8], image: Image.Image | None = None) -> bool:
    """True if the four corners have their colours (of `image`, if it is given)."""
    corners = CORNERS if image is None else [image.convert("RGB").getpixel(at) for at in ((4, 4), (59, 4), (4, 43), (59, 43))]
    places = ((4, 4), (4, -5), (-5, 4), (-5, -5))
    return all(
        np.abs(pixels[at].astype(int) - colour).max() < 40 for at, colour in zip(places, corners, strict=True)
    )  # lossy formats shift colours


def check_upright(data: bytes) -> None:
    """Checks that the image is turned once by ingestion, and once by training, where tars of others hold such images."""
    picture = prepare(data)
    assert (picture.width, picture.height) == (picture.original_width, picture.original_height) == (64, 48)
    assert is_upright(np.asarray(Image.open(io.BytesIO(picture.data))))
    assert is_upright(load_eval_image(data, 40))
    assert is_upright(load_eval_image(prepare(data, format="jpg").data, 40)), "what ingestion stored is not turned again"


FORMATS = [
    *[
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"quality": 95}),
        ("AVIF", {"quality": 95}),
        ("TIFF", {}),
    ],
    *[("TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")],
    ("MPO", {"quality": 95, "save_all": True, "append_images": [Image.new("RGB", (64, 48), "gray")]}),
]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("format", "options"), FORMATS)
def test_orientation_is_applied_once_in_every_format(format, options, orientation):
    check_upright(encode(stored_as(orientation), format, exif=exif_of(orientation), **options))


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_orientation_is_read_in_either_byte_order_as_a_short_or_a_long(orientation, order, kind):
    value = struct.pack(f"{order}HH", orientation, 0) if kind == 3 else struct.pack(f"{order}I", orientation)
    exif = tiff_directory([(0x0112, kind, 1, value)], order)
    check_upright(jpeg_with(app1(b"Exif\0\0" + exif), stored_as(orientation)))


@pytest.mark.parametrize(
    "entry",
    [
        *[(0x0112, 3, 1, struct.pack("<HH", value, 0)) for value in (0, 9, 255, 65535)],
        (0x0112, 2, 2, b"6\0\0\0"),  # as a text
        (0x0112, 7, 1, b"\x06\0\0\0"),  # as bytes
        (0x0112, 3, 0, bytes(4)),  # none at all
        (0x0112, 5, 1, struct.pack("<I", 9999)),  # outside of the data
        (0x0112, 99, 1, b"\x06\0\0\0"),  # of no type
    ],
)
def test_an_orientation_that_is_none_turns_nothing(entry):
    check_upright(jpeg_with(app1(b"Exif\0\0" + tiff_directory([entry])), upright()))


BROKEN_EXIF = {
    "empty [Pillow 6123]": b"Exif\0\0",
    "no header [Pillow 4852]": b"Exif\0\0garbage that is no TIFF",
    "half a header": b"Exif\0\0II*\0\x08",
    "an offset to nowhere": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "more entries than data": b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0",
    "an endless directory": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\0\0\0\0",
}


@pytest.mark.parametrize("name", BROKEN_EXIF)
def test_broken_exif_costs_no_image(name):
    check_upright(jpeg_with(app1(BROKEN_EXIF[name]), upright()))


def test_exif_with_a_doubled_header_is_read():
    exif = b"Exif\0\0Exif\0\0" + tiff_directory([(0x0112, 3, 1, struct.pack("<HH", 6, 0))])
    check_upright(jpeg_with(app1(exif), stored_as(6)))  # python-pillow/Pillow 8348


def test_exif_that_pillow_cannot_write_again_still_turns_the_image():
    # A resolution that is a whole number where a fraction belongs, with two values [Pillow 3973, 7839].
    entries = [(0x0112, 3, 1, struct.pack("<HH", 8, 0)), (0x011A, 3, 2, struct.pack("<HH", 72, 1)), (0x9C9B, 5, 1, bytes(4))]
    check_upright(jpeg_with(app1(b"Exif\0\0" + tiff_directory(entries)), stored_as(8)))


def test_exif_after_fill_bytes_and_other_segments_is_read():
    exif = app1(b"Exif\0\0" + tiff_directory([(0x0112, 3, 1, struct.pack("<HH", 6, 0))]))
    comment = b"\xff\xfe\x00\x07hello"
    check_upright(jpeg_with(comment + b"\xff\xff\xff" + exif, stored_as(6)))
    check_upright(jpeg_with(app1(b"http://ns.adobe.com/xap/1.0/\0<x/>") + exif, stored_as(6)))


def test_exif_of_a_png_is_read_before_and_after_the_pixels_and_not_as_a_text():
    plain = encode(stored_as(6), "PNG")
    exif = tiff_directory([(0x0112, 3, 1, struct.pack("<HH", 6, 0))])
    after_header, before_end = 33, len(plain) - 12
    for at in (after_header, before_end):
        check_upright(plain[:at] + png_chunk(b"eXIf", exif) + plain[at:])  # opencv/opencv 16579
    text = f"\nexif\n{len(exif) + 6:8}\n{(b'Exif' + bytes(2) + exif).hex()}\n".encode()
    raw_profile = png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))  # ImageMagick's; browsers ignore it
    level = encode(upright(), "PNG")
    for at in (after_header, len(level) - 12):
        check_upright(level[:at] + raw_profile + level[at:])
    for broken in (b"\0\x08\0\x02\x01\x12\0\x03", b"", b"Exif\0\0"):  # python-pillow/Pillow 5528
        check_upright(level[:after_header] + png_chunk(b"eXIf", broken) + level[after_header:])
    broken_text = png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n  4\nno hex\n"))
    check_upright(level[:after_header] + broken_text + level[after_header:])


def test_exif_of_an_avif_turns_nothing_that_its_own_properties_do_not():
    data = encode(upright(), "AVIF", quality=95, exif=exif_of(1))
    check_upright(data.replace(b"\x12\x01\x03\0\x01\0\0\0\x01", b"\x12\x01\x03\0\x01\0\0\0\x06"))
    check_upright(encode(stored_as(6), "AVIF", quality=95, exif=exif_of(6)))  # python-pillow/Pillow PR 8866


@pytest.mark.parametrize(
    ("format", "options"), [("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"quality": 95}), ("JPEG", {"progressive": True})]
)
def test_the_bytes_of_a_turned_image_are_not_kept(format, options):
    name = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[format]
    level = encode(upright(), format, exif=exif_of(1), **options)
    turned = encode(stored_as(6), format, exif=exif_of(6), **options)
    assert prepare(level, format=name).data == level
    assert prepare(turned, format=name).data != turned


@pytest.mark.parametrize("format", ["WEBP", "GIF", "AVIF", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(format):
    options = {"quality": 95} if format in ("WEBP", "AVIF") else {}
    frames = [Image.new("RGB", (64, 48), "gray")] * 2
    data = encode(upright(), format, save_all=True, append_images=frames, **options)
    assert is_upright(np.asarray(Image.open(io.BytesIO(prepare(data).data))))
    assert is_upright(load_eval_image(data, 40))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_of_grey_become_eight(mode):
    # pytorch/vision 2218 and python-pillow/Pillow 5991: white images
    grey = np.asarray(upright().convert("L")).astype(np.uint16) * 257
    image = Image.fromarray(grey.astype(">u2") if mode == "I;16B" else grey.astype(np.int32) if mode == "I" else grey)
    data = encode(image, "PNG" if mode == "I;16" else "TIFF")
    assert is_upright(np.asarray(Image.open(io.BytesIO(prepare(data).data))), upright().convert("L"))
    assert is_upright(load_eval_image(data, 40), upright().convert("L"))


@pytest.mark.parametrize(
    ("mode", "format"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("P", "GIF"), ("P", "PNG"), ("1", "PNG"), ("LA", "PNG")]
)
def test_every_mode_keeps_its_colours(mode, format):
    # haraldk/TwelveMonkeys 147: inverted CMYK
    image = upright().quantize(16, dither=0) if mode == "P" else upright().convert(mode, dither=Image.Dither.NONE)
    data = encode(image, format, **({"quality": 95, "subsampling": 0} if format == "JPEG" else {}))
    assert is_upright(np.asarray(Image.open(io.BytesIO(prepare(data).data))), image)
    assert is_upright(load_eval_image(data, 40), image)


def test_png_is_stored_without_a_warning_and_without_loss(capfd):
    data = encode(upright(), "BMP")
    stored = {quality: prepare(data, quality=quality).data for quality in (None, 0, 3, 9)}
    assert stored[None] == stored[3]
    assert len(stored[9]) <= len(stored[3]) < len(stored[0])
    for image in stored.values():
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(image))), np.asarray(upright()))
    captured = capfd.readouterr()
    assert captured.err + captured.out == ""


@pytest.mark.parametrize("quality", [10, 95, 100])
def test_a_png_level_beyond_nine_is_refused_with_a_remedy(quality):
    with pytest.raises(ValidationError, match=f"quality={quality} is over 9.*omit ingest.image.quality"):
        ImageConfig(format="png", quality=quality)
    assert ImageConfig(format="png").encoder_quality == 3


def test_data_sets_that_exist_keep_their_options():
    """The fingerprints that version 0.1 gave these options."""
    known = {
        "": "76ef900bd1fdd6c6",
        "quality=95": "76ef900bd1fdd6c6",
        "quality=80": "019301b052f458e0",
        "format=webp": "6a9e59263644d7fd",
        "format=png": "fddc43d8d895ce46",
        "format=png,quality=4": "26c65b9cca3bb1c2",
    }
    for options, fingerprint in known.items():
        values = dict(option.split("=") for option in options.split(",") if option)
        assert options_fingerprint(IngestConfig(image=ImageConfig(**values))) == fingerprint, options


def as_decoded(data: bytes, **options) -> list[NDArray[np.uint8]]:
    """Pixels as ingestion stores them, and as training and evaluation read the file."""
    stored = prepare(data, size_px=16, format="png", quality=1, keep_bytes=False, **options)
    return [np.asarray(Image.open(io.BytesIO(stored.data)).convert("RGB")), load_eval_image(data, 16)]


def grey_png(bits: int, colour_type: int, transparent: bytes, row: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", 16, 16, bits, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress((b"\0" + row) * 16)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


@pytest.mark.parametrize(("bits", "value"), [(2, 1), (4, 5), (8, 85), (16, 0x5566)])
def test_the_transparent_grey_of_a_png_is_white_at_any_depth(bits, value):
    row = int("".join(f"{value:0{bits}b}" for _ in range(16)), 2).to_bytes(16 * bits // 8, "big")
    for pixels in as_decoded(grey_png(bits, 0, struct.pack(">H", value), row)):
        assert pixels.min() == 255
    for pixels in as_decoded(grey_png(bits, 0, struct.pack(">H", 0), row)):
        assert pixels.max() == 85, "another colour is transparent"


def test_the_transparent_colour_of_a_png_of_sixteen_bits_is_white():
    row = struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC) * 16
    for pixels in as_decoded(grey_png(16, 2, struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC), row)):
        assert pixels.min() == 255


def test_the_fourth_byte_of_a_bmp_that_is_never_used_is_no_transparency():
    header = struct.pack("<IiiHHIIiiII", 124, 16, 16, 1, 32, 3, 16 * 16 * 4, 0, 0, 0, 0)
    header += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(124 - 60)
    for alpha, expected in ((0, (200, 100, 50)), (255, (200, 100, 50))):
        pixels_BGRA = bytes((50, 100, 200, alpha)) * 256
        data = b"BM" + struct.pack("<IHHI", 138 + len(pixels_BGRA), 0, 0, 138) + header + pixels_BGRA
        for pixels in as_decoded(data):
            assert tuple(pixels[8, 8]) == expected


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_in_which_zero_is_white_is_no_negative(bits):
    value = struct.pack("<H" if bits == 16 else "<B", 10_000 >> (16 - bits))
    content = value * 256
    entries = [(256, 3, 1, 16), (257, 3, 1, 16), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, 0), (273, 4, 1, 8)]
    entries += [(277, 3, 1, 1), (278, 3, 1, 16), (279, 4, 1, len(content))]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    for pixels in as_decoded(b"II*\0" + struct.pack("<I", 8 + len(content)) + content + directory):
        assert abs(int(pixels[8, 8, 0]) - (255 - 39)) <= 1


def grey_tiff(bits: int, content: bytes, **tags: int) -> bytes:
    """A TIFF of 16 x 16 grey values; tags are of shorts: kind (SampleFormat), samples, extra (ExtraSamples)."""
    samples = tags.get("samples", 1)
    entries = [(256, 16), (257, 16), (258, bits), (259, 1), (262, 1), (277, samples), (278, 16)]
    entries += [(number, tags[name]) for number, name in ((338, "extra"), (339, "kind")) if name in tags]
    found = [(number, 3, samples if number == 258 else 1, value | (value << 16) * (number == 258)) for number, value in entries]
    found = sorted([*found, (273, 4, 1, 8), (279, 4, 1, len(content))])
    directory = struct.pack("<H", len(found)) + b"".join(struct.pack("<HHII", *entry) for entry in found) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + directory


def test_twelve_bits_of_grey_become_eight():
    for pixels in as_decoded(grey_tiff(12, bytes((0x80, 0x08, 0x00)) * 128)):
        assert set(np.unique(pixels)) == {127}


def test_signed_grey_values_are_refused_and_premultiplied_ones_are_read():
    signed = prepare_image(grey_tiff(8, bytes((251,)) * 256, kind=2), ImageConfig())
    assert isinstance(signed, Failure)
    assert "signed grey values have no range that says which are black and white" in signed.message
    for extra, value in ((1, 50), (2, 100)):  # associated: already multiplied by the alpha of a half
        for pixels in as_decoded(grey_tiff(8, bytes((value, 128)) * 256, samples=2, extra=extra)):
            assert abs(int(pixels[8, 8, 0]) - 177) <= 1


def test_a_tiff_of_a_kind_that_is_not_read_is_not_called_damaged_alone():
    failure = prepare_image(grey_tiff(16, bytes(1024), samples=2, extra=2), ImageConfig())
    assert isinstance(failure, Failure)
    assert failure.message == "a TIFF image that is cut short or damaged, or of a kind that is not read"


def test_orientation_in_xmp_alone_turns_nothing():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    xmp += b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    for format, options in (("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True})):
        if format == "PNG":
            words = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
            data = encode(upright(), format)
            data = data[:33] + png_chunk(b"iTXt", words) + data[33:]
        else:
            data = encode(upright(), format, xmp=xmp, **options)
        check_upright(data)
        assert load_eval_image(data, 48).shape == (48, 48, 3)


@pytest.mark.parametrize(("mode", "format"), [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "MPO"), ("L", "MPO")])
def test_lost_pixels_of_a_jpeg_are_a_failure_and_odd_bytes_are_none(mode, format):
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    options = {"save_all": True, "append_images": [Image.new(mode, (96, 96))]} if format == "MPO" else {}
    whole = encode(Image.fromarray(noise).convert(mode), format, quality=90, **options)
    end = whole.find(b"\xff\xd9")
    cut = whole[: end * 2 // 3] + b"\xff\xd9"
    failure = prepare_image(cut, ImageConfig())
    assert isinstance(failure, Failure)
    assert failure.reason == "decode"
    odd = whole[:end] + bytes(8) + whole[end:]
    assert isinstance(prepare_image(odd, ImageConfig()), StoredImage)
    assert np.array_equal(load_eval_image(odd, 96), load_eval_image(whole, 96))
    turned = exif_of(1).tobytes()
    for damaged in (cut, cut[:2] + app1(turned) + cut[2:]):
        with pytest.raises(ValueError, match="premature end of data segment"):
            load_eval_image(damaged, 96)


def test_a_file_that_browsers_show_whole_is_read_by_ingestion_and_training():
    jpeg, png = encode(upright(), "JPEG", quality=95, subsampling=0), encode(upright(), "PNG")
    for name in ("zTXt", "iTXt"):
        long_text = png_chunk(
            name.encode(), b"a\0" + (b"\1\0\0\0" if name == "iTXt" else b"\0") + zlib.compress(bytes(2 << 20))
        )
        check_upright(png[:33] + long_text + png[33:])
    wrong = png_chunk(b"tEXt", b"a\0b")[:-1] + b"?"
    check_upright(png[:33] + wrong + png[33:])
    for orientation in range(1, 9):
        whole = encode(stored_as(orientation), "JPEG", quality=95, subsampling=0, exif=exif_of(orientation))
        check_upright(whole[:-2])
    for whole in (jpeg, encode(upright(), "JPEG", quality=95, subsampling=0, progressive=True)):
        check_upright(whole[:-2])
        check_upright(whole[:-1])


def test_zeros_in_place_of_the_rest_of_a_jpeg_are_a_failure_wherever_they_begin():
    """Zeros are codes too: of some photographs, they are enough for all blocks that are missing."""
    photograph = Image.fromarray(load_sample_image("china.jpg")).resize((200, 130))
    for quality in (50, 90):
        whole = encode(photograph, "JPEG", quality=quality)
        for kept in range(700, len(whole) - 8, 97):
            failure = prepare_image(whole[:kept] + bytes(len(whole) - kept), ImageConfig())
            assert isinstance(failure, Failure)
            assert failure.reason == "decode"
        prepare(whole[:-2] + bytes(600))


def test_a_scan_that_states_odd_coefficients_is_read_by_training_as_by_ingestion():
    whole = encode(upright(), "JPEG", quality=95, subsampling=0)
    at = whole.index(b"\xff\xda") + 12
    assert whole[at : at + 2] == b"\x3f\x00"
    check_upright(whole[:at] + b"\0" + whole[at + 1 :])  # "Invalid SOS parameters for sequential JPEG"


PALETTE = bytes((200, 0, 0, 0, 200, 0, 0, 0, 200, 250, 250, 0))


def gif(place: tuple[int, int, int, int], colour: int, background: int, transparent: int | None = None) -> bytes:
    """A GIF of 16 x 16 pixels, whose only frame has one colour; LZW codes of three bits, cleared before the table grows."""
    control = b"\x21\xf9\x04" + bytes((transparent is not None, 0, 0, transparent or 0, 0))
    codes = [code for _ in range(place[2] * place[3] // 2) for code in (4, colour, colour)] + [5]
    bits = sum(code << 3 * number for number, code in enumerate(codes))
    data = bits.to_bytes(3 * len(codes) // 8 + 1, "little")
    blocks = b"".join(bytes((len(data[at : at + 255]),)) + data[at : at + 255] for at in range(0, len(data), 255))
    screen = struct.pack("<HHBBB", 16, 16, 0x81, background, 0)
    return b"GIF89a" + screen + PALETTE + control + b"\x2c" + struct.pack("<HHHHB", *place, 0) + b"\x02" + blocks + b"\0;"


@pytest.mark.parametrize("transparent", [None, 1, 2])
@pytest.mark.parametrize("background", [0, 1, 2])
def test_what_the_first_frame_of_a_gif_does_not_cover_is_clear(background, transparent):
    # python-pillow/Pillow 5548, image-rs/image-gif 52: browsers do not use the colour of the background.
    for pixels in as_decoded(gif((4, 4, 8, 8), 2, background, transparent)):
        inside = (255, 255, 255) if transparent == 2 else (0, 0, 200)
        assert tuple(pixels[8, 8]) == tuple(pixels[4, 11]) == inside
        assert {tuple(pixels[at]) for at in ((0, 0), (3, 8), (12, 8), (8, 12), (15, 15))} == {(255, 255, 255)}
    for pixels in as_decoded(gif((0, 0, 16, 16), 2, background, transparent)):
        assert tuple(pixels[0, 0]) == inside


def test_the_picture_for_those_who_know_no_animated_png_is_not_taken():
    fallback, first = Image.new("RGB", (16, 16), (200, 0, 0)), Image.new("RGB", (16, 16), (0, 200, 0))
    for default, colour in ((True, (0, 200, 0)), (False, (200, 0, 0))):
        data = encode(fallback, "PNG", save_all=True, append_images=[first, fallback], default_image=default)
        for pixels in as_decoded(data):
            assert tuple(pixels[8, 8]) == colour


@pytest.mark.parametrize(
    ("format", "options"), [("WEBP", {"quality": 90}), ("WEBP", {"lossless": True}), ("AVIF", {"speed": 9})]
)
def test_zeros_in_place_of_the_last_pixels_are_a_failure(format, options):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))
    whole = encode(noise, format, **options)
    cut = whole[: len(whole) * 3 // 4] + bytes(len(whole) // 4 + 1)
    failure = prepare_image(cut, ImageConfig())
    assert isinstance(failure, Failure)
    assert failure.reason == "decode"
    with pytest.raises(ValueError, match="cannot be decoded"):
        load_eval_image(cut, 96)
    prepare(whole + bytes(4096))
