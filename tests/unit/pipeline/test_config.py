"""Configuration sections are frozen, refuse unknown keys, and document every key."""

import ast
from pathlib import Path

import pytest
from pydantic import ValidationError

import pipeline.config
from pipeline.config import FetchConfig, ImageConfig, IngestConfig


def test_an_unknown_key_is_refused():
    with pytest.raises(ValidationError, match="timeout"):
        FetchConfig(timeout=3)


def test_a_section_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        IngestConfig().input = "t.csv"


def test_yamls_no_is_a_resize_mode():
    assert ImageConfig(resize_mode=False).resize_mode == "no"


def test_the_default_quality_depends_on_the_format():
    assert [ImageConfig(format=format).encoder_quality for format in ("jpg", "webp", "png")] == [95, 95, 3]
    assert ImageConfig(format="png", quality=9).encoder_quality == 9
    assert ImageConfig(quality=10).encoder_quality == 10


@pytest.mark.parametrize("quality", [10, 95])
def test_a_png_level_that_does_not_exist_is_refused(quality):
    with pytest.raises(ValidationError, match=r"omit ingest\.image\.quality"):
        ImageConfig(format="png", quality=quality)


def test_every_key_has_a_line_that_explains_it():
    tree = ast.parse(Path(pipeline.config.__file__).read_text())
    silent = []
    for section in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for node, following in zip(section.body, [*section.body[1:], None], strict=True):
            nested = isinstance(node, ast.AnnAssign) and node.target.id in ("fetch", "image", "caption")
            if isinstance(node, ast.AnnAssign) and not nested and not isinstance(following, ast.Expr):
                silent.append(f"{section.name}.{node.target.id}")
    assert silent == []
