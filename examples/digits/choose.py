"""How the models of ``train.py`` were chosen: cross-validation within the training part, which prints this.

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
    ranker: random order                           0.106
    ranker: likeness of pixels                     0.558
    ranker: towers of 128, 300 steps               0.878
    ranker: towers of 128, 1000 steps              0.936
    ranker: towers of 256, 500 steps               0.957
    ranker: towers of 256, 1000 steps              0.976
    ranker: towers of 256, 2000 steps              0.986

Mean accuracy of 5 folds, four times over (a fold's own spread is about one point). The small tier is the best
logistic regression. Support vectors do best of all and trees add nothing to them; the large tier is the dearest
of the three equals, because it stands for a model that is worth sparing. Of rankers it is NDCG@10 of 200 items for
each of 100 users, on 40 % of the training part; the one taken is the best that learns within two seconds.

Run inside the Triton environment, from this directory: ``python choose.py`` (a minute or two).
Rule of this file: the held-out part is thrown away before anything is looked at.
"""

from __future__ import annotations

import numpy
import towers
from sklearn.model_selection import RepeatedStratifiedKFold, train_test_split
from train import SEED, USERS, shifted, small, split, support, trees

FOLDS = 5
REPEATS = 4
STRENGTHS = (0.1, 0.2, 0.5, 1, 2)
TOWERS = ((128, 300), (128, 1000), (256, 500), (256, 1000), (256, 2000))
"""(size of the hidden layer, steps)."""
CANDIDATES = 200


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
    for name, quality in rankers(images, labels):
        print(f"{name:46} {quality:.3f}")


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


def rankers(images, labels):
    """(name, mean NDCG@10) of each ranker, trained on 60 % of the images; users and items are of the others."""
    learnt, judged, learnt_labels, classes = train_test_split(
        images, labels, test_size=0.4, random_state=SEED, stratify=labels
    )
    items, item_classes = shifted(judged[USERS:]), numpy.tile(classes[USERS:], 5)
    random = numpy.random.default_rng(SEED)
    asked = [random.choice(len(items), CANDIDATES, replace=False) for _ in range(USERS)]

    def quality(score):
        found = [
            towers.ndcg(score(judged[user : user + 1], items[some]), item_classes[some] == classes[user])
            for user, some in enumerate(asked)
        ]
        return float(numpy.mean(found))

    yield "ranker: random order", quality(lambda _, some: -numpy.arange(len(some)))
    yield "ranker: likeness of pixels", quality(towers.likeness)
    for hidden, steps in TOWERS:
        weights = towers.train(shifted(learnt), numpy.tile(learnt_labels, 5), SEED, steps, hidden)
        yield (
            f"ranker: towers of {hidden}, {steps} steps",
            quality(
                lambda user, some, w=weights: (towers.vectors(w, "item", some) @ towers.vectors(w, "user", user).T)[
                    :, 0
                ]
            ),
        )


if __name__ == "__main__":
    main()
