"""Ranks equal a brute-force reference, with ties, at any world size, and do not depend on tiles or threads."""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from tests.support import evaluation_worker as worker
from tests.support.runs import ALONE, ROOT
from training.evaluation.retrieval import Ranks, rank_pairs, retrieval_figures, retrieval_ranks


def brute_force_ranks(images, texts, image_of_text) -> tuple[list[int], list[int]]:
    """(of images, of captions), one comparison at a time: a rank is how many wrong keys score no lower than the best right.

    Every score is computed by itself in the same way, so that equal features have equal scores.
    """

    of = image_of_text.tolist()
    matrix = (images.double()[:, None] * texts.double()[None]).sum(-1).tolist()
    to_text, to_image = [], []
    for place, row in enumerate(matrix):
        best = max(row[text] for text in range(len(texts)) if of[text] == place)
        to_text.append(sum(not row[text] < best for text in range(len(texts)) if of[text] != place))
    for text in range(len(texts)):
        right = matrix[of[text]][text]
        to_image.append(sum(not matrix[place][text] < right for place in range(len(images)) if place != of[text]))
    return to_text, to_image


@pytest.fixture(scope="module")
def expected():
    """name -> brute force's ranks."""
    return {name: brute_force_ranks(*worker.pairs(name)) for name in worker.NAMES if name != "broken"}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", ["random", "tied", "duplicates", "tiny"])
def test_ranks_equal_brute_force_at_any_world_size(results, expected, name, world_size):
    found = results[world_size][name]
    assert found["image_to_text_N"].tolist() == expected[name][0]
    assert found["text_to_image_M"].tolist() == expected[name][1]
    assert found["captions_N"].tolist() == torch.bincount(worker.pairs(name)[2]).tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_recalls_and_the_median_are_those_of_the_ranks(results, expected, world_size):
    for name, (to_text, to_image) in expected.items():
        figures = results[world_size][name]["figures"]
        for way, ranks in (("image_to_text", to_text), ("text_to_image", to_image)):
            for k in (1, 5, 10):
                assert figures[f"evaluation/{way}_r{k}"] == sum(rank < k for rank in ranks) / len(ranks)
            assert figures[f"evaluation/{way}_median_rank"] == torch.tensor(ranks).double().quantile(0.5) + 1
    assert 0.1 < results[1]["random"]["figures"]["evaluation/image_to_text_r1"] < 0.9


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_nan_score_is_never_a_hit_and_counts_as_a_miss_for_the_others(results, world_size):
    found = results[world_size]["broken"]
    images, texts, image_of_text = worker.pairs("broken")
    broken_images, broken_texts = images[:, 0].isnan(), texts[:, 0].isnan() | images[image_of_text, 0].isnan()
    assert set(found["text_to_image_M"][broken_texts].tolist()) == {len(images)}
    some_broken = torch.zeros(len(images)).index_add(0, image_of_text, broken_texts.float()) > 0
    assert (found["image_to_text_N"][some_broken] >= len(texts)).all()
    assert bool(broken_images.any())
    whole = ~broken_texts
    assert (found["text_to_image_M"][whole] >= broken_images.sum()).all()


@pytest.mark.parametrize("tile", [(128, 128), (256, 1536), (512, 4096)])
def test_ranks_do_not_depend_on_tiles(expected, tile):
    for name in ("random", "tied", "duplicates"):
        ranks = rank_pairs(*worker.pairs(name), ALONE, tile)
        assert (ranks.image_to_text_N.tolist(), ranks.text_to_image_M.tolist()) == expected[name]


@pytest.mark.parametrize("threads", [1, 2])
def test_ranks_do_not_depend_on_threads_and_their_number_is_restored(expected, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ranks = rank_pairs(*worker.pairs("duplicates"), ALONE, (128, 128))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert (ranks.image_to_text_N.tolist(), ranks.text_to_image_M.tolist()) == expected["duplicates"]


def test_bfloat16_around_it_does_not_round_the_scores(expected):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ranks = rank_pairs(*worker.pairs("random"), ALONE)
    assert ranks.image_to_text_N.tolist() == expected["random"][0]


@pytest.mark.parametrize("levels", [None, 3])
def test_ranks_of_chosen_queries_equal_brute_force(levels):
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(40, 6, generator=generator), torch.randn(25, 6, generator=generator)
    if levels:
        queries, keys = queries.sign(), keys.sign()  # few distinct scores: many ties
    answers = torch.randint(0, 25, (40,), generator=generator)
    rows = (queries @ keys.T).tolist()
    wanted = [
        sum(score >= row[right] for place, score in enumerate(row) if place != right)
        for row, right in zip(rows, answers.tolist(), strict=True)
    ]
    assert retrieval_ranks(queries, keys, answers).tolist() == wanted


def metrics_of(images, texts) -> dict[str, float]:
    figures = retrieval_figures(rank_pairs(images, texts, torch.arange(len(images)), ALONE))
    return {figure.name: figure.value for figure in figures}


@pytest.mark.parametrize("size", [4, 30])
def test_a_model_that_has_diverged_finds_nothing(size):
    broken = torch.full((size, 4), torch.nan)
    found = metrics_of(broken, broken)
    assert {value for name, value in found.items() if "median" not in name} == {0.0}
    assert found["image_to_text_median_rank"] > size


def test_chance_is_what_drawing_at_random_finds():
    generator = torch.Generator().manual_seed(1)
    captions = torch.tensor([5] * 40 + [1] * 10)
    image_of_text = torch.arange(50).repeat_interleave(captions)
    figures = {figure.name: figure for figure in retrieval_figures(rank_pairs(*random_pairs(image_of_text, generator), ALONE))}
    drawn = [torch.randperm(210, generator=generator)[:5].tolist() for _ in range(4000)]
    wanted = sum(any(image_of_text[text] == place % 50 for text in five) for place, five in enumerate(drawn)) / 4000
    assert figures["image_to_text_r5"].chance == pytest.approx(wanted, abs=0.02)
    assert figures["text_to_image_r10"].chance == pytest.approx(10 / 50)
    assert figures["text_to_image_median_rank"].chance == 25
    alone = retrieval_figures(Ranks(torch.zeros(1), torch.zeros(1), torch.ones(1, dtype=torch.int64)))
    assert {figure.chance for figure in alone} == {1.0}


def random_pairs(image_of_text, generator):
    images = torch.randn(int(image_of_text.max()) + 1, 8, generator=generator)
    return images, torch.randn(len(image_of_text), 8, generator=generator), image_of_text


@pytest.mark.soak
def test_a_hundred_thousand_pairs_take_less_than_two_minutes_on_two_cores_and_four_gigabytes():
    command = [sys.executable, "-m", "jobs.benchmarks.ranking", "ours", "100000", "512", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["wall_s"] < 120
    assert found["peak_gb"] < 4


def test_a_model_that_tells_nothing_apart_finds_nothing_and_a_perfect_one_everything():
    same = F.normalize(torch.ones(30, 4), dim=-1)
    assert {value for name, value in metrics_of(same, same).items() if "median" not in name} == {0.0}
    assert metrics_of(same, same)["text_to_image_median_rank"] == 30
    assert set(metrics_of(torch.eye(30), torch.eye(30)).values()) == {1.0}


def test_one_right_caption_among_several_is_enough():
    images, texts = torch.eye(3), torch.eye(3)[[1, 0, 1, 2, 0]]
    ranks = rank_pairs(images, texts, torch.tensor([0, 0, 1, 2, 2]), ALONE)
    assert ranks.image_to_text_N.tolist() == [1, 1, 0]  # the other's equal caption ties with the first two's
    assert ranks.text_to_image_M.tolist() == [2, 0, 0, 0, 2]
