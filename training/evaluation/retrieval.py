"""Retrieval between images and captions, with several captions per image: R@1, R@5, R@10 and the median rank, both ways.

In: each rank's normalised features of its own images and their captions. Out: the rank of each query's answer, and `Figure`s,
on all ranks. The N x M similarity matrix is walked once, in tiles that fit the cache, and each tile serves both ways: captions
of images, and images of captions. Image features stay on their rank; caption features are exchanged once, and then counts.

A tie counts as a miss: a model that gives every pair the same score finds nothing. A NaN score is never a hit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from training.distributed import World, gather_lengths, gather_uneven, sum_over_ranks
from training.evaluation.figures import Figure, median, share

RANKS = (1, 5, 10)
TILE = (512, 512)
"""Images x captions. It affects only the speed: 1 MB, as large as a core's second-level cache."""
GPU_TILE = (4096, 4096)
HALF = 0.5 - 1e-9
"""0.5, less the rounding errors of logarithms."""
_BYTE_SUMS = 128
"""Zeros and ones that are summed in one byte without overflow."""


@dataclass(frozen=True)
class Ranks:
    """Numbers of wrong answers that score at least as high as the (best) right one: 0 is a hit at 1. int64, on every rank.

    Attributes:
        image_to_text_N: for each image, among all captions.
        text_to_image_M: for each caption, among all images.
        captions_N: number of captions of each image.
    """

    image_to_text_N: Tensor
    text_to_image_M: Tensor
    captions_N: Tensor


@torch.no_grad()
def rank_pairs(
    images_NE: Tensor, texts_ME: Tensor, image_of_text_M: Tensor, world: World, tile: tuple[int, int] | None = None
) -> Ranks:
    """Ranks the answers to all processes' images and captions. Every process calls it.

    Args:
        images_NE, texts_ME: normalised features of this process's images, and of their captions.
        image_of_text_M: index of each caption's image among this process's images, ascending.
        tile: images x captions that are compared at a time, multiples of 128.
    """
    with torch.autocast(images_NE.device.type, enabled=False):  # bfloat16 would create ties
        matrix = _Tiles(images_NE, gather_uneven(texts_ME, world), tile)
        first = sum(gather_lengths(len(texts_ME), world)[: world.rank])
        own_M = first + torch.arange(len(texts_ME), device=texts_ME.device)
        right_M = matrix.scores(image_of_text_M, own_M)
        best_N = torch.full((len(images_NE),), -torch.inf, device=images_NE.device)
        best_N = best_N.scatter_reduce(0, image_of_text_M, right_M, "amax")  # NaN if one of them is NaN
        all_right_M = gather_uneven(right_M, world)
        lower_N, lower_M = matrix.count_lower(best_N, all_right_M, image_of_text_M, own_M)
    captions_N = torch.bincount(image_of_text_M, minlength=len(images_NE))
    num_images = sum(gather_lengths(len(images_NE), world))
    # Every score that is not lower counts as a wrong answer, NaN too. Right pairs are not compared, so they are subtracted.
    image_ranks_N = _never_found(len(all_right_M) - lower_N - captions_N, best_N, len(all_right_M))
    text_ranks_M = _never_found(num_images - sum_over_ranks(lower_M, world) - 1, all_right_M, num_images)
    return Ranks(gather_uneven(image_ranks_N, world), text_ranks_M, gather_uneven(captions_N, world))


def retrieval_ranks(query_NE: Tensor, key_ME: Tensor, answer_N: Tensor, tile: tuple[int, int] | None = None) -> Tensor:
    """Counts the other keys that score at least as high as each query's right one: (N,), 0 is a hit at 1. For one process.

    Args:
        query_NE, key_ME: normalised features.
        answer_N: index of each query's right key.
    """
    with torch.no_grad(), torch.autocast(query_NE.device.type, enabled=False):
        matrix, queries_N = _Tiles(query_NE, key_ME, tile), torch.arange(len(query_NE), device=query_NE.device)
        right_N = matrix.scores(queries_N, answer_N)
        nothing_M = torch.full((len(key_ME),), torch.nan, device=key_ME.device)
        lower_N, _ = matrix.count_lower(right_N, nothing_M, queries_N, answer_N)
        return _never_found(len(key_ME) - lower_N - 1, right_N, len(key_ME))


def _never_found(ranks_N: Tensor, right_N: Tensor, num_keys: int) -> Tensor:
    """Puts a query whose right score is NaN behind all keys, and behind the largest k even if there are fewer keys."""
    return torch.where(right_N.isnan(), max(num_keys, *RANKS), ranks_N)


class _Tiles:
    """The similarity of rows (images) and columns (captions), computed tile by tile and never stored.

    All tiles have one shape, padded at the edges: a matrix product rounds a pair in the same way anywhere in a tile, but
    differently in products of other shapes. So equal features have equal scores, and ties are exact.
    """

    def __init__(self, rows_NE: Tensor, columns_ME: Tensor, tile: tuple[int, int] | None) -> None:
        self.shape = tile or (GPU_TILE if rows_NE.device.type == "cuda" else TILE)
        self.rows_NE, self.columns_ME = rows_NE.contiguous(), columns_ME.contiguous()

    def scores(self, row_P: Tensor, column_P: Tensor) -> Tensor:
        """Returns the similarity of some pairs, bitwise equal to that in their tiles."""
        size, found = min(self.shape), [self.rows_NE.new_zeros(0)]
        for rows, columns in zip(row_P.split(size), column_P.split(size), strict=True):
            scores_RC = _padded(self.rows_NE[rows], self.shape[0]) @ _padded(self.columns_ME[columns], self.shape[1]).T
            found.append(scores_RC.diagonal()[: len(rows)])
        return torch.cat(found)

    def count_lower(self, row_bar_N: Tensor, column_bar_M: Tensor, row_P: Tensor, column_P: Tensor) -> tuple[Tensor, Tensor]:
        """Counts the scores in each row that are below its bar, and those in each column, without the pairs P.

        Args:
            row_P, column_P: the pairs; rows ascend.
        """
        lower_N = torch.zeros(len(row_bar_N), dtype=torch.int64, device=row_bar_N.device)
        lower_M = torch.zeros(len(column_bar_M), dtype=torch.int64, device=row_bar_N.device)
        tops = range(0, len(row_bar_N), self.shape[0])
        bounds = torch.tensor([*tops, len(row_bar_N)], device=row_P.device)
        pairs = torch.searchsorted(row_P, bounds).tolist()

        def walk(number: int) -> tuple[Tensor, Tensor]:
            top, own = tops[number], slice(pairs[number], pairs[number + 1])
            rows = slice(top, top + self.shape[0])
            return self._walk(rows, row_bar_N[rows], column_bar_M, row_P[own] - top, column_P[own])

        with _parallel_map(row_bar_N.device) as parallel_map:
            for top, (lower_R, lower) in zip(tops, parallel_map(walk, range(len(tops))), strict=True):
                lower_N[top : top + len(lower_R)] = lower_R
                lower_M += lower
        return lower_N, lower_M

    @torch.no_grad()  # the grad mode is per thread
    def _walk(
        self, rows: slice, row_bar_R: Tensor, column_bar_M: Tensor, row_P: Tensor, column_P: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Counts in one row of tiles, over all columns."""
        height, width = self.shape
        scores_RC = self.rows_NE.new_empty(height, width)
        lower_RC = torch.empty_like(scores_RC, dtype=torch.bool)
        lower_R, lower_M = torch.zeros_like(row_bar_R, dtype=torch.int64), torch.zeros_like(column_bar_M, dtype=torch.int64)
        rows_RE, bar_R1 = _padded(self.rows_NE[rows], height), _padded(row_bar_R, height)[:, None]
        tile_P = column_P // width
        band = set(tile_P.tolist())
        for number, left in enumerate(range(0, len(column_bar_M), width)):
            columns = slice(left, left + width)
            torch.mm(rows_RE, _padded(self.columns_ME[columns], width).T, out=scores_RC)
            if number in band:
                here = tile_P == number
                scores_RC[row_P[here], column_P[here] - left] = torch.nan
            torch.lt(scores_RC, bar_R1, out=lower_RC)
            lower_R += _sum_of_rows(lower_RC)[: len(lower_R)]
            torch.lt(scores_RC, _padded(column_bar_M[columns], width), out=lower_RC)
            lower_M[columns] += _sum_of_columns(lower_RC)[: len(column_bar_M) - left]
        return lower_R, lower_M


@contextlib.contextmanager
def _parallel_map(device: torch.device) -> Iterator[Callable[..., Iterable[tuple[Tensor, Tensor]]]]:
    """Yields a `map` over as many threads as torch has; its own threads would wait for each other several times per tile."""
    threads = torch.get_num_threads()
    if device.type == "cuda" or threads == 1:
        yield map
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)


# Sums of a matrix of zeros and ones, eight bytes at a time: torch would first widen each to 64 bits, which is several times
# slower.


def _sum_of_rows(ones_RC: Tensor) -> Tensor:
    height, width = ones_RC.shape
    words = ones_RC.view(torch.int64).view(height, width // (8 * _BYTE_SUMS) or 1, -1)
    return words.sum(2).view(torch.uint8).sum(1)


def _sum_of_columns(ones_RC: Tensor) -> Tensor:
    height, width = ones_RC.shape
    words = ones_RC.view(torch.int64).view(height // _BYTE_SUMS, _BYTE_SUMS, width // 8)
    return words.sum(1).view(torch.uint8).view(height // _BYTE_SUMS, width).sum(0)


def _padded(rows: Tensor, length: int) -> Tensor:
    """Pads with NaN rows: NaN is lower than nothing."""
    if len(rows) == length:
        return rows
    return torch.cat([rows, rows.new_full((length - len(rows), *rows.shape[1:]), torch.nan)])


def retrieval_figures(ranks: Ranks) -> list[Figure]:
    """Returns R@1, R@5, R@10 and the median rank (1 is best), both ways. Each caption of an image is a query of its own."""
    one_M = torch.ones_like(ranks.text_to_image_M)
    return [
        *_figures("image_to_text", ranks.image_to_text_N, ranks.captions_N, len(ranks.text_to_image_M)),
        *_figures("text_to_image", ranks.text_to_image_M, one_M, len(ranks.image_to_text_N)),
    ]


def _figures(way: str, ranks_N: Tensor, right_N: Tensor, num_keys: int) -> list[Figure]:
    """Args:
    right_N: number of right keys of each query.
    """
    counts, queries = torch.unique(right_N.cpu(), return_counts=True)
    found = [share(f"{way}_r{k}", int((ranks_N < k).sum()), len(ranks_N), _chance(k, counts, queries, num_keys)) for k in RANKS]
    low, high = 1, num_keys
    while low < high:  # the smallest k within which chance finds half of the answers
        middle = (low + high) // 2
        low, high = (low, middle) if _chance(middle, counts, queries, num_keys) >= HALF else (middle + 1, high)
    places = (ranks_N + 1).sort().values.tolist()
    return [*found, median(f"{way}_median_rank", places, float(low))]


def _chance(k: int, counts: Tensor, queries: Tensor, num_keys: int) -> float:
    """Returns the share of queries with a right key among k random ones: 1 - C(M - c, k) / C(M, k)."""
    wrong = (num_keys - counts).double()
    k = min(k, num_keys)
    missed = torch.lgamma(wrong + 1) - torch.lgamma(wrong - k + 1)
    total = torch.tensor(num_keys + 1.0, dtype=torch.float64)
    missed = (missed - torch.lgamma(total) + torch.lgamma(total - k)).exp()
    missed = torch.where(wrong < k, 0.0, missed)
    return float(((1 - missed) * queries).sum() / queries.sum())
