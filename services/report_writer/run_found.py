"""A run as its report sees it: the request, and what each stage left, with ways to ask for parts of it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from conductor.v1 import project_pb2, report_writer_pb2

from services.report_writer.escape import inline
from services.report_writer.run_values import Json, name, of, rows, text

Stage = project_pb2.Stage
Left = Mapping[Stage.ValueType, Json]  # by stage: what its result.json holds, None when it cannot be read

_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,127}")
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
SUMMARY_CHARS = 600
PNG = ".png"


@dataclass(frozen=True, slots=True)
class Issue:
    """What a stage found odd, as plain text."""

    code: str
    warns: bool
    message: str
    suggestion: str


@dataclass(frozen=True)
class Found:
    """What a report is made of.

    Attributes:
        request: names the run, its decisions and its files; from the log.
        left: what the stages found; from their programs, of any shape.
    """

    request: report_writer_pb2.WriteRunReportRequest
    left: Left

    def of(self, stage: Stage.ValueType, *path: str) -> Json:
        """Returns a part of what a stage found, None when it did not find it."""
        return of(self.left.get(stage), "result", *path)

    def summary(self, stage: Stage.ValueType) -> str:
        """Returns what a stage said in a few sentences, as plain text."""
        return text(of(self.left.get(stage), "summary"), SUMMARY_CHARS)

    def issues(self, *stages: Stage.ValueType) -> list[Issue]:
        """Returns what these stages found odd, each issue once."""
        found = (issue for stage in stages for issue in self._issues(stage))
        return list(dict.fromkeys(issue for issue in found if issue.message))

    def _issues(self, stage: Stage.ValueType) -> Iterator[Issue]:
        for given in rows(of(self.left.get(stage), "warnings")):
            warns = given.get("severity") in ("WARN", "ERROR")
            yield Issue(
                name(given.get("code")), warns, text(given.get("message"), SUMMARY_CHARS), text(given.get("suggestion"))
            )

    @property
    def target(self) -> str:
        """The column that is to be predicted or explained, "" when no stage says."""
        asked = self.of(Stage.STAGE_PROFILE_DATA, "target", "column"), self.of(Stage.STAGE_PARSE_INTENT, "target")
        return name(self.of(Stage.STAGE_PREPROCESS, "target")) or name(asked[0]) or name(asked[1])

    @property
    def explains(self) -> bool:
        """Whether the run is to explain the target rather than to predict it."""
        return bool(self.of(Stage.STAGE_PARSE_INTENT, "goal") == "EXPLAIN")

    @property
    def final(self) -> bool:
        """Whether all stages are done."""
        return self.request.stage_id == Stage.STAGE_EXPORT

    @cached_property
    def files(self) -> list[project_pb2.RunArtifact]:
        """The files that hold, in the order of the stages; those of attempts that were done again are left out."""
        given = [*self.request.run.artifacts, *self.request.outcome.artifacts]
        newest = {(file.task_id, file.name): file for file in given if not file.stale}
        return sorted(newest.values(), key=lambda file: file.stage_id)

    def file(self, stage: Stage.ValueType, file_name: str) -> project_pb2.RunArtifact | None:
        """Returns a stage's file, None when there is none of the name that can be linked to."""
        found = (file for file in self.files if file.stage_id == stage and file.name == file_name)
        return next((file for file in found if linkable(file)), None)

    def pictures(self, stage: Stage.ValueType, start: str = "") -> list[project_pb2.RunArtifact]:
        """Returns a stage's pictures whose names start so."""
        of_stage = (file for file in self.files if file.stage_id == stage and file.name.startswith(start))
        return [file for file in of_stage if file.name.endswith(PNG) and linkable(file)]


def linkable(file: project_pb2.RunArtifact) -> bool:
    """Returns whether a link to a file leads below the report's folder and nowhere else."""
    return bool(_TASK.fullmatch(file.task_id) and _NAME.fullmatch(file.name))


def link(file: project_pb2.RunArtifact, shown: str = "") -> str:
    """Returns a link to a file that stands beside the report, its name alone when it cannot be linked to."""
    label = inline(name(shown or file.name))
    return f"[{label}]({file.task_id}/{file.name})" if linkable(file) else label


def picture(file: project_pb2.RunArtifact) -> str:
    """Returns a picture that stands beside the report, with its title for those who do not see it."""
    return f"![{inline(text(file.title) or file.name)}]({file.task_id}/{file.name})\n"


def stage_name(stage: Stage.ValueType) -> str:
    """Returns `TRAIN` and the like."""
    return Stage.Name(stage).removeprefix("STAGE_") if stage in Stage.values() else str(int(stage))
