"""Validators of the deploy files in infra/.

In: a file's path within infra/ and its text, so that a test can plant an error. Out: one line per problem; none for a good
file.
"""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from jobs.cli.command_line import CLUSTER_SETTINGS
from tests.support.kuberay_rules import broken_rules

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
CRDS = ROOT.parent / "shared" / "kuberay_crds"
CRD_FILES = {"RayCluster": "rayclusters.yaml", "RayJob": "rayjobs.yaml", "RayCronJob": "raycronjobs.yaml"}
KUBERNETES_VERSION = "1.37"
NOT_FOR_EC2 = {"SubnetIds"}  # Ray itself chooses one of them
PLACEHOLDER = re.compile(r"YOUR_[A-Z_]+[A-Z]")


def problems(name: str, text: str) -> list[str]:
    """Problems found by every validator of this file; the operator's schemas are optional and lie beside the repository."""
    text = filled_in(text)
    if name.startswith("kuberay/"):
        return _read(text, lambda: [problem for manifest in manifests(text) for problem in manifest_problems(manifest)])
    if name == "aws/cluster.yaml":
        return _read(text, lambda: list(cluster_problems(load_all(text)[0])))
    if name.endswith(".json"):
        return _read(text, lambda: list(policy_problems(json.loads(text))))
    if name.endswith((".sh", ".sbatch")):
        return _run(["bash", "-n"], text) or _run([_tool("shellcheck"), "-"], text)
    if name.endswith("Dockerfile"):
        return _run([_tool("hadolint"), "--no-color", "-"], text)
    if name.endswith(".py"):
        return _run([sys.executable, "-c", "import sys; compile(sys.stdin.read(), 'stdin', 'exec')"], text) or _run(
            [_tool("ruff"), "check", "--quiet", "--stdin-filename", str(INFRA / name), "-"], text
        )
    assert name == "README.md", f"{name}: a deploy file without a validator"
    return [
        path
        for path in re.findall(r"`((?:aws|kuberay|slurm|docker|monitoring)/[\w./-]*)`", text)
        if not (INFRA / path).exists()
    ]


def files() -> list[str]:
    """Every deploy file, by its path within infra/; monitoring/ has its own validator."""
    names = [str(path.relative_to(INFRA)) for path in INFRA.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return sorted(name for name in names if not name.startswith("monitoring/"))


def filled_in(text: str) -> str:
    """The file with every placeholder filled in, as its users have it."""
    values = {
        "YOUR_ACCOUNT": "123456789012",
        "YOUR_REGION": "eu-central-1",
        "YOUR_ZONE": "eu-central-1a",
        "YOUR_BUCKET": "bucket",
    }
    return PLACEHOLDER.sub(lambda match: values.get(match.group(), match.group().lower().replace("_", "-")), text)


# --- YAML


class _StrictLoader(yaml.SafeLoader):
    """Refuses duplicate keys of a mapping, which YAML's readers accept silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice and not any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError(f"{', '.join(twice)}: stands twice in one mapping, line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def load_all(text: str) -> list[dict[str, Any]]:
    return list(yaml.load_all(text, Loader=_StrictLoader))


def with_kueue(text: str) -> str:
    """The second form of rayjob-train.yaml: the output of the sed command in its header."""
    return re.sub(r"# with Kueue: ", "", re.sub(r"^.*# without Kueue\n", "", text, flags=re.MULTILINE))


def manifests(text: str) -> list[dict[str, Any]]:
    """Every manifest of a file; both forms, if it has two."""
    forms = [text, with_kueue(text)] if "# with Kueue: " in text else [text]
    return [manifest for form in forms for manifest in load_all(form)]


# --- Kubernetes


def manifest_problems(manifest: dict[str, Any]) -> list[str]:
    """Violations of the schemas; if there are none, violations of the rules."""
    return list(_schema_problems(manifest)) or list(broken_rules(manifest))


def _schema_problems(manifest: dict[str, Any]) -> Iterator[str]:
    if manifest["kind"] not in CRD_FILES:
        yield from _kubernetes_problems(manifest)
    else:
        yield from _kubernetes_problems({"apiVersion": "v1", "kind": "ConfigMap", "metadata": manifest["metadata"]})
        if CRDS.is_dir():
            yield from crd_problems(manifest)
        for template in _pod_templates(manifest):
            stand_in = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
            yield from _kubernetes_problems(stand_in)


def crd_problems(manifest: dict[str, Any]) -> Iterator[str]:
    """Violations of the operator's own schema, with unknown keys refused."""
    for error in _crd_validator(manifest["kind"]).iter_errors(manifest):
        yield f"{error.json_path}: {error.message[:300]}"


@lru_cache
def _crd_validator(kind: str) -> jsonschema.Draft202012Validator:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's parser: the files have megabytes
    definition = yaml.load((CRDS / CRD_FILES[kind]).read_text(encoding="utf-8"), Loader=loader)
    version = next(version for version in definition["spec"]["versions"] if version["name"] == "v1")
    return jsonschema.Draft202012Validator(_strict(version["schema"]["openAPIV3Schema"]))


def _strict(schema: Any) -> Any:
    """The schema with unknown keys refused wherever it lists properties, as an API server does."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: _strict(part) for key, part in schema.items()}
    names_its_keys = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if names_its_keys and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result["additionalProperties"] = False
    return result


def _kubernetes_problems(manifest: dict[str, Any]) -> tuple[str, ...]:
    return _kubernetes_answer(json.dumps(manifest))


@lru_cache(maxsize=256)  # the validator reads its schemas on every call, and most parts of a file occur in others too
def _kubernetes_answer(manifest: str) -> tuple[str, ...]:
    import kubernetes_validate

    try:
        kubernetes_validate.validate(json.loads(manifest), KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        return (error.message,)
    except kubernetes_validate.ValidationError as error:
        return (f"{error.json_path}: {error.message[:300]}",)
    return ()


def _pod_templates(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, list):
        for part in node:
            yield from _pod_templates(part)
    if isinstance(node, dict):
        for key, part in node.items():
            if key in ("template", "submitterPodTemplate"):
                yield part
            else:
                yield from _pod_templates(part)


# --- AWS


def cluster_problems(config: dict[str, Any]) -> Iterator[str]:
    """Ray's own checks of a cluster file, EC2's of each node_config, and ours."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads((Path(sys.modules["ray"].__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    for key in set(config.get("provider", {})) - set(schema["properties"]["provider"]["properties"]):
        yield f"provider.{key}: Ray knows no such key"
    try:
        validate_config(prepare_config(copy.deepcopy(config)))  # in this order: the defaults are checked too
    except jsonschema.ValidationError as error:
        yield f"{error.json_path}: {error.message[:300]}"
        return
    except (AssertionError, RuntimeError, ValueError) as error:
        yield f"{type(error).__name__}: {error}"
        return
    for name, node in config["available_node_types"].items():
        request = {key: value for key, value in node["node_config"].items() if key not in NOT_FOR_EC2}
        yield from (f"{name}.node_config: {line}" for line in _ec2_problems(request))
    yield from _cluster_rules(config)


def _cluster_rules(config: dict[str, Any]) -> Iterator[str]:
    types, head_type = config["available_node_types"], config["head_node_type"]
    head = types[head_type]
    if head["resources"].get("CPU") != 0:
        yield f"{head_type}.resources.CPU={head['resources'].get('CPU')}: must be 0; the head does no work"
    if "InstanceMarketOptions" in head["node_config"]:
        yield f"{head_type}: the head is not for spot"
    for name, node in types.items():
        if node["node_config"].get("MetadataOptions", {}).get("HttpTokens") != "required":
            yield f"{name}: MetadataOptions.HttpTokens must be required (IMDSv2)"
        if name != head_type and node.get("min_workers", 0):
            yield f"{name}.min_workers={node['min_workers']}: groups start from zero"
        if node["node_config"]["IamInstanceProfile"]["Name"] != ("rayclip-head" if name == head_type else "rayclip-node"):
            yield f"{name}: IamInstanceProfile is another node's"
    options = config["docker"]["run_options"] + config["docker"]["head_run_options"]
    wanted = {"RAY_AUTH_MODE": "token", "RAY_JOB_STOP_WAIT_TIME_S": "120", **CLUSTER_SETTINGS}
    yield from (
        f"docker: --env {key}={value} is missing" for key, value in wanted.items() if f"--env {key}={value}" not in options
    )
    if config["provider"].get("cache_stopped_nodes") is not False:
        yield "provider.cache_stopped_nodes: must be false"
    if not any("spot_drain.py" in command for command in config["worker_start_ray_commands"]):
        yield "worker_start_ray_commands: nothing turns a spot notice into a drain"


@lru_cache
def _run_instances() -> Any:
    import botocore.session

    return botocore.session.Session().get_service_model("ec2").operation_model("RunInstances").input_shape


def _ec2_problems(request: dict[str, Any]) -> list[str]:
    """Parameters that EC2's RunInstances does not have, by botocore's model of it; no call is made."""
    from botocore.validate import ParamValidator

    report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **request}, _run_instances())
    return report.generate_report().splitlines()


def policy_problems(policy: dict[str, Any]) -> Iterator[str]:
    """Statements that IAM would refuse, actions that do not exist, and rights on all resources."""
    from cfnlint.api import lint
    from cfnlint.config import ManualArgs

    role = {"Type": "AWS::IAM::Role", "Properties": {"AssumeRolePolicyDocument": policy}}
    managed = {"Type": "AWS::IAM::ManagedPolicy", "Properties": {"PolicyDocument": policy}}
    trusts = any("Principal" in statement for statement in policy.get("Statement", []))
    template = {"AWSTemplateFormatVersion": "2010-09-09", "Resources": {"Policy": role if trusts else managed}}
    for match in lint(json.dumps(template), config=ManualArgs(regions=["us-east-1"])):
        yield f"{match.rule.id} {match.message}"
    for statement in policy.get("Statement", []):
        actions = statement.get("Action", [])
        for action in [actions] if isinstance(actions, str) else actions:
            if "*" in action:
                yield f"{action}: names more than is needed; list the actions"
            elif statement.get("Resource") == "*" and not action.startswith("ec2:Describe"):
                yield f"{action}: over every resource; name them"


# --- tools


def _read(text: str, check: Callable[[], list[str]]) -> list[str]:
    try:
        return check()
    except (yaml.YAMLError, json.JSONDecodeError, LookupError, TypeError, AttributeError, ValueError) as error:
        return [f"{type(error).__name__}: {' '.join(str(error).split())}"]  # a part is missing or has the wrong type


def _tool(name: str) -> str:
    """Path of a tool that pip installed beside this Python."""
    return str(Path(sys.executable).parent / name)


def _run(command: list[str], text: str) -> list[str]:
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return (result.stdout + result.stderr).splitlines() or [f"exit code {result.returncode}"] if result.returncode else []


# --- commands


def commands(text: str) -> list[str]:
    """Every command that runs one of our jobs, one line each: in comments, code blocks, scripts and manifests' values."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = [line for line in joined.splitlines() if re.search(r"jobs/\w+\.py|train\.sbatch ", line)]
    if re.search(r"^(apiVersion|cluster_name):", text, flags=re.MULTILINE):
        lines = [line for line in lines if line.startswith("#")]
        lines += [value for document in load_all(text) for value in _texts(document) if "jobs/" in value]
    return lines


def _texts(node: Any) -> Iterator[str]:
    """The strings of a document; a list of strings counts as one command line."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, list) and all(isinstance(part, str) for part in node):
        yield " ".join(node)
    elif isinstance(node, list | dict):
        for part in node.values() if isinstance(node, dict) else node:
            yield from _texts(part)
