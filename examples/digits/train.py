"""Trains both tiers and the ranker from scikit-learn's digits (1797 images of 8x8); 40 % of them are held out.

Run inside the Triton environment, which has numpy and scikit-learn: ``python train.py DIRECTORY``.
Rule of this file: a fixed seed, nothing but the training part is looked at, and it imports nothing of
ours, because it runs under another Python environment than the gateway. What the tiers are was chosen by
``choose.py``, which sees the training part alone too, so held-out accuracies are free of that choice.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import joblib
import numpy
import towers
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

SEED = 20
HELD_OUT = 0.4
TREES = 150
SIDE = 8
COST_CALLS = 30
USERS = 100
"""Held-out digits that are users of the ranking; all others are its items."""
STRENGTH = 0.5


def main(directory: Path) -> None:
    """Write weights into the models under ``directory``; beside them ``held_out.npz``, ``facts.json``, and of the
    ranking the tables ``user.npz`` and ``item.npz``, as ``tailrace table load`` takes them, with ``classes.npz``."""
    train_images, test_images, train_labels, test_labels = split()
    models = directory / "models"
    weights, bias = small(train_images, train_labels)
    numpy.savez(models / "digits_small" / "1" / "weights.npz", weights=weights, bias=bias)
    members = large(train_images, train_labels)
    joblib.dump(members, models / "digits_large" / "1" / "members.joblib")
    ranker = towers.train(shifted(train_images), numpy.tile(train_labels, 5), SEED)
    numpy.savez(models / "digits_towers" / "1" / "weights.npz", **ranker)
    tables(directory, test_images, test_labels)
    numpy.savez(directory / "held_out.npz", images=test_images, labels=test_labels.astype(numpy.int64))
    row = test_images[:1]
    facts = {
        "seed": SEED,
        "trained_on": len(train_images),
        "held_out": len(test_images),
        "small_ms": cost(lambda: row.astype(numpy.float64) @ weights + bias),
        "large_ms": cost(lambda: [member.predict_proba(row) for member in members]),
    }
    (directory / "facts.json").write_text(json.dumps(facts))


def split():
    """Images [n, 64] with pixels 0 to 16, those trained on and those held out, and the labels of both."""
    images, labels = load_digits(return_X_y=True)
    return train_test_split(
        images.astype(numpy.float32), labels, test_size=HELD_OUT, random_state=SEED, stratify=labels
    )


def tables(directory, images, labels):
    """What the ranking is about, from held-out digits: some are users, the others and their shifted copies items."""
    rows = {"user": images[:USERS], "item": shifted(images[USERS:])}
    for name, each in rows.items():
        numpy.savez(directory / f"{name}.npz", ids=numpy.arange(len(each)), rows=numpy.ascontiguousarray(each))
    numpy.savez(directory / "classes.npz", user=labels[:USERS], item=numpy.tile(labels[USERS:], 5))


def small(images, labels, strength=STRENGTH):
    """Logistic regression; the scaling of pixels is folded into weights [64, 10] and bias [10]."""
    scaler = StandardScaler().fit(images)
    fitted = LogisticRegression(C=strength, max_iter=500).fit(scaler.transform(images), labels)
    weights = (fitted.coef_ / scaler.scale_).T
    return weights, fitted.intercept_ - scaler.mean_ @ weights


def large(images, labels):
    """The members of the large tier, trained on the images and on copies shifted by one pixel."""
    return [support(images, labels), trees(shifted(images), numpy.tile(labels, 5))]


def support(images, labels):
    """A support vector machine that gives probabilities."""
    return CalibratedClassifierCV(SVC(C=10, gamma=0.001), cv=5, ensemble=False).fit(images, labels)


def trees(images, labels):
    """Extremely randomised trees."""
    return ExtraTreesClassifier(TREES, random_state=SEED).fit(images, labels)


def shifted(images):
    """The images [n, 64] and four copies, moved one pixel up, down, left and right: [5n, 64]."""
    squares = images.reshape(-1, SIDE, SIDE)
    wide = numpy.pad(squares, ((0, 0), (1, 1), (1, 1)))
    moved = [wide[:, 1 + down : 9 + down, 1 + right : 9 + right] for down, right in MOVES]
    return numpy.concatenate([squares, *moved]).reshape(-1, SIDE * SIDE)


MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0))


def cost(call):
    """The median time of one call for one row, in milliseconds."""
    taken = []
    for _ in range(COST_CALLS):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return round(float(numpy.median(taken)) * 1000, 3)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
