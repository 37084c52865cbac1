"""Compares the retrieval metrics of many pairs with a plain version: blocks of rows, computed again for each direction.

Each side runs in its own process, so that its peak memory is its own. Both must find the same recalls.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SIDES = ("ours", "row blocks")
ROWS = 1024


def run(pairs: int, dimensions: int, threads: int, repeats: int) -> str:
    """Measures both sides in turns. Returns a table of medians."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side in SIDES:
            command = [sys.executable, "-m", __spec__.name, side, *map(str, (pairs, dimensions, threads))]
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
    recalls = {json.dumps(one["recalls"]) for side in SIDES for one in found[side]}
    if len(recalls) != 1:
        raise RuntimeError(f"the sides disagree: {recalls}")
    lines = [f"{pairs:,} pairs of {dimensions} dimensions, {threads} threads"]
    lines.append(f"{'':12}{'wall s':>10}{'CPU s':>10}{'peak GB':>10}")
    for side in SIDES:
        columns = [sorted(one[name] for one in found[side]) for name in ("wall_s", "cpu_s", "peak_gb")]
        wall_s, cpu_s, peak = (column[repeats // 2] for column in columns)
        lines.append(f"{side:12}{wall_s:10.1f}{cpu_s:10.1f}{peak:10.2f}")
    return "\n".join(lines)


def _measure(side: str, pairs: int, dimensions: int, threads: int) -> dict[str, Any]:
    import resource

    import torch
    import torch.nn.functional as F

    from training.distributed import World

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(pairs, dimensions, generator=generator), dim=-1)
    texts = F.normalize(images + 4.5 * F.normalize(torch.randn(pairs, dimensions, generator=generator), dim=-1), dim=-1)
    began, cpu = time.perf_counter(), time.process_time()
    if side == SIDES[0]:
        from training.evaluation.retrieval import rank_pairs

        ranks = rank_pairs(images, texts, torch.arange(pairs), World(0, 1, torch.device("cpu")))
        both = ranks.image_to_text_N, ranks.text_to_image_M
    else:
        both = _row_blocks(images, texts), _row_blocks(texts, images)
    return {
        "recalls": [int((one < k).sum()) for one in both for k in (1, 5, 10)],
        "wall_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def _row_blocks(queries_NE: Any, keys_NE: Any) -> Any:
    """Rank of each query's own key, in the plain way."""
    import torch

    ranks = []
    for first in range(0, len(queries_NE), ROWS):
        scores = queries_NE[first : first + ROWS] @ keys_NE.T
        right = scores.gather(1, torch.arange(first, first + len(scores))[:, None])
        ranks.append((~(scores < right)).sum(dim=1) - 1)
    return torch.cat(ranks)


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], *map(int, sys.argv[2:]))))
