"""Tables whose columns cannot hold URLs, captions or images are refused; tests/world/test_captions.py ingests them."""

import pyarrow as pa
import pytest

from pipeline.config import IngestConfig
from pipeline.errors import InputError
from pipeline.ingest.column_types import check_column_types, is_url_type

TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int8(), pa.string()), pa.null()]


def check(bytes_column="", **types):
    check_column_types("TABLE", pa.schema(list(types.items())), IngestConfig(bytes_column=bytes_column))


@pytest.mark.parametrize("kind", TEXTS)
def test_text_is_a_url_and_a_caption_and_lists_of_it_are_captions(kind):
    assert is_url_type(kind)
    check(url=kind, caption=kind)
    check(url=kind, caption=pa.list_(kind))


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.float16(), pa.decimal128(5, 2)])
def test_a_number_is_a_caption_and_no_url(kind):
    check(caption=kind)
    with pytest.raises(InputError, match=rf"url_column=url: TABLE holds {kind} there".replace("(", r"\(").replace(")", r"\)")):
        check(url=kind)


def test_images_are_bytes_also_in_a_struct():
    for kind in (pa.binary(), pa.large_binary(), pa.null(), pa.struct([("bytes", pa.binary()), ("path", pa.string())])):
        check("image", image=kind, caption=pa.string(), url=pa.list_(pa.string()))
    with pytest.raises(InputError, match=r"bytes_column=image: TABLE holds struct<path: string> there"):
        check("image", image=pa.struct([("path", pa.string())]))


def test_columns_that_are_missing_or_not_interpreted_are_not_checked():
    check(x=pa.struct([]))
