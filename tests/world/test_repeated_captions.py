"""Captions that repeat within a batch, as catalogues, class names, reports and alt texts really repeat.

The rule: captions are the same if their token ids are, for then their text features are too. The share of repeats is recorded,
and with train.repeated_captions=positives the samples that share a caption are positives of each other.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from model.tokenizer import token_ids, tokenize
from pipeline.errors import ConfigError
from tests.support.runs import ALONE, config_of
from training.checkpoint.resume import changed_settings
from training.config import TrainingConfig
from training.data.decoding import cut_to_longest
from training.loss import contrastive_loss, sigmoid_loss
from training.record.tracking import read_metrics
from training.step.repeated_captions import number_captions, repeated_share
from training.trainer import train

FIXTURES = Path(__file__).parents[1] / "fixtures"
REPORT = "The lungs are clear. The heart size is normal. There is no pleural effusion or pneumothorax. " * 4
BATCHES = {
    # the issue's own examples
    "a catalogue's colours of one product": (["Denim Jacket", "Denim Jacket", "Leather Belt", "Denim Jacket"], "AABA"),
    "alt texts": (["logo", "image", "Logo", "", "image", " logo "], "ABACBA"),
    # public reports; the sources are in tests/world/README.md
    "one name for many images, in another script": (["金刚3", "金刚3", "金刚 3", "金刚4"], "AAAB"),
    "class names": (["鸟", "汽车", "鸟", "鸟", "汽车"], "ABAAB"),
    "lists of attributes": (["urban, sunny, backlight", "urban, sunny, backlight", "urban, rainy, backlight"], "AAB"),
    "a short title beside a longer one": (["white dress", "white dress with back zipper", "white dress"], "ABA"),
    "the same row twice": (["Patio Deck Chair Grey Wash Solid Acacia Wood"] * 2, "AA"),
    "more pairs than texts": (["p1", "p2", "p1", "p3", "p1", "p2"], "ABACAB"),
    "empty reports": (["", " ", "\n\t", "no acute process", "\u3000"], "AAABA"),
    "identical findings": ([REPORT, REPORT, REPORT.upper()], "AAA"),
    "captions beyond the context": (["x " * 74, "x " * 75, "x " * 76, "x " * 300], "ABBB"),
    "reports that differ beyond the context": ([REPORT + "Pneumonia.", REPORT + "No change."], "AA"),
    "case and white space": (["A\n'll 11p223RF☆ho!!to?", "a 'LL  11P223rf☆HO!!to?\t"], "AA"),
    "anonymised names": (["<PERSON> in a red dress", "<person> in a red dress", "<PERSON> in red"], "AAB"),
    "curly quotes, entities, mojibake": (
        ["it’s a cat & a dog", "it's a cat &amp; a dog", "itâ€™s a cat &amp;amp; a dog"],
        "AAA",
    ),
    "the token zero at the end of the longest": (["$!$", "$!$ sale", "$!", "$!$"], "ABCA"),
    "what is only alike": (["a dog", "a dog.", "dogs", "dog a", "a  dog", "a-dog"], "ABCDAE"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_captions_are_the_same_where_their_token_ids_are(name):
    captions, expected = BATCHES[name]
    texts = torch.from_numpy(cut_to_longest(token_ids(captions)).astype("int64"))  # as the loader gives them
    numbers = number_captions(texts, len(captions), ALONE).tolist()
    assert [numbers.index(number) for number in numbers] == [expected.index(letter) for letter in expected]
    assert repeated_share(torch.tensor(numbers)) == (len(captions) - len(set(expected))) / len(captions)


def mean_over_positives(logits, positive):
    """For each row and each of its positives, -log of that positive's softmax among itself and the row's negatives."""
    negatives = (logits.exp() * (1 - positive)).sum(1, keepdim=True)
    terms = (1 + negatives / logits.exp()).log() * positive
    return (terms.sum(1) / positive.sum(1)).mean()


@pytest.mark.parametrize("name", BATCHES)
def test_the_loss_takes_every_pair_with_the_same_caption_as_a_positive(name):
    captions, letters = BATCHES[name]
    size = len(captions)
    numbers = number_captions(tokenize(captions), size, ALONE)
    generator = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(size, 4, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2))
    scale, bias = torch.tensor(10.0, dtype=torch.float64), torch.tensor(-5.0, dtype=torch.float64)
    positive = torch.tensor([[one == other for other in letters] for one in letters]).double()
    logits = scale * images @ texts.T
    expected = (mean_over_positives(logits, positive) + mean_over_positives(logits.T, positive)) / 2
    torch.testing.assert_close(contrastive_loss(images, texts, scale, ALONE, size, 2, numbers).loss, expected)
    expected = F.binary_cross_entropy_with_logits(logits + bias, positive, reduction="sum") / size
    torch.testing.assert_close(sigmoid_loss(images, texts, scale, bias, ALONE, size, 2, numbers).loss, expected)


# ---------------------------------------------------------------------------------------------------------- training runs

POSITIVES = "train.repeated_captions=positives"


def rows_of_run(data_set, folder, *overrides):
    """Rows of a run on the tests' data set, with its four shapes as captions."""
    some = ("data.captions=[shape]", "train.max_steps=3", "optimizer.warmup_steps=0")
    train(config_of(data_set, folder, *some, *overrides), ALONE)
    return [row for row in read_metrics(folder / "debug_cpu" / "metrics.jsonl") if "loss" in row]


def column(rows, key):
    return [row[key] for row in rows]


def test_a_run_on_class_names_records_its_repeats_and_takes_them_as_positives_on_request(data_set, tmp_path):
    apart = rows_of_run(data_set, tmp_path / "apart")
    assert column(apart, "repeated_caption_share") == [28 / 32] * 3
    with pytest.raises(
        ConfigError, match=r"train\.repeated_captions: negatives -> positives\n.*run\.allow_config_changes=true"
    ):
        rows_of_run(data_set, tmp_path / "apart", "train.max_steps=4", POSITIVES)
    together = rows_of_run(data_set, tmp_path / "together", POSITIVES)
    assert column(together, "repeated_caption_share") == [28 / 32] * 3
    assert together[0]["batch_accuracy_image_to_text"] > apart[0]["batch_accuracy_image_to_text"]
    assert together[0]["batch_fingerprint"] == apart[0]["batch_fingerprint"]
    assert together[0]["loss"] != pytest.approx(apart[0]["loss"], rel=1e-4)


@pytest.mark.parametrize("loss", ["contrastive", "sigmoid"])
def test_a_run_with_repeats_as_positives_has_the_same_losses_in_any_micro_batch(data_set, tmp_path, loss):
    overrides = (POSITIVES, f"train.loss={loss}", "train.patch_dropout=0.25", "train.ema_decay=0.9")
    whole = rows_of_run(data_set, tmp_path / "whole", *overrides)
    parts = rows_of_run(data_set, tmp_path / "parts", *overrides, "train.micro_batch_size=5")
    assert column(parts, "loss") == pytest.approx(column(whole, "loss"), rel=1e-5)
    assert column(parts, "batch_accuracy_image_to_text") == column(whole, "batch_accuracy_image_to_text")


def test_a_checkpoint_from_before_the_option_took_repeats_as_negatives():
    record = FIXTURES / "version_0_1" / "run" / "checkpoints" / "step_00000021" / "checkpoint.json"
    before = TrainingConfig.model_validate(json.loads(record.read_text())["config"])
    assert before.train.repeated_captions == "negatives"
    assert changed_settings(before, before, "checkpoint") == ()
