"""Damaged samples: fail or skip, as `data.on_damage` says, and at most `data.max_skipped_samples` of them.

In: what is wrong with a sample, from the loader of a run or from jobs/embed.py. Out: a warning and a count, or a ManifestError.
"""

from __future__ import annotations

import logging

from pipeline.dataset.manifest import ManifestError

logger = logging.getLogger(__name__)

NAMED = 10
"""Samples whose damage is logged one by one; later only every hundredth."""


def damage_error(problem: str) -> ManifestError:
    """Returns the error of a damaged sample with data.on_damage=fail."""
    return ManifestError(f"{problem} (or skip such samples: data.on_damage=skip)")


class DamagedSamples:
    """Counts the samples skipped with data.on_damage=skip.

    Attributes:
        skipped: damaged samples so far.
    """

    def __init__(self, max_skipped_samples: int, where: str = "") -> None:
        """Args:
        where: the place that messages name, e.g. "rank 3".
        """
        self.skipped = 0
        self._limit, self._where = max_skipped_samples, f" on {where}" if where else ""

    def skip(self, problem: str) -> None:
        """Counts and logs one damaged sample.

        Raises:
            ManifestError: it is one more than data.max_skipped_samples.
        """
        self.skipped += 1
        if self.skipped > self._limit:
            raise ManifestError(
                f"data.max_skipped_samples={self._limit}: one more sample{self._where} is damaged ({problem}); restore the "
                "data, or raise the limit"
            )
        if self.skipped <= NAMED or self.skipped % 100 == 0:
            logger.warning("skipped damaged sample no. %d%s: %s", self.skipped, self._where, problem)
