"""WANDB_* variables count where the configuration is silent, and none of them breaks a run."""

import pytest

from jobs.cli.config import load_config
from pipeline.errors import ConfigError
from training.config import TrackingConfig
from training.run_plan import plan_run
from training.wandb_environment import SETTINGS, UNUSABLE, passed_on, tidy, with_environment


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "run"}, "online"),
        ({"WANDB_MODE": ""}, "offline"),
        ({"WANDB_DISABLED": "true"}, "disabled"),
        ({"WANDB_DISABLED": "TRUE", "WANDB_MODE": "online"}, "disabled"),
        ({"WANDB_DISABLED": "false", "WANDB_MODE": "online"}, "online"),
    ],
)
def test_the_mode_is_that_of_the_environment_unless_the_configuration_has_one(environment, mode):
    assert with_environment(TrackingConfig(), environment).wandb_mode == mode
    assert with_environment(TrackingConfig(wandb_mode="online"), environment).wandb_mode == "online"


def test_project_and_entity_are_those_of_the_environment_unless_the_configuration_has_them():
    environment = {"WANDB_PROJECT": "clip", "WANDB_ENTITY": "team"}
    found = with_environment(TrackingConfig(), environment)
    assert (found.wandb_project, found.wandb_entity) == ("clip", "team")
    found = with_environment(TrackingConfig(wandb_project="mine", wandb_entity="me"), environment)
    assert (found.wandb_project, found.wandb_entity) == ("mine", "me")
    found = with_environment(TrackingConfig(), {"WANDB_PROJECT": " ", "WANDB_ENTITY": ""})
    assert (found.wandb_project, found.wandb_entity) == ("rayclip", None)


@pytest.mark.parametrize("mode", ["ofline", "shared"])
def test_a_mode_that_a_run_cannot_have_is_refused_while_it_is_planned(data_set, tmp_path, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.delenv("WANDB_DISABLED", raising=False)
    place = [f"data.uri={data_set}", f"run.dir={tmp_path}"]
    with pytest.raises(ConfigError, match=f"WANDB_MODE={mode}: is no mode of a run; set it to online"):
        plan_run(load_config("debug_cpu", place))
    stated = load_config("debug_cpu", [*place, "tracking.wandb_mode=disabled"])
    assert plan_run(stated).config.tracking.wandb_mode == "disabled"


def test_a_run_records_what_the_environment_said(data_set, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_PROJECT", "clip")
    tracking = plan_run(load_config("debug_cpu", [f"data.uri={data_set}", f"run.dir={tmp_path}"])).config.tracking
    assert (tracking.wandb_mode, tracking.wandb_project) == ("disabled", "clip")


def test_an_address_with_a_password_is_refused_without_showing_it():
    with pytest.raises(ConfigError) as error:
        with_environment(TrackingConfig(), {"WANDB_BASE_URL": "https://me:planted@wandb.example.org"})
    assert "planted" not in str(error.value)
    assert "set WANDB_API_KEY" in str(error.value)


def test_variables_are_passed_on_but_no_key_and_nothing_empty():
    environment = dict.fromkeys((*SETTINGS, "WANDB_DIR", "WANDB_RUN_ID"), "x")
    others = {"WANDB_API_KEY": "planted", "WANDB_IDENTITY_TOKEN_FILE": "t", "WANDB_SERVICE": "s", "PATH": "p"}
    assert passed_on(environment | others) == environment
    assert set(passed_on(environment | others, SETTINGS)) == set(SETTINGS)
    assert passed_on({"WANDB_TAGS": "", "WANDB_NAME": "a"}) == {"WANDB_NAME": "a"}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_would_break_one_run_is_left_out_and_said_once(name):
    environment = {name: "abc", "WANDB_NAME": "n"}
    (line,) = tidy(environment)
    assert line.startswith(f"{name}=abc: is not used: ")
    assert environment == {"WANDB_NAME": "n"}
    assert tidy(environment) == []


def test_empty_variables_and_empty_tags_are_no_settings():
    environment = {"WANDB_TAGS": "a,, b ,a", "WANDB_NAME": "", "WANDB_API_KEY": " ", "WANDB_RUN_ID": "", "OTHER": ""}
    assert tidy(environment) == []
    assert environment == {"WANDB_TAGS": "a,b", "OTHER": ""}
    environment = {"WANDB_TAGS": ","}
    tidy(environment)
    assert environment == {}
