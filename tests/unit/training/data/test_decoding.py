"""Worker processes give what a thread gives, do not outlive their parent, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import pytest

from model.tokenizer import END_OF_TEXT, token_ids
from training.data.decoding import DecodeError, Decoder, Encoded, Transform, cut_to_longest

TRANSFORM = Transform(image_size_px=32, context_length=77, crop_scale_min=0.9)


@pytest.fixture(scope="module")
def samples(draw_shape):
    captions = ["a disc", "a red square that was drawn by hand", "a bar"]
    return [Encoded(draw_shape("red", "disc", number), captions[number % 3], f"0/0/{number}") for number in range(40)]


@pytest.fixture
def workers():
    decoder = Decoder(TRANSFORM, 2)
    yield decoder
    decoder.close()


def test_workers_give_what_a_thread_gives(samples, workers):
    thread = Decoder(TRANSFORM, 0)
    for size in (40, 17, 1):
        expected, found = thread.submit(samples[:size]).result(), workers.submit(samples[:size]).result()
        assert np.array_equal(found.pixels, expected.pixels)
        assert np.array_equal(found.texts, expected.texts)
        assert found.texts.shape[1] == max(int((row != 0).sum()) for row in expected.texts)
        assert not found.problems
    thread.close()


def test_the_token_zero_within_the_longest_caption_does_not_cost_its_end():
    texts = token_ids(["a disc", "$!$ sale"])
    assert 0 in texts[1, : texts[1].argmax()].tolist(), "the tokenizer still makes a zero of this exclamation mark"
    cut = cut_to_longest(texts)
    assert cut.shape[1] == int(texts.argmax(axis=1).max()) + 1
    assert (cut.max(axis=1) == END_OF_TEXT).all()
    assert cut_to_longest(texts[:0]).shape == (0, 1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_sample_that_cannot_be_decoded_or_was_changed_is_named_by_its_place(samples, num_workers):
    decoder = Decoder(TRANSFORM, num_workers)
    broken = Encoded(b"no image", "caption", "seed")
    changed = Encoded(samples[0].image, "caption", "seed", sha256=b"another")
    decoded = decoder.submit([*samples[:20], broken, samples[20], changed]).result()
    assert set(decoded.problems) == {20, 22}
    assert "cannot be decoded" in decoded.problems[20]
    assert "sha256" in decoded.problems[22]
    assert len(decoded.texts) == 23
    decoder.close()


def test_a_batch_in_use_is_not_overwritten(samples, workers):
    held = [workers.submit(samples).result() for _ in range(3)]
    copies = [one.pixels.copy() for one in held]
    for _ in range(4):
        workers.submit(samples[::-1]).result()
    assert all(np.array_equal(one.pixels, copy) for one, copy in zip(held, copies, strict=True))


def shared() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir() if path.name.startswith("psm_")}


def test_memory_is_reused_and_released(samples, monkeypatch):
    own = set()  # other test processes of this machine have blocks too

    def create(**arguments):
        block = SharedMemory(**arguments)
        own.add(block.name)
        return block

    monkeypatch.setattr("training.data.decoding.SharedMemory", create)
    decoder = Decoder(TRANSFORM, 1)
    for _ in range(10):
        decoder.submit(samples).result()
    assert 1 <= len(shared() & own) <= 6
    decoder.close()
    assert not shared() & own


def test_a_worker_that_dies_is_an_error(samples, workers):
    workers.submit(samples).result()
    os.kill(workers.worker_ids()[0], signal.SIGKILL)

    def decode_on() -> None:
        for _ in range(20):
            workers.submit(samples).result()

    with pytest.raises(DecodeError, match="a decode worker died"):
        decode_on()


PARENT = """
import time
from training.data.decoding import Decoder, Encoded, Transform
if __name__ == "__main__":
    decoder = Decoder(Transform(32, 77, 0.9), 2)
    decoder.submit([Encoded(b"", "a", "s")] * 40).result()
    print(*decoder.worker_ids(), flush=True)
    time.sleep(60)
"""


def test_workers_do_not_outlive_a_parent_that_was_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        workers = [int(number) for number in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.kill()
    deadline = time.time() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.time() < deadline
        time.sleep(0.1)
