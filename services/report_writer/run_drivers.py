"""What the model leans on: importance and effects. Association, not cause."""

from collections.abc import Iterator, Mapping

from services.report_writer.escape import inline
from services.report_writer.run_found import PNG, Found, Stage, picture
from services.report_writer.run_values import Json, figure, name, number, of, rows, text
from services.report_writer.run_words import cell, paragraph, table

NOTE = (
    "**Association, not cause:** these columns go together with the target; that changing one changes it is not shown."
)
MAX_EFFECTS = 12

_REVIEW = Stage.STAGE_REVIEW_EDIT


def leading(found: Found, most: int = 3) -> list[str]:
    """Returns the columns that matter most and more than their own spread, as plain text, the greatest first."""
    measured = [
        (number(row.get("mean")), number(row.get("sd")) or 0.0, name(row.get("column"))) for row in _ranked(found)
    ]
    return [column for mean, sd, column in measured if column and mean is not None and mean > max(sd, 0.0)][:most]


def _ranked(found: Found) -> list[Mapping[str, Json]]:
    given = rows(found.of(_REVIEW, "importance"))
    return sorted(given, key=lambda row: -(number(row.get("mean")) or 0.0))


def drivers(found: Found) -> Iterator[str]:
    """Yields the blocks of the section, none when nothing was measured."""
    measured = [row for row in _ranked(found) if name(row.get("column"))]
    effects = rows(found.of(_REVIEW, "effects"))[:MAX_EFFECTS]
    drawn = found.pictures(_REVIEW, "plot-importance")
    if not measured and not effects and not drawn:
        return
    yield f"{NOTE}\n"
    if measured:
        yield "How much worse the model gets on test rows when a column is shuffled:\n"
        lines = [[cell(name(row["column"])), figure(row.get("mean")), figure(row.get("sd"), 2)] for row in measured]
        yield table(("column", "loss", "standard deviation"), lines)
        yield paragraph(_how(found))
    yield from map(picture, drawn)
    for effect in effects:
        yield from _effect(found, effect)


def _effect(found: Found, effect: Mapping[str, Json]) -> Iterator[str]:
    yield paragraph(inline(text(effect.get("words"))))
    drawn = found.file(_REVIEW, text(effect.get("plot")))
    if drawn is not None and drawn.name.endswith(PNG):
        yield picture(drawn)


def _how(found: Found) -> str:
    said = "Where the loss is no more than its standard deviation, it may be chance. Columns that say much the same "
    said += "stand in for each other, so each may look less important than it is."
    how = found.of(_REVIEW, "importance_how")
    measured, of_all = len(_ranked(found)), number(of(how, "columns_of"))
    if of(how, "complete") is False and of_all is not None:
        said += f" Of {of_all:,.0f} columns, {measured:,} were measured; the time did not do for more."
    return said
