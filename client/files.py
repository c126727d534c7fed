"""The files of a run, saved below a folder the way its report links to them."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import grpc
from conductor.v1 import project_pb2

from client.api import ConductorClient
from client.errors import ConductorError
from client.show import plain

REPORT = "report.md"

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # of a path: what comes from a server names nothing outside


def save(client: ConductorClient, project: project_pb2.ProjectState, folder: Path) -> Iterator[Path]:
    """Saves the report of a run as `report.md` and each file that is not stale as `TASK/NAME`; yields each path.

    A file is there under its name only when it is whole. Raises ConductorError, with DATA_LOSS for a file that is not
    what the run lists; OSError when it cannot be written.
    """
    run = project.run
    folder.mkdir(parents=True, exist_ok=True)
    if run.report_path:
        path = folder / REPORT
        _write(path, iter([client.report(project_id=project.project_id).data]))
        yield path
    for artifact in run.artifacts:
        if artifact.stale:
            continue
        if not (_PART.fullmatch(artifact.task_id) and _PART.fullmatch(artifact.name)):
            raise _lost(artifact, "has a name that no file may have")
        path = folder / artifact.task_id / artifact.name
        path.parent.mkdir(exist_ok=True)
        _write(path, client.artifact(artifact.task_id, artifact.name, project.project_id), artifact)
        yield path


def _write(path: Path, content: Iterator[bytes], wanted: project_pb2.RunArtifact | None = None) -> None:
    part = path.with_name(f".{path.name}.part")
    seen = hashlib.sha256()
    try:
        with part.open("wb") as file:
            for data in content:
                seen.update(data)
                file.write(data)
        if wanted is not None and seen.hexdigest() != wanted.sha256:
            raise _lost(wanted, "is not what was written: its SHA-256 differs. Fetch it again")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _lost(artifact: project_pb2.RunArtifact, what: str) -> ConductorError:
    message = f"{plain(artifact.name)} of task {plain(artifact.task_id)} {what}."
    return ConductorError("BAD_ARTIFACT", message, grpc.StatusCode.DATA_LOSS)
