"""Batches for a `Side`: images and captions that lie ready, or those of each side's own data loader.

A source is a function of a side; its context yields (images, padded token ids) without end. Both sides get the same captions in
the same order where they lie ready, other ones in each step; each side's loader decodes the same tars with as many processes.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.benchmarks.step_sides import OurSide, Setting, Side
from jobs.benchmarks.synthetic_data import captions, write_data_set

if TYPE_CHECKING:
    from torch import Tensor

Batches = Iterator[tuple["Tensor", "Tensor"]]
Source = Callable[[Side], AbstractContextManager[Batches]]


class ReadyBatches:
    """One batch of images on the device, and captions that were tokenized before: nothing but the step takes time."""

    def __init__(self, setting: Setting, different: int, raw: bool = False) -> None:
        """
        Args:
            different: batches of captions until they repeat.
            raw: uint8 images, as our loader leaves them; for our side alone.
        """
        import torch

        from model.config import get_architecture
        from model.tokenizer import tokenize

        row = get_architecture(setting.name)
        self.setting = setting
        self.texts = [tokenize(captions(setting.batch_size, seed), row.context_length) for seed in range(different)]
        generator = torch.Generator().manual_seed(0)
        shape = (setting.batch_size, 3, row.image_size_px, row.image_size_px)
        if raw:
            self.images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        else:
            self.images = torch.randn(shape, generator=generator)

    @contextlib.contextmanager
    def __call__(self, side: Side) -> Iterator[Batches]:
        import torch

        images, texts = self.images.to(self.setting.device), self.texts
        if isinstance(side, OurSide):  # as each side's loader leaves them
            images = images.to(memory_format=torch.channels_last)
            texts = [one[:, : int((one != 0).sum(1).max())] for one in texts]
        yield ((images, one) for one in itertools.cycle(texts))

    @property
    def lengths(self) -> list[int]:
        """Tokens of each caption, special tokens included, of all different batches."""
        return [int(length) for one in self.texts for length in (one != 0).sum(1)]


class LoadedBatches:
    """Images and captions of each side's loader, started again for each round."""

    def __init__(self, setting: Setting, folder: Path, samples: int, workers: int) -> None:
        """
        Args:
            folder: of the data set that is written.
            workers: processes that decode, of each side.
        """
        self.setting, self.folder, self.samples, self.workers = setting, folder, samples, workers
        write_data_set(str(folder), samples, shard_samples=max(1, samples // max(8, workers)))

    @contextlib.contextmanager
    def __call__(self, side: Side) -> Iterator[Batches]:
        with self._ours() if isinstance(side, OurSide) else self._theirs() as batches:
            yield batches

    @contextlib.contextmanager
    def _ours(self) -> Iterator[Batches]:
        import torch

        from training.config import DataConfig, ModelConfig, RunConfig, TrainConfig, TrainingConfig
        from training.data.loader import TrainLoader
        from training.distributed import World
        from training.run_plan import plan_run

        with tempfile.TemporaryDirectory() as temporary:
            config = TrainingConfig(
                run=RunConfig(dir=temporary),
                model=ModelConfig(name=self.setting.name),
                data=DataConfig(uri=str(self.folder), decode_workers=self.workers, block_size_samples=64),
                train=TrainConfig(global_batch_size=self.setting.batch_size),
            )
            plan = plan_run(config)
            world, row = World(0, 1, torch.device(self.setting.device)), plan.architecture
            sizes = row.image_size_px, row.context_length
            with contextlib.closing(TrainLoader(plan.data_sets, plan.order, world, *sizes, plan.config.data, 0)) as loader:
                yield ((batch.images, batch.texts) for batch in loader)

    @contextlib.contextmanager
    def _theirs(self) -> Iterator[Batches]:
        """open_clip's pipeline, with webdataset's own reader of tars: open_clip 3.3.0's fails with webdataset 1."""
        import open_clip
        import webdataset
        from open_clip_train.data import _SAMPLE_SHUFFLE_INITIAL, _SAMPLE_SHUFFLE_SIZE

        from model.config import get_architecture

        transform = open_clip.image_transform(get_architecture(self.setting.name).image_size_px, is_train=True)
        tokenizer = open_clip.SimpleTokenizer()
        data = webdataset.DataPipeline(
            webdataset.ResampledShards(sorted(map(str, self.folder.rglob("*.tar")))),
            webdataset.tarfile_to_samples(),
            webdataset.shuffle(min(_SAMPLE_SHUFFLE_SIZE, self.samples), initial=min(_SAMPLE_SHUFFLE_INITIAL, self.samples)),
            webdataset.decode("pilrgb"),
            webdataset.rename(image="jpg", text="txt"),
            webdataset.map_dict(image=transform, text=_FirstRow(tokenizer)),
            webdataset.to_tuple("image", "text"),
            webdataset.batched(self.setting.batch_size, partial=False),
        )
        device = self.setting.device
        loader = webdataset.WebLoader(data, batch_size=None, shuffle=False, num_workers=self.workers)
        yield ((images.to(device, non_blocking=True), texts) for images, texts in loader)


class _FirstRow:
    """The token ids of one text. A class, so that it reaches the loader's processes."""

    def __init__(self, tokenizer: Callable[[str], Tensor]) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str) -> Tensor:
        return self.tokenizer(text)[0]
