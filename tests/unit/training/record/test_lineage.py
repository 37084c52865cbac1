"""Artifacts of W&B refer to data sets and weights by their identity, and read none of their content."""

from tests.support.wandb_file import artifacts_of
from training.config import TrackingConfig
from training.record.lineage import data_set_artifact, log_model


def test_an_export_and_an_ingestion_name_what_they_made_and_versions_differ_by_their_identity(data_set, tmp_path):
    first = {"uri": data_set, "version": 1, "identity": "a" * 64}
    data_sets = [data_set_artifact(one) for one in (first, first, first | {"identity": "b" * 64})]
    assert data_sets[0].name == data_sets[2].name
    assert data_sets[0].digest == data_sets[1].digest, "an ingestion and a run mean the same version"
    assert data_sets[0].digest != data_sets[2].digest, "made anew in the same place"
    config = TrackingConfig(wandb_mode="offline")
    (tmp_path / "weights.safetensors").write_bytes(b"1")
    export = str(tmp_path / "weights.safetensors")
    command = log_model(config, "demo", "demo-1234", str(tmp_path), export, {"sha256": "c" * 64, "step": 30})
    (path,) = tmp_path.glob("wandb/offline-run-*-demo-1234/run-demo-1234.wandb")
    assert command == f"wandb sync {path.parent}"
    (model,) = artifacts_of(path)
    assert (model["type"], model["name"], model["used"]) == ("model", "demo-weights", False)
    assert model["metadata"] == {"address": export, "sha256": "c" * 64, "step": 30}


def test_a_data_set_in_object_storage_is_referred_to_and_not_asked_for():
    artifact = data_set_artifact({"uri": "s3://nobody-has-this-bucket/pairs", "version": 7, "identity": "a" * 64})
    assert [entry.ref for entry in artifact.manifest.entries.values()] == [
        "s3://nobody-has-this-bucket/pairs/manifests/00000007.json"
    ]
