"""Ctrl-C and SIGTERM during a run: the step is finished and saved, then the process ends as the signal asks."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from lightning.pytorch.utilities.exceptions import SIGTERMException

_STOPPING = (signal.SIGINT, signal.SIGTERM)


class StopRequested(Exception):  # noqa: N818 - not an error
    """Raised after a signal, once the step is done and saved."""


class StopSignals:
    """Record of the first SIGINT or SIGTERM after ``listen()``; a second one goes to the previous handler at once.

    An ignored signal (SIGINT in a shell's background job) stays ignored. In another thread than the main one, which
    alone may handle signals, ``listen`` and ``restore`` do nothing.

    Attributes:
        received: number of the recorded signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._handlers: dict[int, Any] = {signum: signal.getsignal(signum) for signum in _STOPPING}

    def listen(self) -> None:
        """Record signals from now on."""
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._handlers.items():
                if handler is not None:  # None: not set from Python, so it could not be restored
                    signal.signal(signum, handler if handler == signal.SIG_IGN else self._record)

    def check(self) -> None:
        """Raise `StopRequested` after a signal; to be called when a step is done and saved."""
        if self.received is not None:
            raise StopRequested

    def restore(self) -> None:
        """Give the signals their previous handlers back."""
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._handlers.items():
                if handler is not None:
                    signal.signal(signum, handler)

    def end_as_asked(self) -> NoReturn:
        """Send the received signal to its previous handler; if that returns, raise KeyboardInterrupt or SystemExit."""
        self.restore()
        assert self.received is not None  # noqa: S101 - only called after a signal
        signal.raise_signal(self.received)
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.received)

    def _record(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal: record the first, pass a second one on."""
        if self.received is not None:
            self.restore()
            signal.raise_signal(signum)
        self.received = signum


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Run Lightning's training in a block that Ctrl-C and SIGTERM end as they would without Lightning.

    By itself Lightning exits with code 1 at Ctrl-C, which it then ignores, and returns with code 0 at SIGTERM.
    """
    stop = StopSignals()
    try:
        yield stop
    except StopRequested:
        stop.end_as_asked()
    except SIGTERMException:  # before the first step; Lightning has called the previous handler
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
