"""Tries candidates fold by fold within a budget, and keeps what each predicted for the rows it had not seen."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stages import costs, portfolio, scoring
from stages.budget import Budget, Late
from stages.contract import Failed, Progress
from stages.folding import Numbers, Rows
from stages.scheduling import CONTENDERS, Bill
from stages.wording import NAMES

OK, FAILED, SKIPPED, BEHIND = "OK", "FAILED", "SKIPPED_BUDGET", "BEHIND"
PATIENCE = 10  # rounds of boosting without gain on the fold's rows, after which it ends
CACHED_BYTES = 256 * 2**20  # of encoded folds that are kept for the next candidates
MAX_ERROR = 160  # characters of what a library said
MS = 1000.0
CALL_ROWS = 1_000  # what `predict_ms` is about: one call, with so many rows at most


@dataclass(slots=True)
class Trial:
    """What became of a candidate.

    Attributes:
        scores: of each fold, in order.
        predicted: for each fold, what it said of that fold's rows: probabilities or numbers.
        fit_s: processor seconds of each fold's fit, encoding included.
        predict_ms: milliseconds of processor time of a call with CALL_ROWS at most, encoding included, of each fold.
        rounds: after which boosting ended on each fold; empty when the candidate has none.
    """

    candidate: Mapping[str, Any]
    status: str = OK
    error: str = ""
    scores: list[float] = field(default_factory=list)
    predicted: list[Numbers] = field(default_factory=list)
    fit_s: list[float] = field(default_factory=list)
    predict_ms: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)

    @property
    def final(self) -> dict[str, Any]:
        """The candidate as it is fitted on all rows: with as many rounds as did well on the folds."""
        params = dict(self.candidate["params"])
        if self.rounds:
            params["max_iter"] = max(1, round(float(np.mean(self.rounds))))
        return {**self.candidate, "params": params}

    @property
    def id(self) -> str:
        """The candidate's."""
        return str(self.candidate["id"])

    @property
    def mean(self) -> float:
        """The mean score of the folds."""
        return float(np.mean(self.scores))


@dataclass(frozen=True, slots=True)
class Encoded:
    """A fold as matrices: to learn from, to judge on; seconds to fit the encoder and apply it, and to apply it only."""

    learned: Any
    judged: Any
    fit_s: float
    apply_s: float

    @property
    def bytes(self) -> int:
        """Their size."""
        return int(getattr(self.learned, "nbytes", 0) + getattr(self.judged, "nbytes", 0))


class Search:
    """Tries candidates one after the other.

    Args:
        plan: the whole result of PREPROCESS.
        folds: on how many each is tried.
    """

    def __init__(
        self,
        rows: Rows,
        plan: Mapping[str, Any],
        metric: scoring.Metric,
        folds: int,
        budget: Budget,
        progress: Progress,
        seed: int,
    ) -> None:
        self.rows, self.plan, self.metric, self.budget = rows, plan, metric, budget
        self.classes: tuple[str, ...] = () if plan["task"] == "regression" else tuple(sorted(set(rows.y)))
        self.parts = rows.parts(folds)
        self.trials: list[Trial] = []
        self._progress, self._seed = progress, seed
        self._shape = costs.shape_of(plan)
        self._bill = Bill(self._shape, len(self.parts), len(rows), plan["split"]["folds"])
        self._cache: dict[tuple[str, int], Encoded] = {}
        self._needed: set[str] = set()
        self._done = self._total = 0

    def run(self, candidates: Sequence[Mapping[str, Any]]) -> list[Trial]:
        """Tries each on its first folds, and the best of those that had a part of them on the rest.

        Those of the portfolio's floor are tried whatever the clock says. Raises Failed with CANCELLED.
        """
        whole = [candidate for candidate in candidates if candidate["folds"] >= len(self.parts)]
        self._needed = {*portfolio.ALWAYS, _boosting(whole)}
        for candidate in candidates:  # loads their libraries, which is no part of what a fold takes
            portfolio.build(candidate, self.plan, self._seed)
        self.trials = [Trial(candidate) for candidate in candidates]
        others = sum(1 for trial in self.trials if self._first(trial) < len(self.parts))
        rest = min(CONTENDERS, others) * (len(self.parts) - min(map(self._first, self.trials)))
        self._total = sum(map(self._first, self.trials)) + rest
        stale = False  # whether the last of those tried on a part of the folds was no better than all before it
        for place, trial in enumerate(self.trials):
            partly = self._first(trial) < len(self.parts)
            if partly and stale:
                trial.status, trial.error = BEHIND, "Not tried: the one before it was no better than those before that."
                continue
            self._try(trial, range(self._first(trial)))
            stale = partly and trial.status == OK and self._behind(trial, self.trials[:place]) >= 0
        contenders = self._contenders()
        for trial in self.trials:
            if trial.id in contenders:
                self._try(trial, range(len(trial.scores), len(self.parts)))
            elif trial.status == OK and len(trial.scores) < len(self.parts):
                trial.status = BEHIND
                trial.error = f"Others were better on {len(trial.scores)} of {len(self.parts)} folds."
        return self.trials

    def refit_s(self, trial: Trial) -> float:
        """Returns the seconds that fitting a candidate on all rows takes, as its folds have shown."""
        learned = np.mean([len(part[1]) for part in self.parts])
        return float(np.mean(trial.fit_s)) * len(self.rows) / float(learned)

    def forecast_s(self, trials: Sequence[Trial]) -> float:
        """Returns the forecast of the whole stage when these are fitted in the end; no clock is in it."""
        bill = Bill(self._shape, len(self.parts), len(self.rows), self.plan["split"]["folds"])
        for trial in self.trials:
            bill.add(trial.candidate, len(trial.scores))
        return bill.spent + sum(bill.refit(trial.final) for trial in trials)

    def _first(self, trial: Trial) -> int:
        return min(int(trial.candidate["folds"]), len(self.parts))

    def _contenders(self) -> set[str]:
        """Returns the best few of those tried on a part of the folds, unless they are clearly behind on it."""
        whole = [trial for trial in self.trials if trial.status == OK and len(trial.scores) == len(self.parts)]
        partly = [trial for trial in self.trials if trial.status == OK and len(trial.scores) < len(self.parts)]
        if not whole:
            return set()
        best = max(whole, key=lambda trial: self.metric.gain(trial.mean, 0.0))
        most = float(np.std(best.scores, ddof=1)) if len(best.scores) > 1 else 0.0
        behind = {trial.id: self._behind(trial, whole) for trial in partly}
        return set(sorted((name for name in behind if behind[name] <= most), key=behind.__getitem__)[:CONTENDERS])

    def _behind(self, trial: Trial, others: Iterable[Trial]) -> float:
        """Returns by how much the best of others was better on the folds that a candidate was tried on."""
        count = len(trial.scores)
        there = [np.mean(each.scores[:count]) for each in others if each.status == OK and len(each.scores) >= count]
        return max((float(self.metric.gain(mean, trial.mean)) for mean in there), default=-np.inf)

    def _try(self, trial: Trial, places: Iterable[int]) -> None:
        for place in places:
            self._fold(trial, place)
            if trial.status != OK:
                break
            self._done += 1
            self._tell(trial, place)

    def _reserve(self, trial: Trial) -> float:
        """Returns the seconds that have to be left after a fold: the dearest last fit that may come, and the end."""
        known = [self.refit_s(each) for each in self.trials if each.scores and each.status in (OK, BEHIND)]
        return max([0.0 if trial.fit_s else self._bill.refit(trial.candidate), *known]) + costs.CLOSE_S

    def _fold(self, trial: Trial, place: int) -> None:
        """Fits and judges one fold. What a library raises is the candidate's failure, not the stage's."""
        try:
            if trial.id in self._needed:
                self._fit(trial, place)
            else:
                with self.budget.ending(self._reserve(trial)):
                    self._fit(trial, place)
        except Late:
            trial.status, trial.error = SKIPPED, "The machine is slower than forecast; ended to keep the budget."
        except Failed:
            raise  # the run is cancelled or out of time
        except MemoryError:
            trial.status, trial.error = FAILED, "It needs more memory than the run may use."
        except Exception as error:  # whatever a library raises, the other candidates are still to be tried
            trial.status, trial.error = FAILED, _plain(error)

    def _fit(self, trial: Trial, place: int) -> None:
        judged = self.parts[place][2]
        encoded = self._encoded(trial.candidate, place)
        model = portfolio.build(trial.candidate, self.plan, self._seed)[-1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of convergence and the like: the score says what came of it
            before = self.budget.now()
            rounds = self._learn(model, trial, encoded, place)
            between = self.budget.now()
            predicted = predictions(model, encoded.judged, self.classes)
            fit_s, predict_s = between - before, self.budget.now() - between + encoded.apply_s
        positive = self.plan.get("positive_class")
        y = self.rows.y[judged]
        trial.scores.append(scoring.value(self.metric.name, y, predicted, self.classes, positive))
        trial.predicted.append(predicted.astype("float32" if self.classes else "float64"))
        trial.fit_s.append(fit_s + encoded.fit_s)
        trial.predict_ms.append(predict_s * MS * min(1.0, CALL_ROWS / len(judged)))
        trial.rounds.extend(rounds)

    def _learn(self, model: Any, trial: Trial, encoded: Encoded, place: int) -> list[int]:
        """Fits a model on a fold. Returns after how many rounds it ended, when it is a boosting."""
        _, learned, judged = self.parts[place]
        y, unseen = self.rows.y[learned], self.rows.y[judged]
        if trial.candidate["family"] != "boosting":
            model.fit(encoded.learned, y)
            return []
        known = np.isin(unseen, np.unique(y)) if self.classes else np.full(len(unseen), True)  # not of classes it lacks
        model.set_params(early_stopping=True, n_iter_no_change=PATIENCE, tol=0.0)
        model.fit(encoded.learned, y, X_val=encoded.judged[known], y_val=unseen[known])
        return [int(model.n_iter_)]

    def _encoded(self, candidate: Mapping[str, Any], place: int) -> Encoded:
        """Returns a fold encoded for a candidate; the encoder has seen only the rows that are learned from."""
        kind = candidate["kind"]
        _, learned, judged = self.parts[place]
        if kind == "dummy":
            return Encoded(self.rows.x.iloc[learned], self.rows.x.iloc[judged], 0.0, 0.0)
        if (kind, place) in self._cache:
            return self._cache[kind, place]
        encoded = self._encode(candidate, learned, judged)
        others = any(each.candidate["kind"] == kind and each.candidate["id"] != candidate["id"] for each in self.trials)
        held = encoded.bytes + sum(each.bytes for each in self._cache.values())
        if others and held <= CACHED_BYTES:
            self._cache[kind, place] = encoded
        return encoded

    def _encode(self, candidate: Mapping[str, Any], learned: Numbers, judged: Numbers) -> Encoded:
        encoder = portfolio.build(candidate, self.plan, self._seed)[:-1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            before = self.budget.now()
            fitted = encoder.fit_transform(self.rows.x.iloc[learned], self.rows.y[learned])
            between = self.budget.now()
            applied = encoder.transform(self.rows.x.iloc[judged])
        return Encoded(fitted, applied, between - before, self.budget.now() - between)

    def _tell(self, trial: Trial, place: int) -> None:
        means = [each.mean for each in self.trials if each.status == OK and each.scores]
        best = max(means) if self.metric.higher_better else min(means)
        share = min(1.0, self.budget.share)
        self._progress.tell(
            5 + 80 * self._done / self._total,
            f"fold {place + 1} of {len(self.parts)}",
            f"{trial.id}: {NAMES[self.metric.name]} {trial.scores[-1]:.4g}; best so far {best:.4g}",
            always=True,
            candidate=trial.id,
            done=self._done,
            total=self._total,
            best=round(best, 6),
            budget_share=round(share, 3),
        )


def _boosting(candidates: Sequence[Mapping[str, Any]]) -> str:
    """Returns the first boosting of those tried on every fold: it is tried whatever the budget."""
    return next((str(each["id"]) for each in candidates if each["family"] == "boosting"), "")


def predictions(model: Any, x: Any, classes: Sequence[str]) -> Numbers:
    """Returns numbers for a regression, else probabilities with a column for each class, also those it never saw."""
    if not classes:
        found: Numbers = np.asarray(model.predict(x), dtype="float64").ravel()
        return found
    given = model.predict_proba(x)
    aligned = np.zeros((len(given), len(classes)))
    aligned[:, np.searchsorted(np.asarray(classes, dtype=object), model.classes_)] = given
    return aligned


def _plain(error: Exception) -> str:
    said = " ".join(str(error).split())[:MAX_ERROR]
    return f"{type(error).__name__}: {said}" if "/" not in said else type(error).__name__
