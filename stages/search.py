"""Tries candidates fold by fold within a budget, and keeps what each predicted for the rows it had not seen."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stages import costs, portfolio, scoring
from stages.budget import Budget, Late
from stages.contract import Failed, Progress, cpu_seconds
from stages.folding import Numbers, Rows
from stages.scheduling import Bill

OK, FAILED, SKIPPED = "OK", "FAILED", "SKIPPED_BUDGET"
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
    """

    candidate: Mapping[str, Any]
    status: str = OK
    error: str = ""
    scores: list[float] = field(default_factory=list)
    predicted: list[Numbers] = field(default_factory=list)
    fit_s: list[float] = field(default_factory=list)
    predict_ms: list[float] = field(default_factory=list)

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
        self._bill = Bill(self._shape, len(self.parts), len(rows))
        self._cache: dict[tuple[str, int], Encoded] = {}
        self._waiting: Counter[str] = Counter()  # candidates still to come, by the encoder they need
        self._done = self._total = 0

    def run(self, candidates: Sequence[Mapping[str, Any]]) -> list[Trial]:
        """Tries each of them; those of the portfolio's floor whatever the budget. Raises Failed with CANCELLED."""
        needed = {*portfolio.ALWAYS, _boosting(candidates)}
        for candidate in candidates:  # loads their libraries, which is no part of what a fold takes
            portfolio.build(candidate, self.plan, self._seed)
        self._total = len(candidates) * len(self.parts)
        self._waiting = Counter(str(candidate["kind"]) for candidate in candidates)
        for place, candidate in enumerate(candidates):
            self._waiting[candidate["kind"]] -= 1
            self.trials.append(self._try(candidate, candidate["id"] in needed))
            self._done = (place + 1) * len(self.parts)
        return self.trials

    def reserve(self, candidate: Mapping[str, Any]) -> float:
        """Returns the seconds that have to be left after a fold: the dearest last fit that may come, and the end."""
        dearest = [self.refit_s(trial) for trial in self.trials if trial.status == OK]
        return max([self._bill.refit(candidate), *dearest]) + costs.CLOSE_S

    def refit_s(self, trial: Trial) -> float:
        """Returns the seconds that fitting a candidate on all rows takes, as its folds have shown."""
        learned = np.mean([len(part[1]) for part in self.parts])
        return float(np.mean(trial.fit_s)) * len(self.rows) / float(learned)

    def _try(self, candidate: Mapping[str, Any], needed: bool) -> Trial:
        trial = Trial(candidate)
        forecast = self._forecast(candidate)
        for place in range(len(self.parts)):
            expected = float(np.mean(trial.fit_s)) if trial.fit_s else forecast
            reserve = self.reserve(candidate)
            if not needed and not self.budget.allows(expected, reserve):
                trial.status, trial.error = SKIPPED, "It did not fit in what was left of the budget."
                break
            self._fold(trial, place, needed, reserve)
            if trial.status != OK:
                break
            self._tell(trial, place)
        return trial

    def _forecast(self, candidate: Mapping[str, Any]) -> float:
        kind = candidate["kind"]
        kept = kind == "dummy" or (kind, 0) in self._cache
        learned = len(self.parts[0][1])
        fit = costs.fitting(candidate, self._shape, learned) * (1 + costs.PREDICT_SHARE)
        return fit + (0.0 if kept else costs.encoding(self._shape, len(self.rows)))

    def _fold(self, trial: Trial, place: int, needed: bool, reserve: float) -> None:
        """Fits and judges one fold. What a library raises is the candidate's failure, not the stage's."""
        before, forecast = cpu_seconds(), self._forecast(trial.candidate)
        try:
            if needed:
                self._fit(trial, place)
            else:
                with self.budget.ending(reserve):
                    self._fit(trial, place)
        except Late:
            trial.status, trial.error = SKIPPED, "It took longer than forecast and was stopped to keep the budget."
        except Failed:
            raise  # the run is cancelled or out of time
        except MemoryError:
            trial.status, trial.error = FAILED, "It needs more memory than the run may use."
        except Exception as error:  # whatever a library raises, the other candidates are still to be tried
            trial.status, trial.error = FAILED, _plain(error)
        else:
            self.budget.learn(forecast, cpu_seconds() - before)

    def _fit(self, trial: Trial, place: int) -> None:
        _, learned, judged = self.parts[place]
        encoded = self._encoded(trial.candidate, place)
        model = portfolio.build(trial.candidate, self.plan, self._seed)[-1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of convergence and the like: the score says what came of it
            fit_s = _seconds(lambda: model.fit(encoded.learned, self.rows.y[learned]))
            before = cpu_seconds()
            predicted = predictions(model, encoded.judged, self.classes)
            predict_s = cpu_seconds() - before + encoded.apply_s
        positive = self.plan.get("positive_class")
        y = self.rows.y[judged]
        trial.scores.append(scoring.value(self.metric.name, y, predicted, self.classes, positive))
        trial.predicted.append(predicted.astype("float32" if self.classes else "float64"))
        trial.fit_s.append(fit_s + encoded.fit_s)
        trial.predict_ms.append(predict_s * MS * min(1.0, CALL_ROWS / len(judged)))

    def _encoded(self, candidate: Mapping[str, Any], place: int) -> Encoded:
        """Returns a fold encoded for a candidate; the encoder has seen only the rows that are learned from."""
        kind = candidate["kind"]
        _, learned, judged = self.parts[place]
        if kind == "dummy":
            return Encoded(self.rows.x.iloc[learned], self.rows.x.iloc[judged], 0.0, 0.0)
        if (kind, place) not in self._cache:
            encoded = self._encode(candidate, learned, judged)
            full = encoded.bytes + sum(each.bytes for each in self._cache.values()) > CACHED_BYTES
            if full or not self._waiting[kind]:
                return encoded
            self._cache[kind, place] = encoded
        return self._cache[kind, place]

    def _encode(self, candidate: Mapping[str, Any], learned: Numbers, judged: Numbers) -> Encoded:
        encoder = portfolio.build(candidate, self.plan, self._seed)[:-1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            before = cpu_seconds()
            fitted = encoder.fit_transform(self.rows.x.iloc[learned], self.rows.y[learned])
            between = cpu_seconds()
            applied = encoder.transform(self.rows.x.iloc[judged])
        return Encoded(fitted, applied, between - before, cpu_seconds() - between)

    def _tell(self, trial: Trial, place: int) -> None:
        done = self._done + place + 1
        means = [each.mean for each in [*self.trials, trial] if each.status == OK and each.scores]
        best = max(means) if self.metric.higher_better else min(means)
        share = min(1.0, self.budget.share)
        self._progress.tell(
            5 + 80 * done / self._total,
            f"fold {place + 1} of {len(self.parts)}",
            f"{trial.id}: {self.metric.name} {trial.scores[-1]:.4g}; best so far {best:.4g}",
            always=True,
            candidate=trial.id,
            done=done,
            total=self._total,
            best=round(best, 6),
            budget_share=round(share, 3),
        )


def _boosting(candidates: Sequence[Mapping[str, Any]]) -> str:
    """Returns the first boosting: it is tried whatever the budget."""
    return next((str(each["id"]) for each in candidates if each["family"] == "boosting"), "")


def _seconds(work: Callable[[], object]) -> float:
    before = cpu_seconds()
    work()
    return cpu_seconds() - before


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
