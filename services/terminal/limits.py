"""The limits of a request against the operator's defaults and ceilings."""

from conductor.v1 import terminal_pb2
from google.protobuf import duration_pb2

from services.common.config import TerminalSettings
from services.common.errors import Reason, Refusal
from services.terminal.policy import Bounds

NANOS = 1_000_000_000
_TIMES = ("wall_time", "cpu_time")
_NUMBERS = (
    "memory_bytes",
    "processes",
    "file_size_bytes",
    "output_bytes",
    "open_files",
    "workspace_bytes",
    "workspace_entries",
)


def resolve(settings: TerminalSettings, asked: terminal_pb2.Limits) -> Bounds:
    """Returns the bounds to hold. Raises INVALID_REQUEST for the first limit above its ceiling."""
    highest = ceilings(settings)
    values: dict[str, float] = {}
    for name in (*_TIMES, *_NUMBERS):
        value = _asked(asked, name)
        ceiling = getattr(highest, name)
        if value > ceiling:
            raise _above(f"command.limits.{name}", ceiling, "s" if name in _TIMES else "")
        values[name] = value or getattr(defaults(settings), name)
    return Bounds(**values)  # type: ignore[arg-type]


def defaults(settings: TerminalSettings) -> Bounds:
    """Returns the bounds of a request that names none: never above the ceilings."""
    highest = ceilings(settings)
    values = {name: min(getattr(settings, name), getattr(highest, name)) for name in (*_TIMES, *_NUMBERS)}
    return Bounds(**values)


def ceilings(settings: TerminalSettings) -> Bounds:
    """Returns the largest bounds a request may name."""
    return Bounds(**{name: getattr(settings, f"max_{name}") for name in (*_TIMES, *_NUMBERS)})


def to_proto(bounds: Bounds) -> terminal_pb2.Limits:
    """Returns bounds as the contract has them."""
    limits = terminal_pb2.Limits()
    for name in (*_TIMES, *_NUMBERS):
        put(limits, name, getattr(bounds, name))
    return limits


def put(limits: terminal_pb2.Limits, name: str, value: float) -> None:
    """Sets one limit of a message; times are seconds."""
    if name in _TIMES:
        getattr(limits, name).CopyFrom(duration(value))
    else:
        setattr(limits, name, int(value))


def duration(seconds: float) -> duration_pb2.Duration:
    """Returns seconds as a Duration."""
    whole = duration_pb2.Duration()
    whole.FromNanoseconds(round(seconds * NANOS))
    return whole


def _asked(limits: terminal_pb2.Limits, name: str) -> float:
    if name in _TIMES:
        return float(getattr(limits, name).ToNanoseconds() / NANOS)
    return int(getattr(limits, name))


def _above(field: str, ceiling: float, unit: str) -> Refusal:
    shown = f"{ceiling:g}{unit}" if unit else str(ceiling)
    allowed = f"at most {shown}"
    text = f"{field} is above the operator's ceiling: ask for {allowed}."
    return Refusal(
        Reason.ERROR_REASON_INVALID_REQUEST, text, [(field, f"must be {allowed}")], field=field, ceiling=shown
    )
