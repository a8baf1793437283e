"""Ctrl-C and SIGTERM in a run: it goes on to the end of its step, is saved, and ends as the signal wants it to."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from lightning.pytorch.utilities.exceptions import SIGTERMException

_STOPPING = (signal.SIGINT, signal.SIGTERM)


class StopRequested(Exception):  # noqa: N818 - no fault
    """A signal came, and the step that it came in is done and saved."""


class StopSignals:
    """What came since ``listen``: the first signal is noted, a second one does at once what it would have done before.

    Who ignores a signal (SIGINT in a shell's background job) goes on ignoring it. Only the main thread can listen.

    Attributes:
        received: the first signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {signum: signal.getsignal(signum) for signum in _STOPPING}

    def listen(self) -> None:
        """From now on signals are noted."""
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._before.items():
                if handler is not None:  # None: not set from Python, and nothing to put back
                    signal.signal(signum, handler if handler == signal.SIG_IGN else self._note)

    def check(self) -> None:
        """Where a step is done and saved: stop if a signal came.

        Raises:
            StopRequested: one did.
        """
        if self.received is not None:
            raise StopRequested

    def restore(self) -> None:
        """Signals do again what they did before."""
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._before.items():
                if handler is not None:
                    signal.signal(signum, handler)

    def end_as_asked(self) -> NoReturn:
        """Do what the signal would have done: end the process, raise, or run the caller's handler and then exit."""
        self.restore()
        assert self.received is not None  # noqa: S101 - who calls this has seen it
        signal.raise_signal(self.received)
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.received)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            self.restore()
            signal.raise_signal(signum)
        self.received = signum


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """A block that Lightning trains in: however it ends, Ctrl-C and SIGTERM end it as they would without Lightning.

    Lightning exits with code 1 at Ctrl-C, which it ignores from then on, and returns with code 0 at SIGTERM.
    """
    stop = StopSignals()
    try:
        yield stop
    except StopRequested:
        stop.end_as_asked()
    except SIGTERMException:  # it came before the first step, and Lightning has called the caller's handler
        stop.restore()
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.raise_signal(signal.SIGTERM)
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        stop.restore()
        raise error.__context__ from None
    finally:
        stop.restore()
