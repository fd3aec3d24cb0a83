"""What a run does on each signal. Real signals, sent to this process."""

import os
import signal

import pytest

from training.stop_signal import StopSignal, ignore_save_requests

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def handlers_are_restored():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_and_exits_with_its_number(number, capfd):
    stop = StopSignal()
    stop.exit_if_received()
    os.kill(os.getpid(), number)
    assert stop.received and not stop.take_save_request()
    with pytest.raises(SystemExit) as ended:
        stop.exit_if_received()
    assert ended.value.code == 128 + number
    assert f"{number.name}: saving a checkpoint after this step, then exiting" in capfd.readouterr().err


def test_sigusr1_saves_once_and_goes_on(capfd):
    stop = StopSignal()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.take_save_request() and not stop.take_save_request() and not stop.received
    stop.exit_if_received()
    assert "SIGUSR1: saving a checkpoint after this step, then going on" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_only_ctrl_c_is_taken_for_impatience(number, monkeypatch):
    """Shells and cluster managers send the others to a process and to its group, so that they come twice."""
    exits = []
    monkeypatch.setattr(os, "_exit", exits.append)
    StopSignal()
    for _ in range(3):
        os.kill(os.getpid(), number)
    assert exits == []
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    assert exits[-1] == 128 + signal.SIGINT


@pytest.mark.parametrize(("launcher", "received"), [("", False), ("torchrun", True)])
def test_nohup_is_respected_but_not_by_torchrun_which_stops_its_processes(launcher, received, monkeypatch):
    if launcher:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopSignal()
    os.kill(os.getpid(), signal.SIGHUP)
    assert stop.received == received


def test_a_signal_is_received_though_nobody_reads_standard_error(capfd):
    reader, writer = os.pipe()
    kept = os.dup(2)
    os.dup2(writer, 2)
    os.close(reader)
    stop = StopSignal()
    os.kill(os.getpid(), signal.SIGTERM)
    os.dup2(kept, 2)
    for file in (writer, kept):
        os.close(file)
    assert stop.received


def test_sigusr1_before_training_is_ignored():
    ignore_save_requests()
    os.kill(os.getpid(), signal.SIGUSR1)
