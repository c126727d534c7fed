"""The model card (Mitchell et al. 2019): what the model is for, how good it is, what to doubt, how to use it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from stages.contract import Json
from stages.effects import figure
from stages.shown import plain
from stages.wording import NAMES, counted

MAX_ROWS = 40  # of a table
_SIGNS = re.compile(r"([\\`*_{}\[\]()#+!|<>~&-])")


def escaped(value: Any, limit: int = 80) -> str:
    """Returns a value that somebody else wrote so that markdown shows it as it is (CommonMark 2.4)."""
    return _SIGNS.sub(r"\\\1", plain(str(value), limit))


def write(schema: Mapping[str, Json], reviewed: Mapping[str, Json], plan: Mapping[str, Json], licence: str) -> str:
    """Returns the card as markdown.

    Args:
        schema: as in schema.json.
        reviewed: the result of REVIEW_EDIT.
        plan: the result of PREPROCESS.
    """
    parts = [
        _head(schema, licence),
        _scores(schema, reviewed),
        _classes(reviewed),
        _leans(schema, reviewed),
        _list("What to keep in mind", reviewed.get("caveats") or ["Nothing stood out."]),
        _data(schema, plan),
        _columns(plan),
        _use(schema),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(schema: Mapping[str, Json], licence: str) -> str:
    kind = {"binary": "one of two classes", "multiclass": "one of several classes", "regression": "a number"}
    return (
        f"# {escaped(schema['name'])}\n\n"
        f"Predicts **{escaped(schema['target'])}**, {kind[schema['task']]}, from "
        f"{counted(len(schema['plan']['features']), 'column')} of a table.\n\n"
        f"Licence: {escaped(licence, 200) or 'not stated'}. Model: {escaped(schema['model'])}."
    )


def _scores(schema: Mapping[str, Json], reviewed: Mapping[str, Json]) -> str:
    rows = [
        f"| {NAMES.get(name, name)} | {_shown(each['value'])} | {_interval(each['ci95'])} |"
        for name, each in reviewed["all_metrics"].items()
    ]
    words = escaped(reviewed["verdict_words"], 600)
    table = "| metric | value | 95 % interval |\n|---|---|---|\n" + "\n".join(rows)
    baseline = reviewed["baseline"]
    guess = f"A model that {baseline['what']} reaches {_shown(baseline['value'])}."
    return f"## How good it is\n\n{words} {guess}\n\nOn {counted(reviewed['test']['n'], 'test row')}:\n\n{table}"


def _shown(value: float | None) -> str:
    return "none" if value is None else figure(value)


def _interval(ends: Sequence[float] | None) -> str:
    return f"{figure(ends[0])} to {figure(ends[1])}" if ends else "too few rows"


def _classes(reviewed: Mapping[str, Json]) -> str:
    rows = [
        f"| {escaped(each['class'])} | {figure(each['precision'])} | {figure(each['recall'])} | {each['rows']} |"
        for each in (reviewed.get("per_class") or [])[:MAX_ROWS]
    ]
    if not rows:
        return ""
    return "## Each class\n\n| class | precision | recall | test rows |\n|---|---|---|---|\n" + "\n".join(rows)


def _leans(schema: Mapping[str, Json], reviewed: Mapping[str, Json]) -> str:
    found = reviewed["importance"][:15]
    if not found:
        return ""
    rows = "\n".join(f"| {escaped(each['column'])} | {figure(each['mean'])} | {figure(each['sd'])} |" for each in found)
    words = "".join(f"\n- {escaped(each['words'], 300)}" for each in reviewed["effects"])
    head = f"| column | loss of {NAMES.get(schema['metric'], schema['metric'])} when shuffled | sd |\n|---|---|---|\n"
    return f"## What it leans on\n\n{reviewed['note']}\n\n{head}{rows}\n{words}"


def _list(title: str, lines: Sequence[str]) -> str:
    return f"## {title}\n\n" + "\n".join(f"- {escaped(line, 600)}" for line in lines)


def _data(schema: Mapping[str, Json], plan: Mapping[str, Json]) -> str:
    data, split = schema["data"], plan.get("split") or {}
    lines = [
        f"{escaped(data['name'])}: {counted(data['rows'], 'row')}, SHA-256 `{data['sha256']}`.",
        f"Split: {escaped(split.get('kind', 'not known'))}; {data['n_train']:,} rows to learn from, "
        f"{data['n_test']:,} to test.",
    ]
    lines += [
        f"{counted(each['n'], 'row')} left out: {escaped(each['reason'], 200)}" for each in plan.get("dropped_rows", [])
    ]
    return "## Data\n\n" + "\n".join(f"- {line}" for line in lines)


def _columns(plan: Mapping[str, Json]) -> str:
    entries = [each for each in plan["plan"] if each["column"] != plan["target"]]
    rows = "\n".join(
        f"| {escaped(each['column'])} | {escaped(each['role'])} | {escaped(each['action'])} "
        f"| {escaped(each['reason'], 200)} |"
        for each in entries[:MAX_ROWS]
    )
    rest = (
        f"\n\nand {counted(len(entries) - MAX_ROWS, 'column')} more, see schema.json."
        if len(entries) > MAX_ROWS
        else ""
    )
    return f"## Columns\n\n| column | role | what is done | why |\n|---|---|---|---|\n{rows}{rest}"


def _use(schema: Mapping[str, Json]) -> str:
    again = schema["reproduce"]
    proba = " --proba" if schema["task"] != "regression" else ""
    return f"""## How to use it

```sh
python -m venv venv && venv/bin/python -m pip install -r requirements.lock
venv/bin/python predict.py rows.csv predictions.csv{proba}
```

Columns are found by name: in any order, further ones are left out, absent ones count as missing.
`model.joblib` is read with pickle: load it only from a bundle you trust. `model.skops` names what it needs trusted
(schema.json, `trusted_types`).

## How to make it again

```sh
{again["command"]}
```

It should give {schema["metric"]} {again["expected"]:.6g}, give or take {again["tolerance"]:.3g}.
The file must have the SHA-256 above."""
