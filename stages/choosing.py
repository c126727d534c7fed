"""Chooses among the models that were tried: a blend when it is worth it, the simplest of those that are as good.

Two models are as good when their mean difference over the same folds is within one standard error of that difference
(Breiman, Friedman, Olshen and Stone 1984, section 3.4.3, applied to paired folds: the folds of a small table differ
more from each other than models do, so an unpaired deviation would hide real differences).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages import portfolio, scoring
from stages.folding import Numbers
from stages.scheduling import BLENDED
from stages.search import OK, Trial
from stages.wording import NAMES

BLEND_GAIN = 0.002  # a blend has to be better than the best single model by this share of the score
STEPS = 12  # each adds the member that helps most (Caruana et al. 2004, with replacement)
BLEND_ROWS = 4_000  # of a fold that weights are found on
LEAST_FOLDS = 2  # for an error to be known


@dataclass(frozen=True, slots=True)
class Judged:
    """What a model is judged by: its folds. A blend has weights."""

    id: str
    scores: tuple[float, ...]
    weights: Mapping[str, float]

    @property
    def mean(self) -> float:
        """The mean score."""
        return float(np.mean(self.scores))


@dataclass(frozen=True, slots=True)
class Choice:
    """The model that was chosen and why."""

    model: Judged
    why: str


def judged(trials: Sequence[Trial]) -> list[Judged]:
    """Returns those that were tried on every fold."""
    return [Judged(each.id, tuple(each.scores), {each.id: 1.0}) for each in trials if each.status == OK]


def choose(models: Sequence[Judged], metric: scoring.Metric) -> Choice:
    """Chooses the simplest model that is as good as the best."""
    best = _best(models, metric)
    as_good = [each for each in models if each is best or _as_good(each, best, metric)]
    simplest = min(as_good, key=lambda each: (portfolio.simplicity(each.id), -metric.gain(each.mean, 0.0), each.id))
    figures = f"{NAMES[metric.name]} {simplest.mean:.4g}"
    if simplest is best:
        return Choice(best, f"{best.id} has the best mean over the folds ({figures}).{_unlike_others(best)}")
    why = (
        f"{best.id} has the best mean over the folds ({best.mean:.4g}), but {simplest.id} is simpler and its "
        f"{figures} is within what chance makes of a difference."
    )
    return Choice(simplest, why)


def _unlike_others(best: Judged) -> str:
    return f" It mixes {', '.join(best.weights)}." if best.id == portfolio.BLEND else ""


def _best(models: Sequence[Judged], metric: scoring.Metric) -> Judged:
    return max(models, key=lambda each: (metric.gain(each.mean, 0.0), -portfolio.simplicity(each.id)))


def _as_good(model: Judged, best: Judged, metric: scoring.Metric) -> bool:
    gains = metric.gain(np.asarray(best.scores), np.asarray(model.scores))
    if len(gains) < LEAST_FOLDS:
        return bool(gains.mean() <= 0)
    return bool(gains.mean() <= gains.std(ddof=1) / np.sqrt(len(gains)))


class Blender:
    """Finds weights for a blend of the best models from what they said of rows they had not seen.

    Args:
        y: what was true of each fold's rows, in the order of the trials' predictions.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        y: Sequence[Numbers],
        metric: scoring.Metric,
        classes: Sequence[str],
        positive: str | None,
    ) -> None:
        able = [each for each in trials if each.status == OK and each.id != portfolio.BASELINE]
        ranked = sorted(able, key=lambda each: metric.gain(0.0, each.mean))
        linear = [each for each in able if each.id == "linear" and each not in ranked[:BLENDED]]
        self._members = ranked[: BLENDED - len(linear)] + linear
        self._y, self._metric, self._classes, self._positive = y, metric, classes, positive

    def blend(self) -> Judged | None:
        """Returns the blend, judged on each fold with weights found on the others; None when it is not worth it."""
        if len(self._members) < LEAST_FOLDS or len(self._y) < LEAST_FOLDS or not self._can_gain():
            return None
        try:
            return self._found()
        except ValueError:  # a fold's sample lacks a class: too few rows to weigh models on
            return None

    def _can_gain(self) -> bool:
        best = self._members[0].mean  # no measure of which more is better goes beyond 1
        return not self._metric.higher_better or best + BLEND_GAIN * abs(best) < 1.0

    def _found(self) -> Judged | None:
        folds = range(len(self._y))
        scores = []
        for left_out in folds:
            weights = self._weights([fold for fold in folds if fold != left_out])
            scores.append(self._score(weights, left_out, None))
        weights = self._weights(list(folds))
        named = {each.id: float(weight) for each, weight in zip(self._members, weights, strict=True) if weight > 0}
        found = Judged(portfolio.BLEND, tuple(scores), named)
        best = self._members[0].mean
        needed = BLEND_GAIN * max(abs(best), 1e-9)
        return found if len(named) > 1 and self._metric.gain(found.mean, best) > needed else None

    def _weights(self, folds: Sequence[int]) -> Numbers:
        counts = np.zeros(len(self._members))
        for _ in range(STEPS):
            tries = [self._mean(counts + one, folds) for one in np.eye(len(counts))]
            counts[int(np.argmax(tries))] += 1
        found: Numbers = counts / counts.sum()
        return found

    def _mean(self, counts: Numbers, folds: Sequence[int]) -> float:
        weights = counts / counts.sum()
        return float(np.mean([self._metric.gain(self._score(weights, fold, BLEND_ROWS), 0.0) for fold in folds]))

    def _score(self, weights: Numbers, fold: int, most: int | None) -> float:
        step = -(-len(self._y[fold]) // most) if most else 1  # evenly through the fold: its rows may be sorted
        mixed: Any = sum(
            weight * each.predicted[fold][::step] for weight, each in zip(weights, self._members, strict=True)
        )
        return scoring.value(self._metric.name, self._y[fold][::step], mixed, self._classes, self._positive)
