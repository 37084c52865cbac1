"""Where a rank's time goes: laps hold the steps alone."""

import time

import pytest
import torch

from training.clock import Clock, CommunicationTimer


def test_a_lap_leaves_out_evaluation_and_checkpoints_with_their_waiting():
    communication, clock = CommunicationTimer(torch.device("cpu")), Clock()
    clock.start(step=0, samples_seen=0, wait_s=0.0)
    with communication.waiting():
        time.sleep(0.02)
    with clock.stopped("checkpoint", communication), communication.waiting():
        time.sleep(0.2)
    lap = clock.lap(step=2, samples_seen=20, wait_s=0.0, communication=communication)
    assert 0.01 <= lap.communication_s < 0.05
    assert lap.communication_s <= lap.step_s < 0.05
    assert lap.samples_per_s == pytest.approx(10 / lap.step_s)
    assert lap.stopped_s["checkpoint"] == pytest.approx(0.2, abs=0.1)
    second = clock.lap(4, 40, 0.0, communication)
    assert second.communication_s == second.stopped_s["checkpoint"] == 0


def test_computing_is_what_is_neither_waiting_for_data_nor_for_others():
    communication, clock = CommunicationTimer(torch.device("cpu")), Clock()
    clock.start(step=0, samples_seen=0, wait_s=1.0)
    time.sleep(0.05)
    communication.bucket_sent()
    time.sleep(0.03)
    communication.bucket_sent()  # only what comes after the last bucket is waited for
    time.sleep(0.02)
    communication.backward_ended()
    lap = clock.lap(step=1, samples_seen=10, wait_s=1.01, communication=communication)
    assert lap.data_wait_s == pytest.approx(0.01)
    assert 0.02 <= lap.communication_s < 0.03
    assert lap.compute_s == pytest.approx(lap.step_s - lap.data_wait_s - lap.communication_s)


def test_a_wait_for_the_device_is_a_wait_for_others_and_no_communication():
    communication = CommunicationTimer(torch.device("cpu"))
    with communication.blocked():
        assert communication.is_waiting
        with communication.blocked():
            pass
        assert communication.is_waiting, "until the outer one ends"
    assert not communication.is_waiting
    assert communication.take() == 0
