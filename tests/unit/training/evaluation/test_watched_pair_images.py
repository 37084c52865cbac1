"""Colours and frames of the images for the tracker say what the numbers say."""

import base64
import io

import numpy as np
from PIL import Image

from training.evaluation.watched_pair_images import CELL_PX, TILE_PX, draw_found, draw_similarity


def test_images_for_the_tracker_have_the_colours_of_their_numbers():
    image = np.asarray(draw_similarity([[0.1, 0.9], [None, 0.5]]))
    assert image.shape == (2 * CELL_PX, 2 * CELL_PX, 3)
    darkest, brightest, none, middle = (image[y, x].tolist() for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1)))
    assert sum(darkest) < sum(middle) < sum(brightest)
    assert none == [128, 128, 128]
    draw_similarity([[None]])
    file = io.BytesIO()
    Image.new("RGB", (96, 60), (200, 0, 0)).save(file, "JPEG")
    pairs = {"captions": ["a", "b"], "thumbnails": [base64.b64encode(file.getvalue()).decode()] * 2, "queries": [1]}
    ((strip, words),) = draw_found(pairs, {"found": [[0, 1]], "rank": [1]})
    assert words == "b (its own image is number 2 of 2)"
    assert strip.size == (2 * TILE_PX, TILE_PX)
    assert strip.getpixel((TILE_PX, 0)) == (45, 164, 78)
    assert strip.getpixel((0, 0)) != strip.getpixel((TILE_PX, 0))
