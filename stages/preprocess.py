"""PREPROCESS: a plan for every column, and the split into rows that train and rows that test. Nothing is fitted here.

`python -m stages.preprocess ENVELOPE.json`, see stages/contract.py. Reads what the stages before left. The plan is
carried out by stages/preparing.py, inside the model. Edits: actions.<column>, split, split_column, test_share, folds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from stages.choices import Choices
from stages.contract import Action, Artifact, Envelope, Failed, Issue, Progress, Result, Room, Severity, main
from stages.cutting import LEAST_SHARE, MOST_FOLDS, MOST_SHARE, TEST_SHARE, Cut, Cutting
from stages.plan import Proposal, Step, changed
from stages.preparing import dates, target_of
from stages.rows import Hashes, levels, mixed, ordinary
from stages.splitting import NO_FOLD, TEST, TRAIN, Parts, groups_of, split, split_by_time
from stages.survey import Table
from stages.targets import FOLDS, LEAST_OF_CLASS, LEAST_ROWS
from stages.typed import MISSING_AMONG_NUMBERS
from stages.wording import counted, quoted, several

OFFERED = 300  # columns whose action can be changed
LONGEST_NAME = 200  # characters of a column's name that a choice can carry
NAMED = 3  # dropped columns in the summary
SPLIT = "split.parquet"
WEIGHTY = ("LEAKAGE_SUSPECT", "ID_COLUMN", "GROUPED_ROWS")


def work(envelope: Envelope, room: Room, progress: Progress) -> Result:
    """Does the stage's work. Raises Failed, code as in docs/stages.md."""
    intent, profile = room.result_of("PARSE_INTENT"), room.result_of("PROFILE_DATA")
    source = room.result_of("DATA_SOURCE")
    table = Table(room.of("DATA_SOURCE", "data.parquet"), source)
    if not profile.get("target"):
        text = "No target has been chosen yet. Choose it in PROFILE_DATA."
        advice = "Go back to PROFILE_DATA and choose what to predict."
        raise Failed("TARGET_AMBIGUOUS", text, suggestion=advice, actions=tuple(_leaving()))
    choices = Choices(envelope.edits)
    progress.tell(5, "planning", always=True)
    cutting = Cutting(choices, intent, profile)
    steps = _steps(intent, profile, table, choices, cutting)
    try:
        return _planned(envelope, room, progress, choices, cutting, steps, table, (profile, source))
    except Failed as failed:
        offered = _actions(steps, None, cutting)
        failed.actions = tuple(action for action in offered if action.kind != "CONFIRM")
        raise


def _planned(
    envelope: Envelope,
    room: Room,
    progress: Progress,
    choices: Choices,
    cutting: Cutting,
    steps: list[Step],
    table: Table,
    earlier: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> Result:
    profile, source = earlier
    features = [step.column for step in steps if step.action != "DROP"]
    if not features:
        text = "Every column is left out: there is nothing to predict from."
        raise Failed("NO_FEATURES", text, suggestion="Keep at least one column.")
    plan = _plan(profile, source, steps, features)
    target, dropped = _usable(target_of(table.frame([plan["target"]]), plan), plan)
    cut = cutting.cut(target)
    choices.done()
    progress.tell(40, "splitting", always=True)
    parts = _parts(cut, target, table, profile, plan, envelope.seed)
    _refuse_empty(parts, target, plan)
    filled = len(np.unique(parts.fold[parts.fold != NO_FOLD]))
    if filled < cut.folds:  # fewer groups than folds: none may be empty
        cut = replace(cut, folds=filled)
        parts = _parts(cut, target, table, profile, plan, envelope.seed)
    parts.frame().to_parquet(room.path(SPLIT), index=False)
    plan |= {"split": _split(cut, parts, envelope.seed), "dropped_rows": dropped}
    artifact = Artifact(SPLIT, "application/vnd.apache.parquet", "Which rows train and which test")
    return Result(
        _summary(plan, steps), plan, list(_actions(steps, cut, cutting)), list(_issues(steps, cut)), [artifact]
    )


def _steps(
    intent: Mapping[str, Any], profile: Mapping[str, Any], table: Table, choices: Choices, cutting: Cutting
) -> list[Step]:
    target = profile["target"]["column"]
    proposal = Proposal(profile, intent.get("drop") or (), intent.get("keep_only") or ())
    steps = [
        proposal.step(column, table.originals[column["name"]], cutting.groups)
        for column in profile["columns"]
        if column["name"] != target
    ]
    chosen = choices.of_columns("actions", [step.column for step in steps])
    return [changed(step, chosen[step.column]) if step.column in chosen else step for step in steps]


def _plan(
    profile: Mapping[str, Any], source: Mapping[str, Any], steps: Sequence[Step], features: list[str]
) -> dict[str, Any]:
    target = profile["target"]
    # Those that mean missing among numbers alone may be values of a text; a number they are not, so they go anyway.
    markers = [marker for marker in source.get("null_markers") or () if marker not in MISSING_AMONG_NUMBERS]
    return {
        "target": target["column"],
        "task": target["task"],
        "positive_class": target.get("positive_class"),
        "classes": None,
        "target_parse": {"parse": target["parse"]},
        "plan": [step.to_json() for step in steps],
        "features": features,
        "features_est": sum(step.width for step in steps),
        "null_markers": markers,
    }


def _usable(target: "pd.Series[Any]", plan: dict[str, Any]) -> tuple["pd.Series[Any]", list[dict[str, Any]]]:
    """Returns the target of the rows that can be used, and how many rows are left out, for which reasons."""
    known = target.dropna()
    dropped = [{"reason": f"no value of {quoted(plan['target'])}", "n": len(target) - len(known)}]
    if plan["task"] != "regression":
        counts = known.value_counts()
        small = sorted(counts.index[counts < LEAST_OF_CLASS])
        for name in small if len(small) <= NAMED else ():
            reason = f"the class {quoted(name)} has fewer than {LEAST_OF_CLASS} rows"
            dropped.append({"reason": reason, "n": int(counts[name])})
        if len(small) > NAMED:
            reason = f"{len(small):,} classes have fewer than {LEAST_OF_CLASS} rows each"
            dropped.append({"reason": reason, "n": int(counts[small].sum())})
        known = known[known.map(counts) >= LEAST_OF_CLASS]
        plan["classes"] = sorted(str(name) for name in known.unique())
    if len(known) < LEAST_ROWS:
        text = f"Only {counted(len(known), 'row')} are left; at least {LEAST_ROWS} are needed."
        raise Failed("TOO_FEW_ROWS", text, count=len(known), suggestion="Bring more rows.")
    return known, [reason for reason in dropped if reason["n"]]


def _parts(
    cut: Cut,
    target: "pd.Series[Any]",
    table: Table,
    profile: Mapping[str, Any],
    plan: Mapping[str, Any],
    seed: int,
) -> Parts:
    used = target.index.to_numpy(np.int64)
    if cut.kind == "TIME" and cut.column:
        moments = _moments(table, cut.column, profile).iloc[used]
        return split_by_time(used, table.rows, moments, cut.share, cut.folds)
    together: list[npt.NDArray[Any]] = []
    hashes, combinations = _hashes(table, plan)
    if hashes is not None and len(np.unique(hashes)) < len(hashes) and not ordinary(hashes, combinations):
        together.append(hashes[used])
    if cut.kind == "GROUP" and cut.column:
        together.append(pd.factorize(table.column(cut.column), use_na_sentinel=False)[0][used])
    strata = np.zeros(len(used), np.int64)
    if profile["target"]["task"] != "regression" and cut.kind != "RANDOM":
        strata = np.unique(target.to_numpy(object).astype(str), return_inverse=True)[1].reshape(-1)
    return split(used, table.rows, strata, groups_of(together), cut.share, cut.folds, seed)


def _moments(table: Table, name: str, profile: Mapping[str, Any]) -> "pd.Series[Any]":
    column = next(column for column in profile["columns"] if column["name"] == name)
    values = table.column(name)
    return dates(values, column["parse"]) if column["role"] == "DATETIME" else values


def _hashes(table: Table, plan: Mapping[str, Any]) -> tuple[Hashes | None, float]:
    """Returns a hash of what the model will see of each row, and its answer; and how many there could be of them."""
    hashes: Hashes | None = None
    combinations = 1.0
    for name in (*plan["features"], plan["target"]):
        values = table.column(name)
        hashes = mixed(hashes, values)
        combinations *= levels(values.nunique(dropna=False), table.rows)
    return hashes, combinations


def _refuse_empty(parts: Parts, target: "pd.Series[Any]", plan: Mapping[str, Any]) -> None:
    for part, where in ((TRAIN, "to learn from"), (TEST, "to test on")):
        rows = target.loc[np.flatnonzero(parts.part == part)]
        if len(rows) < LEAST_ROWS / 5:
            text = f"Only {counted(len(rows), 'row')} are left {where} with this split."
            raise Failed("TOO_FEW_ROWS", text, count=len(rows), suggestion="Choose another kind of split or share.")
        if part == TRAIN and plan["task"] != "regression" and rows.nunique() < len(plan["classes"]):
            missing = sorted(set(plan["classes"]) - set(rows.unique()))
            text = f"No row of {several(missing)} is left to learn from with this split."
            raise Failed("TOO_FEW_ROWS", text, value=missing[0][:80], suggestion="Choose another kind of split.")


def _split(cut: Cut, parts: Parts, seed: int) -> dict[str, Any]:
    figures = {"kind": cut.kind, "test_share": cut.share, "folds": cut.folds, "column": cut.column, "seed": seed}
    figures |= {"why": cut.why}
    return figures | {"n_train": parts.count(TRAIN), "n_test": parts.count(TEST)}


def _summary(plan: Mapping[str, Any], steps: Sequence[Step]) -> str:
    cut = plan["split"]
    ways = {
        "STRATIFIED": "by chance, each class evenly",
        "RANDOM": "by chance",
        "GROUP": f"by {quoted(cut['column'])}, which stays together",
        "TIME": f"by {quoted(cut['column'])}, the latest rows to test",
    }
    told = f"{counted(len(plan['features']), 'column')} will be used. {cut['n_train']:,} rows to learn from and "
    told += f"{cut['n_test']:,} to test on at the end, divided {ways[cut['kind']]}."
    told += f" {cut['why']}" if cut["why"] else ""
    for row in plan["dropped_rows"]:
        told += f" {counted(row['n'], 'row')} left out: {row['reason']}."
    out = [step for step in steps if step.action == "DROP"]
    if out:
        told += f" Left out: {several([step.column for step in out])}."
        told += "".join(f" {_named(step)}" for step in out[:NAMED])
    return told


def _named(step: Step) -> str:
    """Returns the reason of a step with the name of its column."""
    name = quoted(step.column)
    return step.reason if step.reason.startswith(name) else f"{name}: {step.reason}"


def _issues(steps: Sequence[Step], cut: Cut) -> Iterator[Issue]:
    if cut.why:
        severity: Severity = "INFO" if cut.kind == "TIME" else "WARN"
        advice = "Choose another split if that is not meant." if cut.kind == "TIME" else "Bring a column of dates."
        yield Issue("TIME_ORDERED", severity, cut.why, column=cut.column, suggestion=advice)
    for step in steps:
        if step.issue:
            what = "is left out." if step.action == "DROP" else "is kept although it was to be left out."
            text = f"{quoted(step.column)} {what} {step.reason}"
            severity = "WARN" if step.issue in WEIGHTY else "INFO"
            advice = "Choose another action for it if that is wrong."
            yield Issue(step.issue, severity, text, column=step.column, suggestion=advice)


def _actions(steps: Sequence[Step], cut: Cut | None, cutting: Cutting) -> Iterator[Action]:
    """Yields what may be done at the gate. `cut`: how the rows were split, None when they were not."""
    yield Action("confirm", "Go on with this plan", "CONFIRM")
    offered = [step for step in steps if len(step.column) <= LONGEST_NAME and len(step.options) > 1]
    # Those that are left out come first: they are what a person should look at.
    for place, step in enumerate(sorted(offered, key=lambda step: step.action != "DROP")[:OFFERED]):
        label, name = f"What to do with {quoted(step.column)}", f"actions.{step.column}"
        yield Action(f"action-{place}", label, "CHOOSE", name, step.options, step.action)
    kind, column = (cut.kind, cut.column) if cut else (None, None)
    yield Action("split", "How rows to test on are picked", "CHOOSE", "split", cutting.kinds(), kind)
    names = tuple(name for name in cutting.able() if len(name) <= LONGEST_NAME)[:OFFERED]
    if names:
        label = "Column to split by (GROUP and TIME)"
        yield Action("split-column", label, "CHOOSE", "split_column", names, column)
    share, share_now = "Share of the rows to test on", cut.share if cut else TEST_SHARE
    yield Action("test-share", share, "EDIT", "test_share", (), share_now, LEAST_SHARE, MOST_SHARE)
    folds = cut.folds if cut else FOLDS
    yield Action("folds", "Folds of the cross-validation", "EDIT", "folds", (), folds, 2, MOST_FOLDS)
    yield from _leaving()


def _leaving() -> Iterator[Action]:
    yield Action("back-profile", "Change target, task or roles", "BACK", "PROFILE_DATA")
    yield Action("back-data", "Choose or read the data differently", "BACK", "DATA_SOURCE")
    yield Action("abort", "End the run", "ABORT")


if __name__ == "__main__":
    main(work)
