"""The promises about projects: no stage is skipped, and each Confirm moves exactly one."""

from collections.abc import Sequence

from conductor.v1 import conductor_pb2, event_pb2, project_pb2

from tests.chaos.history import Call, calls_in
from tests.chaos.promises import REFUSALS, Evidence, Verdict, answered, stages_of

PENDING = project_pb2.STAGE_STATUS_PENDING
IN_PROGRESS = project_pb2.STAGE_STATUS_IN_PROGRESS
COMPLETED = project_pb2.STAGE_STATUS_COMPLETED
DONE = (COMPLETED, project_pb2.STAGE_STATUS_SKIPPED)
LAST = project_pb2.STAGE_EXPORT


def no_stage_is_skipped(evidence: Evidence) -> Verdict:
    """A stage is worked on, waits or ends only when every earlier one is done."""
    wrong: list[str] = []
    checked = 0
    for project_id, own in evidence.of_projects().items():
        stages = stages_of(())
        for event in own:
            if not event.HasField("stage_status"):
                continue
            checked += 1
            changed = event.stage_status
            earlier = [stages[stage] for stage in stages if stage < changed.stage_id]
            if changed.status != PENDING and any(status not in DONE for status in earlier):
                name = project_pb2.Stage.Name(changed.stage_id)
                wrong.append(f"project {project_id} enters {name} at {event.sequence} before the stages ahead are done")
            stages[changed.stage_id] = changed.status
    return Verdict(checked, tuple(wrong))


def each_confirm_moves_one_stage(evidence: Evidence) -> Verdict:
    """An approval is its answer, the stage COMPLETED and the next IN_PROGRESS, together; a gate is answered once."""
    wrong: list[str] = []
    checked = 0
    for project_id, own in evidence.of_projects().items():
        approvals = [event for event in own if event.HasField("confirmation_answered")]
        gates = [a.confirmation_answered.confirmation_id or a.confirmation_answered.plan_id for a in approvals]
        named = [gate for gate in gates if gate]
        wrong += [f"gate {gate} of {project_id} was answered more than once" for gate in _repeated(named)]
        for event in approvals:
            checked += 1
            if event.confirmation_answered.approved and not _moves_one(event, own):
                wrong.append(f"the approval at {event.sequence} of {project_id} does not move exactly one stage")
        confirms = [c for c in calls_in(evidence.records, "Confirm") if c.request.project_id == project_id]
        least, most = _bounds(confirms)
        if not least <= len(approvals) <= most:
            wrong.append(f"{project_id}: {len(approvals)} gates answered, acknowledged {least}, asked for {most}")
    return Verdict(checked, tuple(wrong))


def _moves_one(answer: event_pb2.Event, own: Sequence[event_pb2.Event]) -> bool:
    stage = answer.confirmation_answered.stage_id
    behind = [e for e in own if e.stream_sequence > answer.stream_sequence and not e.HasField("plan_approved")][:2]
    moves = [(e.stage_status.stage_id, e.stage_status.status) for e in behind]
    together = all(e.sequence - answer.sequence <= len(behind) + 1 for e in behind)
    wanted = [(stage, COMPLETED)] if stage == LAST else [(stage, COMPLETED), (stage + 1, IN_PROGRESS)]
    return together and moves[: len(wanted)] == wanted


def _repeated(names: Sequence[str]) -> set[str]:
    return {name for name in names if names.count(name) > 1}


def _bounds(confirms: Sequence[Call]) -> tuple[int, int]:
    """How many gates must have been answered, and how many may: a try without a reply counts as either."""
    acknowledged = {call.request_id for call in confirms if answered(call)}
    refused = {call.request_id for call in confirms if call.code in REFUSALS}
    assert all(isinstance(call.request, conductor_pb2.ConfirmRequest) for call in confirms)
    return len(acknowledged), len({call.request_id for call in confirms} - (refused - acknowledged))
