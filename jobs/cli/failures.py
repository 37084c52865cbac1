"""An error as people read it: one message, the exit code, and whether a traceback says more.

In: an exception of a job, also one that Ray carried from a worker. Out: `Ending`. Nothing of Ray is imported: its exceptions
are known by the names of their classes.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError, NotMeantError, StorageAwayError, WorkerDiedError
from training.errors import RunError

OF_OURS = (InputError, NotMeantError, RunError, WorkerDiedError)
EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_NOT_MEANT = 0, 1, 2, 3
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_TEXTS = ("No space left on device", "(os error 28)", "Disk quota exceeded", "(os error 122)")
"""Libraries in C++ and Rust raise errors without a number."""
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
ROOM_BYTES = 16 << 20
"""A file system with less room than this, or than a two-hundredth of its size, is named as full."""
AGAIN = "the same command continues from what is committed"
OF_RAY = {
    "OutOfMemoryError": "a worker was stopped because its node ran out of memory; use fewer workers at a time, smaller "
    f"batches or nodes with more memory; {AGAIN}",
    "OutOfDiskError": "the disk of a node is full, so that Ray cannot keep its objects; make room in Ray's temporary "
    f"folder; {AGAIN}",
    "ObjectStoreFullError": f"Ray's object store is full; make room in /dev/shm, or use fewer workers at a time; {AGAIN}",
    "NodeDiedError": f"a node of the cluster was lost; {AGAIN}",
    "LocalRayletDiedError": f"Ray's process on this node died; is its disk, /dev/shm or its memory full? {AGAIN}",
    "WorkerCrashedError": "",
    "ActorDiedError": "",
    "ActorUnavailableError": "",
    "RayActorError": "",
    "OwnerDiedError": "",
    "ObjectLostError": f"a node or a worker that held data was lost; {AGAIN}",
    "ObjectReconstructionFailedError": f"a node or a worker that held data was lost; {AGAIN}",
    "RpcError": f"the cluster does not respond; is its head up? {AGAIN}",
}
"""Class of Ray's -> message; the same command may succeed after each of them."""
HEAD_LOST = f"the cluster's head does not respond any more; start it again, then run the same command: {AGAIN}"
WORKER_DIED = (
    "a worker process died without an error of its own, as if killed (SIGKILL), which the kernel does when memory runs out; "
    f"if that repeats, use fewer workers at a time or nodes with more memory; {AGAIN}"
)

OF_RAY_DATA = "\nFailed to apply UDF transform"
"""The beginning of what Ray Data appends to the message of a worker's error."""
RAY_DID_NOT_START = ("timed out during startup", "Timed out waiting for file")
"""Parts of plain exceptions of Ray's."""


@dataclass(frozen=True)
class Ending:
    """The end of a job that raised an error.

    Attributes:
        text: the message, of one or several lines.
        is_whole: the message says all, because a person wrote it for this case; otherwise the traceback is of use.
    """

    code: int
    text: str
    is_whole: bool = True


def explain(error: BaseException, places: Sequence[str] = (), head_is_gone: bool = False) -> Ending:
    """Describes an error.

    Args:
        places: local folders that the job writes to, and that may be full.
        head_is_gone: the head of the job's cluster does not respond.
    """
    found = list(_causes(error))
    own = next((one for one in found if isinstance(one, OF_OURS)), None)
    message = str(own).partition(OF_RAY_DATA)[0]
    carried = own is not error
    if any(map(_is_full, found)):
        text = message if own else f"{_file_of(found)}no space is left on the disk"
        return Ending(EXIT_FAILED, f"{text}{_full_places(places)}; make room there; {AGAIN}", not carried)
    if isinstance(own, NotMeantError):
        return Ending(EXIT_NOT_MEANT, message)
    if own is not None:
        bad_input = isinstance(own, InputError) and not isinstance(own, StorageAwayError)
        return Ending(EXIT_BAD_INPUT if bad_input else EXIT_FAILED, message, not carried)
    for one in found:
        if isinstance(one, OSError) and one.errno in FORBIDDEN and one.filename:
            text = f"{one.filename}: {one.strerror}; choose a folder that can be read and written, or change its permissions"
            return Ending(EXIT_BAD_INPUT, text, is_whole=False)
    for one in found:
        name = type(one).__name__
        if name in OF_RAY and type(one).__module__.startswith("ray."):
            return Ending(EXIT_FAILED, HEAD_LOST if head_is_gone else OF_RAY[name] or WORKER_DIED, is_whole=False)
        if isinstance(one, MemoryError) or name == "OutOfMemoryError":  # PyTorch's has no room on a GPU
            text = f"memory ran out ({_first_line(one)}); use smaller batches, fewer workers at a time or more memory; {AGAIN}"
            return Ending(EXIT_FAILED, text, is_whole=False)
    if any(text in str(one) for one in found for text in RAY_DID_NOT_START):
        text = f"Ray did not start on this machine; is it overloaded, or is a disk full{_full_places(places)}? {AGAIN}"
        return Ending(EXIT_FAILED, text, is_whole=False)
    return Ending(EXIT_FAILED, f"unexpected error: {type(found[-1]).__name__}: {_first_line(found[-1])}", is_whole=False)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, outermost first, without the shells in which Ray carries an error from a worker."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        inner = getattr(one, "cause", None)  # RayTaskError's
        failures = getattr(one, "worker_failures", None)  # Ray Train's WorkerGroupError's
        members = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        shell = isinstance(inner, BaseException) or bool(failures) or bool(members)
        if not shell:
            yield one
        next_ones: list[BaseException | None] = [inner] if isinstance(inner, BaseException) else []
        next_ones += [*(failures.values() if isinstance(failures, dict) else ()), *members, one.__cause__]
        next_ones += [] if one.__suppress_context__ else [one.__context__]
        waiting = next_ones + waiting


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    return any(text in str(error) for text in FULL_TEXTS)


def _file_of(errors: Sequence[BaseException]) -> str:
    name = next((one.filename for one in errors if isinstance(one, OSError) and one.errno in FULL and one.filename), None)
    return f"{name}: " if name else ""


def _full_places(places: Sequence[str]) -> str:
    """Names the file systems of this machine that are full."""
    full = []
    for place in places:
        folder = Path(place).expanduser().absolute()
        while not folder.exists():
            folder = folder.parent
        room = shutil.disk_usage(folder)
        if room.free < max(min(ROOM_BYTES, room.total // 10), room.total // 200) and str(folder) not in full:
            full.append(str(folder))
    return f" ({', '.join(full)} on this machine: full)" if full else ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no message"
