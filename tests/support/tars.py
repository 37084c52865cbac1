"""Tars as other programs write them, and the data set that an index of one makes."""

from __future__ import annotations

import io
import tarfile

from pipeline.config import IndexConfig
from pipeline.dataset.manifest import commit, read_sidecar
from pipeline.storage.address import open_storage
from pipeline.versions.audit import verify
from pipeline.versions.foreign_tars import index_tar
from training.data.shard_reader import ShardReader


def info_of(name, size=0, **fields):
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def packed(members, **options):
    """A tar of (name or TarInfo, content)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else info_of(name, len(content))
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


class Indexed:
    """A data set of one tar."""

    def __init__(self, folder, content, **config):
        (folder / "t.tar").write_bytes(content)
        self.config = IndexConfig(input=str(folder / "t.tar"), output=str(folder / "data"), **config)
        self.storage = open_storage(self.config.output)
        self.record = index_tar(self.config.input, self.config)
        self.manifest = commit(self.storage, [self.record])
        assert verify(self.storage, self.manifest) == []
        self.rows = read_sidecar(self.storage, self.manifest.shards[0]).to_pylist()

    @property
    def reasons(self):
        return [(row["key"], row["reason"]) for row in self.rows]

    def samples(self, captions=("caption",)):
        """(key, captions, image) as training reads them, checked against their hashes."""
        found = ShardReader(self.storage, self.manifest, captions).read(0, 0, self.manifest.num_samples)
        return [(sample.key, sample.captions, sample.image) for sample in found]


def pairs(image, *keys):
    return [(f"{key}.{extension}", data) for key in keys for extension, data in (("jpg", image), ("txt", b"a disc"))]


def whole(*keys):
    return [(key, ("a disc",)) for key in keys]
