"""WriteRunReportRequest and what the stages left → markdown. Pure: the same request gives the same bytes.

Order: answer, data and its problems, what was left out, the models tried, the test, what drives the target, decisions,
limits, how to predict and reproduce, files, provenance. Where the goal is to explain, the drivers come before the
models. What the stages left is JSON of any shape: a section whose facts are not there is left out.
"""

from collections.abc import Callable, Iterable, Iterator

from conductor.v1 import report_writer_pb2

from services.report_writer.escape import fenced, fold, inline, shorten
from services.report_writer.run_answer import answer
from services.report_writer.run_data import data, left_out
from services.report_writer.run_drivers import drivers
from services.report_writer.run_found import Found, Left, stage_name
from services.report_writer.run_models import leaderboard, test_results
from services.report_writer.run_record import decisions, files, limits, predicting, provenance, reproducing

TITLE_CHARS = 100

Section = tuple[str, Callable[[Found], Iterable[str]]]
DRIVERS: Section = ("What drives the target", drivers)
BEFORE: tuple[Section, ...] = (("Answer", answer), ("Data", data), ("What was left out", left_out))
MODELS: tuple[Section, ...] = (("Models tried", leaderboard), ("Test results", test_results))
AFTER: tuple[Section, ...] = (
    ("Decisions", decisions),
    ("Limits", limits),
    ("How to predict", predicting),
    ("How to reproduce", reproducing),
    ("Files", files),
    ("Provenance", provenance),
)


def body(request: report_writer_pb2.WriteRunReportRequest, left: Left) -> str:
    """Returns the report, without its seal.

    Args:
        left: by stage what its result.json holds; any JSON, None where it could not be read.
    """
    return "\n".join(_blocks(Found(request, left)))


def _blocks(found: Found) -> Iterator[str]:
    yield f"# {_title(found)}\n"
    yield _standing(found)
    for heading, section in _sections(found):
        blocks = [block for block in section(found) if block]
        if blocks:
            yield f"## {heading}\n"
            yield from blocks
    objective = found.request.run.objective
    if fold(objective) != shorten(fold(objective), TITLE_CHARS):
        yield f"## Objective\n\n{fenced(objective)}"


def _sections(found: Found) -> tuple[Section, ...]:
    middle = (DRIVERS, *MODELS) if found.explains else (*MODELS, DRIVERS)
    return (*BEFORE, *middle, *AFTER)


def _title(found: Found) -> str:
    return inline(shorten(fold(found.request.run.objective), TITLE_CHARS)) or "Report of a run"


def _standing(found: Found) -> str:
    if found.final:
        return "_Final report: the model is exported._\n"
    stage = stage_name(found.request.stage_id)
    return f"_Draft, written behind {stage}: nothing is exported yet, and a person may still change it._\n"
