"""MODEL_SELECT: settles how models are judged and which are tried, and says beforehand what that will cost.

Left: `metric`, `candidates` in the order in which they are tried, `budget_s`, `folds`, `rows`, `baseline`. Nothing is
fitted here and no row is read.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from stages import costs, portfolio, scoring
from stages.choices import Choices
from stages.contract import Action, Envelope, Failed, Issue, Progress, Result, Room, main
from stages.scheduling import Bill, Candidate, Schedule, marked, schedule
from stages.wording import NAMES, counted, share

BUDGET_S = 60.0  # processor seconds for TRAIN when nobody said how many
LEAST_S, MOST_S = 5.0, 36_000.0  # that may be asked for
HELD = 0.95  # of the processor time that the run allows; beyond it the sandbox ends the program
OPTIMISE = {
    "score": "the best score",
    "speed": "quick training and prediction",
    "size": "a small model file",
}
DEAR = ("extra-trees", "catboost")
SPEEDY = 1.1  # times the cost of the usual boosting, at most, when speed is what counts
REASONS = {
    "binary": "It does not depend on a threshold and stays honest when one class is rare.",
    "multiclass": "It looks at every class by itself, the rare ones too, and needs no threshold.",
    "regression": "It compares with always saying the average: 0 is no better than that, 1 is perfect.",
}


def work(envelope: Envelope, room: Room, progress: Progress) -> Result:
    """Does the stage's work. Raises Failed with INPUT_MISSING, BAD_EDIT, NO_FEATURES or MEMORY_LIMIT."""
    plan = room.result_of("PREPROCESS")
    intent = room.result_of("PARSE_INTENT")
    if not plan["features"]:
        text = "No column is left to learn from."
        advice = "Go back to PREPROCESS and keep at least one column."
        raise Failed("NO_FEATURES", text, suggestion=advice, actions=tuple(_leaving()))
    progress.tell(10, "choosing", "Choosing how models are judged and which to try.", always=True)
    choices = Choices(envelope.edits)
    task: scoring.Task = plan["task"]
    metric, why, doubts = _metric(choices, intent, envelope, task)
    budget_s, cut = _budget(choices, intent, envelope)
    optimise = choices.text("optimise", tuple(OPTIMISE)) or "score"
    shape = costs.shape_of(plan)
    candidates = _candidates(task, shape)
    asked = _asked(envelope, choices, [each["id"] for each in candidates])
    choices.done()
    possible, heavy = _light_enough(candidates, envelope.limits.mem_mb)
    wanted = [each for each in possible if asked or _meant(each, optimise, shape)]
    made = schedule(wanted, shape, plan["split"]["folds"], budget_s, asked)
    candidates = marked(candidates, made)
    _explain(candidates, made, {each["id"] for each in wanted}, heavy, optimise, asked, shape, plan["split"]["folds"])
    result = {
        "metric": {
            "name": metric.name,
            "higher_better": metric.higher_better,
            "why": why,
            "sklearn": metric.sklearn,
            "meaning": metric.meaning,
        },
        "candidates": candidates,
        "budget_s": budget_s,
        "est_cpu_s": round(made.est_cpu_s, 1),
        "folds": made.folds,
        "rows": made.rows,
        "baseline": portfolio.BASELINE,
        "optimise": optimise,
        "too_small": made.too_small,
    }
    issues = [*doubts, *cut, *_issues(made, shape, budget_s)]
    return Result(_summary(result, made, plan), result, list(_actions(result, task)), issues)


def _metric(
    choices: Choices, intent: Mapping[str, Any], envelope: Envelope, task: scoring.Task
) -> tuple[scoring.Metric, str, list[Issue]]:
    names = scoring.names(task)
    chosen = choices.text("metric")
    if chosen is not None:
        return scoring.asked(chosen, task), "You chose it.", []
    said = intent.get("metric") or envelope.hints.get("metric")
    metric = scoring.named(str(said), task) if said else None
    if metric:
        return metric, "The objective names it.", []
    doubt = Issue(
        "METRIC_UNKNOWN",
        "WARN",
        f'"{str(said)[:80]}" does not judge a {task} task; {names[0]} is used.',
        suggestion=f"Choose one of {', '.join(names)}.",
    )
    return scoring.METRICS[names[0]], REASONS[task], [doubt] if said else []


def _budget(choices: Choices, intent: Mapping[str, Any], envelope: Envelope) -> tuple[float, list[Issue]]:
    chosen = choices.number("budget_s", LEAST_S, MOST_S)
    said = chosen or intent.get("budget_s") or envelope.hints.get("budget_s") or BUDGET_S
    try:
        asked = float(said)
    except (TypeError, ValueError):
        raise Failed("BAD_EDIT", f'budget_s: "{str(said)[:80]}" is no number of seconds.', value="budget_s") from None
    most = round(HELD * envelope.limits.cpu_s, 1)
    if asked <= most:
        return max(1.0, asked), []
    text = f"The budget of {asked:g} s is more than the run may use; it is {most:g} s."
    return most, [Issue("BUDGET_CUT", "INFO", text, suggestion="Raise the run's limit of processor time.")]


def _candidates(task: scoring.Task, shape: costs.Shape) -> list[Candidate]:
    found = []
    for entry in portfolio.entries(shape.rows):
        params = portfolio.fitting(entry, task, shape.rows, shape.columns(entry.kind))
        candidate = {"id": entry.id, "family": entry.family, "kind": entry.kind, "params": params, "why": entry.why}
        found.append({**candidate, "est_mb": round(costs.megabytes(candidate, shape))})
    return found


def _asked(envelope: Envelope, choices: Choices, ids: list[str]) -> tuple[str, ...]:
    """Returns the candidates that were chosen; what is always tried is so, chosen or not."""
    given = envelope.edits.get("candidates")
    choices.text("candidates")
    if given is None:
        return ()
    chosen = [given] if isinstance(given, str) else given
    if not isinstance(chosen, list | tuple) or not chosen or not all(each in ids for each in chosen):
        text = f"candidates: choose some of {', '.join(ids)}."
        raise Failed("BAD_EDIT", text, value="candidates", suggestion="Choose again.")
    return tuple(chosen)


def _light_enough(candidates: list[Candidate], mem_mb: int) -> tuple[list[Candidate], set[str]]:
    heavy = {each["id"] for each in candidates if each["est_mb"] > mem_mb}
    needed = {*portfolio.ALWAYS, portfolio.QUICK, portfolio.DEFAULT} & heavy
    if needed:
        most = max(each["est_mb"] for each in candidates if each["id"] in needed)
        text = f"Even the simple models need about {most:,} MB for this table; the run may use {mem_mb:,} MB."
        advice = "Give the run more memory, or fewer rows or columns."
        raise Failed("MEMORY_LIMIT", text, suggestion=advice, actions=tuple(_leaving()))
    return [each for each in candidates if each["id"] not in heavy], heavy


def _meant(candidate: Candidate, optimise: str, shape: costs.Shape) -> bool:
    """Returns whether a candidate is worth trying for what counts."""
    if candidate["id"] in (*portfolio.ALWAYS, portfolio.QUICK, portfolio.DEFAULT):
        return True
    if candidate["id"] in _unfit(shape):
        return False
    if optimise == "score":
        return True
    if candidate["family"] in DEAR or candidate["id"] == portfolio.DEEP:
        return False
    usual = costs.fitting({**candidate, "params": portfolio.ENTRIES[portfolio.DEFAULT].params}, shape, shape.rows)
    return optimise == "size" or costs.fitting(candidate, shape, shape.rows) <= SPEEDY * usual


def _unfit(shape: costs.Shape) -> dict[str, str]:
    """Returns what is not worth its time on a table of this size, with the reason."""
    deep = f"{portfolio.BIG:,} rows are the least that large trees are worth their time for."
    trees = f"{portfolio.FEW:,} rows are the most that random trees are worth their time for."
    small = {portfolio.DEEP: deep} if shape.rows < portfolio.BIG else {}
    return small if shape.rows <= portfolio.FEW else {**small, "extra-trees": trees}


def _explain(
    candidates: list[Candidate],
    made: Schedule,
    wanted: set[str],
    heavy: set[str],
    optimise: str,
    asked: tuple[str, ...],
    shape: costs.Shape,
    split_folds: int,
) -> None:
    """Writes into each candidate what it will cost, and why it is not tried."""
    for candidate in candidates:
        name = candidate["id"]
        bill = Bill(shape, made.folds, made.rows, split_folds)
        candidate["est_cpu_s"] = round(bill.cost(candidate, made.first.get(name, made.folds)), 2)
        candidate["why"] = (
            f"{candidate['why']} {_left_out(name, made, wanted, heavy, optimise, asked, _unfit(shape))}".strip()
        )
        candidate["meant"] = name in wanted


def _left_out(
    name: str,
    made: Schedule,
    wanted: set[str],
    heavy: set[str],
    optimise: str,
    asked: tuple[str, ...],
    unfit: Mapping[str, str],
) -> str:
    if name in made.tried:
        return ""
    if name in heavy:
        return "Left out: it needs more memory than the run has."
    if name not in wanted and name in unfit and optimise == "score":
        return f"Left out: {unfit[name]}"
    if name not in wanted:
        return f"Left out: what counts is {OPTIMISE[optimise]}."
    if asked and name not in asked:
        return "Left out: you did not choose it."
    if name == portfolio.QUICK:
        return "Left out: the budget does for the usual boosting."
    return "Left out: it does not fit in the budget."


def _issues(made: Schedule, shape: costs.Shape, budget_s: float) -> Iterator[Issue]:
    if made.too_small:
        rows = counted(made.rows, "row")
        text = f"{budget_s:g} s of processor time are too few to try even the simplest models on all rows."
        more = f" They will learn from {rows} ({share(made.rows, shape.rows)})." if made.rows < shape.rows else ""
        yield Issue("BUDGET_TOO_SMALL", "WARN", text + more, suggestion="Give a larger budget.", value=f"{budget_s:g}")


def _summary(result: dict[str, Any], made: Schedule, plan: Mapping[str, Any]) -> str:
    metric = result["metric"]
    tried = [name for name in made.tried if name != portfolio.BASELINE]
    folds = f"on up to {made.folds} parts of the {plan['split']['n_train']:,} training rows"
    return (
        f"Models are judged by {NAMES[metric['name']]}: {metric['meaning']}. {metric['why']} "
        f"{len(tried)} of {len(result['candidates']) - 1} models are tried ({', '.join(tried)}) {folds}, beside "
        f"guessing. That takes about {result['est_cpu_s']:g} s of the {result['budget_s']:g} s of processor time."
    )


def _actions(result: dict[str, Any], task: scoring.Task) -> Iterator[Action]:
    names = scoring.names(task)
    ids = tuple(each["id"] for each in result["candidates"])
    tried = [each["id"] for each in result["candidates"] if each["selected"]]
    yield Action("confirm", "Train these models", "CONFIRM")
    yield Action("metric", "Judge by another measure", "CHOOSE", "metric", names, result["metric"]["name"])
    yield Action(
        "budget",
        "Processor seconds for training",
        "EDIT",
        "budget_s",
        default=result["budget_s"],
        minimum=LEAST_S,
        maximum=MOST_S,
    )
    label = "Models to try (guessing, a linear model and one boosting are always tried)"
    yield Action("candidates", label, "CHOOSE", "candidates", ids, tried, many=True)
    yield Action("optimise", "What counts", "CHOOSE", "optimise", tuple(OPTIMISE), result["optimise"])
    yield from _leaving()


def _leaving() -> Iterator[Action]:
    yield Action("back", "Go back to what is done with the columns", "BACK", "PREPROCESS")
    yield Action("abort", "End the run", "ABORT")


if __name__ == "__main__":
    main(work)
