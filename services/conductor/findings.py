"""One research as the router follows it: what it says on the way becomes progress, its result is checked."""

from collections.abc import Callable

from conductor.v1 import event_pb2, researcher_pb2, task_pb2

from services.common.errors import Reason, Refusal
from services.conductor.activity import Activity
from services.conductor.protocol import MAX_PROGRESS
from services.conductor.telling import Telling

MESSAGE_CHARS = 500

Result = researcher_pb2.ResearchResult


class Following:
    """Follows a research from its first event to its result.

    Args:
        tell: is given each progress; not after `close`.
    """

    def __init__(self, call_id: str, activity: Activity, tell: Callable[[event_pb2.TaskProgress], None]) -> None:
        self._call_id = call_id
        self._activity = activity
        self._tell = tell
        self._telling = Telling(activity, tell)
        self._sentences = 0

    def add(self, response: researcher_pb2.ResearchResponse) -> Result | None:
        """Takes an event; returns the result when it is that. Raises WORKER_PROTOCOL for one that cannot be used."""
        kind = response.WhichOneof("event")
        if kind == "result":
            if response.result.HasField("usage"):  # the last piece shows what it came to
                self._activity.add(researcher_pb2.ResearchResponse(usage=response.result.usage))
            self._telling.end()
            return _checked(response.result)
        if kind == "progress":
            self._say(response.progress)
        else:
            self._activity.add(response)
            self._telling.go_on()
        return None

    def close(self) -> None:
        """Tells nothing more."""
        self._telling.stop()

    def _say(self, said: researcher_pb2.ResearchProgress) -> None:
        self._sentences += 1
        if self._sentences <= MAX_PROGRESS:
            message = said.message[:MESSAGE_CHARS]
            progress = event_pb2.TaskProgress(
                message=message, step=said.step, total_steps=said.total_steps, call_id=self._call_id
            )
            self._tell(progress)


def _checked(result: Result) -> Result:
    """Lets no claim into the log that does not say where it comes from."""
    if fault := _fault(result):
        name = task_pb2.Capability.Name(task_pb2.CAPABILITY_RESEARCHER)
        text = f"{name} gave {fault}; its findings are not used."
        raise Refusal(Reason.ERROR_REASON_WORKER_PROTOCOL, text, capability=name)
    return result


def _fault(result: Result) -> str:
    if any(not finding.citations for finding in result.findings):
        return "a finding without a citation"
    if any(not sentence.findings for sentence in result.answer):
        return "a sentence of an answer without a finding"
    if max(_indices(result), default=-1) >= len(result.findings):
        return "an answer that rests on a finding it did not give"
    return ""


def _indices(result: Result) -> list[int]:
    return [
        *(index for sentence in result.answer for index in sentence.findings),
        *(index for question in result.sub_questions for index in question.findings),
        *(index for pair in result.contradictions for index in (pair.one, pair.other)),
    ]
