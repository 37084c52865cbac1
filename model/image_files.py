"""Image files as browsers show them: their colours, transparency and Exif data, and whether pixels are lost.

In: an encoded file, and Pillow's image of it. Out: RGB pixels, or a ValueError. Ingestion, training and evaluation read files
by these rules alone, so that a file which is stored can be trained on and looks the same. Imports no torch: ingestion has none.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImagePalette

from model.whole_files import has_all_scans
from model.zero_tails import refuse_zero_tail

HARMLESS = ("extraneous bytes before marker", "unknown JFIF revision", "unknown Adobe color transform", "Invalid SOS")
"""libjpeg's words for what costs no pixels."""
LOST = ("premature end of data segment", "bad Huffman code", "restart marker", "Premature end of JPEG file")
"""libjpeg's words for pixels that are lost."""
_PNG_DEPTH = 24
"""Place of the bits a value in a PNG."""
_LOW_BYTES = "RGB;16L"
"""Pillow's name for colours of 16 bits, of which it takes the second byte. A PNG's is the lower one."""
_OTHERS_ORIENTATION = ("xmp", "XML:com.adobe.xmp", "Raw profile type exif")
"""Pillow's names for metadata whose orientation browsers ignore, and which it would take: XMP, and ImageMagick's in PNGs."""
_WHITE_IS_ZERO = 262, 0
"""TIFF's tag for the meaning of grey values, and the one for which 0 is white."""
_REDUCED = 254
"""TIFF's tag whose lowest bit says that a page is a smaller copy of another one."""
_BITS, _SAMPLE_FORMAT, _SIGNED = 258, 339, 2
"""TIFF's tags for the bits of a value and its kind, and the kind of signed integers."""
_COLOUR_MAP = 320
"""TIFF's tag for the colours of a palette: all reds, all greens, all blues, of 16 bits."""
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""An interlaced PNG's passes: first column and row, and the steps to the next ones (PNG specification, 8.2)."""
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Values of a pixel, by a PNG's type of colour."""


def refuse_lost_pixels(data: bytes | memoryview) -> None:
    """Raises ValueError for a JPEG of which libjpeg says that pixels are lost; Pillow makes grey areas of them."""
    try:
        *_, colours, _ = simplejpeg.decode_jpeg_header(data)
        wanted = "CMYK" if colours in ("CMYK", "YCCK") else "RGB"
        simplejpeg.decode_jpeg(data, wanted, fastdct=True, fastupsample=True, min_height=1, min_width=1, min_factor=1)
    except ValueError as error:
        if loses_pixels(error, data):
            raise


def loses_pixels(error: ValueError, data: bytes | memoryview) -> bool:
    """True if libjpeg's complaint about a JPEG is one of lost pixels, or of odd bytes where some of its scans should be."""
    return any(words in str(error) for words in LOST) or (HARMLESS[0] in str(error) and not has_all_scans(data))


def prepare_image_file(image: Image.Image, data: bytes | memoryview) -> None:
    """Corrects, before pixels are decoded, what Pillow reads otherwise than was meant; raises ValueError if it cannot be."""
    refuse_zero_tail(image.format, data)
    if image.format == "PNG":
        _refuse_short_png(data)
        _prepare_transparency(image, data)
        if getattr(image, "default_image", False):
            image.seek(1)  # the image before an animation is for browsers that know none
    if image.format == "GIF":
        _clear_margin(image)
    tags = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    if tags is None:
        return
    if image.mode == "L" and tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED:
        raise ValueError("signed grey values have no range that says which are black and white; convert them to unsigned ones")
    if tags.get(_REDUCED, 0) & 1:
        raise ValueError("its first page is a small copy of the picture, as in a camera's raw file (DNG); convert it to JPEG")
    colours = tags.get(_COLOUR_MAP)
    if image.mode == "P" and colours and max(colours) < 256:  # of 8 bits, as some programs write them; libtiff takes them too
        planes = np.asarray(colours, np.uint8).reshape(3, -1)
        image.palette = ImagePalette.raw("RGB", planes.T.tobytes())


def _prepare_transparency(image: Image.Image, data: bytes | memoryview) -> None:
    """Compares a PNG's transparent colour at the depth of its pixels: 2 or 4 bits of grey, 16 of colour; Pillow takes 8."""
    colour, depth = image.info.get("transparency"), data[_PNG_DEPTH]
    if isinstance(colour, int) and depth in (2, 4) and image.mode == "L":
        image.info["transparency"] = colour * 255 // ((1 << depth) - 1)
    if isinstance(colour, tuple) and depth == 16:
        low = Image.open(io.BytesIO(data))
        low.tile = [tile._replace(args=_LOW_BYTES) for tile in low.tile]
        transparent = np.ones((image.height, image.width), bool)
        for bytes_HWC, shift in ((np.asarray(image), 8), (np.asarray(low), 0)):
            transparent &= (bytes_HWC == [value >> shift & 255 for value in colour]).all(-1)
        del image.info["transparency"]
        image.putalpha(Image.fromarray(np.where(transparent, 0, 255).astype(np.uint8)))


def _clear_margin(image: Image.Image) -> None:
    """Makes clear what a GIF's first frame does not cover, as browsers do; Pillow fills it with a colour of the palette."""
    place = image.tile[0].extents  # type: ignore[attr-defined]
    if place in (None, (0, 0, *image.size)):
        return
    shown = image.convert("RGBA").getchannel("A").crop(place)
    alpha = Image.new("L", image.size, 0)
    alpha.paste(shown, place[:2])
    image.info.pop("transparency", None)
    image.putalpha(alpha)


def _refuse_short_png(data: bytes | memoryview) -> None:
    """Raises ValueError for a PNG whose compressed rows end before the last one; Pillow makes black rows of them."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    wanted = 0
    for left, top, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            wanted += rows * (1 + (columns * depth * _PNG_CHANNELS.get(colour, 1) + 7) // 8)
    unpacker, found, at = zlib.decompressobj(), 0, 8
    while at + 8 <= len(data) and found < wanted and not unpacker.eof:
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        packed = data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        while packed and found < wanted and not unpacker.eof:
            try:
                found += len(unpacker.decompress(packed, 1 << 20))
            except zlib.error:
                return  # Pillow names what is broken
            packed = unpacker.unconsumed_tail
        at += 12 + length
    if unpacker.eof and found < wanted:
        raise ValueError(f"the PNG ends after {found} of {wanted} bytes of its rows")


def read_exif(image: Image.Image, pointer: int | None = None) -> dict[int, Any]:
    """The Exif tags, or those of an inner directory; none if they cannot be read: the pixels do not depend on them.

    Call it after the pixels are loaded: Pillow turns TIFFs while it decodes them, and says so then.
    """
    try:
        if image.format == "PNG":
            image.load()  # metadata may lie behind the pixels
        for name in _OTHERS_ORIENTATION:
            image.info.pop(name, None)
        exif: Any = image.getexif()
        if pointer is not None:
            exif = exif.get_ifd(pointer)
        return {number: exif[number] for number in exif}
    except Exception:  # SyntaxError, struct.error, ...
        return {}


def orientation(image: Image.Image) -> Any:
    """The orientation that Exif states, 1 to 8; 1 if it states none. Odd files state any other value."""
    exif = read_exif(image)
    return exif[ExifTags.Base.Orientation] if ExifTags.Base.Orientation in exif else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any mode to RGB: 16 bits scaled to 8, transparency on white. Raises ValueError for values of no known range."""
    image.load()
    if image.mode == "F" or (image.mode == "I" and not _are_16_bits(image)):
        raise ValueError("32-bit grey values have no range that says which are black and white; convert them to 8 or 16 bits")
    if image.mode.startswith("I"):
        return _scaled(image)
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")  # its fourth byte is not used
    if image.has_transparency_data:
        layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """Grey of 16 or 12 bits as RGB; Pillow's own conversion clips it to white."""
    deep = np.asarray(image).astype(np.int64)
    tag, white_is_zero = _WHITE_IS_ZERO
    tags = getattr(image, "tag_v2", {})
    largest = 4095 if tags.get(_BITS, (16,))[0] == 12 else 65535
    if tags.get(tag) == white_is_zero:
        deep = largest - deep
    shades = (deep * 255 // largest).astype(np.uint8)
    if "transparency" in image.info:
        shades = np.where(deep == image.info["transparency"], 255, shades).astype(np.uint8)
    return Image.fromarray(shades).convert("RGB")


def _are_16_bits(image: Image.Image) -> bool:
    """True if all values fit into 16 bits but not into 8. Zeros alone are black in both."""
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    return low >= 0 and (high == 0 or 255 < high < 1 << 16)
