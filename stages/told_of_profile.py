"""What PROFILE_DATA tells: the columns as JSON, issues, the summary, and what a person may choose."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from stages.columns import Look, gaps
from stages.contract import Action, Issue
from stages.leaks import Strength, suspects
from stages.rows import duplicates, group_of, grouped, ordered
from stages.survey import DAY_FIRST, FRACTIONS, MONTH_FIRST, Survey, roles_of
from stages.targets import Target, Unsure
from stages.wording import counted, quoted

OFFERED = 300  # columns whose role can be changed, or that may be chosen as the target
LONGEST_NAME = 200  # characters of a column's name that a choice can carry
DETAILED = 400  # columns whose figures are kept
CONFIRMED = ("LEAKAGE_SUSPECT", "ID_COLUMN", "GROUPED_ROWS", "DUPLICATE_ROWS", "TASK_AMBIGUOUS")  # not only as WARN
OF_AMOUNTS = ("NUMBERS_AS_TEXT", "AMBIGUOUS_NUMBER", "MIXED_TYPES")  # what is worth a word of a target too
SPELLINGS = ("ALIKE", "APART")
NAMED = 3  # issues in the summary


def column(look: Look, told: Strength | None, target: str | None, place: int) -> dict[str, Any]:
    """Returns a column for `result`; of a wide table only the first have their figures."""
    role = "TARGET" if look.name == target else look.role
    base: dict[str, Any] = {"name": look.name, "kind": look.kind, "role": role}
    base |= {"missing": look.missing, "unique": look.unique, "parse": dict(look.parse)}
    base["strength"] = told.normal if told else None
    if look.why:
        base["why"] = look.why
    if place < DETAILED:
        base["stats"] = dict(look.stats)
        base["top"] = [{"value": value, "rows": rows} for value, rows in look.top]
    return base


def issues(
    survey: Survey, target: Target | Unsure | None, told: Mapping[str, Strength], intent: Mapping[str, Any]
) -> Iterator[Issue]:
    """Yields what is odd, the target's first."""
    settled = target if isinstance(target, Target) else None
    if isinstance(target, Unsure):
        yield target.issue
    if settled:
        yield from settled.issues
        yield from suspects(told, settled)
    yield from _of_rows(survey, settled)
    for look in survey.looks.values():
        if settled is not None and look.name == settled.column:
            yield from (issue for issue in look.issues if issue.code in OF_AMOUNTS and settled.task == "regression")
        else:
            yield from (issue if survey.lines_known else replace(issue, row=None) for issue in look.issues)
            yield from _identifier(look)
        gap = gaps(look)
        if gap:
            yield gap


def _identifier(look: Look) -> Iterator[Issue]:
    if look.role == "ID":
        text = f"{quoted(look.name)} identifies rows: {look.why}. It will be left out unless you keep it."
        advice = "Keep it in the next stage if it means more than which row it is."
        yield Issue("ID_COLUMN", "WARN", text, column=look.name, count=look.unique, suggestion=advice)


def _of_rows(survey: Survey, target: Target | None) -> Iterator[Issue]:
    found = None if survey.hashes is None else duplicates(survey.hashes, survey.combinations)
    if found:
        yield found if survey.lines_known else replace(found, row=None)
    group = group_of(look for look in survey.looks.values() if target is None or look.name != target.column)
    if group:
        yield grouped(group)
    in_order = ordered(survey.marks, survey.looks)
    if in_order:
        yield in_order
    features = sum(1 for look in survey.looks.values() if look.role not in ("ID", "CONSTANT")) - 1
    if features > survey.rows:
        text = f"There are more columns ({features:,}) than rows ({survey.rows:,}): much will look related by chance."
        yield Issue("MORE_COLUMNS_THAN_ROWS", "WARN", text, count=features, suggestion="Bring more rows.")


def summary(survey: Survey, target: Target | Unsure | None, found: Sequence[Issue]) -> str:
    """Returns a few sentences for the person at the gate."""
    size = f"{counted(survey.rows, 'row')} and {counted(len(survey.looks), 'column')}."
    if target is None:
        return f"{size} Which column shall be predicted? Please choose the target."
    if isinstance(target, Unsure):
        return f"{size} {target.issue.message} Please choose the task."
    goal = f"{quoted(target.column)} is to be predicted ({target.task}: {target.task_why})."
    weighty = [issue for issue in found if issue.severity == "WARN" or issue.code in CONFIRMED]
    told = " ".join(issue.message for issue in weighty[:NAMED])
    more = f" {counted(len(weighty) - NAMED, 'more thing')} to look at." if len(weighty) > NAMED else ""
    return f"{size} {goal} {told}{more}" if weighty else f"{size} {goal} Nothing odd was found."


def actions(intent: Mapping[str, Any], survey: Survey, target: Target | Unsure | None) -> Iterator[Action]:
    """Yields what may be done at the gate."""
    settled = target if isinstance(target, Target) else None
    yield Action("confirm", "Go on with this", "CONFIRM")
    name = settled.column if settled else None
    useful = [look for look in survey.looks.values() if look.role != "CONSTANT" and len(look.name) <= LONGEST_NAME]
    names = _targets(intent, [look.name for look in useful])
    yield Action("target", "Column to predict", "CHOOSE", "target", names, name, required=target is None)
    if isinstance(target, Unsure):
        yield Action("task", "What kind of prediction", "CHOOSE", "task", target.options, required=True)
    elif settled:
        numeric = settled.task == "regression" or "number" in settled.parse
        different = len(settled.classes) or survey.looks[settled.column].unique
        classes = "binary" if different == 2 else "multiclass"
        options = (classes, "regression") if numeric else (classes,)
        yield Action("task", "What kind of prediction", "CHOOSE", "task", options, settled.task)
        if settled.task == "binary":
            two = tuple(settled.classes)
            yield Action("positive-class", "Class to find", "CHOOSE", "positive_class", two, settled.positive_class)
        if any(issue.code == "SPELLINGS" for issue in settled.issues):
            label = "Classes that differ in nothing but capitals"
            yield Action("spellings", label, "CHOOSE", "spellings", SPELLINGS, SPELLINGS[0])
    offered = [look for look in survey.looks.values() if len(look.name) <= LONGEST_NAME and look.name != name]
    for place, look in enumerate(offered[:OFFERED]):
        field = f"roles.{look.name}"
        yield Action(
            f"role-{place}", f"What {quoted(look.name)} holds", "CHOOSE", field, tuple(roles_of(look)), look.role
        )
        if any(issue.code == "AMBIGUOUS_DATE" for issue in look.issues):
            ways = (DAY_FIRST, MONTH_FIRST)
            yield Action(
                f"dates-{place}", f"Dates of {quoted(look.name)}", "CHOOSE", f"dates.{look.name}", ways, DAY_FIRST
            )
    yield from _of_fractions(survey)
    yield from _leaving()


def _of_fractions(survey: Survey) -> Iterator[Action]:
    """Yields what stands before a fraction, for columns of numbers in which that can be read in two ways."""
    for place, look in enumerate(survey.looks.values()):
        doubtful = any(issue.code == "AMBIGUOUS_NUMBER" for issue in look.issues)
        if doubtful and len(look.name) <= LONGEST_NAME:
            label = f"What stands before a fraction in {quoted(look.name)}"
            now = next(name for name, sign in FRACTIONS.items() if sign == look.parse.get("decimal"))
            yield Action(f"fraction-{place}", label, "CHOOSE", f"fractions.{look.name}", tuple(FRACTIONS), now)


def rescue(intent: Mapping[str, Any], columns: Iterable[str]) -> Iterator[Action]:
    """Yields what may be done when the target is of no use."""
    names = _targets(intent, [name for name in columns if len(name) <= LONGEST_NAME])
    yield Action("target", "Column to predict", "CHOOSE", "target", names)
    yield from _leaving()


def _leaving() -> Iterator[Action]:
    yield Action("back-data", "Choose or read the data differently", "BACK", "DATA_SOURCE")
    yield Action("back-intent", "Say the objective differently", "BACK", "PARSE_INTENT")
    yield Action("abort", "End the run", "ABORT")


def _targets(intent: Mapping[str, Any], usable: Sequence[str]) -> tuple[str, ...]:
    likely = [candidate["column"] for candidate in intent.get("target_candidates") or ()]
    return tuple(dict.fromkeys([*(name for name in likely if name in usable), *usable]))[:OFFERED]
