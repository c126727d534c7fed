"""What somebody wants, from their objective, their hints and the table's columns: rules, and no guess in silence."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.contract import Action, Failed, Issue
from stages.intent_language import is_foreign, spread
from stages.intent_lexicon import (
    SERIES,
    Goal,
    Task,
    budget_of,
    goal_of,
    later_of,
    metric_of,
    positive_of,
    unsupported,
    wants_amount,
    wants_classes,
)
from stages.intent_target import NAMED, SURE, Known, Scored, clear, named_in, score
from stages.intent_text import MAX_TEXT, Token, phrases_in, tokens_of
from stages.shown import listed, nearest, plain
from stages.words import COMMON, files_named, telling

MOST_LEVELS = 20  # of whole numbers that may be classes as well as amounts
MOST_OFFERED = 300  # columns offered at the gate
_QUOTED = re.compile(r"[\"'`“‘]([^\"'`”’\n]{1,100})[\"'`”’]")


@dataclass(slots=True)
class Intent:
    """What was understood. `asks` holds what a person must say, `issues` what they should know.

    `later`: the objective speaks of what comes later, so rows may have to be tested in their order of time.
    """

    goal: Goal = "PREDICT"
    target: str | None = None
    candidates: list[Scored] = field(default_factory=list)
    task: Task | None = None
    task_why: str = ""
    metric: str | None = None
    budget_s: float | None = None
    drop: list[str] = field(default_factory=list)
    keep_only: list[str] = field(default_factory=list)
    positive_class: str | None = None
    group: str | None = None
    time: str | None = None
    later: bool = False
    unparsed: list[str] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
    asks: set[str] = field(default_factory=set)


def understand(objective: str, said: Mapping[str, Any], columns: Sequence[Known]) -> Intent:
    """Returns what somebody wants.

    Args:
        said: what they said outright, by field: it holds whatever the objective says.
        columns: of the table; none when it was not seen yet.

    Raises Failed with EMPTY_OBJECTIVE, UNSUPPORTED_TASK or TARGET_NOT_FOUND.
    """
    names = [column.name for column in columns]
    text = spread(objective[:MAX_TEXT], names)
    if not telling(text) and not said.get("target"):
        advice = 'Write what you want to know, for example "predict price from the other columns".'
        raise Failed("EMPTY_OBJECTIVE", "The objective says nothing that could be done.", suggestion=advice)
    tokens = tokens_of(_without_files(text))
    found = Intent(goal=said.get("goal") or goal_of(text.lower()), later=later_of(text.lower()))
    foreign = is_foreign(tokens, names)
    _lists(found, tokens, said, names)
    _target(found, tokens, text, said, columns, foreign=foreign)
    rest = _without_name(text.lower(), found.target)
    problem = None if said.get("target") else unsupported(rest, found.target is not None)
    if problem:
        raise _unsupported(problem)
    if foreign and not said.get("target"):
        found.issues.append(_not_english(found.target))
    if found.target is None and columns and "target" not in found.asks:
        _ask_target(found, tokens, names)
    found.metric = said.get("metric") or metric_of(text.lower())
    found.budget_s = said.get("budget_s") or budget_of(text)
    _task(found, text.lower(), said, columns)
    _positive(found, text, said, columns)
    return found


def _without_files(text: str) -> str:
    for name in files_named(text):
        text = text.replace(name, " ")
    return text


def _without_name(text: str, target: str | None) -> str:
    """Returns the text in lower case without the target's name: "next month" may be a part of it."""
    words = [re.escape(word) for word in re.split(r"[\W_]+", (target or "").lower()) if word]
    return re.sub(r"\b" + r"[\W_]*".join(words) + r"\b", " ", text) if words else text


def _unsupported(problem: str) -> Failed:
    text = f"The objective asks for {problem}. What is done here is to predict or explain one column of a table."
    advice = "Name the column that is to be predicted or explained."
    if problem == SERIES:
        advice = "Say which column is to be predicted from the others of its row, for example "
        advice += '"predict sales ordered by date": then the latest rows test.'
    return Failed("UNSUPPORTED_TASK", text, value=problem, suggestion=advice)


def _not_english(target: str | None) -> Issue:
    text = "The objective does not seem to be in English, and only the names of columns were understood in it."
    if target is None:
        text = "The objective does not seem to be in English, and it does not name exactly one column."
    advice = "Write it in English, or name the column that shall be predicted."
    return Issue("NOT_UNDERSTOOD", "WARN", text, column=target, suggestion=advice)


def _lists(found: Intent, tokens: Sequence[Token], said: Mapping[str, Any], names: Sequence[str]) -> None:
    """Fills in what is to be dropped, kept, grouped by and ordered by."""
    for zone in ("drop", "keep"):
        hits: list[str] = []
        for phrase in phrases_in(tokens, zone):
            named = named_in(phrase, names)
            hits += named
            if not named and not all(word in COMMON for word in phrase.split()):
                found.unparsed.append(phrase)
        unique = list(dict.fromkeys(hits))
        if zone == "drop":
            found.drop = list(said.get("drop") or unique)
        else:
            found.keep_only = list(said.get("keep_only") or unique)
    found.group = said.get("group") or _first(tokens, "group", names)
    found.time = said.get("time") or _first(tokens, "time", names)
    for phrase in found.unparsed if names else ():
        text = f'The table has no column that is called anything like "{plain(phrase, 40)}".'
        advice = "Choose the columns to leave out or to keep by hand, if it matters."
        found.issues.append(Issue("NOT_UNDERSTOOD", "WARN", text, value=plain(phrase), suggestion=advice))


def _first(tokens: Sequence[Token], zone: Any, names: Sequence[str]) -> str | None:
    for phrase in phrases_in(tokens, zone):
        hits = named_in(phrase, names)
        if hits:
            return hits[0]
    return None


def _target(
    found: Intent,
    tokens: Sequence[Token],
    text: str,
    said: Mapping[str, Any],
    columns: Sequence[Known],
    *,
    foreign: bool,
) -> None:
    names = [column.name for column in columns]
    given = said.get("target")
    if given:
        if names and given not in names:
            raise not_found(str(given), names, found.candidates)
        found.target = str(given)
        return
    focused = any(token.zone == "target" for token in tokens)
    usable = [column for column in columns if column.name not in found.drop]
    scored = score(tokens, usable, focused)
    found.candidates = [each for each in scored if each.score >= SURE or not foreign][:10]
    quoted = _quoted(text, names)
    if quoted:
        found.target = quoted
        rest = [each for each in found.candidates if each.column != quoted]
        found.candidates = [Scored(quoted, 1.0, "the objective names it in quotes"), *rest]
        return
    best = clear(found.candidates)
    found.target = best.column if best else None


def _quoted(text: str, names: Sequence[str]) -> str | None:
    """Returns the one column whose exact name stands in quotes after a verb such as "predict"."""
    folded = {name.casefold(): name for name in names}
    for match in _QUOTED.finditer(text):
        before = text[: match.start()].lower().split()[-4:]
        if match.group(1).strip().casefold() in folded and {"predict", "target", "classify", "estimate"} & set(before):
            return folded[match.group(1).strip().casefold()]
    return None


def not_found(wanted: str, names: Sequence[str], candidates: Sequence[Scored] = ()) -> Failed:
    """Returns the failure of a target that the table does not have, with the nearest names."""
    close = [*dict.fromkeys([*(each.column for each in candidates), *nearest(wanted, names)])]
    near = f"Did you mean {listed(close)}?" if close else f"It has {listed(names)}."
    text = f'The table has no column that is called anything like "{plain(wanted)}".'
    choose = target_action(names, close, None, required=False)
    return Failed("TARGET_NOT_FOUND", text, actions=[choose], value=plain(wanted), suggestion=near)


def target_action(names: Sequence[str], first: Sequence[str], default: str | None, *, required: bool) -> Action:
    """Returns the choice of the column to be predicted, the likeliest first."""
    options = tuple(dict.fromkeys([*([default] if default else []), *first, *names]))[:MOST_OFFERED]
    return Action("target", "Which column shall be predicted?", "CHOOSE", "target", options, default, required=required)


def _ask_target(found: Intent, tokens: Sequence[Token], names: Sequence[str]) -> None:
    named = [each.column for each in found.candidates if each.score >= NAMED]
    wanted = [token.word for token in tokens if token.zone == "target" and not token.opener and token.word.isalnum()]
    telling_words = [word for word in wanted if word not in COMMON]
    if not named and telling_words:
        raise not_found(" ".join(telling_words[:6]), names, found.candidates)
    found.asks.add("target")
    text = "The objective does not say which one column is meant"
    text += f": it may be {listed(named)}." if named else "."
    advice = "Choose the column that shall be predicted or explained."
    found.issues.append(Issue("TARGET_AMBIGUOUS", "WARN", text, count=len(named), suggestion=advice))


def _task(found: Intent, text: str, said: Mapping[str, Any], columns: Sequence[Known]) -> None:
    if said.get("task"):
        found.task, found.task_why = said["task"], "a person said so"
        return
    column = next((each for each in columns if each.name == found.target), None)
    if column is None:
        return
    name, levels = plain(column.name, 40), column.levels
    if column.type in ("text", "bool", "date"):
        found.task = "binary" if levels == 2 or column.type == "bool" else "multiclass"
        found.task_why = f"{name} holds {levels:,} different words"
    elif wants_classes(text) and levels <= MOST_LEVELS:
        found.task = "binary" if levels == 2 else "multiclass"
        found.task_why = f"{name} has {levels} values, and the objective speaks of classes"
    elif column.type == "int" and levels == 2:
        found.task, found.task_why = "binary", f"{name} has two values"
    elif column.type == "int" and levels <= MOST_LEVELS and not wants_amount(text):
        found.asks.add("task")
        found.task_why = f"{name} has {levels} whole numbers, which may be classes or amounts"
        advice = "Choose multiclass when the numbers stand for kinds, regression when they count or measure."
        found.issues.append(Issue("TASK_AMBIGUOUS", "WARN", f"{found.task_why}.", name, suggestion=advice))
    else:
        found.task, found.task_why = "regression", f"{name} holds numbers"


def _positive(found: Intent, text: str, said: Mapping[str, Any], columns: Sequence[Known]) -> None:
    found.positive_class = said.get("positive_class")
    column = next((each for each in columns if each.name == found.target), None)
    if found.positive_class or column is None or found.task != "binary":
        return
    wanted = positive_of(text)
    chosen = next((each for each in found.candidates if each.column == found.target), None)
    if wanted:
        folded = {label.casefold(): label for label in column.labels}
        found.positive_class = folded.get(wanted.casefold())
        if not found.positive_class:
            found.unparsed.append(wanted)
    elif chosen and chosen.label:
        found.positive_class = chosen.label
