"""The data of a run and its problems, and what of it was left out."""

from collections.abc import Iterable, Iterator, Mapping

from services.report_writer.escape import code_span, inline
from services.report_writer.run_found import Found, Issue, Stage, link, picture
from services.report_writer.run_values import Json, figure, items, name, number, of, rows, text, texts
from services.report_writer.run_words import bullets, cell, counted, paragraph, several, size, table

FIRST_PICTURES = ("plot-target.png", "plot-missing.png")  # shown; the other ones are linked to
TURNED = ("PARSE", "ENCODE")  # actions that make something else of a column
DIST = {"min": "least", "50%": "half of them at most", "mean": "mean", "max": "greatest"}

_SOURCE, _PROFILE, _PLAN = Stage.STAGE_DATA_SOURCE, Stage.STAGE_PROFILE_DATA, Stage.STAGE_PREPROCESS
_SPLITS = {
    "STRATIFIED": "by chance, each class evenly",
    "RANDOM": "by chance",
    "GROUP": "so that rows that belong together stay together",
    "TIME": "by time: the latest rows are the test",
}
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar", " ": "space"}


def data(found: Found) -> Iterator[str]:
    """Yields the blocks of the section on the data."""
    facts = list(_facts(found))
    yield bullets(facts)
    if not facts:
        yield paragraph(inline(found.summary(_SOURCE)), inline(found.summary(_PROFILE)))
    yield _bad_rows(found)
    yield from problems("What is odd about it:", found.issues(_SOURCE, _PROFILE, _PLAN))
    if found.of(_PROFILE, "table") and not found.issues(_SOURCE, _PROFILE, _PLAN):
        yield "Nothing odd was found in it.\n"
    yield from _columns(found)
    for file in found.pictures(_PROFILE, "plot-"):
        if file.name in FIRST_PICTURES:
            yield picture(file)
    others = [file for file in found.pictures(_PROFILE, "plot-") if file.name not in FIRST_PICTURES]
    if others:
        yield "More pictures:\n\n" + bullets(link(file, text(file.title) or file.name) for file in others)


def problems(heading: str, issues: Iterable[Issue]) -> Iterator[str]:
    """Yields issues in plain words, those to look at first, "" when there are none."""
    ordered = sorted(issues, key=lambda issue: not issue.warns)
    if ordered:
        yield f"{heading}\n\n" + bullets(map(_problem, ordered))


def _problem(issue: Issue) -> str:
    code = f" ({inline(issue.code)})" if issue.code else ""
    message = inline(issue.message)
    return " ".join(filter(None, [f"**{message}**" if issue.warns else message, inline(issue.suggestion)])) + code


def _facts(found: Found) -> Iterator[str]:
    source = found.of(_SOURCE)
    if path := text(of(source, "path")):
        yield f"Source: {inline(path)}{_form(source)}"
    table_of = found.of(_PROFILE, "table")
    lines, columns = number(of(source, "rows")), len(items(of(source, "columns")))
    if lines is not None:
        yield f"{lines:,.0f} rows, {counted(columns, 'column')}" + _sample(source)
    if twice := number(of(table_of, "dup_rows")):
        yield f"Rows that stand there more than once: {twice:,.0f}"
    if sha256 := text(of(source, "sha256")):
        length = number(of(source, "bytes"))
        yield f"SHA-256 of the file: {code_span(sha256)}" + (f", {size(int(length))}" if length else "")
    if isinstance(of(source, "null_markers"), list):
        yield _missing(source)
    yield from _target(found)


def _form(source: Json) -> str:
    told = [text(of(source, key)) for key in ("format", "packing", "encoding")]
    delimiter, sheet = of(source, "delimiter"), text(of(source, "sheet"))
    if isinstance(delimiter, str) and delimiter:
        told.append(f"cells parted by {_DELIMITERS.get(delimiter) or text(delimiter, 20)}")
    if text(of(source, "decimal")) == ",":
        told.append("decimal comma")
    if sheet:
        told.append(f"sheet {sheet}")
    shown = ", ".join(inline(each) for each in told if each)
    return f" ({shown})" if shown else ""


def _sample(source: Json) -> str:
    whole = number(of(source, "sampled", "rows_of"))
    return "" if whole is None else f", a sample of the {whole:,.0f} rows of the file"


def _missing(source: Json) -> str:
    markers = texts(of(source, "null_markers"))
    if not markers:
        return "Read as missing: empty cells only"
    return "Read as missing: empty cells and " + ", ".join(map(code_span, markers[:20]))


def _target(found: Found) -> Iterator[str]:
    target = found.of(_PROFILE, "target")
    if not found.target:
        return
    task = name(of(target, "task")) or name(found.of(_PLAN, "task")) or name(found.of(Stage.STAGE_PARSE_INTENT, "task"))
    why = text(of(target, "task_why")) or text(found.of(Stage.STAGE_PARSE_INTENT, "task_why"))
    doing = "To be explained" if found.explains else "To be predicted"
    kind = f", as {inline(task)}" if task else ""
    yield f"{doing}: {inline(found.target)}{kind}" + (f" ({inline(why)})" if why else "")
    if classes := [f"{name(row.get('name'))} {figure(row.get('rows'))}" for row in rows(of(target, "classes"))]:
        yield f"Rows of each class: {several(classes, 20)}"
    spread = [f"{said} {shown}" for key, said in DIST.items() if (shown := figure(of(target, "dist", key)))]
    if spread:
        yield "Its values: " + ", ".join(spread)
    if missing := number(of(target, "missing")):
        yield f"Rows in which it is missing: {missing:,.0f}"


def _bad_rows(found: Found) -> str:
    bad = rows(found.of(_SOURCE, "bad_rows"))
    lines = [[figure(row.get("line")), cell(text(row.get("reason")))] for row in bad]
    return "Lines that could not be read and were left out:\n\n" + table(("line", "why"), lines, 20) if lines else ""


def _columns(found: Found) -> Iterator[str]:
    given = [row for row in rows(found.of(_PROFILE, "columns")) if name(row.get("name"))]
    lines = [
        [
            *(cell(name(row.get(key))) for key in ("name", "role")),
            *(figure(row.get(key)) for key in ("missing", "unique")),
        ]
        for row in given
    ]
    lines = [[*line, _values(row)] for line, row in zip(lines, given, strict=True)]
    yield table(("column", "role", "missing", "different values", "values"), lines)


def _values(row: Mapping[str, Json]) -> str:
    least, most = figure(of(row, "stats", "min")), figure(of(row, "stats", "max"))
    if least and most:
        return f"{least} to {most}"
    return ", ".join(cell(text(each.get("value"), 30)) for each in rows(row.get("top"))[:3])


def left_out(found: Found) -> Iterator[str]:
    """Yields the blocks of the section on what was dropped, and how the rest is used."""
    plan = [row for row in rows(found.of(_PLAN, "plan")) if name(row.get("column"))]
    if not plan:
        yield paragraph(inline(found.summary(_PLAN)))
        return
    dropped = [[cell(name(row["column"])), _reason(row)] for row in plan if row.get("action") == "DROP"]
    yield table(("column left out", "why"), dropped)
    gone = [f"{figure(row.get('n'))} rows: {_reason(row)}" for row in rows(found.of(_PLAN, "dropped_rows"))]
    yield f"Rows left out:\n\n{bullets(gone)}" if gone else ""
    used = texts(found.of(_PLAN, "features"))
    nothing = "" if dropped or gone else "Nothing was left out."
    yield paragraph(nothing, f"Used: {several(used, 30)}." if used else "", *_asked(found))
    turned = [row for row in plan if name(row.get("action")).startswith(TURNED)]
    lines = [f"{inline(name(row['column']))}: {_reason(row)}" for row in turned]
    yield f"Turned into numbers or dates first:\n\n{bullets(lines)}" if lines else ""
    yield paragraph(_split(found.of(_PLAN, "split")))


def _reason(row: Mapping[str, Json]) -> str:
    return cell(text(row.get("reason")))


def _asked(found: Found) -> Iterator[str]:
    intent = Stage.STAGE_PARSE_INTENT
    if drop := texts(found.of(intent, "drop")):
        yield f"The objective asks to leave out {several(drop)}."
    if keep := texts(found.of(intent, "keep_only")):
        yield f"The objective asks to use only {several(keep)}."


def _split(split: Json) -> str:
    learn, test = number(of(split, "n_train")), number(of(split, "n_test"))
    if learn is None or test is None:
        return ""
    kind = name(of(split, "kind"))
    how = _SPLITS.get(kind) or inline(kind)
    by = f" (by {inline(name(of(split, 'column')))})" if name(of(split, "column")) else ""
    parted = f", {how}{by}" if how else ""
    why = inline(text(of(split, "why")))
    told = f"{learn:,.0f} rows were learned from and {test:,.0f} kept apart for the test{parted}, before any fit."
    return f"{told} {why}".rstrip()
