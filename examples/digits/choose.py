"""How the tiers of ``train.py`` were chosen: cross-validation within the training part, which prints this.

    logistic regression, C=0.1                     95.9 %
    logistic regression, C=0.2                     96.2 %
    logistic regression, C=0.5                     96.5 %
    logistic regression, C=1                       96.5 %
    logistic regression, C=2                       96.3 %
    trees                                          97.4 %
    trees on shifted images                        98.1 %
    support vectors                                98.6 %
    support vectors and trees                      98.6 %
    support vectors and trees on shifted images    98.6 %

Mean accuracy of 5 folds, four times over (a fold's own spread is about one point). The small tier is the best
logistic regression. Support vectors do best of all and trees add nothing to them; the large tier is the dearest
of the three equals, because it stands for a model that is worth sparing.

Run inside the Triton environment, from this directory: ``python choose.py`` (a minute or two).
Rule of this file: the held-out part is thrown away before anything is looked at.
"""

from __future__ import annotations

import numpy
from sklearn.model_selection import RepeatedStratifiedKFold
from train import SEED, shifted, small, split, support, trees

FOLDS = 5
REPEATS = 4
STRENGTHS = (0.1, 0.2, 0.5, 1, 2)


def main() -> None:
    """Print every candidate's mean accuracy."""
    images, _, labels, _ = split()
    folds = RepeatedStratifiedKFold(n_splits=FOLDS, n_repeats=REPEATS, random_state=SEED)
    right: dict[str, list[float]] = {}
    for learn, judge in folds.split(images, labels):
        for name, scores in candidates(images[learn], labels[learn], images[judge]):
            right.setdefault(name, []).append(float(numpy.mean(scores.argmax(axis=1) == labels[judge])))
    for name, shares in right.items():
        print(f"{name:46} {numpy.mean(shares):.1%}".replace("%", " %"))


def candidates(images, labels, unseen):
    """(name, scores [n, 10] for the unseen images) of each candidate, trained on the others."""
    for strength in STRENGTHS:
        weights, bias = small(images, labels, strength)
        yield f"logistic regression, C={strength}", unseen @ weights + bias
    alone = trees(images, labels).predict_proba(unseen)
    many = trees(shifted(images), numpy.tile(labels, 5)).predict_proba(unseen)
    vectors = support(images, labels).predict_proba(unseen)
    yield "trees", alone
    yield "trees on shifted images", many
    yield "support vectors", vectors
    yield "support vectors and trees", vectors + alone
    yield "support vectors and trees on shifted images", vectors + many


if __name__ == "__main__":
    main()
