"""What a user reads of a training that was stopped: where it stands, and how it goes on."""

from armodels import limits
from armodels.training.processes import LostProcess
from armodels.training.record import Record
from armodels.training.settings import Settings
from armodels.training.state import State


def stopped(record: Record, when: str) -> str:
    """A sentence about a training that was stopped ``when``."""
    return f"stopped {when}; {_again(record)}"


def _again(record: Record) -> str:
    """How a training goes on that did not reach its end."""
    command = record.command()
    return "nothing was saved" if command is None else f"go on with: {command}"


def interrupted(
    stop: BaseException, record: Record, settings: Settings, state: State, doing: str
) -> BaseException:
    """What a stop becomes for the user.

    Args:
        stop: A request to stop, as it was raised.
        record: What is saved.
        settings: Of the training.
        state: Where it stands.
        doing: What the request found it at.
    """
    if isinstance(stop, limits.OutOfTime):
        return limits.OutOfTime(
            f"trainer.max_minutes={settings.max_minutes:g} ended {doing}; "
            f"{_after_time(record, settings, state)}"
        )
    if isinstance(stop, LostProcess):
        return LostProcess(f"{stop}; {_again(record)}")
    if str(stop):
        return stop
    number = getattr(stop, "number", limits.SIGNALS[0])
    return limits.Stopped(number, stopped(record, doing))


def _after_time(record: Record, settings: Settings, state: State) -> str:
    """What to do where the time ended too early."""
    if record.has("last"):
        command = record.command(trainer__max_minutes=None, trainer__max_steps=state.step)
        how = f"evaluate what is saved with: {command}"
    else:
        command = record.command(trainer__max_minutes=2 * (settings.max_minutes or 0))
        how = f"try: {command}"
    return "give it more time" if command is None else how
