"""TRAIN: tries the candidates on the folds within the budget, chooses one, fits it on every training row.

Left: the leaderboard, what was chosen and why, `model.joblib`, `oof.parquet` (what the chosen model said of training
rows it had not seen) and a picture. No test row is read.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import joblib
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from stages import costs, folding, portfolio, remembering, scheduling, scoring
from stages.budget import Budget
from stages.choices import Choices, bad
from stages.choosing import Blender, Choice, Judged, choose, judged
from stages.contract import Action, Artifact, Envelope, Failed, Issue, Progress, Result, Room, main
from stages.folding import Numbers
from stages.model_select import HELD, LEAST_S, MOST_S
from stages.plots import COLOURS, GREY, drawn, picture, short
from stages.search import BEHIND, FAILED, OK, SKIPPED, Search, Trial
from stages.wording import NAMES, counted, share

MODEL, OOF, PLOT = "model.joblib", "oof.parquet", "plot-leaderboard.png"
COMPRESSED = 3  # of zlib: half the size at little time
Json = Any


def work(envelope: Envelope, room: Room, progress: Progress) -> Result:
    """Does the stage's work. Raises Failed with INPUT_MISSING, BAD_EDIT, NO_ROWS, MEMORY_LIMIT or TRAINING_FAILED."""
    with threadpool_limits(envelope.limits.threads):  # more than there are cores for spin, and the spinning costs
        return _work(envelope, room, progress)


def _work(envelope: Envelope, room: Room, progress: Progress) -> Result:
    plan, selected = room.result_of("PREPROCESS"), room.result_of("MODEL_SELECT")
    choices = Choices(envelope.edits)
    more = choices.number("budget_s", LEAST_S, MOST_S)
    wished = choices.text("model")
    choices.done()
    if more:
        selected = _again(selected, plan, min(more, HELD * envelope.limits.cpu_s))
    tried = [each for each in selected["candidates"] if each["selected"]]
    progress.tell(1, "reading", "Reading the rows to learn from.", always=True)
    rows = folding.read(room, plan).sample(selected["rows"], envelope.seed)
    metric = scoring.METRICS[selected["metric"]["name"]]
    budget = Budget(selected["budget_s"])
    search = Search(rows, plan, metric, selected["folds"], budget, progress, envelope.seed)
    _try(search, tried, room, remembering.key_of(room, plan, selected, envelope.seed))
    _usable(search.trials)
    blended, late = _blend(search, plan)
    models = judged(search.trials) + ([blended] if blended else [])
    choice = _chosen(models, metric, wished)
    progress.tell(
        88, "fitting", f"Fitting {choice.model.id} on every training row.", always=True, best=choice.model.mean
    )
    model = _fitted(search, choice.model, plan, envelope.seed)
    progress.tell(97, "writing", "Writing the model.", always=True)
    joblib.dump(model, room.path(MODEL), compress=COMPRESSED)
    _leave_unseen(room, search, choice.model)
    result = _result(search, choice, models, selected, tried)
    _draw(room, result)
    issues = list(_issues(search, choice, result, selected, plan, late))
    return Result(_summary(result), result, list(_actions(result, models, selected)), issues, _artifacts())


def _try(search: Search, candidates: Sequence[Mapping[str, Json]], room: Room, key: str) -> None:
    """Tries the candidates, or takes what an earlier attempt with the same input found."""
    search.trials, used_s = remembering.recalled(room, key, candidates)
    if search.trials:
        search.budget.resume(used_s)
    elif all(trial.status != FAILED for trial in search.run(candidates)):
        remembering.remember(room, key, search.trials, search.budget.used)


def _again(selected: Mapping[str, Json], plan: Mapping[str, Json], budget_s: float) -> dict[str, Json]:
    """Returns what MODEL_SELECT would have chosen with another budget."""
    shape = costs.shape_of(plan)
    meant = [each for each in selected["candidates"] if each["meant"]]
    made = scheduling.schedule(meant, shape, plan["split"]["folds"], budget_s)
    changed = {"budget_s": budget_s, "folds": made.folds, "rows": made.rows, "too_small": made.too_small}
    return {**selected, **changed, "candidates": scheduling.marked(selected["candidates"], made)}


def _usable(trials: Sequence[Trial]) -> None:
    """Raises Failed when nothing but guessing worked."""
    others = [trial for trial in trials if trial.id != portfolio.BASELINE]
    if any(trial.status == OK for trial in others):
        return
    if any("memory" in trial.error for trial in trials):
        text = "Every model needs more memory than the run may use."
        advice = "Give the run more memory, or fewer rows or columns."
        raise Failed("MEMORY_LIMIT", text, suggestion=advice, actions=tuple(_leaving()))
    said = next((trial.error for trial in others if trial.status == FAILED), "nothing was tried")
    text = f"No model could be trained. The first one said: {said}"
    advice = "Go back to PREPROCESS and look at what is done with the columns."
    raise Failed("TRAINING_FAILED", text, suggestion=advice, actions=tuple(_leaving()))


def _blend(search: Search, plan: Mapping[str, Json]) -> tuple[Judged | None, tuple[str, ...]]:
    """Returns a blend that is worth it and fits in the budget, and what the clock alone has left out, against it."""
    y = [search.rows.y[part[2]] for part in search.parts]
    found = Blender(search.trials, y, search.metric, search.classes, plan.get("positive_class")).blend()
    if found is None:
        return None, ()
    members = [trial for trial in search.trials if trial.id in found.weights]
    if search.forecast_s(members) > scheduling.FILLED * search.budget.seconds:
        return None, ()
    if search.budget.holds(sum(map(search.refit_s, members)) + costs.CLOSE_S):
        return found, ()
    return None, (portfolio.BLEND,)


def _chosen(models: Sequence[Judged], metric: scoring.Metric, wished: str | None) -> Choice:
    if wished is None:
        return choose(models, metric)
    known = {model.id: model for model in models}
    if wished not in known:
        raise bad("model", wished, f"Choose one that was tried to the end: {', '.join(known)}.")
    return Choice(known[wished], f"You chose {wished}.")


def _fitted(search: Search, chosen: Judged, plan: Mapping[str, Json], seed: int) -> Any:
    """Returns the chosen model, fitted on every row: a pipeline, or scikit-learn's vote of several."""
    from sklearn.ensemble import VotingClassifier, VotingRegressor

    candidates = {trial.id: trial.final for trial in search.trials}
    parts = [(name, portfolio.build(candidates[name], plan, seed)) for name in chosen.weights]
    model = parts[0][1]
    if len(parts) > 1:
        weights = list(chosen.weights.values())
        mixed = VotingClassifier(parts, voting="soft", weights=weights) if search.classes else None
        model = mixed or VotingRegressor(parts, weights=weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the folds have shown what comes of it
        return model.fit(search.rows.x, search.rows.y)


def _unseen(search: Search, chosen: Judged) -> Numbers:
    trials = {trial.id: trial for trial in search.trials}
    return np.concatenate(
        [
            np.asarray(sum(weight * trials[name].predicted[fold] for name, weight in chosen.weights.items()))
            for fold in range(len(search.parts))
        ]
    )


def _leave_unseen(room: Room, search: Search, chosen: Judged) -> None:
    """Writes what the chosen model said of rows it had not seen, by row of the table."""
    at = np.concatenate([part[2] for part in search.parts])
    predicted = _unseen(search, chosen)
    table = {"row": search.rows.row[at], "y": search.rows.y[at]}
    if search.classes:
        table |= {f"proba_{place}": predicted[:, place] for place in range(len(search.classes))}
    else:
        table["prediction"] = predicted
    pd.DataFrame(table).sort_values("row").to_parquet(room.path(OOF), index=False)


def _result(
    search: Search,
    choice: Choice,
    models: Sequence[Judged],
    selected: Mapping[str, Json],
    tried: Sequence[Mapping[str, Json]],
) -> dict[str, Json]:
    baseline = next(trial for trial in search.trials if trial.id == portfolio.BASELINE)
    board = [_line(trial, baseline, search) for trial in search.trials]
    board += [_blend_line(model) for model in models if model.id == portfolio.BLEND]
    skipped = [each for each in selected["candidates"] if not each["selected"]]
    board.sort(key=lambda line: (line["status"] != OK, -search.metric.gain(line["cv_mean"] or 0.0, 0.0), line["id"]))
    members = {each["id"]: each for each in tried}
    packages = sorted({"catboost" for name in choice.model.weights if members[name]["family"] == "catboost"})
    return {
        "leaderboard": board,
        "chosen": {
            "id": choice.model.id,
            "why": choice.why,
            "weights": dict(choice.model.weights),
            "cv_mean": round(choice.model.mean, 6),
            "packages": packages,
        },
        "baseline_score": round(baseline.mean, 6),
        "metric": selected["metric"],
        "classes": list(search.classes),
        "tried": sum(1 for trial in search.trials if trial.status in (OK, BEHIND) and trial.scores),
        "total": len(selected["candidates"]),
        "not_planned": [each["id"] for each in skipped],
        "folds": len(search.parts),
        "rows": len(search.rows),
        "budget_s": selected["budget_s"],
        "budget_used_s": round(search.budget.used, 2),
        "model": MODEL,
        "oof": OOF,
    }


def _line(trial: Trial, baseline: Trial, search: Search) -> dict[str, Json]:
    """Returns a line of the leaderboard. One that crashed counts as guessing (as in the AutoML Benchmark)."""
    scores = baseline.scores if trial.status == FAILED else trial.scores
    line = {
        "id": trial.id,
        "family": trial.candidate["family"],
        "cv_mean": round(float(np.mean(scores)), 6) if scores else None,
        "cv_sd": round(float(np.std(scores, ddof=1)), 6) if len(scores) > 1 else None,
        "folds": len(trial.scores),
        "scores": [round(score, 6) for score in scores],
        "fit_cpu_s": round(sum(trial.fit_s), 3),
        "predict_ms": round(float(np.mean(trial.predict_ms)), 3) if trial.predict_ms else None,
        "status": trial.status,
    }
    return {**line, "error": trial.error} if trial.error else line


def _blend_line(model: Judged) -> dict[str, Json]:
    deviation = float(np.std(model.scores, ddof=1))
    line = {"id": model.id, "family": "blend", "cv_mean": round(model.mean, 6), "cv_sd": round(deviation, 6)}
    scores = [round(score, 6) for score in model.scores]
    return {**line, "folds": len(scores), "scores": scores, "fit_cpu_s": 0.0, "predict_ms": None, "status": OK}


def _issues(
    search: Search,
    choice: Choice,
    result: Mapping[str, Json],
    selected: Mapping[str, Json],
    plan: Mapping[str, Json],
    late: Sequence[str],
) -> Iterator[Issue]:
    if selected["too_small"]:
        rows = f"{counted(len(search.rows), 'row')} of {plan['split']['n_train']:,}"
        text = f"The budget of {selected['budget_s']:g} s did only for the simplest models, on {rows}."
        yield Issue("BUDGET_TOO_SMALL", "WARN", text, suggestion="Give a larger budget and train again.")
    for trial in search.trials:
        if trial.status == FAILED:
            text = f"{trial.id} could not be trained and counts as guessing. {trial.error}"
            advice = "Take another model, or go back to PREPROCESS and look at what is done with the columns."
            yield Issue("CANDIDATE_FAILED", "WARN", text, value=trial.id, suggestion=advice)
    ended = [*(trial.id for trial in search.trials if trial.status == SKIPPED), *late]
    if ended:
        text = f"This machine was slower than forecast, so {', '.join(ended)} did not fit in the budget."
        more = "Another machine may get further and choose differently; a larger budget makes it sure."
        yield Issue("BUDGET_REACHED", "WARN", text, count=len(ended), suggestion=more)
    if choice.model.id == portfolio.BASELINE:
        text = "No model was clearly better than always saying the same."
        more = "Look for columns that say more about the target, or for more rows."
        yield Issue("NO_BETTER_THAN_BASELINE", "WARN", text, suggestion=more)


def _summary(result: Mapping[str, Json]) -> str:
    chosen, name = result["chosen"], NAMES[result["metric"]["name"]]
    deviation = next(line["cv_sd"] for line in result["leaderboard"] if line["id"] == chosen["id"])
    spread = f" ± {deviation:.2g}" if deviation is not None else ""
    used = share(round(100 * result["budget_used_s"]), round(100 * result["budget_s"]))
    return (
        f"Chosen: {chosen['id']}, {name} {chosen['cv_mean']:.4g}{spread} over {result['folds']} folds; guessing gets "
        f"{result['baseline_score']:.4g}. {chosen['why']} Tried {result['tried']} of {result['total']} models with "
        f"{used} of the budget."
    )


def _actions(result: Mapping[str, Json], models: Sequence[Judged], selected: Mapping[str, Json]) -> Iterator[Action]:
    ids = tuple(line["id"] for line in result["leaderboard"] if line["status"] == OK)
    yield Action("confirm", "Judge this model on the test rows", "CONFIRM")
    yield Action("model", "Take another model", "CHOOSE", "model", ids, result["chosen"]["id"])
    yield Action(
        "budget",
        "Train again with another budget (processor seconds)",
        "EDIT",
        "budget_s",
        default=selected["budget_s"],
        minimum=LEAST_S,
        maximum=MOST_S,
    )
    yield from _leaving()


def _leaving() -> Iterator[Action]:
    yield Action("back-models", "Go back to the choice of models", "BACK", "MODEL_SELECT")
    yield Action("back-columns", "Go back to what is done with the columns", "BACK", "PREPROCESS")
    yield Action("abort", "End the run", "ABORT")


def _draw(room: Room, result: Mapping[str, Json]) -> None:
    lines = [line for line in result["leaderboard"] if line["status"] == OK][::-1]
    name, chosen = NAMES[result["metric"]["name"]], result["chosen"]["id"]
    up = "higher is better" if result["metric"]["higher_better"] else "lower is better"
    title = f"Models by {name}, with one standard deviation over {result['folds']} folds"
    with picture(room, PLOT, title, f"{name}: {up}", "") as axes:
        for place, line in enumerate(lines):
            colour, marker = (COLOURS[1], "D") if line["id"] == chosen else (COLOURS[0], "o")
            axes.errorbar(line["cv_mean"], place, xerr=line["cv_sd"] or 0.0, fmt=marker, color=colour, capsize=4)
        axes.axvline(result["baseline_score"], color=GREY, linestyle="--", label="guessing")
        labels = [short(line["id"]) + (" (chosen)" if line["id"] == chosen else "") for line in lines]
        axes.set_yticks(range(len(lines)), labels)
        axes.legend(loc="best")


def _artifacts() -> list[Artifact]:
    return [
        Artifact(MODEL, "application/octet-stream", "The chosen model, fitted on every training row"),
        Artifact(OOF, "application/vnd.apache.parquet", "What it said of training rows it had not seen"),
        drawn(PLOT, "Every model that was tried, with its spread over the folds; the dashed line is guessing"),
    ]


if __name__ == "__main__":
    main(work)
