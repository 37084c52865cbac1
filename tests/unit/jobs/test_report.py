"""The report of a run in any state: everything that is there, said aloud what is not, safe, and drawn in a real browser."""

import json
import re
import shutil

import pytest

from jobs.cli.command_line import EXIT_BAD_INPUT, run
from jobs.report import arguments, job, make_report, report_at_the_end, take_screenshot
from jobs.reporting.page import render
from jobs.reporting.run_data import read_run
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from tests.support.browser import CHROMIUM, NO_CHROMIUM, chromium, visit
from tests.support.reports import HOSTILE, charts_of, hostile_report
from tests.support.runs import ALONE, config_of
from training.trainer import Trainer, train

SECTIONS = ("Training", "Evaluation", "What it sees", "Time", "Data", "Settings", "Starts")


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def finished(data_set, tmp_path_factory):
    """The folder of a run of 12 steps with evaluations, killed once on its way, as it lies there in the end."""
    folder, after = tmp_path_factory.mktemp("finished"), Trainer._after_step
    zero_shot = f"{{uri: {data_set}, label_column: shape, templates: ['a red {{}}']}}"
    overrides = (f"evaluation.retrieval_uri={data_set}", "evaluation.every_steps=4", f"evaluation.zero_shot={zero_shot}")
    config = config_of(data_set, folder, *overrides, "checkpoint.every_steps=5")

    def dying(self):
        after(self)
        if self.position.step == 8:
            self._writer.wait()
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_after_step", dying)
        with pytest.raises(KilledError):
            train(config, ALONE)
    train(config, ALONE)
    return folder / "debug_cpu"


@pytest.fixture(scope="module")
def page(finished):
    """Its report."""
    return make_report(open_storage(str(finished)), "debug_cpu")


def copy_of(finished, tmp_path, *names):
    """A run's folder with only so much of it."""
    for name in names:
        shutil.copy(finished / name, tmp_path / name)
    return open_storage(str(tmp_path))


def test_a_finished_run_has_every_section_every_chart_and_its_numbers(finished, page, data_set):
    report = read_run(open_storage(str(finished)), "debug_cpu")
    for section in SECTIONS:
        assert f"<h2>{section}</h2>" in page
    steps = {"loss", "temperature", "learning_rate", "grad_norm", "samples_per_s", "step_time", "goodput", "batch_accuracy"}
    steps.add("repeated_captions")
    evaluations = {f"evaluation/{name}" for name in ("image_to_text", "text_to_image", "zero_shot", "median_rank")}
    others = {"spent", "similarity/first", "similarity/last", "sides/0", "tokens/0"}
    assert set(charts_of(page)) == steps | evaluations | others
    assert "finished: 12 steps" in page
    assert f"{report.result['spent']['goodput']:.1%}" in page
    assert f"{data_set} version 1" in page
    assert re.search(r"http_404</td><td class=\"number\">3</td><td class=\"number\">4.48%", page)
    assert page.count("data:image/jpeg") == 8 * 5
    assert page.count('class="right"') == sum(query in found for query, found in gallery_of(report))
    assert "train.global_batch_size</td><td>32" in page
    assert "torch</td><td>" in page
    assert 'class="none"' not in page, "no section is missing"
    assert not report.problems
    assert len(page) < 2_000_000
    assert page.count("Workers were started anew".lower()) == 1


def test_a_run_that_was_told_to_go_on_is_not_finished_and_shows_no_look_at_other_pairs(finished, tmp_path):
    storage = copy_of(finished, tmp_path, *(path.name for path in finished.glob("*.json*")), "config.yaml")
    assert render(read_run(storage, "before")).count("finished: 12 steps") == 1
    starts = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    (tmp_path / "starts.jsonl").write_text("".join(json.dumps(row | {"total_steps": 99}) + "\n" for row in starts))
    pairs = json.loads((tmp_path / "probe.json").read_text())
    fewer = pairs | {name: pairs[name][:1] for name in ("keys", "captions", "thumbnails")} | {"shown": [0], "queries": [0]}
    (tmp_path / "probe.json").write_text(json.dumps(fewer))
    report = read_run(storage, "going")
    assert report.looks == []
    assert "not finished: 12 of 99 steps" in render(report)


def gallery_of(report):
    return zip(report.pairs["queries"], report.looks[-1]["found"], strict=True)


def test_a_run_that_is_going_on_says_how_far_it_is_and_where_its_time_went(finished, tmp_path):
    storage = copy_of(finished, tmp_path, "metrics.jsonl", "starts.jsonl", "config.yaml")
    whole = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(whole + '{"step": 13, "lo')  # being written
    report = read_run(storage, "going")
    page = render(report)
    assert "not finished: 12 of 12 steps, last heard of on 20" in page
    assert "No look at the probe is recorded" in page
    finished_spent = read_run(open_storage(str(finished)), "debug_cpu").spent
    for part in ("training_s", "lost_s", "start_up_s"):
        assert getattr(report.spent, part) == pytest.approx(getattr(finished_spent, part))
    assert 0 < report.spent.goodput <= 1


def test_a_run_without_a_step_or_an_evaluation_is_a_page_that_says_so(finished, tmp_path):
    storage = copy_of(finished, tmp_path, "config.yaml")
    page = make_report(storage, "new")
    assert "No step is recorded yet" in page
    assert "No evaluation is recorded" in page
    assert "No start of the workers is recorded yet" in page
    assert set(charts_of(page)) == {"sides/0", "tokens/0"}


def test_what_is_damaged_or_gone_is_a_line_and_the_rest_is_there(finished, tmp_path):
    names = ("metrics.jsonl", "starts.jsonl", "config.yaml", "probe.json", "probe.jsonl")
    storage = copy_of(finished, tmp_path, *names)
    (tmp_path / "result.json").write_text('{"run": "tor')
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(re.sub(r"(?m)^  uri: .*$", "  uri: /nowhere/at/all", text, count=1))
    page = make_report(storage, "damaged")
    assert "result.json is incomplete" in page
    assert "the data set is not described: /nowhere/at/all: there is no data set" in page
    assert "loss" in charts_of(page)
    (tmp_path / "config.yaml").write_text("a: [1")
    assert "config.yaml does not name the data of the run" in make_report(storage, "damaged")


def test_a_name_without_a_run_is_bad_input(tmp_path, capsys):
    assert run(arguments(), job, [f"run.dir={tmp_path}", "run.name=nobody"]) == EXIT_BAD_INPUT
    assert "run.name=nobody: " in capsys.readouterr().err
    with pytest.raises(ConfigError, match="holds no record of a run"):
        make_report(open_storage(str(tmp_path)), "nobody")


def test_the_command_writes_the_page_into_the_runs_folder_or_where_it_is_told(finished, tmp_path, capsys):
    where = [f"run.dir={finished.parent}", "run.name=debug_cpu"]
    assert run(arguments(), job, where) == 0
    assert f"report: {finished / 'report.html'}" in capsys.readouterr().out
    assert run(arguments(), job, [*where, "--output", str(tmp_path / "mine.html")]) == 0
    assert "finished: 12 steps" in (tmp_path / "mine.html").read_text()


def test_the_end_of_a_run_in_object_storage_has_its_report_there_and_trouble_is_only_said(
    data_set, bucket, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = config_of(data_set, f"{bucket}/runs", "train.max_steps=4", "optimizer.warmup_steps=1")
    train(config, ALONE)
    assert report_at_the_end(config) == f"{bucket}/runs/debug_cpu/report.html"
    page = open_storage(f"{bucket}/runs/debug_cpu").read("report.html").decode()
    assert "on which the model was trained" in page, "the probe of a run that is not evaluated"
    assert page.count("data:image/jpeg") == 8 * 5
    missing = config.model_copy(update={"run": config.run.model_copy(update={"name": "missing"})})
    assert report_at_the_end(missing) == ""
    assert "the report was not made (ConfigError" in caplog.text


@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
def test_a_picture_of_the_page_is_small_and_a_machine_without_a_browser_says_what_it_needs(tmp_path, monkeypatch):
    from PIL import Image

    take_screenshot(render(hostile_report()), tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        assert image.size[0] == 1600
        assert len(image.getcolors()) > 10
    assert (tmp_path / "page.png").stat().st_size < 300_000
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"--picture=.*: needs a browser; install one of chromium"):
        take_screenshot("", tmp_path / "none.png")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip(NO_CHROMIUM)
    with chromium() as one:
        yield one


PAINTED = """canvas => {
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const seen = new Set();
  for (let place = 0; place < pixels.length; place += 4)
    if (pixels[place + 3]) seen.add((pixels[place] << 16) | (pixels[place + 1] << 8) | pixels[place + 2]);
  return seen.size;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(390, 844), (1280, 900)], ids=["phone", "desk"])
def test_in_a_browser_every_chart_is_painted_nothing_is_fetched_and_nothing_is_too_wide(browser, page, tmp_path, size, scheme):
    (tmp_path / "report.html").write_text(page)
    with visit(browser, tmp_path / "report.html", size, scheme) as seen:
        seen.page.evaluate("drawAll()")
        drawn = "count => document.querySelectorAll('[data-drawn]').length == count"
        seen.page.wait_for_function(drawn, arg=len(charts_of(page)))
        for chart in seen.page.locator("[data-chart]").all():
            colours = [canvas.evaluate(PAINTED) for canvas in chart.locator("canvas").all()]
            assert max(colours) > 3, f"{chart.get_attribute('data-chart')} is empty"
        width = seen.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert width == [size[0], size[0]]
        assert seen.page.locator("img").evaluate_all("images => images.every(image => image.naturalWidth > 0)")
        background, ink = (
            seen.page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color")
        )
        brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (background, ink)]
        assert (brightness[0] > brightness[1]) == (scheme == "light")
        seen.page.fill("#search", "global batch")
        (found,) = seen.page.locator("#keys tr:visible").all_inner_texts()
        assert found.split() == ["train.global_batch_size", "32"]
        assert seen.said == []
        assert [url for url in seen.asked if not url.startswith(("file:", "data:"))] == []


def test_in_a_browser_other_peoples_text_runs_nothing(browser, tmp_path):
    (tmp_path / "report.html").write_text(render(hostile_report()))
    with visit(browser, tmp_path / "report.html") as seen:
        seen.page.evaluate("drawAll()")
        assert seen.page.locator(".found p").inner_text().startswith(HOSTILE)
        assert seen.page.locator("main b").count() == 0
        assert not [line for line in seen.said if "dialog" in line]
        assert [url for url in seen.asked if not url.startswith(("file:", "data:"))] == []


def test_charts_take_the_colours_of_a_scheme_that_changes_while_the_page_is_open(browser, page, tmp_path):
    (tmp_path / "report.html").write_text(page)
    with visit(browser, tmp_path / "report.html") as seen:
        chart = seen.page.locator('[data-chart="loss"]')
        # A function, for text is evaluated anew at each look, which the page's policy forbids.
        seen.page.wait_for_function("() => document.querySelector('[data-chart=loss]').dataset.drawn")
        light = chart.screenshot()
        seen.page.emulate_media(color_scheme="dark")
        seen.page.wait_for_timeout(500)
        assert chart.screenshot() != light
        assert chart.locator("canvas").count() > 0
        assert seen.said == []
