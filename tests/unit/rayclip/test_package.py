"""`import rayclip`: light, complete and typed."""

import subprocess
import sys

import pytest

import rayclip
from tests.support.pages import ROOT

LIGHT = """
import sys, time
began = time.perf_counter()
import rayclip
assert rayclip.ConfigError and rayclip.RunError
took = time.perf_counter() - began
heavy = {"torch", "ray", "numpy", "pyarrow", "pandas"} & set(sys.modules)
assert not heavy, heavy
print(took)
"""


def test_the_import_is_light():
    done = subprocess.run([sys.executable, "-c", LIGHT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 10, "1 s on an idle machine"


def test_a_data_set_is_opened_without_torch_and_ray(data_set):
    code = f"import rayclip, sys; print(len(rayclip.DataSet({data_set!r})), 'torch' in sys.modules, 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["64", "False", "False"], done.stderr


def test_every_public_name_is_there_documented_and_listed():
    assert dir(rayclip) == sorted(rayclip.__all__)
    for name in rayclip.__all__:
        assert getattr(rayclip, name).__doc__, name
        assert getattr(rayclip, name) is getattr(rayclip, name)


def test_a_name_that_is_none_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        rayclip.lod  # noqa: B018


def test_errors_are_those_that_the_packages_raise():
    from pipeline.errors import ConfigError
    from training.errors import RunError

    assert rayclip.ConfigError is ConfigError
    assert rayclip.RunError is RunError
    assert issubclass(rayclip.ConfigError, rayclip.InputError)
