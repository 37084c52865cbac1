"""Fakes of `ray.util.metrics`: one that records values and calls, and one that fails."""

from __future__ import annotations

from typing import Any


class MetricsLibrary:
    """Attributes:
    values: exported name and labels -> value.
    told: exported name and labels -> number of calls.
    """

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self.told: dict[tuple[str, tuple[tuple[str, str], ...]], int] = {}

    def Counter(self, name: str, description: str, tag_keys: tuple[str, ...]) -> Any:  # noqa: N802 - Ray's name
        return _Metric(self, name, tag_keys)

    Gauge = Counter

    def of(self, name: str, **labels: str) -> float:
        return self.values[name, tuple(sorted(labels.items()))]

    def names(self) -> set[str]:
        return {name for name, _ in self.values}


class _Metric:
    def __init__(self, library: MetricsLibrary, name: str, tag_keys: tuple[str, ...]) -> None:
        self._library, self._name, self._tag_keys = library, name, tag_keys

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0, "as Ray says"
        key = self._key(tags)
        self._note(key, self._library.values[key] + value if key in self._library.values else value)

    def set(self, value: float, tags: dict[str, str]) -> None:
        self._note(self._key(tags), value)

    def _key(self, tags: dict[str, str]) -> tuple[str, tuple[tuple[str, str], ...]]:
        assert set(tags) == set(self._tag_keys), "Ray wants a value for each"
        return self._name, tuple(sorted(tags.items()))

    def _note(self, key: tuple[str, tuple[tuple[str, str], ...]], value: float) -> None:
        if self._library.error is not None:
            raise self._library.error
        self._library.values[key] = value
        self._library.told[key] = self._library.told[key] + 1 if key in self._library.told else 1
