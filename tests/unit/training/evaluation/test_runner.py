"""Metrics equal a brute-force reference, with ties, at any world size, and do not depend on tiles."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from model.clip import build_clip
from training.config import EvaluationConfig, LinearProbeConfig, ZeroShotConfig
from training.distributed import World
from training.evaluation.figures import flatten, mean_of_shares, median, share, table, wilson
from training.evaluation.linear_probe import DECADES, choose_decade, fit, probe_figures, validation_split
from training.evaluation.retrieval import Ranks, rank_pairs, retrieval_figures, retrieval_ranks
from training.evaluation.runner import evaluate
from training.evaluation.zero_shot import build_classifier, count_right, prompts_of, zero_shot_figures

SCRIPT = Path(__file__).parents[3] / "support" / "evaluation_worker.py"
ALONE = World(0, 1, torch.device("cpu"))

specification = importlib.util.spec_from_file_location("evaluation_worker", SCRIPT)
worker = importlib.util.module_from_spec(specification)
specification.loader.exec_module(worker)


# -------------------------------------------------------------------------------------------------------------- retrieval


def brute_force_ranks(images, texts, image_of_text) -> tuple[list[int], list[int]]:
    """(of pictures, of captions), one comparison at a time: a rank is how many wrong keys score no lower than the best right.

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


@pytest.fixture(scope="module")
def results(data_set, tmp_path_factory):
    """World size -> what its rank 0 found."""
    folder = tmp_path_factory.mktemp("evaluation")
    probe = {"train_uri": data_set, "test_uri": data_set, "label_column": "shape"}
    zero_shot = {"uri": data_set, "label_column": "shape", "templates": ["a {}", "drawn: {c}", "{}"]}
    config = {"batch_size": 10, "retrieval_uri": data_set, "zero_shot": zero_shot, "linear_probe": probe}
    (folder / "evaluation.json").write_text(json.dumps(config))
    found = {1: {name: worker.ranks_of(name, ALONE) for name in worker.NAMES}}
    found[1]["evaluated"] = worker.evaluated(folder, ALONE)
    command = [sys.executable, "-m", "tests.support.evaluation_worker", str(folder), "2", "3"]
    subprocess.run(command, cwd=SCRIPT.parents[2], check=True, timeout=220)
    found |= {size: torch.load(folder / f"results-{size}.pt", weights_only=True) for size in (2, 3)}
    return found


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
def test_a_score_that_is_no_number_is_never_a_hit_and_counts_against_the_others(results, world_size):
    found = results[world_size]["broken"]
    images, texts, image_of_text = worker.pairs("broken")
    broken_images, broken_texts = images[:, 0].isnan(), texts[:, 0].isnan() | images[image_of_text, 0].isnan()
    assert set(found["text_to_image_M"][broken_texts].tolist()) == {len(images)}
    some_broken = torch.zeros(len(images)).index_add(0, image_of_text, broken_texts.float()) > 0
    assert (found["image_to_text_N"][some_broken] >= len(texts)).all()
    assert bool(broken_images.any())
    whole = ~broken_texts
    assert (found["text_to_image_M"][whole] >= broken_images.sum()).all()


def test_a_whole_models_figures_do_not_depend_on_the_number_of_ranks(results):
    alone = results[1]["evaluated"]
    assert {name for name in alone if name.startswith("evaluation/")} >= {
        *(f"evaluation/{way}_{what}" for way in ("image_to_text", "text_to_image") for what in ("r1", "r10", "median_rank")),
        *(f"evaluation/zero_shot_{what}" for what in ("top1", "top5", "mean_per_class", "chance")),
        *(f"evaluation/linear_probe_{what}" for what in ("top1", "mean_per_class", "log10_lambda")),
    }
    for world_size in (2, 3):
        assert results[world_size]["evaluated"] == pytest.approx(alone, abs=1e-9), world_size


@pytest.mark.parametrize("tile", [(128, 128), (256, 1536), (512, 4096)])
def test_ranks_do_not_depend_on_tiles(expected, tile):
    for name in ("random", "tied", "duplicates"):
        ranks = rank_pairs(*worker.pairs(name), ALONE, tile)
        assert (ranks.image_to_text_N.tolist(), ranks.text_to_image_M.tolist()) == expected[name]


@pytest.mark.parametrize("threads", [1, 2])
def test_ranks_do_not_depend_on_threads_and_their_number_is_left_as_it_was(expected, threads):
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
    assert count_right(broken, torch.eye(4), torch.zeros(size, dtype=torch.int64), (1, 5)).sum() == 0


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


# -------------------------------------------------------------------------------------------------------------- intervals


def test_wilsons_interval_has_the_known_values():
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    for (hits, count), (low, high) in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0000, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert wilson(hits, count) == pytest.approx((low, high), abs=5e-5)
    assert wilson(20, 20) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)


def test_the_medians_interval_has_the_known_places():
    # Of 20 values the 6th and the 15th, of 50 the 18th and the 33rd (Conover, Practical Nonparametric Statistics).
    for count, (low, high) in {20: (6, 15), 50: (18, 33), 6: (1, 6), 5: (1, 5), 1: (1, 1)}.items():
        figure = median("m", list(range(1, count + 1)), 1.0)
        assert (figure.low, figure.high, figure.value) == (low, high, (count + 1) / 2)


def test_the_mean_over_classes_weighs_classes_alike_and_is_less_sure_of_small_ones():
    assert mean_of_shares("m", [1, 90], [2, 100], 0.5).value == pytest.approx(0.7)
    few, many = mean_of_shares("m", [1, 90], [2, 100], 0.5), mean_of_shares("m", [50, 90], [100, 100], 0.5)
    assert few.high - few.low > 2 * (many.high - many.low)
    assert mean_of_shares("m", [3, 0], [4, 0], 0.5) == share("m", 3, 4, 0.5)  # a class without a picture says nothing
    one = mean_of_shares("m", [0, 0], [50, 50], 0.5)
    assert (one.low, one.value) == (0.0, 0.0)
    assert 0 < one.high < wilson(0, 50)[1]


def test_the_table_and_the_row_hold_every_figure_with_its_bounds():
    row = flatten([share("zero_shot_top1", 81, 263, 0.25)])
    assert set(row) == {
        "evaluation/zero_shot_top1",
        *(f"evaluation_bounds/zero_shot_top1_{one}" for one in ("low", "high", "chance")),
    }
    assert table(row).splitlines()[1].split() == ["zero_shot_top1", "0.3080", "0.2500", "0.2553", "to", "0.3662"]


# -------------------------------------------------------------------------------------------------------------- zero-shot


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_a_class_is_the_normalised_mean_of_its_prompts(batch_size):
    prompts = {"a cat": [1.0, 0.0], "the cat": [0.0, 1.0], "a dog": [1.0, 0.0], "the dog": [1.0, 0.0]}
    classifier = build_classifier(
        lambda ids: ids,
        lambda texts: torch.tensor([prompts[text] for text in texts]),
        ["cat", "dog"],
        ["a {}", "the {c}"],
        ALONE,
        batch_size,
    )
    torch.testing.assert_close(classifier, torch.tensor([[0.5**0.5, 0.5**0.5], [1.0, 0.0]]))


def test_a_class_name_is_put_where_it_goes_as_it_is():
    assert prompts_of("cat {0}", ["a {}", "{c}, {c}", "{x} {}"]) == ["a cat {0}", "cat {0}, cat {0}", "{x} cat {0}"]


def test_accuracy_counts_the_first_k_and_ties_against_us():
    images = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.2, 0.9], [0.5, 0.5, 0.0]])
    hits = count_right(images, torch.eye(3), torch.tensor([0, 1, 0]), (1, 2))
    assert hits.tolist() == [[1, 0, 0], [2, 1, 0]]
    figures = {figure.name: figure for figure in zero_shot_figures(hits, torch.tensor([2, 1, 0]))}
    assert figures["zero_shot_top1"].value == pytest.approx(1 / 3)
    assert figures["zero_shot_mean_per_class"].value == pytest.approx((1 / 2 + 0) / 2)
    assert (figures["zero_shot_top1"].chance, figures["zero_shot_top5"].chance) == (1 / 3, 1.0)


# ----------------------------------------------------------------------------------------------------------- linear probe


def separable(count: int, spread: float, seed: int):
    """Features (N, 8) around four centres, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    features = 3 * torch.eye(8)[labels] + spread * torch.randn(count, 8, generator=generator)
    return features.numpy(), labels.numpy()


def test_the_probe_separates_what_is_separable():
    figures = probe_figures(separable(80, 0.1, 0), separable(40, 0.1, 1), None, ALONE)
    assert [figure.value for figure in figures[:2]] == [1.0, 1.0]
    assert figures[0].low == pytest.approx(wilson(40, 40)[0])
    assert figures[0].chance == 0.25


def test_the_probe_is_scikit_learns_own_at_the_lambda_that_validates_best():
    from sklearn.linear_model import LogisticRegression

    train, test, validation = separable(60, 2.5, 0), separable(200, 2.5, 1), separable(100, 2.5, 2)
    top1, _, decade = probe_figures(train, test, validation, ALONE)
    both = [torch.cat([torch.as_tensor(one), torch.as_tensor(other)]) for one, other in zip(train, validation, strict=True)]
    direct = LogisticRegression(C=10.0**-decade.value, max_iter=1000).fit(*(one.numpy() for one in both))
    assert top1.value == direct.score(*test)
    assert 0.3 < top1.value < 1
    all_scores = {one: fit(*train, one).score(*validation) for one in (*DECADES, decade.value)}
    assert all_scores[decade.value] == max(all_scores.values())


def test_the_search_halves_the_interval_around_the_peak_to_an_eighth_of_a_decade():
    asked = []

    def score(decades):
        asked.extend(decades)
        return [-abs(one - 1.37) for one in decades]

    assert choose_decade(score) == 1.375
    assert asked[:7] == list(DECADES)
    assert len(asked) == 7 + 2 * 4
    assert choose_decade(lambda decades: [0.0] * len(decades)) == 6.0  # of equals the strongest penalty


def test_a_fifth_of_each_class_validates():
    labels = separable(40, 0.1, 0)[1]
    chosen = validation_split(labels)
    assert [int(chosen[labels == label].sum()) for label in range(4)] == [2, 2, 2, 2]
    with pytest.raises(ValueError, match="no class has 5 samples"):
        validation_split(labels[:12])


def test_a_probe_on_features_that_are_no_numbers_is_right_about_nothing():
    features, labels = separable(40, 0.1, 0)
    broken = features * float("nan")
    assert [figure.value for figure in probe_figures((broken, labels), (broken, labels), None, ALONE)] == [0.0, 0.0]


@pytest.mark.parametrize("name", ["debug-vit", "debug-rn"])
def test_the_probe_sees_what_the_projection_is_applied_to(name):
    torch.manual_seed(0)
    clip = build_clip(name).eval()
    pictures = torch.randint(
        0, 256, (3, 3, clip.architecture.image_size_px, clip.architecture.image_size_px), dtype=torch.uint8
    )
    trunk = clip.encode_trunk(pictures)
    projected = trunk @ clip.visual.proj if name == "debug-vit" else clip.visual.attnpool.c_proj(trunk)
    torch.testing.assert_close(projected, clip.encode_image(pictures))


# ----------------------------------------------------------------------------------------------------------- a whole model


def test_a_data_set_is_evaluated_alike_in_any_batch_size(data_set):
    torch.manual_seed(0)
    clip = build_clip("debug-vit").eval()
    config = EvaluationConfig(
        batch_size=10, retrieval_uri=data_set, zero_shot=ZeroShotConfig(uri=data_set, label_column="shape", templates=("{}",))
    )
    metrics = evaluate(clip, config, ALONE)
    assert metrics == pytest.approx(evaluate(clip, config.model_copy(update={"batch_size": 64}), ALONE))
    assert metrics["evaluation/zero_shot_chance"] == 0.25
    assert metrics["evaluation_bounds/image_to_text_r1_chance"] == pytest.approx(1 / 64)


def test_templates_and_probes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="has no place for the class name"):
        ZeroShotConfig(uri="x", label_column="y", templates=("a photo",))
    with pytest.raises(ValueError, match="give one of the two"):
        ZeroShotConfig(uri="x", templates=("a {}",), templates_file="y")
    with pytest.raises(ValueError, match="test_uri"):
        LinearProbeConfig(train_uri="x")


@pytest.mark.soak
def test_a_hundred_thousand_pairs_take_less_than_two_minutes_on_two_cores_and_four_gigabytes():
    command = [sys.executable, "-m", "jobs.benchmarks.ranking", "ours", "100000", "512", "2"]
    done = subprocess.run(command, cwd=SCRIPT.parents[2], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["wall_s"] < 120
    assert found["peak_gb"] < 4
