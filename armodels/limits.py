"""What ends a run before its work is done: its time, and signals that ask it to stop."""

import _thread
import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, final

from armodels import checks

now = time.monotonic

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals that ask a run to stop; Windows has no SIGHUP."""

SLACK = 1.5
"""What is planned for takes at most so many times as long as it was measured to take: on a busy
machine runs that kept a tenth ended without their last numbers."""


def spoken(seconds: float) -> str:
    """A time for people: ``8 s``, ``1.5 min``, ``2.0 h``."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Stopped(KeyboardInterrupt):
    """Stopped by a signal; the message says how to go on."""

    def __init__(self, number: int, message: str = ""):
        super().__init__(message)
        self.number = number
        self.exit_code = 128 + number


_expected: set[int] = set()
"""Signals that tell of an end which is under way already."""


def expect(*numbers: int) -> None:
    """From here on these signals change nothing: what they tell of is known.

    torchrun asks all processes to stop by SIGTERM where one of them has ended, and repeats a
    signal that has reached them already, as Ctrl-C does: what a process says of its end, and
    writes, must not be broken by that.
    """
    _expected.update(numbers)


def _heard(number: int) -> bool:
    """Whether a signal asks for what is not under way yet; torchrun then sends more of them."""
    fresh = number not in _expected
    if fresh and checks.started_by_torchrun():
        expect(number, signal.SIGTERM)
    return fresh


class OutOfTime(RuntimeError):
    """The time of a run is over before its work is done."""


def interrupt(number: signal.Signals) -> None:
    """Send a signal to the main thread, which hears it also where it waits for something."""
    if hasattr(signal, "pthread_kill"):
        main = threading.main_thread().ident
        assert main is not None  # it runs
        signal.pthread_kill(main, number)
    else:  # Windows
        _thread.interrupt_main(number)


class GivenUp(RuntimeError):
    """Whoever watches a run expects nothing more of it; all that it has is saved."""


@contextlib.contextmanager
def unhidden() -> Iterator[None]:
    """A request to stop leaves the block as itself, whatever it broke where it was raised."""
    handled = sys.exc_info()[1]  # one that came before the block is another story
    try:
        yield
    except Exception as error:
        link: BaseException | None = error
        while link is not None and not isinstance(link, (KeyboardInterrupt, OutOfTime)):
            link = link.__cause__ or link.__context__
            if link is handled:
                raise
        if link is None or link is error:
            raise
        raise link from None


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Inside the block a signal that asks for an end raises Stopped; a second one ends at once.

    Under torchrun the first alone counts. A signal that is ignored (nohup, a job in the
    background of a script) stays so.
    """
    kept: dict[signal.Signals, Any] = {}
    before = sys.unraisablehook
    raised: Stopped | None = None

    def stop(number: int, frame: object) -> None:
        nonlocal raised
        if not _heard(number):
            return
        for one in kept.keys() - _expected:
            signal.signal(one, signal.SIG_DFL)
        raised = Stopped(number)
        raise raised

    def swallowed(unraisable: "sys.UnraisableHookArgs") -> None:
        """Within a destructor nothing can be raised, and a signal may find the program there."""
        error = unraisable.exc_value
        if not isinstance(error, (Stopped, OutOfTime)):
            return before(unraisable)
        # One that waits for the end of a step has noted it; that of ``stop`` is sent again.
        if isinstance(error, Stopped) and error is raised:
            _expected.discard(error.number)
            for one in kept:
                signal.signal(one, stop)
            threading.Timer(0.01, interrupt, (signal.Signals(error.number),)).start()
        return None

    sys.unraisablehook = swallowed
    _expected.clear()
    with contextlib.suppress(ValueError):  # not the main thread: whoever started it handles them
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                kept[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        sys.unraisablehook = before
        for number, handler in kept.items():
            signal.signal(number, handler)


@final
class Budget:
    """The time that a run may take, with everything in it.

    Args:
        minutes: The limit; None: none.
        spent: Seconds that the run took before it was continued.
    """

    def __init__(self, minutes: float | None, spent: float = 0.0):
        self.limit = math.inf if minutes is None else 60 * minutes
        self.before = spent
        self._began = now()
        self._reserved = 0.0

    @property
    def spent(self) -> float:
        """Seconds that the run has taken so far."""
        return self.before + now() - self._began

    @property
    def left(self) -> float:
        """Seconds that it may still take, 0 or more."""
        return max(self.limit - self.spent, 0.0)

    def reserve(self, seconds: float) -> bool:
        """Keep so many seconds, and some slack, at the end; whether the limit holds as many.

        Where it does not, nothing is kept: what comes at the end comes too late anyway.
        """
        fits = SLACK * seconds < self.limit
        self._reserved = SLACK * seconds if fits else 0.0
        return fits

    @property
    def end(self) -> float:
        """Seconds of the run after which what was reserved begins."""
        return self.limit - self._reserved

    def fits(self, seconds: float) -> bool:
        """Whether so many seconds, and some slack, can be spent before ``end``."""
        return self.spent + SLACK * seconds <= self.end

    @property
    def share(self) -> float:
        """How much of the time up to ``end`` is over, from 0 to 1; 0 without a limit."""
        if self.limit == math.inf:
            return 0.0
        return min(self.spent / self.end, 1.0) if self.end > 0 else 1.0


@final
class Watch:
    """Whoever asks a run to stop: a signal, or the end of its time.

    Inside ``with watch:`` a request is noted, to be looked up in ``asked`` where nothing is half
    done. A second signal raises at once; under torchrun the first alone counts. Inside
    ``with watch.at_once():`` the first raises, too.

    Args:
        budget: The time of the run.
    """

    def __init__(self, budget: Budget):
        self.budget = budget
        self.asked: int | None = None
        self._late = False
        self._told = False
        self._at_once = False
        self._kept: dict[int, Any] = {}
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "Watch":
        _expected.clear()
        with contextlib.suppress(ValueError):  # not the main thread: its owner handles signals
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                    self._kept[number] = signal.signal(number, self._handle)
        if self._kept and self.budget.limit < threading.TIMEOUT_MAX:
            self._timer = threading.Timer(self.budget.left, self._ring)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._timer:
            self._timer.cancel()
        for number, handler in self._kept.items():
            signal.signal(number, handler)
        self._kept = {}

    def _ring(self) -> None:
        self._late = True
        if self._kept:  # a handler of ours runs in the main thread
            interrupt(signal.Signals(next(iter(self._kept))))

    def _handle(self, number: int, frame: Any) -> None:
        if self._late and not self._told:  # the bell, not a signal
            self._told = True
            if self._at_once:
                raise OutOfTime
            return
        if not _heard(number):
            return
        again, self.asked = self.asked is not None, number
        if again or self._at_once:
            raise Stopped(number)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside the block a request to stop raises where it finds the program.

        Raises:
            Stopped: A signal asks, or asked before.
            OutOfTime: The time is over.
        """
        if self.asked is not None:
            raise Stopped(self.asked)
        if self._kept and not self.budget.left:
            raise OutOfTime
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False
