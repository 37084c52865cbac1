"""RayCLIP from Python: load a model, read a data set, ingest and train; and the command `rayclip`.

    model = rayclip.load("runs/mine")
    model.encode_image(["a.jpg", "b.png"]) @ model.encode_text(["a dog"]).T
    for sample in rayclip.DataSet("data/pairs").filter("width > 200").samples(): ...
    rayclip.ingest(ingest={"input": "pairs.parquet", "output": "data/pairs"})
    rayclip.train("debug_cpu", data={"uri": "data/pairs"})

Stands on top of all other packages. Each name is imported when it is first used: this import costs neither torch nor Ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, InputError, NotMeantError
from training.errors import RunError

if TYPE_CHECKING:
    from rayclip.data_set import DataSet, Sample
    from rayclip.job_calls import IngestSummary, TrainResult, ingest, train
    from rayclip.loaded_model import Model, load

__all__ = [
    "ConfigError",
    "DataSet",
    "IngestSummary",
    "InputError",
    "Model",
    "NotMeantError",
    "RunError",
    "Sample",
    "TrainResult",
    "ingest",
    "load",
    "train",
]
_MODULES = {
    **dict.fromkeys(("DataSet", "Sample"), "data_set"),
    **dict.fromkeys(("IngestSummary", "TrainResult", "ingest", "train"), "job_calls"),
    **dict.fromkeys(("Model", "load"), "loaded_model"),
}
"""Name -> the module of this package that it is imported from."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
