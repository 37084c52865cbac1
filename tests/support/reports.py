"""Reports made of rows, and what a page holds of its charts."""

import json
import re

from jobs.reporting.run_data import RunReport, parse_record

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><b>bold</b> {{ 7 * 7 }}"


def charts_of(page):
    return json.loads(re.search(r'id="charts">(.*?)</script>', page, flags=re.DOTALL)[1])


def report_of(steps=(), evaluations=(), **more):
    known = {"config_text": "", "starts": [], "result": None, "pairs": None, "looks": []}
    columns, rows = parse_record("".join(json.dumps(row) + "\n" for row in (*steps, *evaluations)).encode(), [])
    return RunReport("name", "runs/name", steps=columns, evaluations=rows, **(known | more))


def hostile_report():
    pairs = {"uri": HOSTILE, "version": 1, "held_out": True, "keys": ["k"], "captions": [HOSTILE], "thumbnails": [""]}
    look = {"step": 1, "similarity": [[0.5]], "found": [[0]], "rank": [0]}
    config = f"run:\n  name: {json.dumps(HOSTILE)}\n"
    step = {"step": 1, "loss": 1.0, "samples_seen": 32, "temperature": 0.07}
    return report_of(
        [step],
        [{"step": 1, f"evaluation/{HOSTILE}": 0.5}],
        config_text=config,
        pairs=pairs | {"shown": [0], "queries": [0]},
        looks=[look],
        problems=[HOSTILE],
    )
