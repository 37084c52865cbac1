"""One YAML recipe and overrides, validated once, every problem named."""

import shlex

import pytest
import yaml

from jobs import train
from jobs.cli.command_line import EXIT_BAD_INPUT, parser, run
from jobs.cli.config import RECIPES, Config, dump_config, key_names, load_config, recipe_names
from pipeline.errors import ConfigError


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_valid(name):
    assert load_config(name).model.name


def test_the_papers_hyper_parameters_are_in_the_recipes():
    rates = {name: load_config(name).optimizer.learning_rate for name in recipe_names()}
    expected = {"rn50": 5e-4, "rn50x16": 4e-4, "rn50x64": 3.6e-4, "vit_b_32": 5e-4, "vit_l_14": 4e-4}
    assert {name: rates[name] for name in expected} == expected
    for name in ("rn50", "rn101", "rn50x4", "rn50x16", "rn50x64"):
        assert (load_config(name).optimizer.beta2, load_config(name).optimizer.eps) == (0.999, 1e-8)
    for name in ("vit_b_32", "vit_b_16", "vit_l_14", "vit_l_14_336px"):
        assert (load_config(name).optimizer.beta2, load_config(name).optimizer.eps) == (0.98, 1e-6)
        assert load_config(name).train.global_batch_size == 32_768


def test_later_overrides_win_over_earlier_ones_and_over_the_recipe():
    config = load_config("debug_cpu", ["train.seed=3", "train.seed=4", "optimizer.learning_rate=1e-3"])
    assert config.train.seed == 4
    assert config.optimizer.learning_rate == 1e-3
    assert config.train.max_steps == 30


def test_all_problems_are_reported_at_once_with_their_paths():
    with pytest.raises(ConfigError) as error:
        load_config("debug_cpu", ["train.global_batch_sise=4", "train.seed=minus", "model.name=ViT-B/23", "oops"])
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    text = str(error.value)
    assert "train.global_batch_sise: unknown key; did you mean train.global_batch_size?" in text
    assert "train.seed='minus'" in text
    assert "model.name=ViT-B/23" in text
    assert "ViT-B/32" in text
    assert "oops: an override is section.key=value" in text


def test_a_key_in_the_wrong_section_is_found_by_its_last_part():
    with pytest.raises(ConfigError, match=r"train\.learning_rate: unknown key; did you mean optimizer\.learning_rate\?"):
        load_config("debug_cpu", ["train.learning_rate=1"])


def test_a_resize_mode_of_no_is_not_read_as_false():
    assert load_config("default", ["ingest.image.resize_mode=no"]).ingest.image.resize_mode == "no"


def test_a_missing_recipe_names_those_that_exist():
    with pytest.raises(ConfigError, match="debug_cpu"):
        load_config("no_such_recipe")


@pytest.mark.parametrize("text", ["- a list", "key: [unclosed", "\x00"])
def test_a_recipe_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="--config="):
        load_config(str(path))


def test_the_resolved_configuration_is_itself_a_recipe(tmp_path):
    config = load_config("vit_b_32", ["data.uri=s3://bucket/data"])
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_config(config))
    assert load_config(str(path)) == config


def test_local_paths_become_absolute_and_addresses_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config("debug_cpu", ["data.uri=data/x", "run.dir=s3://bucket/runs"])
    assert config.data.uri == str(tmp_path / "data" / "x")
    assert config.run.dir == "s3://bucket/runs"
    mixture = "data.mixture=[{uri: a}, {uri: s3://bucket/b, weight: 0.5}]"
    config = load_config("debug_cpu", [mixture, "data.cache_dir=cache"])
    assert [part.uri for part in config.data.parts] == [str(tmp_path / "a"), "s3://bucket/b"]
    assert config.data.cache_dir == str(tmp_path / "cache")
    config = load_config("debug_cpu", ["ingest.fetch.allow_files=[images,/data]"])
    assert config.ingest.fetch.allow_files == (str(tmp_path / "images"), "/data"), "workers have folders of their own"


def test_a_key_that_is_typed_twice_is_said(capsys):
    assert load_config("debug_cpu", ["train.seed=1", "train.seed=2"]).train.seed == 2
    assert capsys.readouterr().err == "train.seed is given more than once: the last value counts\n"
    load_config("debug_cpu", ["train.seed=1", "train.seed=1"])
    assert not capsys.readouterr().err


@pytest.mark.parametrize("key", ["ingest.input", "data.uri", "run.dir"])
def test_an_address_with_a_password_is_refused_before_anything_shows_it(key):
    with pytest.raises(ConfigError, match=rf"^{key}=s3://\*\*\*@bucket/x: an address must not hold a user name") as error:
        load_config("debug_cpu", [f"{key}=s3://someone:pa55w0rd@bucket/x"])
    assert "pa55w0rd" not in str(error.value)


def test_units_sit_in_the_keys_and_sections_are_frozen():
    assert {"ingest.fetch.total_timeout_s", "data.mixture"} < set(key_names())
    with pytest.raises(ValueError, match="frozen"):
        Config().train.seed = 1


def test_bad_input_is_one_message_and_exit_code_two(capsys):
    assert run(parser(train.__doc__), train.job, ["--config", "debug_cpu", "train.sed=1"]) == EXIT_BAD_INPUT
    assert "did you mean train.seed?" in capsys.readouterr().err


def test_show_config_prints_the_resolved_tree(capsys):
    assert run(parser(train.__doc__), train.job, ["--config", "debug_cpu", "--show-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["train"]["max_steps"] == 30


def test_recipes_hold_no_unknown_file():
    assert {path.suffix for path in RECIPES.iterdir()} == {".yaml"}


def test_the_remedy_for_a_list_can_be_typed():
    with pytest.raises(ConfigError) as refused:
        load_config("default", ["evaluation.zero_shot={uri: x, templates: 'a photo of a {}.'}"])
    typed = str(refused.value).partition("is a list; write ")[2].splitlines()[0]
    (override,) = shlex.split(typed)
    assert override == 'evaluation.zero_shot.templates=["a photo of a {}."]'
    zero_shot = load_config("default", ["evaluation.zero_shot.uri=x", override]).evaluation.zero_shot
    assert zero_shot.templates == ("a photo of a {}.",)


@pytest.mark.parametrize(
    "name", ["Caption #2", "0", "007", "1e5", "null", "yes", "2020-01-01", "a: b", "*", "été", "it's", "-1"]
)
def test_the_name_of_a_column_is_what_was_typed(name):
    assert load_config("default", [f"ingest.caption_column={name}"]).ingest.caption_column == name
    quoted = name.replace("'", "''")
    assert load_config("default", [f"ingest.caption_column='{quoted}'"]).ingest.caption_column == name


def test_a_glob_may_begin_with_a_star():
    assert load_config("default", ["ingest.input=*.csv"]).ingest.input.endswith("/*.csv")


@pytest.mark.parametrize(
    ("key", "value"), [("allow_files", "/data"), ("allow_s3", "s3://b/p/"), ("allow_addresses", "127.0.0.1/32")]
)
def test_what_fetching_may_reach_is_one_or_a_list_and_never_true(key, value):
    assert getattr(load_config("debug_cpu", [f"ingest.fetch.{key}={value}"]).ingest.fetch, key) == (value,)
    assert getattr(load_config("debug_cpu", [f"ingest.fetch.{key}=[{value}]"]).ingest.fetch, key) == (value,)
    with pytest.raises(ConfigError, match=f"true names none of them; write ingest.fetch.{key}="):
        load_config("debug_cpu", [f"ingest.fetch.{key}=true"])
