"""Each job names the sections that it uses, and refuses the others on its command line, but not in a recipe."""

from importlib import import_module
from pathlib import Path

import pytest

from jobs.cli.config import RECIPES, Config, dump_config, key_names, load_config
from jobs.cli.job_keys import JOBS, refusal
from pipeline.errors import ConfigError

COMMANDS = sorted(path.stem for path in RECIPES.parent.glob("*.py") if path.stem != "__init__")


def test_every_command_with_a_recipe_is_listed_under_its_own_name():
    with_recipe = [name for name in COMMANDS if hasattr(import_module(f"jobs.{name}"), "arguments")]
    assert sorted(JOBS) == with_recipe
    assert all(import_module(f"jobs.{name}").arguments().job == name for name in with_recipe)


@pytest.mark.parametrize("job", JOBS)
def test_what_a_job_uses_exists(job):
    keys, names = JOBS[job], list(key_names())
    assert all(any(name == used or name.startswith(f"{used}.") for name in names) for used in keys.uses)
    assert set(keys.most_used) <= set(keys.select(names))


@pytest.mark.parametrize("job", JOBS)
def test_every_job_reads_the_runtime_environment(job):
    assert "cluster.runtime_env" in JOBS[job].select(key_names())


@pytest.mark.parametrize("job", JOBS)
def test_a_section_that_a_job_does_not_use_is_refused_with_the_jobs_that_do(job):
    foreign = set(Config.model_fields) - set(JOBS[job].sections)
    assert foreign or job == "demo"
    for section in foreign:
        with pytest.raises(ConfigError) as error:
            load_config("debug_cpu", [f"{section}.anything=1"], job)
        (line,) = str(error.value).splitlines()
        assert line.startswith(f"{section}.anything: jobs/{job}.py does not use the section {section} (used by jobs/")
        assert ", ".join(JOBS[job].sections) in line


@pytest.mark.parametrize("job", JOBS)
def test_a_stored_configuration_with_all_sections_is_a_recipe_of_every_job(job, tmp_path):
    path = Path(tmp_path) / "config.yaml"
    path.write_text(dump_config(load_config("demo")))
    assert load_config(str(path), job=job) == load_config("demo")


def test_a_section_that_nobody_has_is_left_to_the_suggestions():
    assert refusal("train", "trian") == ""
    with pytest.raises(ConfigError, match="did you mean the section train"):
        load_config("debug_cpu", ["trian.seed=1"], "train")
