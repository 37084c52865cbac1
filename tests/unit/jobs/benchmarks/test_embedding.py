"""The embedding benchmark: its parts without Ray, and its report. tests/system/test_embed.py runs the job on Ray."""

import torch

from jobs.benchmarks.embedding import Setting, _Alone, _report
from jobs.benchmarks.stored_tars import index, write_tars
from model.clip import build_clip

SETTING = Setting("debug-vit", batch_size=2, shards=2, shard_samples=3, threads=1)


def test_the_parts_of_the_job_are_timed_alone_on_every_batch(tmp_path):
    threads = torch.get_num_threads()
    write_tars(tmp_path / "tars", ["a thing"] * SETTING.samples, SETTING.shard_samples)
    index(str(tmp_path / "tars"), str(tmp_path / "data"))
    alone = _Alone(SETTING, str(tmp_path / "data"), build_clip("debug-vit").state_dict())
    torch.set_num_threads(threads)
    assert len(alone.batches) == 4
    assert alone.decode_s() > 0
    assert alone.forward_s() > 0
    forward_s, all_s = alone.cpu_s(str(tmp_path / "features"))
    assert forward_s >= 0
    assert all_s > 0


def test_the_report_has_medians_and_ratios():
    rows = [(1.0, 4.0, 5.0, 0.8), (1.0, 4.0, 4.0, 0.9), (1.0, 4.0, 8.0, 0.7)]
    text = _report(SETTING, rows, [(1.0, 2.0)])
    assert "the job over the forward pass alone: 0.800 (0.800, 1.000, 0.500)" in text
    assert "the job over forward, then decode:   1.000" in text
    assert "0.500" in text.splitlines()[-1]
