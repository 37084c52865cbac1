"""`cluster.runtime_env`: what it may hold, and what of it is left where a submission says the same."""

import json
import os
import signal

import pytest

from jobs.cli import runtime_env
from jobs.cli.command_line import RAY_SETTINGS, connect_ray, parser, run
from jobs.cli.config import load_config
from pipeline.errors import ConfigError
from training.config import ClusterConfig

OURS = {"worker_process_setup_hook": "a.b", "env_vars": {"SETTING": "default"}}


def problems_of(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config("debug_cpu", list(overrides))
    return str(error.value)


@pytest.fixture
def submitted(monkeypatch):
    """Makes this process one that was submitted with a runtime environment."""

    def submit(**fields):
        monkeypatch.setenv(runtime_env.JOB_CONFIG, json.dumps({"runtime_env": fields, "metadata": {}}))

    return submit


def test_a_recipe_states_what_rays_runtime_environment_takes(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("cluster: {runtime_env: {env_vars: {A: b}, uv: [einops], config: {setup_timeout_seconds: 60}}}")
    config = load_config(str(recipe), ["cluster.runtime_env.env_vars.C=d"])
    assert config.cluster.runtime_env["env_vars"] == {"A": "b", "C": "d"}
    runtime_env.check(config.cluster.runtime_env)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("cluster.runtime_env.env_var.A=b", "env_var: unknown key; did you mean cluster.runtime_env.env_vars?"),
        ("cluster.runtime_env.worker_process_setup_hook=a.b", "unknown key; it takes env_vars, pip"),
        ("cluster.runtime_env.env_vars.A=1", "env_vars.A: is a int, not a string; quote it"),
        ("cluster.runtime_env.env_vars=A", "cluster.runtime_env.env_vars: is a str, not a mapping"),
        ("cluster.runtime_env=A", "cluster.runtime_env: input should be a valid dictionary"),
    ],
)
def test_what_is_none_is_refused_without_ray(override, says):
    assert says in problems_of(override)


@pytest.mark.parametrize("key", ["cluster.runtime_env", "cluster.runtime_env.env_vars", "cluster.runtime_env.env_vars.A.B"])
def test_what_is_none_is_not_shown_for_it_may_hold_a_secret(key):
    assert "planted" not in problems_of(f"{key}=WANDB_API_KEY=planted")


@pytest.mark.parametrize("bad", [{"pip": ["a"], "conda": "b"}, {"py_modules": "a"}, {"config": {"setup_timeout_seconds": 0}}])
def test_what_ray_does_not_take_is_bad_input_and_no_traceback(bad):
    with pytest.raises(ConfigError, match=r"^cluster\.runtime_env: .*; correct it in the recipe$"):
        runtime_env.check(bad)


@pytest.mark.parametrize(
    "name",
    ["WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "HF_TOKEN", "PGPASSWORD", "db_passwd", "GCP_CREDENTIALS",
     "OPENAI_APIKEY", "DB_PASS"],
)  # fmt: skip
def test_a_variable_that_looks_like_a_secret_is_refused_and_not_shown(name):
    for more in ((), ("cluster.num_workers=[4,1]",)):  # a problem of the whole section, which is shown as it is
        said = problems_of(f"cluster.runtime_env.env_vars.{name}=planted-secret", *more)
        assert said == f"cluster.runtime_env.env_vars.{name}: {runtime_env.NO_SECRETS}"


@pytest.mark.parametrize(
    "value",
    [
        "[--extra-index-url, 'https://me:planted-secret@pypi.example/simple']",
        "https://me:planted-secret@pypi.example",
        "['git+https://planted-secret@example.org/a.git']",
        "{packages: ['a @ ftp://me:planted-secret@example.org/a.whl']}",
    ],
)
def test_an_address_with_a_password_is_refused_and_not_shown(value):
    said = problems_of(f"cluster.runtime_env.pip={value}")
    assert said == f"cluster.runtime_env.pip: holds an address with a password; {runtime_env.NO_SECRETS}"


@pytest.mark.parametrize(
    "name", ["TOKENIZERS_PARALLELISM", "AWS_ENDPOINT_URL", "MONKEY", "AWS_SHARED_CREDENTIALS_FILE", "RAY_AUTH_TOKEN_PATH"]
)
def test_a_variable_that_only_sounds_like_a_secret_is_taken(name):
    load_config("debug_cpu", [f"cluster.runtime_env.env_vars.{name}=http://127.0.0.1:9000"])


def test_an_address_with_a_name_that_is_no_secret_is_taken():
    load_config("debug_cpu", ["cluster.runtime_env.pip=['git+ssh://git@example.org/a.git', 'https://pypi.example/a@1.zip']"])


def test_a_job_that_was_not_submitted_gives_ray_the_recipes_and_ours():
    given = runtime_env.for_ray_init({"env_vars": {"A": "recipe"}, "config": {"setup_timeout_seconds": 5}}, OURS)
    assert given == {
        "worker_process_setup_hook": "a.b",
        "env_vars": {"SETTING": "default", "A": "recipe"},
        "config": {"setup_timeout_seconds": 5},
    }


def test_a_setting_of_ours_gives_way_to_the_recipe_and_both_to_the_submission(submitted):
    assert runtime_env.for_ray_init({"env_vars": {"SETTING": "recipe"}}, OURS)["env_vars"] == {"SETTING": "recipe"}
    submitted(env_vars={"SETTING": "submission", "A": "submission"})
    recipe = {"env_vars": {"SETTING": "recipe", "A": "recipe", "B": "recipe"}}
    assert runtime_env.for_ray_init(recipe, OURS)["env_vars"] == {"B": "recipe"}
    assert runtime_env.variables_of(recipe) == {"B": "recipe"}


def test_ray_merges_without_a_conflict_whatever_both_state(submitted):
    from ray.runtime_env.runtime_env import _merge_runtime_env

    stated = {"env_vars": {"SETTING": "1", "A": "2"}, "working_dir": "gcs://_ray_pkg_a.zip", "pip": {"packages": ["b"]}}
    submitted(**stated)
    recipe = {"env_vars": {"A": "3", "C": "4"}, "working_dir": ".", "pip": ["b"], "py_modules": ["gcs://_ray_pkg_b.zip"]}
    merged = _merge_runtime_env(stated, runtime_env.for_ray_init(recipe, OURS))
    assert merged == stated | {
        "env_vars": {"SETTING": "1", "A": "2", "C": "4"},
        "py_modules": ["gcs://_ray_pkg_b.zip"],
        "worker_process_setup_hook": "a.b",
    }


def test_the_jobs_own_process_has_the_variables_before_it_looks_at_anything(monkeypatch):
    seen = {}
    monkeypatch.setenv("A", "of the node")
    run(
        parser(None),
        lambda _config, _options: seen.update(os.environ),
        ["--config", "debug_cpu", "cluster.runtime_env.env_vars.A=recipe"],
    )
    assert seen["A"] == "recipe"


def test_ray_is_given_the_recipes_environment_and_our_settings(monkeypatch):
    import ray

    given = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name in RAY_SETTINGS:
        monkeypatch.setenv(name, "7")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_NAME", "n")
    monkeypatch.setenv("WANDB_API_KEY", "planted")
    connect_ray(ClusterConfig(runtime_env={"env_vars": {"A": "b"}}))
    assert given["runtime_env"]["env_vars"] == dict.fromkeys(RAY_SETTINGS, "7") | {"A": "b", "WANDB_NAME": "n"}
    assert given["runtime_env"]["worker_process_setup_hook"] == "training.ray_internals.set_up_worker"
    with pytest.raises(ConfigError, match=r"^cluster\.runtime_env: "):
        connect_ray(ClusterConfig(runtime_env={"py_modules": "a"}))
