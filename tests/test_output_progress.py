"""What people see of a command while it runs: few and small pieces, cut at line ends; what is not shown is counted."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from conductor.v1 import event_pb2, task_pb2, terminal_pb2
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from client.show import event_line, step_lines, summary
from client.visible import output_lines, visible
from services.conductor.pieces import GROWTH, INTERVAL_S, PIECE_BYTES, Pieces
from services.conductor.protocol import (
    MAX_OUTPUT_PROGRESS,
    Answered,
    CallWorker,
    Command,
    Place,
    Progressed,
)
from services.conductor.router import GrpcRouter
from services.conductor.upload import PIECE_BYTES as FILE_PIECE
from tests.conftest import Running, until
from tests.fakes import Workers, hangs
from tests.properties import examples
from tests.task_runs import RAN, TWO, UNAVAILABLE, Run, T, broke
from tests.test_output_kept import ERR, OUT, TEN, TERMINAL, chunks, commands, ends, in_turns, writes

HOUR_S = 3600
NEVER = 1000.0


def chunk(stream: int, data: bytes) -> terminal_pb2.OutputChunk:
    return terminal_pb2.OutputChunk(stream=stream, data=data)


def pieces() -> Pieces:
    return Pieces("call-1", INTERVAL_S)


def shown(piece: event_pb2.TaskProgress | None) -> list[tuple[int, bytes]]:
    assert piece is not None
    return [(chunk.stream, chunk.data) for chunk in piece.output]


# ---- pieces ----


def test_a_piece_holds_both_streams_in_the_order_they_were_read() -> None:
    made = pieces()
    for stream, data in ((OUT, b"a\n"), (OUT, b"b\n"), (ERR, b"oops\n"), (OUT, b"c\n")):
        made.add(chunk(stream, data))
    piece = made.take()
    assert shown(piece) == [(OUT, b"a\nb\n"), (ERR, b"oops\n"), (OUT, b"c\n")]
    assert piece is not None and piece.omitted_bytes == 0 and piece.call_id == "call-1"
    assert piece.message == "The command wrote 11 bytes."
    assert made.take() is None and made.take(last=True) is None


def test_a_line_that_is_being_written_waits_but_not_for_ever() -> None:
    made = pieces()
    made.add(chunk(OUT, b"done\nhalf"))
    made.add(chunk(ERR, b"warn"))
    assert shown(made.take()) == [(OUT, b"done\n")]
    assert shown(made.take()) == [(OUT, b"half"), (ERR, b"warn")]
    made.add(chunk(OUT, b"Password: "))
    assert shown(made.take()) == [(OUT, b"Password: ")]
    made.add(chunk(OUT, b"x\nrest"))
    assert shown(made.take(last=True)) == [(OUT, b"x\nrest")]


def test_of_a_flood_the_newest_whole_lines_are_shown_and_the_rest_is_counted() -> None:
    made = pieces()
    lines = [b"line %06d\n" % number for number in range(100_000)]
    for at in range(0, len(lines), 5000):
        made.add(chunk(OUT, b"".join(lines[at : at + 5000])))
    piece = made.take()
    ((_, data),) = shown(piece)
    assert piece is not None and data.endswith(lines[-1]) and data.startswith(b"line ")
    assert PIECE_BYTES - len(lines[0]) < len(data) <= PIECE_BYTES
    assert piece.omitted_bytes + len(data) == sum(map(len, lines))
    assert piece.message == f"The command wrote {len(data):,} bytes; {piece.omitted_bytes:,} before them are not shown."


def test_a_flood_without_a_line_end_is_shown_too() -> None:
    made = pieces()
    made.add(chunk(OUT, b"x" * 65_536))
    piece = made.take()
    assert piece is not None and shown(piece) == [(OUT, b"x" * PIECE_BYTES)]
    assert piece.omitted_bytes == 65_536 - PIECE_BYTES


@examples(200)
@given(st.lists(st.one_of(st.just(None), st.tuples(st.sampled_from([OUT, ERR]), st.binary(max_size=6000)))))
def test_every_byte_is_shown_in_order_or_counted(moves: list[tuple[int, bytes] | None]) -> None:
    made = pieces()
    written: dict[int, bytes] = {OUT: b"", ERR: b""}
    told = []
    for move in [*moves, None]:
        if move is None:
            told.append(made.take())
        else:
            made.add(chunk(*move))
            written[move[0]] += move[1]
    told.append(made.take(last=True))
    real = [piece for piece in told if piece is not None]
    sizes = [sum(len(part.data) for part in piece.output) for piece in real]
    assert all(0 < size <= PIECE_BYTES for size in sizes) and all(part.data for piece in real for part in piece.output)
    assert sum(sizes) + sum(piece.omitted_bytes for piece in real) == sum(map(len, written.values()))
    for stream, all_of_it in written.items():
        rest = all_of_it
        for data in (part.data for piece in real for part in piece.output if part.stream == stream):
            rest = rest[rest.index(data) + len(data) :]


def test_pieces_grow_rarer_cover_the_longest_command_and_never_exceed_their_number() -> None:
    made, time, told = pieces(), 0.0, 0
    assert made.pause is None
    while made.add(chunk(OUT, b"x\n")) is None and (pause := made.pause) is not None:
        assert pause >= INTERVAL_S
        time += pause
        assert made.take() is not None
        told += 1
    assert told == MAX_OUTPUT_PROGRESS - 1 and time > HOUR_S
    assert pause is None and INTERVAL_S * GROWTH < 0.6
    made.add(chunk(OUT, b"much later\n"))
    assert shown(made.take(last=True)) == [(OUT, b"x\nmuch later\n")]


# ---- through the router ----


REQUEST = terminal_pb2.RunRequest(call_id="c-1", command=terminal_pb2.Command(argv=["make"]))


def begin(router: GrpcRouter, place: Place | None = None) -> list[Command]:
    heard: list[Command] = []
    router.call(CallWorker("call-1", TERMINAL, REQUEST, 10, place), heard.append)
    return heard


def told(heard: list[Command]) -> list[event_pb2.TaskProgress]:
    return [command.progress for command in heard if isinstance(command, Progressed)]


async def test_a_short_command_is_one_piece_before_its_result(workers: Workers) -> None:
    workers.run = writes(*chunks(OUT, b"hello\n"), *chunks(ERR, b"oops"), ends(exit_code=0))
    router = GrpcRouter(workers.targets(), interval=NEVER)
    heard = begin(router)
    await until(lambda: any(isinstance(command, Answered) for command in heard))
    assert [type(command) for command in heard] == [Progressed, Answered]
    assert shown(told(heard)[0]) == [(OUT, b"hello\n"), (ERR, b"oops")]
    await router.close()


async def test_output_is_shown_while_the_command_still_runs(workers: Workers) -> None:
    workers.run = in_turns(writes(*chunks(OUT, b"working\n")), hangs)
    router = GrpcRouter(workers.targets(), interval=0.05)
    heard = begin(router)
    await until(lambda: heard)
    assert shown(told(heard)[0]) == [(OUT, b"working\n")] and len(heard) == 1
    router.cancel("call-1")
    await router.close()
    assert len(heard) == 1


async def test_a_command_that_writes_all_the_time_is_told_in_time(workers: Workers) -> None:
    async def tick(_: Any) -> Sequence[Any]:
        await asyncio.sleep(0.002)  # the pace of the command, not a wait of the test
        return chunks(OUT, b"tick\n")

    workers.run = in_turns(*[tick] * 150, writes(ends(exit_code=0)))
    router = GrpcRouter(workers.targets(), interval=0.1)
    loop, begun = asyncio.get_running_loop(), asyncio.get_running_loop().time()
    heard = begin(router)
    await until(lambda: any(isinstance(command, Answered) for command in heard))
    took = loop.time() - begun
    assert 1 <= len(told(heard)) <= took / 0.1 + 1
    assert b"".join(part.data for piece in told(heard) for part in piece.output) == b"tick\n" * 150
    await router.close()


async def test_what_a_lost_command_wrote_last_is_still_shown(workers: Workers) -> None:
    workers.run = in_turns(writes(*chunks(ERR, b"x\n" * FILE_PIECE + b"about to fail\n")), hangs)
    router = GrpcRouter(workers.targets(), interval=NEVER)
    heard = begin(router, Place("t-1", "command-1"))
    await until(lambda: len(workers.pieces) == 2)  # all of it has arrived
    await workers.stop()
    await until(lambda: any(isinstance(command, Answered) for command in heard))
    assert [type(command) for command in heard] == [Progressed, Answered]
    ((_, data),) = shown(told(heard)[0])
    assert data.endswith(b"x\nabout to fail\n")
    await router.close()


async def test_a_command_that_writes_nothing_tells_nothing(workers: Workers) -> None:
    workers.run = writes(*[terminal_pb2.RunResponse(chunk=chunk(OUT, b""))] * 3, ends(exit_code=0))
    router = GrpcRouter(workers.targets(), interval=0.01)
    heard = begin(router)
    await until(lambda: heard)
    assert [type(command) for command in heard] == [Answered]
    await router.close()


async def test_in_the_log_output_stands_between_call_and_result(conductor: Running, workers: Workers) -> None:
    workers.run = writes(*chunks(OUT, b"hello\n"), ends(exit_code=0))
    answer = await conductor.execute(wait=TEN, hints=commands())
    events = await conductor.events(answer.task_id)
    types = [event.type.removeprefix("conductor.") for event in events]
    assert types[2:5] == ["worker.call", "task.progress", "worker.result"]
    progress = events[3].task_progress
    assert shown(progress) == [(OUT, b"hello\n")] and progress.call_id == events[2].worker_call.call_id
    assert events[3].phase == "terminal" and events[3].status == "TASK_STATUS_WAITING_WORKER"
    written = json_format.MessageToDict(events[3], preserving_proto_field_name=True)["task_progress"]
    assert written["output"] == [{"stream": "OUTPUT_STREAM_STDOUT", "data": "aGVsbG8K"}]
    assert answer.status == task_pb2.TASK_STATUS_COMPLETED


# ---- in the state machine ----


def test_the_log_takes_so_many_pieces_of_a_command_and_no_more() -> None:
    run = Run([T], TWO).go_on()
    call = run.open
    assert call is not None
    before = len(run.log)
    for _ in range(MAX_OUTPUT_PROGRESS + 5):
        run.tell(Progressed(call.call_id, event_pb2.TaskProgress(call_id=call.call_id, output=[chunk(OUT, b"x")])))
    assert len(run.log) - before == MAX_OUTPUT_PROGRESS
    late = Progressed("another", event_pb2.TaskProgress())
    assert not run.tell(late).events


def test_no_two_calls_of_a_task_have_the_same_place() -> None:
    run = Run([T], TWO, max_attempts=3)
    run.play(broke(UNAVAILABLE), RAN, broke(UNAVAILABLE), broke(UNAVAILABLE), RAN)
    places = [effect.place for effect in run.effects if isinstance(effect, CallWorker)]
    assert places == [
        Place("task-1", "command-1"),
        Place("task-1", "command-1-attempt-2"),
        Place("task-1", "command-2"),
        Place("task-1", "command-2-attempt-2"),
        Place("task-1", "command-2-attempt-3"),
        None,  # the report
    ]


def test_a_task_lists_the_files_of_all_its_commands_also_of_one_that_failed() -> None:
    run = Run([T], TWO).go_on()
    for number, code in ((1, 0), (2, 3)):
        result = {"end": terminal_pb2.COMMAND_END_EXITED, "exit_code": code}
        file = {"name": f"command-{number}.stdout", "size_bytes": 4, "sha256": "0" * 64}
        run.answer(command={"result": result, "artifacts": [file]})
    assert run.end == "COMMAND_FAILED"
    assert [file.name for file in run.state.task.artifacts] == ["command-1.stdout", "command-2.stdout"]


# ---- on a terminal ----


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        (b"plain\ttext", "plain\ttext"),
        (b"\x1b[31mred\x1b[0m\x00\x07\x7f\r\n", "␛[31mred␛[0m␀␇␡␍␊"),
        ("a\u202eb\u200bc\ufeff\u2028\x9b".encode(), "a<U+202E>b<U+200B>c<U+FEFF><U+2028><U+009B>"),
        (b"\xff\xfe ok \xc3", "<FF><FE> ok <C3>"),
        ("é€🎉".encode(), "é€🎉"),
    ],
)
def test_every_byte_can_be_seen_and_none_acts(data: bytes, seen: str) -> None:
    assert visible(data) == seen


def test_a_piece_is_shown_as_lines_below_its_event() -> None:
    output = [chunk(OUT, b"one\n\x1b[2Jtwo\n"), chunk(ERR, b"bad\r\n")]
    event = event_pb2.Event(sequence=7, type="conductor.task.progress", task_id="t-1")
    event.task_progress.CopyFrom(event_pb2.TaskProgress(message="The command wrote 17 bytes.", output=output))
    assert step_lines(event) == [
        "task.progress   The command wrote 17 bytes.",
        "    | one",
        "    | ␛[2Jtwo",
        "    ! bad␍",
    ]
    assert "one␊␛[2Jtwo␊bad␍␊" in event_line(event) and "\n" not in event_line(event)
    assert list(output_lines([])) == []
    event.task_progress.output.append(chunk(OUT, b"x" * 5000))
    assert len(summary(event)) < 300
