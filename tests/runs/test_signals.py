"""Signals of a run: the first waits for the end of the step, and the process ends as the signal asks."""

from __future__ import annotations

import signal
import threading

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from monoloss.runs.signals import StopRequested, StopSignals, stop_signals

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def handled():
    """The signals that reach the handlers of the caller, in order; the handlers of the session come back afterwards."""
    received: list[int] = []

    def handle(signum, frame):
        received.append(signum)

    before = {signum: signal.signal(signum, handle) for signum in SIGNALS}
    yield received
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_first_signal_is_recorded_and_a_second_one_handled_at_once(handled, signum):
    stop = StopSignals()
    signal.raise_signal(signum)
    assert (handled, stop.received) == ([signum], None)  # not listening yet
    stop.listen()
    stop.check()
    signal.raise_signal(signum)
    assert (handled, stop.received) == ([signum], signum)
    with pytest.raises(StopRequested):
        stop.check()
    signal.raise_signal(signum)
    assert handled == [signum, signum]
    signal.raise_signal(signum)
    assert handled == [signum] * 3  # the handlers are back


def test_a_second_signal_may_be_the_other_one(handled):
    stop = StopSignals()
    stop.listen()
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
    assert handled == [signal.SIGTERM]


def test_restored_handlers_are_those_of_before(handled):
    before = [signal.getsignal(signum) for signum in SIGNALS]
    stop = StopSignals()
    stop.listen()
    assert not {signal.getsignal(signum) for signum in SIGNALS} & set(before)
    stop.restore()
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_an_ignored_signal_stays_ignored(handled):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = StopSignals()
    stop.listen()
    signal.raise_signal(signal.SIGINT)
    assert stop.received is None
    signal.raise_signal(signal.SIGTERM)
    assert stop.received == signal.SIGTERM


def test_another_thread_changes_no_handler(handled):
    before = [signal.getsignal(signum) for signum in SIGNALS]
    stop = StopSignals()
    for act in (stop.listen, stop.restore):
        thread = threading.Thread(target=act)
        thread.start()
        thread.join()
        assert [signal.getsignal(signum) for signum in SIGNALS] == before


@pytest.mark.parametrize(("signum", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_stopped_block_ends_as_the_signal_asks(handled, signum, raised):
    def run() -> None:
        with stop_signals() as stop:
            stop.listen()
            signal.raise_signal(signum)
            assert handled == []
            stop.check()

    before = signal.getsignal(signum)
    with pytest.raises(raised) as caught:
        run()
    assert handled == [signum]  # once, after the block
    assert signal.getsignal(signum) is before
    assert getattr(caught.value, "code", 143) == 143


def test_a_signal_that_nobody_checks_for_is_dropped_with_the_block(handled):
    before = [signal.getsignal(signum) for signum in SIGNALS]
    with stop_signals() as stop:
        stop.listen()
        signal.raise_signal(signal.SIGINT)
    assert (handled, stop.received) == ([], signal.SIGINT)
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_what_lightning_makes_of_signals_is_undone(handled):
    with pytest.raises(SystemExit) as caught, stop_signals():
        raise SIGTERMException
    assert (caught.value.code, handled) == (143, [])  # Lightning has called the handler

    def interrupted() -> None:
        with stop_signals():
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                raise SystemExit(1)  # noqa: B904 - as Lightning does

    with pytest.raises(KeyboardInterrupt):
        interrupted()
