"""infra/aws/create_roles.sh, run by bash with a stand-in for `aws` that remembers what was created."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.deploy_checks import INFRA, filled_in

CREATED_ONCE = [
    "create-role rayclip-node",
    "create-instance-profile rayclip-node",
    "add-role-to-instance-profile rayclip-node",
    "create-role rayclip-head",
    "create-instance-profile rayclip-head",
    "add-role-to-instance-profile rayclip-head",
]
# `aws iam VERB --OPTION NAME ...`: `get-` finds what `create-` has made, and making it twice fails, as IAM does. A profile
# names the role that it was given.
AWS = """#!/bin/bash
verb=$2 name=$4 thing="$MADE/${2#*-}-$4"
echo "$verb $name" >> "$MADE/log"
case $verb in
    get-*) [ -e "$thing" ] && cat "$thing" ;;
    create-*) [ ! -e "$thing" ] && touch "$thing" ;;
    add-role-*) thing="$MADE/instance-profile-$name" && [ ! -s "$thing" ] && echo "$name" > "$thing" ;;
esac
"""


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "aws"
    folder.mkdir()
    for path in [INFRA / "aws" / "create_roles.sh", *(INFRA / "aws").glob("iam-*.json")]:
        shutil.copy(path, folder)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "aws").write_text(AWS)
    (tmp_path / "bin" / "aws").chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "MADE": str(tmp_path)}

    def start() -> tuple[subprocess.CompletedProcess[str], list[str]]:
        (tmp_path / "log").write_text("")
        command = ["bash", str(folder / "create_roles.sh")]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30)
        return result, (tmp_path / "log").read_text().splitlines()

    start.folder = folder
    return start


def fill_in(folder: Path) -> None:
    for path in folder.glob("iam-*.json"):
        path.write_text(filled_in(path.read_text()))


def test_it_asks_aws_for_nothing_while_a_policy_holds_a_placeholder(run):
    fill_in(run.folder)
    policy = run.folder / "iam-policy.json"
    policy.write_text(policy.read_text().replace("arn:aws:s3:::", "arn:aws:s3:::YOUR_BUCKET", 1))
    result, asked = run()
    assert result.returncode == 2
    assert "YOUR_BUCKET" in result.stdout
    assert "infra/README.md" in result.stderr
    assert asked == []


def test_it_makes_both_roles_and_a_second_run_makes_only_their_policies_anew(run):
    fill_in(run.folder)
    result, asked = run()
    assert result.returncode == 0, result.stderr
    made = ("create-role", "create-instance-profile", "add-role")
    assert [call for call in asked if call.startswith(made)] == CREATED_ONCE
    result, asked = run()
    assert result.returncode == 0, result.stderr
    assert not [call for call in asked if call.startswith(made)]
    policies = [call for call in asked if call.startswith("put-role-policy")]
    assert policies == ["put-role-policy rayclip-node", "put-role-policy rayclip-head", "put-role-policy rayclip-head"]


def test_a_run_that_was_killed_between_a_profile_and_its_role_is_finished_by_the_next(run):
    fill_in(run.folder)
    run()
    (run.folder.parent / "instance-profile-rayclip-head").write_text("")
    result, asked = run()
    assert result.returncode == 0, result.stderr
    assert [call for call in asked if call.startswith(("create-role", "create-instance", "add-role"))] == CREATED_ONCE[-1:]
