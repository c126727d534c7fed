"""The commands of a report: what was run, how it ended and by which limit, what it wrote, and what contained it."""

import shlex
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence

from conductor.v1 import report_writer_pb2, terminal_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.report_writer.escape import code_span, fold, inline, shorten, visible, written

COMMAND_CHARS = 200  # of a command named in a sentence; its section has it in full
OUTPUT_BYTES = 64 * 1024  # shown of each stream of each command
COMMAND_BYTES = 64 * 1024  # shown of each command
FILES = 50  # named of those a command left

_End = terminal_pb2.CommandEnd
_Tier = terminal_pb2.IsolationTier
_Limits = terminal_pb2.Limits

# Why it was killed, and what the limit was, where the result tells.
_ENDS: dict[int, tuple[str, Callable[[_Limits], str]]] = {
    _End.COMMAND_END_WALL_TIME: ("its wall time{} was used up", lambda limits: _of(limits.wall_time)),
    _End.COMMAND_END_CPU_TIME: ("its CPU time{} was used up", lambda limits: _of(limits.cpu_time)),
    _End.COMMAND_END_MEMORY: ("it used more memory than{} allowed", lambda limits: _the(limits.memory_bytes, " bytes")),
    _End.COMMAND_END_PROCESSES: ("it started more processes than{} allowed", lambda limits: _the(limits.processes)),
    _End.COMMAND_END_FILE_SIZE: (
        "it wrote a larger file than{} allowed",
        lambda limits: _the(limits.file_size_bytes, " bytes"),
    ),
    _End.COMMAND_END_CANCELLED: ("it was cancelled{}", lambda _: ""),
    _End.COMMAND_END_WORKSPACE: (
        "its workspace grew larger than{} allowed",
        lambda limits: _the(limits.workspace_bytes, " bytes") + _the(limits.workspace_entries, " entries", " or"),
    ),
}
_TIERS = {
    _Tier.ISOLATION_TIER_STRONG: "the strong sandbox",
    _Tier.ISOLATION_TIER_STANDARD: "the standard sandbox",
    _Tier.ISOLATION_TIER_NONE: "no sandbox, as the operator chose",
}

Record = report_writer_pb2.CommandRecord


def outcome(record: Record) -> str:
    """Says in one line how a command ended and, when that is one short line, what it wrote."""
    ended = f"{_named(record.command)} {_ended(record.result)}"
    if len(record.stdout) > COMMAND_CHARS:
        return f"{ended}."
    lines = visible(record.stdout.decode(errors="surrogateescape")).strip().splitlines()
    return f"{ended}: {code_span(lines[0])}" if len(lines) == 1 else f"{ended}."


def commands(records: Sequence[Record]) -> Iterator[str]:
    """Yields the blocks of the section on commands."""
    for position, record in enumerate(records, 1):
        result = record.result
        yield f"### Command {position}\n"
        yield from _shown(_command_text(record.command).encode(), COMMAND_BYTES, "sh")
        yield f"It {_ended(result)}. {' '.join(_circumstances(record))}".rstrip() + "\n"
        yield from _stream("Standard output", "stdout", record, result.stdout_dropped_bytes, record.stdout_cut_bytes)
        yield from _stream("Standard error", "stderr", record, result.stderr_dropped_bytes, record.stderr_cut_bytes)
        yield from _files(result)
    yield from _sandboxes([record.result for record in records])


def time_text(time: Timestamp) -> str:
    """Returns a time in UTC, RFC 3339."""
    try:
        return time.ToJsonString()
    except (ValueError, OverflowError):  # seconds or nanos outside of what the type allows
        return "at a time that is not valid"


# ---- what was run, and how it ended ----


def _command_text(command: terminal_pb2.Command) -> str:
    return command.script or shlex.join(command.argv)


def _named(command: terminal_pb2.Command) -> str:
    first, *more = [line for line in map(fold, _command_text(command).splitlines()) if line] or [""]
    return code_span(shorten(f"{first} …" if more else first, COMMAND_CHARS))


def _ended(result: terminal_pb2.CommandResult) -> str:
    if result.end == _End.COMMAND_END_EXITED:
        return f"exited with {result.exit_code}"
    if result.end == _End.COMMAND_END_SIGNALED:
        return f"was ended by signal {_signal(result.signal)}"
    if result.end not in _ENDS:
        return "has no known end"
    why, limit = _ENDS[result.end]
    return f"was killed: {why.format(limit(result.limits))}"


def _of(limit: Duration) -> str:
    return f" of {_seconds(limit)}" if limit.seconds or limit.nanos else ""


def _the(limit: int, unit: str = "", before: str = " the") -> str:
    return f"{before} {limit:,}{unit}" if limit else ""


def _signal(number: int) -> str:
    try:
        return f"{number} ({signal.Signals(number).name})"
    except ValueError:
        return str(number)


def _seconds(duration: Duration) -> str:
    return f"{duration.seconds + duration.nanos / 1e9:.3f}".rstrip("0").rstrip(".") + " s"


def _circumstances(record: Record) -> Iterator[str]:
    command, result = record.command, record.result
    if result.HasField("started_at"):
        yield f"Started {time_text(result.started_at)}, ended {time_text(result.ended_at)}."
    if result.HasField("cpu_time"):
        yield f"CPU time {_seconds(result.cpu_time)}, peak memory {result.peak_memory_bytes:,} bytes."
    if command.stdin:
        yield f"It was given {len(command.stdin):,} bytes of input."
    if command.inputs:
        yield f"It was given files to read: {', '.join(code_span(file.name) for file in command.inputs)}."
    if command.env:
        yield f"Environment variables set (values not shown): {', '.join(sorted(map(code_span, command.env)))}."
    if command.network == terminal_pb2.NETWORK_LOOPBACK:
        yield "It had a loopback network of its own."
    if result.HasField("isolation"):
        yield f"It ran in {_tier(result.isolation)}."


# ---- what it wrote ----


def _stream(title: str, suffix: str, record: Record, dropped: int, cut: int) -> Iterator[str]:
    data: bytes = getattr(record, suffix)
    if not data and not dropped and not cut:
        return
    file = next((file for file in record.artifacts if file.name.endswith(f".{suffix}")), None)
    yield f"{title}{_kept(file, dropped)}:\n"
    yield from _shown(data, OUTPUT_BYTES, "text", dropped, cut)


def _kept(file: report_writer_pb2.Artifact | None, dropped: int) -> str:
    """Says where the output is as it was written."""
    if file is None:
        return ""
    if file.HasField("error"):
        return f" (could not be kept as {code_span(file.name)}: {inline(file.error.message).rstrip('.')})"
    whole = "" if dropped else "whole "
    return f" ({whole}in the artefact {code_span(file.name)}, {file.size_bytes:,} bytes)"


def _shown(data: bytes, limit: int, language: str, dropped: int = 0, cut: int = 0) -> Iterator[str]:
    """Yields the beginning of the data in a fence, then how many bytes are missing and who left them out."""
    block, left_out = written(data, limit, not dropped and not cut, language)
    if block:
        yield block
    causes = (("dropped by the Terminal", dropped), ("not kept by Conductor", cut), ("not shown here", left_out))
    parts = ", ".join(f"{count:,} {cause}" for cause, count in causes if count)
    if parts:
        yield f"_{dropped + cut + left_out:,} bytes are left out: {parts}._\n"


def _files(result: terminal_pb2.CommandResult) -> Iterator[str]:
    if not result.files:
        return
    yield "Files it left, of those asked for:\n"
    yield "".join(
        f"- {code_span(file.path)}, {file.size_bytes:,} bytes, SHA-256 {code_span(file.sha256)}\n"
        for file in result.files[:FILES]
    )
    if more := len(result.files[FILES:]) + result.files_left_out:
        yield f"_{more:,} more are not shown here._\n"


# ---- what contained it ----


def _tier(isolation: terminal_pb2.Isolation) -> str:
    return _TIERS.get(isolation.tier, "a sandbox of a kind that is not known here")


def _sandboxes(results: Iterable[terminal_pb2.CommandResult]) -> Iterator[str]:
    """Yields each sandbox once, with the commands it held, its layers, and what it does not enforce."""
    held: dict[bytes, list[int]] = {}
    for position, result in enumerate(results, 1):
        if result.HasField("isolation"):
            held.setdefault(result.isolation.SerializeToString(deterministic=True), []).append(position)
    if held:
        yield "### Sandbox\n"
    for sandbox, positions in held.items():
        isolation = terminal_pb2.Isolation.FromString(sandbox)
        numbers = ", ".join(map(str, positions))
        yield f"Command{'s' if len(positions) > 1 else ''} {numbers}: {_tier(isolation)}{_layers(isolation)}.\n"
        if isolation.not_enforced:
            yield "Not enforced here:\n"
            yield "".join(f"- {inline(sentence)}\n" for sentence in isolation.not_enforced)


def _layers(isolation: terminal_pb2.Isolation) -> str:
    layers = ", ".join(inline(layer) for layer in isolation.layers)
    user = ", under another user id than the service's" if isolation.separate_uid else ""
    return (f" ({layers})" if layers else "") + user
