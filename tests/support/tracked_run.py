"""The record of a run without its training: logs steps, with an evaluation every fifth, to metrics.jsonl and to W&B.

    python -m tests.support.tracked_run FOLDER MODE RESUME_STEP LAST_STEP [SERVER_ANSWERS_WITHIN_S]

Prints `tracking` before the first step, and at the end `sync: ` with the command that uploads the run. With a file FOLDER/go,
it logs the steps after RESUME_STEP + 10 once the file is gone.
"""

import sys
import time
from pathlib import Path

from training.config import TrackingConfig
from training.record import wandb_run
from training.record.tracking import Tracker

NAME, ID = "run", "run-1234"


def rows_of(step: int) -> list[dict[str, float]]:
    row = {"step": step, "loss": 4.0 / step, "temperature": 0.07 + step / 1000, "learning_rate": 1e-3}
    return [row, {"step": step, "retrieval/image_to_text/recall@1": step / 100}] if step % 5 == 0 else [row]


def main(folder: Path, mode: str, resume_step: int, last_step: int, answers_within_s: float = 15.0) -> None:
    wandb_run.SERVER_ANSWERS_WITHIN_S, wandb_run.UPLOADED_WITHIN_S = answers_within_s, 15.0
    config = TrackingConfig(wandb_mode=mode)
    data_sets = [{"uri": str(folder / "data"), "version": 1, "identity": "0123"}]
    (folder / "data" / "manifests").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "manifests" / "00000001.json").write_text("{}")
    with Tracker(config, NAME, ID, folder, {"train": {"seed": 1}}, resume_step, data_sets) as tracker:
        print("tracking", flush=True)
        for step in range(resume_step + 1, last_step + 1):
            while step == resume_step + 11 and (folder / "go").exists():
                time.sleep(0.05)
            for row in rows_of(step):
                tracker.log(row)
        tracker.summarize({"time/train": 1.5})
    print(f"sync: {tracker.sync_command}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *map(float, sys.argv[5:]))
