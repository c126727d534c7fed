"""The actor under concurrency: late answers, racing answers, full queues, callers that go away, stops, odd clocks."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, event_pb2, project_pb2, report_writer_pb2, task_pb2
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from services.common.errors import Reason
from services.conductor import machines
from services.conductor.protocol import Answered, CallWorker, Command, Given, Progressed
from services.conductor.store.base import Append, Appended, StoreUnavailable
from tests.conftest import Clock, Running, refused, start_conductor, until
from tests.fakes import FailingStore, Workers, finding, finds, hangs, research_result
from tests.test_actor import COMPLETED, DATA, PARSE, Gate, check_story, move, outcome_of, reason_of, release, submit

IN_PROGRESS, PENDING = project_pb2.STAGE_STATUS_IN_PROGRESS, project_pb2.STAGE_STATUS_PENDING
CANCELLED = task_pb2.TASK_STATUS_CANCELLED
ROUNDS = 50


def cancel(running: Running, task_id: str) -> Any:
    return running.stub.CancelTask(conductor_pb2.CancelTaskRequest(task_id=task_id))


# ---- late, repeated and unknown results ----


async def test_late_repeated_and_unknown_results_change_nothing(conductor: Running, workers: Workers) -> None:
    delivered: list[tuple[Callable[[Command], None], Command]] = []
    real = conductor.router.call

    def call_twice(call: CallWorker, deliver: Callable[[Command], None]) -> None:
        def twice(command: Command) -> None:
            forged = event_pb2.WorkerResult(call_id="unknown", capability=task_pb2.CAPABILITY_REPORT_WRITER)
            forged.report.path = "reports/forged.md"
            for each in (
                Answered(forged),
                Progressed("unknown", event_pb2.TaskProgress(message="?")),
                command,
                command,
            ):
                deliver(each)
                delivered.append((deliver, each))

        real(call, twice)

    conductor.router.call = call_twice  # type: ignore[method-assign]
    task_id = (await conductor.execute()).task_id
    task = await conductor.ended(task_id)
    before = await conductor.events(task_id)
    check_story(before)
    assert len(before) == 7 and len(workers.seen) == 2 and task.report_path == f"reports/{task_id}.md"
    for deliver, command in delivered:  # and once more, when the task has long ended
        deliver(command)
    assert await outcome_of(cancel(conductor, task_id)) == "ILLEGAL_TRANSITION"  # handled after them
    assert await conductor.events(task_id) == before and len(workers.seen) == 2
    assert await conductor.ended(task_id) == task


async def test_cancelling_while_it_ends_gives_one_ending(conductor: Running, workers: Workers) -> None:
    endings = set()
    for round_ in range(ROUNDS):
        written = workers.count(report_writer_pb2.WriteReportRequest)
        task_id = (await conductor.execute()).task_id
        if round_ % 2:  # otherwise at once
            await until(lambda n=written: workers.count(report_writer_pb2.WriteReportRequest) > n)
        answers = await asyncio.gather(*(outcome_of(cancel(conductor, task_id)) for _ in range(3)))
        task = await conductor.ended(task_id)
        check_story(await conductor.events(task_id))
        assert [getattr(answer, "status", None) for answer in answers].count(CANCELLED) == (task.status == CANCELLED)
        assert task.HasField("report_path") == (task.status == COMPLETED)
        endings.add(task.status)
    assert CANCELLED in endings


# ---- racing answers at a gate ----


async def test_two_confirms_at_once_that_name_what_they_saw_move_one_stage(conductor: Running) -> None:
    for round_ in range(ROUNDS):
        project = f"p-{round_}"
        waiting = await move(conductor, "WaitForConfirmation", project)
        confirmation = {"confirmation_id": waiting.waiting_confirmation.confirmation_id}
        plan = {"plan_id": (await move(conductor, "ProposePlan", project)).plan.plan_id}
        stale = ({"stage_id": PARSE}, {**confirmation, "stage_id": 0}, {**plan, "stage_id": 0})[round_ % 3]
        answers = await asyncio.gather(*(outcome_of(move(conductor, "Confirm", project, **stale)) for _ in range(2)))
        assert sorted(isinstance(answer, str) for answer in answers) == [False, True]
        assert "STALE_CONFIRMATION" in answers
        state = await conductor.stub.GetState(conductor_pb2.GetStateRequest(project_id=project))
        expected = [project_pb2.STAGE_STATUS_COMPLETED, IN_PROGRESS, *[PENDING] * 6]
        assert [stage.status for stage in state.stages] == expected and state.current_stage == DATA
        changed = [event.stage_status for event in await conductor.events(project_id=project)][-2:]
        assert [(stage.stage_id, stage.status) for stage in changed] == [(PARSE, expected[0]), (DATA, IN_PROGRESS)]


async def test_yes_and_no_at_once_to_the_same_question_are_one_answer(conductor: Running) -> None:
    for round_ in range(ROUNDS):
        project = f"p-{round_}"
        waiting = await move(conductor, "WaitForConfirmation", project)
        name = {"confirmation_id": waiting.waiting_confirmation.confirmation_id}
        both = [{"approved": False, "reason": "no"}, {"approved": True}]
        calls = [
            outcome_of(move(conductor, "Confirm", project, **name, **fields)) for fields in both[:: 1 - round_ % 2 * 2]
        ]
        answers = await asyncio.gather(*calls)
        assert answers.count("STALE_CONFIRMATION") == 1
        log = await conductor.events(project_id=project)
        assert [event.type for event in log].count("CONFIRMATION_ANSWERED") == 1


# ---- capacity ----


@pytest.fixture
async def small(tmp_path: Path, workers: Workers) -> Any:
    """Starts a Conductor with room for one task at work and a few waiting, on a store that may fail."""
    running = await start_conductor(
        tmp_path / "conductor.db", workers, max_in_flight=1, max_queued=3, wrap=FailingStore
    )
    workers.research = hangs
    yield running
    await running.kill()


async def test_100_tasks_at_once_never_exceed_4_calls_and_all_complete(tmp_path: Path, workers: Workers) -> None:
    running = await start_conductor(tmp_path / "conductor.db", workers, max_in_flight=4)
    now, most = 0, 0
    all_accepted = asyncio.Event()

    async def work(request: Any, script: Callable[[Any], Awaitable[Sequence[Any]]]) -> Sequence[Any]:
        nonlocal now, most
        now, most = now + 1, max(most, now + 1)
        await all_accepted.wait()
        await asyncio.sleep(0.002)  # so that calls overlap later too
        now -= 1
        return await script(request)

    workers.research, workers.write = partial(work, script=workers.research), partial(work, script=workers.write)
    tasks = await asyncio.gather(*(running.execute(f"Task {i}") for i in range(100)))
    await until(lambda: now == 4)
    all_accepted.set()
    for task in tasks:
        assert (await running.ended(task.task_id)).status == COMPLETED
        check_story(await running.events(task.task_id))
    assert most == 4
    started = [event.task_id for event in await running.events() if event.type == "conductor.task.started"]
    routed = [event.task_id for event in await running.events() if event.task_progress.HasField("route")]
    # In the order they came; those that have a slot at the same time may pass each other.
    assert all(abs(routed.index(task_id) - place) < 4 for place, task_id in enumerate(started))
    await running.kill()


async def test_more_than_fit_are_refused_with_a_time_to_come_back_and_served_later(
    small: Running, workers: Workers
) -> None:
    ids = [(await small.execute()).task_id for _ in range(4)]
    before = await small.events()
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as caught:
        await submit(small, request_id="again")
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in rpc_status.from_call(caught[0]).details)
    assert retry.retry_delay.ToMilliseconds() > 0 and reason_of(caught[0]) == Reason.ERROR_REASON_OVER_CAPACITY
    assert await small.events() == before
    workers.research = finds
    await cancel(small, ids[0])  # makes room
    for task_id in ids[1:]:
        assert (await small.ended(task_id)).status == COMPLETED
    assert (await small.ended((await submit(small, request_id="again")).task_id)).status == COMPLETED


async def test_many_at_once_do_not_get_past_the_limit(tmp_path: Path, workers: Workers) -> None:
    workers.research = hangs
    running = await start_conductor(tmp_path / "log.db", workers, max_in_flight=1, max_queued=3, wrap=Gate)
    running.store.before.clear()  # so that they are all under way together
    calls = [asyncio.ensure_future(outcome_of(submit(running))) for _ in range(10)]
    await until(lambda: running.store.held + sum(call.done() for call in calls) == 10)
    running.store.open(True)
    answers = await asyncio.gather(*calls)
    await running.kill()
    assert answers.count("OVER_CAPACITY") >= 10 - 4


async def test_refused_and_repeated_submits_leave_nothing_in_memory(small: Running) -> None:
    for number in range(4):
        await submit(small, request_id=f"r-{number}")
    before = len(small.actor._mailboxes)
    assert [await outcome_of(submit(small)) for _ in range(10)] == ["OVER_CAPACITY"] * 10
    for _ in range(10):
        await submit(small, request_id="r-0")
    small.store.fail_before = True
    assert [await outcome_of(submit(small)) for _ in range(10)] == ["OVER_CAPACITY"] * 10
    assert len(small.actor._mailboxes) == before


async def test_cancelled_tasks_leave_the_queue(small: Running) -> None:
    ids = [(await small.execute()).task_id for _ in range(4)]
    for task_id in ids[1:]:
        await cancel(small, task_id)
    assert await outcome_of(submit(small)) != "OVER_CAPACITY"


async def test_a_cancel_that_fails_frees_no_slot(small: Running, workers: Workers) -> None:
    ids = [(await small.execute()).task_id for _ in range(2)]
    await until(lambda: workers.seen)
    small.store.fail_before = True
    assert await outcome_of(cancel(small, ids[0])) == "STORE_UNAVAILABLE"
    small.store.fail_before = False
    with pytest.raises(AssertionError, match="not within"):
        await until(lambda: len(workers.seen) > 1, 1.5)  # longer than the store is given to come back


async def test_a_queued_task_ends_at_its_deadline(small: Running) -> None:
    await small.execute()
    hints = task_pb2.Hints(deadline=duration_pb2.Duration(seconds=1))
    task = await small.ended((await small.execute(hints=hints)).task_id, 2.5)
    assert task.error.reason == Reason.ERROR_REASON_TASK_DEADLINE_EXCEEDED


# ---- callers that go away, stops, clocks ----


async def test_a_client_that_hangs_up_leaves_the_task_running_to_its_end(conductor: Running, workers: Workers) -> None:
    seen: list[Any] = []
    answer = asyncio.Event()
    workers.research = partial(release, seen, answer)
    call = submit(conductor, wait=duration_pb2.Duration(seconds=30))
    await until(lambda: seen)
    call.cancel()
    await asyncio.wait([asyncio.ensure_future(outcome_of(call))], timeout=0.1)
    answer.set()
    task_id = (await conductor.events())[0].task_id
    assert (await conductor.ended(task_id)).status == COMPLETED and not workers.cancelled


async def test_a_caller_that_hangs_up_before_the_commit_blocks_nobody(tmp_path: Path, workers: Workers) -> None:
    running = await start_conductor(tmp_path / "conductor.db", workers, wrap=Gate)
    running.store.before.clear()
    calls = [submit(running), move(running, "WaitForConfirmation")]
    gone = [asyncio.ensure_future(outcome_of(call)) for call in calls]
    await until(lambda: running.store.held == 2)
    for call in calls:
        call.cancel()
    await asyncio.wait(gone)
    await running.stub.ListTasks(conductor_pb2.ListTasksRequest())  # comes after the hang-ups on the same connection
    running.store.open(True)
    assert (await asyncio.wait_for(move(running, "Confirm"), 5)).current_stage == DATA
    (task,) = (await running.stub.ListTasks(conductor_pb2.ListTasksRequest())).tasks
    assert (await running.ended(task.task_id)).status == COMPLETED
    await running.kill()


async def test_a_stop_refuses_new_work_and_leaves_the_old_to_the_next_start(tmp_path: Path, workers: Workers) -> None:
    workers.research = hangs
    running = await start_conductor(tmp_path / "conductor.db", workers)
    task_id = (await running.execute()).task_id
    await until(lambda: workers.seen)
    await running.actor.stop()
    before = await running.events()
    with refused(grpc.StatusCode.UNAVAILABLE) as caught:
        await submit(running)
    assert reason_of(caught[0]) == Reason.ERROR_REASON_SHUTTING_DOWN
    for call in (move(running, "Confirm"), move(running, "TransitionTo"), cancel(running, task_id)):
        assert await outcome_of(call) == "SHUTTING_DOWN"
    await until(lambda: workers.cancelled)  # the worker was told
    assert await running.events() == before
    await running.kill()
    workers.research = finds
    running = await start_conductor(tmp_path / "conductor.db", workers)
    assert (await running.ended(task_id)).status == COMPLETED
    check_story(await running.events(task_id))
    await running.kill()


async def test_an_accepted_task_is_answered_as_accepted_though_the_service_stops(
    conductor: Running, workers: Workers
) -> None:
    workers.research = hangs
    call = asyncio.ensure_future(outcome_of(submit(conductor, wait=duration_pb2.Duration(seconds=30))))
    await until(lambda: workers.seen)
    await conductor.tail.close()
    assert getattr(await call, "task_id", "") == (await conductor.events())[0].task_id


async def test_a_clock_that_goes_back_breaks_nothing(tmp_path: Path, workers: Workers) -> None:
    clock = Clock()

    async def back(_: Any) -> Sequence[Any]:
        clock.advance(-86_400)
        return [research_result(finding())]

    workers.research = back
    running = await start_conductor(tmp_path / "conductor.db", workers, clock=clock)
    ids = [(await running.execute(request_id=f"r-{i}")).task_id for i in range(7)]
    for task_id in ids:
        assert (await running.ended(task_id)).status == COMPLETED
        check_story(await running.events(task_id))
    await move(running, "WaitForConfirmation")
    clock.advance(-1_000)
    assert (await move(running, "Confirm")).current_stage == DATA
    assert (await submit(running, objective="At what temperature does water boil?", request_id="r-0")).task_id == ids[0]
    listed: list[str] = []
    token = ""
    while token or not listed:
        page = await running.stub.ListTasks(conductor_pb2.ListTasksRequest(page_size=2, page_token=token))
        token, listed = page.next_page_token, [*listed, *(task.task_id for task in page.tasks)]
    assert sorted(listed) == sorted(ids)
    log = await running.events()
    assert [event.sequence for event in log] == list(range(1, len(log) + 1))
    await running.kill()


async def test_a_caller_behind_a_message_that_waits_for_the_store_is_answered(tmp_path: Path, workers: Workers) -> None:
    running = await start_conductor(tmp_path / "log.db", workers, wrap=FailingStore)
    answered = asyncio.Event()

    async def answers_when_told(_: Any) -> Any:
        await answered.wait()
        return [research_result(finding())]

    workers.research = answers_when_told
    task_id = (await running.execute()).task_id
    await until(lambda: workers.seen)
    running.store.fail_before = True
    answered.set()
    with refused(grpc.StatusCode.UNAVAILABLE):
        await asyncio.wait_for(running.stub.CancelTask(conductor_pb2.CancelTaskRequest(task_id=task_id)), 5)
    running.store.fail_before = False
    assert (await running.ended(task_id)).status == task_pb2.TASK_STATUS_COMPLETED
    await running.kill()


class Deaf(Gate):
    """A store that cannot be asked for a stream while it is deaf."""

    deaf = False

    async def stream(self, key: Any) -> Any:
        if self.deaf:
            raise StoreUnavailable("ConnectionDoesNotExistError: connection was closed")
        return await self._real.stream(key)


async def test_a_cancel_that_could_not_be_looked_up_takes_nothing_from_a_task_that_waits(
    tmp_path: Path, workers: Workers
) -> None:
    running = await start_conductor(tmp_path / "log.db", workers, max_in_flight=1, wrap=Deaf)
    answers, workers.research = workers.research, hangs
    first = (await running.execute("first")).task_id
    await until(lambda: workers.seen)
    second = (await running.execute("second")).task_id
    running.store.deaf = True
    with refused(grpc.StatusCode.UNAVAILABLE):
        await cancel(running, second)
    running.store.deaf = False
    workers.research = answers
    await cancel(running, first)
    assert (await running.ended(second)).status == COMPLETED
    await running.kill()


async def test_what_was_to_follow_an_unsure_append_does_not_follow_what_others_wrote_behind_it(
    tmp_path: Path, workers: Workers
) -> None:
    running = await start_conductor(tmp_path / "log.db", workers, wrap=Deaf)
    real_append = running.store._real.append

    async def kept_but_not_told(append: Any) -> Any:
        await real_append(append)
        raise StoreUnavailable("ConnectionDoesNotExistError: connection was closed")

    running.store.append, running.store.deaf = kept_but_not_told, True
    with refused(grpc.StatusCode.UNAVAILABLE):
        await running.execute("unsure")
    task_id = (await running.events())[0].task_id
    # Another replica is asked to cancel it meanwhile.
    stream = await running.store._real.stream(("task", task_id))
    state = machines.MACHINES["task"].initial(task_id)
    for event in stream.events:
        state = machines.MACHINES["task"].evolve(state, event)
    given = Given(stream.events[-1].occurred_at.ToNanoseconds(), "x", "c")
    decision = machines.MACHINES["task"].decide(state, conductor_pb2.CancelTaskRequest(task_id=task_id), given)
    view = machines.MACHINES["task"].view(decision.after)
    key = ("task", task_id)
    assert isinstance(
        await real_append(Append(key, stream.version, stream.epoch, None, decision.events, view)), Appended
    )
    running.store.append, running.store.deaf = real_append, False
    await until(lambda: not running.actor._mailboxes)
    assert (await running.stub.GetTask(conductor_pb2.GetTaskRequest(task_id=task_id))).status == CANCELLED
    assert not workers.seen
    await running.kill()
