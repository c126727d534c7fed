"""Several Conductors on one PostgreSQL: any answers for all, one works on each task, and any may die, stop or sleep."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from conductor.v1 import (
    conductor_pb2,
    event_pb2,
    task_pb2,
    terminal_pb2,
)
from google.protobuf import duration_pb2

from services.common.errors import Reason
from tests.conftest import until
from tests.fakes import finding, finds, hangs, research_result, runs
from tests.replicas import (
    CANCELLED,
    IN_PROGRESS,
    LEASE,
    STARTED,
    Research,
    Several,
    at_work,
    check_gapless,
    commands,
    several,
    state_of,
    task_of,
)
from tests.test_actor import COMPLETED, DATA, ENDINGS, FAILED, PARSE, check_story, collect, move, outcome_of, submit
from tests.test_subscribe import subscribe, take

__all__ = ["several"]  # fixtures


# ---- any replica answers for all ----


async def test_what_one_has_acknowledged_every_other_knows_at_once(several: Several) -> None:
    a, b = await several(2)
    a.workers.research = b.workers.research = hangs
    for number, (one, other) in zip(range(20), itertools.cycle([(a, b), (b, a)]), strict=False):
        answer = await submit(one, desktop_id=f"d-{number}")
        seen = await task_of(other, answer.task_id)
        assert seen.as_of_sequence >= answer.as_of_sequence and seen.created_at.ToNanoseconds() > 0
        wanted = conductor_pb2.ListTasksRequest(desktop_id=f"d-{number}")
        assert [task.task_id for task in (await other.stub.ListTasks(wanted)).tasks] == [answer.task_id]
        moved = await move(one, "TransitionTo", f"p-{number}", message="done")
        state = await state_of(other, f"p-{number}")
        assert state.as_of_sequence >= moved.as_of_sequence
        state.as_of_sequence = moved.as_of_sequence
        assert state == moved
        behind = subscribe(other, after_sequence=moved.as_of_sequence)  # never beyond the log
        again = subscribe(other, after_sequence=moved.as_of_sequence - 1)
        (event,) = await take(again, 1)
        assert (event.sequence, event.project_id) == (moved.as_of_sequence, f"p-{number}")
        behind.cancel()
        again.cancel()


async def test_a_task_at_work_on_one_is_watched_and_waited_for_on_another(several: Several) -> None:
    a, b = await several(2)
    go = asyncio.Event()

    async def when_told(_: Any) -> Sequence[Any]:
        await go.wait()
        return [research_result(finding())]

    a.workers.research = when_told
    request = {"request_id": "r-1", "objective": "Why?"}
    answer = await submit(a, **request)
    live = subscribe(b, task_id=answer.task_id)
    (snapshot,) = await take(live, 1)
    waiting = asyncio.ensure_future(submit(b, **request, wait=duration_pb2.Duration(seconds=20)))
    await until(lambda: a.workers.seen)
    go.set()
    ended = await waiting
    assert (ended.task_id, ended.status, ended.report_path) == (
        answer.task_id,
        COMPLETED,
        f"reports/{answer.task_id}.md",
    )
    log = await a.events(answer.task_id)
    check_story(log)
    rest = [event for event in log if event.sequence > snapshot.sequence]
    assert await take(live, len(rest)) == rest
    assert not b.workers.seen
    live.cancel()


async def test_a_cancel_at_one_stops_the_worker_that_another_called(several: Several) -> None:
    a, b = await several(2, max_in_flight=1)
    (task_id,) = await at_work(a, 1)
    task = await b.stub.CancelTask(conductor_pb2.CancelTaskRequest(task_id=task_id, reason="enough"))
    assert task.status == CANCELLED
    await until(lambda: a.workers.cancelled, 3)
    check_story(await b.events(task_id))
    assert await outcome_of(a.stub.CancelTask(conductor_pb2.CancelTaskRequest(task_id=task_id))) == "ILLEGAL_TRANSITION"
    a.workers.research = finds
    assert (await a.ended((await submit(a)).task_id)).status == COMPLETED  # and its slot is free again
    assert not b.workers.seen and not a.actor._mailboxes


async def test_a_queued_task_cancelled_elsewhere_never_begins(several: Several) -> None:
    a, b = await several(2, max_in_flight=1)
    (first,) = await at_work(a, 1)
    queued = (await submit(a)).task_id
    await b.stub.CancelTask(conductor_pb2.CancelTaskRequest(task_id=queued))
    last = (await submit(a)).task_id
    a.workers.research = finds
    await b.stub.CancelTask(conductor_pb2.CancelTaskRequest(task_id=first))
    assert (await a.ended(last)).status == COMPLETED
    assert [event.type for event in await b.events(queued)] == [STARTED, "conductor.task.cancelled"]


# ---- projects: exact, whoever is asked ----


@pytest.mark.parametrize("told", [True, False], ids=["bell rings", "bell is late"])
async def test_what_one_has_seen_of_a_project_never_stands_against_what_another_did(
    several: Several, told: bool
) -> None:
    a, b = await several(2)
    if not told:
        a.tail._readers.clear()
        b.tail._readers.clear()
    for replica in (a, b):  # both have it in memory
        await move(replica, "WaitForConfirmation")
    for stage, (one, other) in zip(range(PARSE, PARSE + 7), itertools.cycle([(a, b), (b, a)]), strict=False):
        waiting = await move(one, "WaitForConfirmation", stage_id=stage)
        seen = waiting.waiting_confirmation.confirmation_id
        moved = await move(other, "Confirm", stage_id=stage, confirmation_id=seen)
        assert moved.current_stage == stage + 1
        head = len(await a.events())
        for replica in (one, other):  # a double click, on either
            stale = move(replica, "Confirm", stage_id=stage, confirmation_id=seen)
            assert await outcome_of(stale) == "STALE_CONFIRMATION"
        assert len(await a.events()) == head
        assert (await move(one, "WaitForConfirmation", stage_id=stage + 1)).current_stage == stage + 1
        assert (await move(other, "ProposePlan", stage_id=stage + 1)).plan_pending
    log = await b.events(project_id="p")
    done = [e.stage_status.stage_id for e in log if e.status == "STAGE_STATUS_COMPLETED" and e.type == "STAGE_STATUS"]
    assert done == list(range(PARSE, PARSE + 7))  # each once, none skipped
    check_gapless(await b.events())


async def test_a_replica_that_refused_an_unseen_project_allows_what_another_has_made_legal(several: Several) -> None:
    a, b = await several(2)
    b.tail._readers.clear()  # nobody tells it
    assert await outcome_of(move(b, "WaitForConfirmation", stage_id=DATA)) == "ILLEGAL_TRANSITION"
    await move(a, "Confirm")
    waiting = await move(b, "WaitForConfirmation", stage_id=DATA)
    assert waiting.current_stage == DATA and waiting.HasField("waiting_confirmation")


async def test_of_confirms_at_every_replica_exactly_one_moves(several: Several) -> None:
    replicas = await several(3)
    for number in range(15):
        project = f"p-{number}"
        for replica in replicas[: number % 4]:  # cached nowhere, at some, at all
            await move(replica, "WaitForConfirmation", project)
        calls = [outcome_of(move(replica, "Confirm", project)) for replica in replicas for _ in range(2)]
        answers = await asyncio.gather(*calls)
        assert Counter(type(answer).__name__ for answer in answers) == {"ProjectState": 1, "str": 5}, answers
        refusals = {answer for answer in answers if isinstance(answer, str)}
        assert refusals <= {"STALE_CONFIRMATION", "WRITE_CONFLICT"}
        for replica in replicas:
            state = await state_of(replica, project)
            assert state.current_stage == DATA and state.stages[1].status == IN_PROGRESS
    check_gapless(await replicas[0].events())


async def test_one_request_at_two_replicas_at_once_is_done_once_and_answered_alike(several: Several) -> None:
    a, b = await several(2, max_in_flight=2)
    for number in range(15):
        name = {"request_id": f"r-{number}"}
        answers = await asyncio.gather(*(submit(replica, **name) for replica in (a, b, b, a)))
        for answer in answers:
            answer.correlation_id = ""  # of the call
        assert all(answer == answers[0] for answer in answers)
        moves = await asyncio.gather(
            *(move(replica, "WaitForConfirmation", f"p-{number}", **name) for replica in (a, b, a, b))
        )
        assert all(state == moves[0] for state in moves)
        assert await outcome_of(submit(b, objective="Another?", **name)) == "REQUEST_ID_REUSED"
    log = await a.events()
    assert Counter(event.type for event in log)[STARTED] == 15
    assert Counter(event.type for event in log)["WAITING_CONFIRMATION"] == 15
    for task_id in {event.task_id for event in log if event.task_id}:
        assert (await b.ended(task_id)).status == COMPLETED
        check_story(await b.events(task_id))
    for replica in (a, b):  # nothing of it stays behind
        await until(lambda r=replica: r.actor.room == 2 + 1000)


# ---- replicas die, stop, sleep ----


async def test_a_dead_replicas_tasks_are_finished_within_the_lease_and_a_second(several: Several) -> None:
    (a,) = await several(1, max_in_flight=3)
    b, c = await several(2)
    ids = await at_work(a, 3)
    ids += [(await submit(a, objective=f"Queued {n}?")).task_id for n in range(3)]
    died = time.monotonic()
    await a.die()
    for task_id in ids:
        left = died + LEASE + 1 - time.monotonic()
        assert (await b.ended(task_id, left)).status == COMPLETED
    for number, task_id in enumerate(ids):
        log = await c.events(task_id)
        check_story(log)
        results = [event for event in log if event.type == "conductor.worker.result"]
        lost = [event.worker_result.error.reason for event in results if event.worker_result.HasField("error")]
        assert lost == ([Reason.ERROR_REASON_OUTCOME_UNKNOWN] if number < 3 else [])
        taken = [event.actor.instance for event in log]
        assert taken[0] == "a" and len(set(taken[-5:])) == 1 and taken[-1] in "bc"  # one of them, and no other
    asked = [request.objective for r in (b, c) for request in r.workers.seen if isinstance(request, Research)]
    assert len(asked) == len(set(asked)) == 6
    check_gapless(await b.events())


async def test_a_deadline_passes_also_when_who_watched_it_died(several: Several) -> None:
    a, b = await several(2, max_in_flight=1)
    await at_work(b, 1)  # so what it takes over only waits there
    (task_id,) = await at_work(a, 1, hints=task_pb2.Hints(deadline=duration_pb2.Duration(seconds=2)))
    await a.die()
    task = await b.ended(task_id, 3)
    assert task.error.reason == Reason.ERROR_REASON_TASK_DEADLINE_EXCEEDED and len(b.workers.seen) == 1
    check_story(await b.events(task_id))


@pytest.mark.parametrize("way", ["dies", "stops"])
async def test_a_command_under_way_at_a_takeover_is_not_run_again_unless_it_may_be(several: Several, way: str) -> None:
    a, b = await several(2)
    ids = await at_work(a, 1, hints=commands())
    a.workers.seen.clear()
    ids += await at_work(a, 1, hints=commands(idempotent=True))
    b.workers.run = runs
    await (a.die() if way == "dies" else a.actor.stop())
    once, again = [await b.ended(task_id, LEASE + 2) for task_id in ids]
    assert (once.status, once.error.reason) == (FAILED, Reason.ERROR_REASON_OUTCOME_UNKNOWN)
    assert again.status == COMPLETED and b.workers.count(terminal_pb2.RunRequest) == 1
    for task_id in ids:
        check_story(await b.events(task_id))


async def test_a_replica_that_slept_past_its_lease_writes_nothing_when_it_wakes(several: Several) -> None:
    a, b = await several(2)
    go = asyncio.Event()

    async def late(_: Any) -> Sequence[Any]:
        await go.wait()
        return [research_result(finding("Too late."))]

    a.workers.research = late
    ids = [(await submit(a)).task_id for _ in range(3)]
    await until(lambda: len(a.workers.seen) == 3)
    a.freeze()
    go.set()
    await until(lambda: a.cable.held == 3)  # its answers are on their way to the log
    for task_id in ids:
        assert (await b.ended(task_id, LEASE + 2)).status == COMPLETED
    before = await b.events()
    done = len(a.cable.outcomes)
    a.cable.open.set()
    await until(lambda: len(a.cable.outcomes) == done + 3)
    assert {type(outcome).__name__ for outcome in a.cable.outcomes[done:]} == {"Conflict"}
    await until(lambda: not a.actor._mailboxes)  # it has understood
    assert await b.events() == before and len(a.workers.seen) == 3
    for task_id in ids:
        check_story(await b.events(task_id))
    assert await task_of(a, ids[0]) == await task_of(b, ids[0])


async def test_who_lost_a_task_cannot_begin_it_though_its_new_owner_has_not_begun_either(several: Several) -> None:
    a, b = await several(2, max_in_flight=1)
    (first,) = await at_work(a, 1)
    queued = (await submit(a)).task_id
    (other,) = await at_work(b, 1)  # b has no slot free for what it will take over
    a.freeze()
    await b.stub.CancelTask(conductor_pb2.CancelTaskRequest(task_id=first))
    await until(lambda: a.cable.held)  # a has a slot free, and is about to begin the task that waited

    async def is_taken() -> bool:
        return (await b.store.stream(("task", queued))).owner == b.actor._lease.name

    await until(is_taken, LEASE + 1)
    assert [event.type for event in await b.events(queued)] == [STARTED]
    a.cable.open.set()
    await until(lambda: not a.actor._mailboxes)
    assert type(a.cable.outcomes[-1]).__name__ == "Conflict" and len(a.workers.seen) == 1
    b.workers.research = finds
    await b.stub.CancelTask(conductor_pb2.CancelTaskRequest(task_id=other))
    assert (await b.ended(queued)).status == COMPLETED
    check_story(await b.events(queued))


async def test_a_replica_cut_off_from_the_store_stops_its_calls_and_comes_back(several: Several) -> None:
    a, b = await several(2)
    ids = await at_work(a, 3)
    a.cable.whole.clear()
    await until(lambda: len(a.workers.cancelled) == 3, LEASE + 0.5)
    for task_id in ids:
        assert (await b.ended(task_id, LEASE + 1)).status == COMPLETED
        check_story(await b.events(task_id))
    assert len(a.workers.seen) == 3 and a.actor.room == 64 + 1000
    a.workers.research = finds
    a.cable.whole.set()
    await until(lambda: a.actor._lease.held)
    new = (await submit(a)).task_id
    assert (await a.ended(new)).status == COMPLETED
    assert {event.actor.instance for event in await a.events(new)} == {"a"}


async def test_a_task_let_in_while_the_lease_is_gone_is_not_forgotten(several: Several) -> None:
    a, b = await several(2)
    a.actor._lease.abandon()  # it accepts what callers send, and may work on nothing
    ids = [(await submit(a)).task_id for _ in range(3)]
    for task_id in ids:
        assert (await b.ended(task_id, LEASE + 1)).status == COMPLETED
        check_story(await b.events(task_id))
    assert not a.workers.seen


async def test_a_graceful_stop_hands_over_within_a_second(several: Several) -> None:
    (a,) = await several(1, lease=10.0, max_in_flight=3)
    (b,) = await several(1, lease=10.0)
    ids = await at_work(a, 3)
    ids += [(await submit(a)).task_id for _ in range(3)]
    await a.actor.stop()
    stopped, stopped_at = time.monotonic(), time.time_ns()
    await until(lambda: len(a.workers.cancelled) == 3)
    for task_id in ids:
        assert (await b.ended(task_id, stopped + 2 - time.monotonic())).status == COMPLETED
        check_story(await b.events(task_id))
    for task_id in ids:
        first = next(event for event in await b.events(task_id) if event.actor.instance == "b")
        assert first.occurred_at.ToNanoseconds() - stopped_at < 1e9


# ---- all together ----


async def test_300_tasks_over_three_replicas_complete_and_everybody_sees_the_same_history(several: Several) -> None:
    replicas = await several(3, lease=5.0, max_in_flight=16)
    histories: list[list[event_pb2.Event]] = [[] for _ in replicas]
    watching = [
        asyncio.ensure_future(collect(subscribe(replica, after_sequence=0), history))
        for replica, history in zip(replicas, histories, strict=True)
    ]
    answers = await asyncio.gather(*(submit(replicas[n % 3], desktop_id=f"d-{n % 7}") for n in range(300)))

    def ended() -> bool:
        return all(sum(event.type in ENDINGS for event in history) == 300 for history in histories)

    await until(ended, 30)
    for watcher in watching:
        watcher.cancel()
    log = await replicas[0].events()
    check_gapless(log)
    assert all(history == log for history in histories)
    streams: dict[str, list[event_pb2.Event]] = {answer.task_id: [] for answer in answers}
    for event in log:
        streams[event.task_id].append(event)
    for story in streams.values():
        check_story(story)
        assert story[-1].type == "conductor.task.completed" and len({event.actor.instance for event in story}) == 1
    assert sum(len(replica.workers.seen) for replica in replicas) == 600  # nothing was done twice
    assert {event.actor.instance for event in log} == {"a", "b", "c"}


async def test_replicas_dying_one_after_another_under_load_lose_and_double_nothing(several: Several) -> None:
    replicas = list(await several(3, max_in_flight=8))

    async def takes_a_while(_: Any) -> Sequence[Any]:
        await asyncio.sleep(0.02)  # the work
        return [research_result(finding())]

    for replica in replicas:
        replica.workers.research = takes_a_while
    ids: list[str] = []
    for dying in (replicas[0], replicas[1], None):
        for n in range(30):
            alive = [replica for replica in replicas if not replica.dead]
            ids.append((await submit(alive[n % len(alive)])).task_id)
        if dying is not None:
            await dying.die()
    for task_id in ids:
        assert (await replicas[2].ended(task_id, 10)).status == COMPLETED
        check_story(await replicas[2].events(task_id))
    check_gapless(await replicas[2].events())
