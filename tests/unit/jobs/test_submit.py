"""jobs/submit.py without a cluster: what is refused where it is typed, and what becomes of connections and exit codes."""

import asyncio
import os
import signal
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from ray._private.runtime_env import packaging
from ray.job_submission import JobStatus

from jobs import submit
from jobs.cli.command_line import EXIT_CODES
from jobs.submit import follow, main, recipe_runtime_env
from pipeline.errors import ConfigError
from training.errors import RunError

ROOT = Path(__file__).parents[3]
ROOMS = ("jobs", "model", "pipeline", "training")
UNKNOWN = "Request failed with status code 404: Job a does not exist."


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(submit, "PAUSE_S", 0.01)
    held = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in held.items():
        signal.signal(number, handler)


def typed(monkeypatch, capsys, *words: str) -> tuple[int, str]:
    """(exit code, standard error) of what must not ask a cluster."""
    monkeypatch.setattr(submit, "connect", lambda address: pytest.fail("a cluster was asked"))
    try:
        code = main(words)
    except SystemExit as error:
        code = int(error.code)
    return code, capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- where it is typed


@pytest.mark.parametrize(
    ("job", "says"),
    [
        ("jobs/train.py train.max_stebs=3", "did you mean train.max_steps?"),
        ("jobs/train.py --confg vit_b_32", "unrecognized arguments: --confg"),
        ("jobs/train.py --config vit_b_23", "--config=vit_b_23: there is no such recipe"),
        ("/opt/rayclip/jobs/ingest.py ingest.fetch.timeout=3", "ingest.fetch.timeout: unknown key"),
        ("jobs/export.py run.name=a", "the following arguments are required: --output"),
        ("jobs/embed.py cluster.runtime_env.env_vars.HF_TOKEN=planted-secret", "put secrets into the nodes' environment"),
        ("jobs/train.py cluster.runtime_env.py_modules=a", "correct it in the recipe"),
    ],
)
def test_bad_input_of_a_job_of_ours_costs_no_cluster(monkeypatch, capsys, job, says):
    code, errors = typed(monkeypatch, capsys, "--", "python", *job.split())
    assert code == 2
    assert says in errors
    assert "Traceback" not in errors
    assert "planted-secret" not in errors


@pytest.mark.parametrize("command", ["rayclip", "/usr/local/bin/rayclip", "python -m rayclip"])
def test_a_job_may_be_the_installed_command(monkeypatch, capsys, command):
    code, errors = typed(monkeypatch, capsys, "--", *command.split(), "train", "train.max_stebs=3")
    assert code == 2
    assert "did you mean train.max_steps?" in errors


@pytest.mark.parametrize("words", [(), ("--wait-for", "a", "--", "python", "jobs/train.py"), ("--no-wait",)])
def test_a_command_or_a_job_to_wait_for_is_needed(monkeypatch, capsys, words):
    code, errors = typed(monkeypatch, capsys, *words)
    assert code == 2
    assert "give the job's command after --, or --wait-for ID" in errors


@pytest.mark.parametrize(
    "command",
    [
        "python train.py train.max_stebs=3",
        "python jobs/benchmark.py loss",
        "rayclip --version",
        "rayclip benchmark loss",
        "train train.max_stebs=3",
        "echo jobs/none.py a=b",
        "python /srv/another/jobs/train.py --lr 3",
    ],
)
def test_any_other_command_is_submitted_as_it_is(command):
    assert recipe_runtime_env(command.split(), None) == {}


def test_a_recipe_is_looked_for_where_the_job_will_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "copy" / "recipes").mkdir(parents=True)
    (tmp_path / "copy" / "recipes" / "mine.yaml").write_text("cluster: {runtime_env: {env_vars: {A: b}}}")
    entrypoint = ["python", "jobs/train.py", "--config", "recipes/mine.yaml", "cluster.runtime_env.env_vars.C=d"]
    assert recipe_runtime_env(entrypoint, "copy") == {"env_vars": {"A": "b", "C": "d"}}
    assert recipe_runtime_env(entrypoint, None) == {}
    assert "--config=recipes/mine.yaml: is not on this machine, so it is not checked" in capsys.readouterr().err
    (tmp_path / "copy" / "recipes" / "mine.yaml").write_text("trian: {}")
    with pytest.raises(ConfigError, match="trian: unknown key"):
        recipe_runtime_env(entrypoint, "copy")


def submissions(monkeypatch) -> dict[str, object]:
    """What a cluster is given."""
    given = {}

    class Server:
        def get_address(self):
            return "http://head:8265"

        def submit_job(self, **options):
            given.update(options)
            return "an-id"

    monkeypatch.setattr(submit, "connect", lambda address: Server())
    return given


def test_a_job_is_given_the_recipes_runtime_environment_and_the_working_directory(monkeypatch, capsys):
    given = submissions(monkeypatch)
    job = ["python", "jobs/train.py", "--config", "debug_cpu", "cluster.runtime_env.env_vars.A=b c"]
    assert main(["--no-wait", "--working-dir", "copy", "--submission-id", "mine", "--", *job]) == 0
    assert given == {
        "entrypoint": "python jobs/train.py --config debug_cpu 'cluster.runtime_env.env_vars.A=b c'",
        "submission_id": "mine",
        "runtime_env": {"env_vars": {"A": "b c"}, "working_dir": "copy"},
    }
    assert capsys.readouterr().out == "an-id\n"


def test_a_job_is_given_the_wandb_variables_of_this_machine_but_not_its_key(monkeypatch, capsys):
    given = submissions(monkeypatch)
    here = {
        "PROJECT": "clip",
        "TAGS": "a,b",
        "MODE": "online",
        "DIR": "/here",
        "API_KEY": "planted",
        "NAME": "",
        "ENTITY": "us",
    }
    for name, value in here.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    override = "cluster.runtime_env.env_vars.WANDB_ENTITY=them"
    assert main(["--no-wait", "--", "python", "jobs/train.py", "--config", "debug_cpu", override]) == 0
    assert given["runtime_env"]["env_vars"] == {
        "WANDB_PROJECT": "clip",
        "WANDB_TAGS": "a,b",
        "WANDB_MODE": "online",
        "WANDB_ENTITY": "them",
    }
    said = capsys.readouterr().err
    assert "passes on WANDB_ENTITY, WANDB_MODE, WANDB_PROJECT, WANDB_TAGS; the key of W&B comes from" in said
    assert main(["--no-wait", "--", "python", "other.py"]) == 0
    assert given["runtime_env"] == {}
    monkeypatch.setenv("WANDB_MODE", "ofline")
    code, said = typed(monkeypatch, capsys, "--", "python", "jobs/train.py")
    assert code == 2
    assert "WANDB_MODE=ofline: is no mode of a run" in said


def test_help_has_the_table_of_exit_codes(capsys):
    with pytest.raises(SystemExit) as error:
        main(["--help"])
    assert error.value.code == 0
    text = capsys.readouterr().out
    for code in (*map(str, EXIT_CODES), "130"):
        assert f"\n    {code} " in text


# --------------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize("address", ["htp://head:8265", "http://", "http://127.0.0.1:99999", "localhost:abc", "a b"])
def test_a_bad_address_is_bad_input(capsys, address):
    assert main(["--address", address, "--", "true"]) == 2
    assert capsys.readouterr().err.startswith(f"submit: bad input:\n  {address}: ")


def test_an_address_that_was_typed_counts_more_than_those_of_the_environment(web, monkeypatch, capsys):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", web.address)
    assert main(["--address", "http://127.0.0.1:9", "--", "true"]) == 1
    assert capsys.readouterr().err.startswith("submit: http://127.0.0.1:9: cannot be reached")
    assert web.requests == []
    assert os.environ["RAY_API_SERVER_ADDRESS"] == web.address


def test_an_address_with_a_password_is_refused_without_showing_it(capsys):
    assert main(["--address", "http://me:planted@127.0.0.1:9", "--", "true"]) == 2
    errors = capsys.readouterr().err
    assert "http://***@127.0.0.1:9: holds a user name or a password" in errors
    assert "planted" not in errors


@pytest.mark.parametrize("way", ["--address", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_a_cluster_that_cannot_be_reached_is_a_failure_with_a_remedy(monkeypatch, capsys, way):
    address = "http://127.0.0.1:9"
    if way != "--address":
        monkeypatch.setenv(way, address)
    assert main([*(["--address", address] if way == "--address" else []), "--", "true"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"submit: {address}: cannot be reached")
    assert "is the head up" in line


@pytest.mark.parametrize(("status", "says"), [(401, "set RAY_AUTH_MODE=token"), (403, "the cluster does not accept the token")])
def test_a_refused_token_is_one_line_that_says_what_to_set(web, capsys, status, says):
    def refuse(handler):
        handler.send_response(status)
        handler.send_header("Content-Length", "12")
        handler.end_headers()
        handler.wfile.write(b"Unauthorized")

    web.put("/api/version", refuse)
    assert main(["--address", web.address, "--", "true"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"submit: {web.address}: ")
    assert says in line


def test_a_server_that_is_no_ray_is_bad_input(web, capsys):
    assert main(["--address", web.address, "--", "true"]) == 2
    assert "give the address of the head's dashboard" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- following a job


class Cluster:
    """A job server: each connection to the log brings what `logs` says, and each question of `states` is answered in turn."""

    def __init__(self, logs, states):
        self.logs, self.states = list(logs), list(states)
        self.connections = 0

    def get_address(self):
        return "http://head:8265"

    async def tail_job_logs(self, job):
        self.connections += 1
        for chunk in self.logs.pop(0) if self.logs else []:
            if isinstance(chunk, Exception):
                raise chunk
            if chunk is None:
                await asyncio.sleep(60)
            yield chunk

    def get_job_info(self, job):
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, Exception):
            raise state
        status, code = state if isinstance(state, tuple) else (state, None)
        return SimpleNamespace(status=JobStatus(status), driver_exit_code=code, message="the node is gone")


ENDED = ("SUCCEEDED", 0)


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (("SUCCEEDED", 0), 0),
        (("FAILED", 1), 1),
        (("FAILED", 2), 2),
        (("FAILED", 3), 3),
        (("FAILED", 143), 143),
        (("FAILED", -9), 137),
        (("STOPPED", None), 143),
        (("FAILED", None), 1),
    ],
)
def test_the_exit_code_is_the_jobs_own(state, code):
    assert follow(Cluster([["a\n"]], [state]), "a") == code


def test_a_job_that_never_ran_says_why(capsys):
    follow(Cluster([[]], [("FAILED", None)]), "a")
    assert "a failed: the node is gone" in capsys.readouterr().err


def test_a_connection_that_breaks_is_made_anew_and_shows_each_line_once(capsys):
    broken = RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
    away = requests.ConnectionError("refused")
    logs = [["1\n2\n", "3\nh", broken], [OSError("reset")], ["1\n2\n3\nhalf\n", "5\n"]]
    assert follow(Cluster(logs, [away, away, "RUNNING", "RUNNING", ENDED]), "a") == 0
    out, errors = capsys.readouterr()
    assert out == "1\n2\n3\nhalf\n5\n"
    assert errors.count("the connection to the job's log is lost") == 1
    assert errors.count("does not respond (refused); trying for") == 1


def test_a_job_that_ends_while_the_connection_is_away_still_shows_its_last_lines(capsys):
    assert follow(Cluster([["1\n", OSError("reset")], ["1\n2\n"]], [("FAILED", 2)]), "a") == 2
    assert capsys.readouterr().out == "1\n2\n"


def test_a_connection_that_is_dead_without_a_word_is_made_anew(monkeypatch, capsys):
    monkeypatch.setattr(submit, "SILENCE_S", 0.05)
    cluster = Cluster([["1\n", None], ["1\n2\n"]], ["RUNNING", ENDED])
    assert follow(cluster, "a") == 0
    assert cluster.connections == 2
    assert capsys.readouterr().out == "1\n2\n"


def test_a_cluster_that_stays_away_ends_the_wait_and_says_that_the_job_may_go_on(monkeypatch):
    monkeypatch.setattr(submit, "GIVE_UP_S", 0.05)
    with pytest.raises(RunError, match="stopped responding") as error:
        follow(Cluster([[OSError("reset")]], [requests.ConnectionError("refused")]), "a")
    assert "ray job logs --follow --address http://head:8265 a" in str(error.value)


def test_a_job_that_the_cluster_does_not_know_is_said_at_once():
    with pytest.raises(RunError, match="a: http://head:8265 knows no such job"):
        follow(Cluster([[OSError("404")]], [RuntimeError(UNKNOWN)]), "a")


def test_what_ray_says_of_its_own_actors_is_left_out_and_its_warnings_are_not(capsys):
    own = f"[2026-01-01 E 1 1] core_worker.cc:2465: Actor with class name: 'MapWorker' {submit.SAYS_NOTHING}. If ...\n"
    other = "[2026-01-01 E 1 1] core_worker.cc:1: The node is out of memory\n"
    follow(Cluster([[f"1\n{own}{other}2\n"]], [ENDED]), "a")
    assert capsys.readouterr().out == f"1\n{other}2\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_wait_leaves_the_job_and_says_how_to_follow_and_stop_it(capsys, number, code):
    class Interrupted(Cluster):
        async def tail_job_logs(self, job):
            yield "1\n"
            signal.raise_signal(number)
            await asyncio.sleep(5)
            yield "2\n"

    assert follow(Interrupted([], ["RUNNING"]), "a") == code
    out, errors = capsys.readouterr()
    assert out == "1\n"
    assert "the job continues" in errors
    for command in ("ray job logs --follow", "ray job status", "ray job stop", "python jobs/submit.py"):
        assert command in errors


def test_a_submission_that_the_cluster_refuses_is_one_line():
    class Refusing:
        def __init__(self, error):
            self.error = error

        def get_address(self):
            return "http://head:8265"

        def submit_job(self, **_):
            raise self.error

    traceback = (
        "Request failed with status code 400: Traceback (most recent call last):\n  File\nValueError: it exists already.\n."
    )
    with pytest.raises(ConfigError, match="the job was rejected: ValueError: it exists already"):
        submit.submit(Refusing(RuntimeError(traceback)), "true", "a", {})
    trouble = RuntimeError("Request failed with status code 500: \nNo available agent to submit job.")
    with pytest.raises(RunError, match=r"the job was rejected \(No available agent to submit job\)"):
        submit.submit(Refusing(trouble), "true", "a", {})
    with pytest.raises(RunError, match="`ray job list` says whether"):
        submit.submit(Refusing(requests.ConnectionError("reset")), "true", "a", {})


def test_a_copy_of_the_project_holds_all_its_modules(tmp_path):
    """`--working-dir .` packs what .rayignore and .gitignore do not name: a bare `data` there is training/data, too."""
    packaging.create_package(str(ROOT), tmp_path / "copy.zip", include_gitignore=True, excludes=[])
    packed = set(zipfile.ZipFile(tmp_path / "copy.zip").namelist())
    modules = [path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    recipes = [path.relative_to(ROOT).as_posix() for path in (ROOT / "jobs" / "recipes").glob("*.yaml")]
    assert len(modules) > 200
    assert {*modules, *recipes} <= packed
    assert not any(name.startswith(("data/", "runs/", "tests/", ".git/", ".venv/")) for name in packed)
