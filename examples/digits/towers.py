"""A ranker of two towers: what a user wants and what an item is, each made one vector; the score is how near they are.

A user is a handwritten digit and wants more of the same; an item is a digit too. Each tower is a layer of 256 and one
of 32, and its output has length 1. They are trained on pairs within a batch: of a user's probabilities over the batch's
items (a softmax of the scores), those of the user's own class are to be alike and the others nothing. With Adam, and in
plain NumPy, because it takes but two seconds. Its size and its steps were chosen by ``choose.py``.

Rule of this file: as of ``train.py``, which runs it.
"""

from __future__ import annotations

import numpy
import numpy.typing

Numbers = numpy.typing.NDArray[numpy.floating]
HIDDEN = 256
VECTOR = 32
STEPS = 1000
BATCH = 128
RATE = 2e-3
SHARPNESS = 8.0
"""What scores are multiplied with before they are probabilities: at 1 no item could be preferred by much."""
DECAYS = (0.9, 0.99)
PIXEL_MAX = 16.0


def train(images, labels, seed, steps=STEPS, hidden=HIDDEN):
    """The weights of both towers, trained on images [n, 64] with pixels 0 to 16, by their names in ``weights.npz``."""
    random = numpy.random.default_rng(seed)
    pixels = images.astype(numpy.float32) / PIXEL_MAX
    towers = [_drawn(random, hidden), _drawn(random, hidden)]
    means = [[(0.0, 0.0) for _ in tower] for tower in towers]
    for step in range(1, steps + 1):
        users, items = random.integers(0, len(pixels), (2, BATCH))
        walks = [_walked(pixels[users], towers[0]), _walked(pixels[items], towers[1])]
        pull = _pull(walks[0][1], walks[1][1], labels[users][:, None] == labels[items])
        slopes = [_slopes(walks[0], towers[0], pull @ walks[1][1]), _slopes(walks[1], towers[1], pull.T @ walks[0][1])]
        rate = RATE * min(1.0, 2 * (1 - step / steps))
        for tower, mean, slope in zip(towers, means, slopes, strict=True):
            _adam(tower, mean, slope, rate, step)
    names = ("hidden", "hidden_bias", "vector", "vector_bias")
    return {
        f"{side}_{name}": weights
        for side, tower in zip(("user", "item"), towers, strict=True)
        for name, weights in zip(names, tower, strict=True)
    }


def vectors(weights, side, images):
    """The vectors [n, 32] of images [n, 64], by the weights that ``train`` made; ``side`` is "user" or "item"."""
    hidden = numpy.maximum(images / PIXEL_MAX @ weights[f"{side}_hidden"] + weights[f"{side}_hidden_bias"], 0)
    made = hidden @ weights[f"{side}_vector"] + weights[f"{side}_vector_bias"]
    return made / (numpy.linalg.norm(made, axis=1, keepdims=True) + 1e-6)


def ndcg(scores: Numbers, right: numpy.typing.NDArray[numpy.bool_], count: int = 10) -> float:
    """How good an order by these scores [n] is, from 0 to 1 (all of its first ``count`` are right, a bool [n]): NDCG
    (Järvelin and Kekäläinen, 2002)."""
    weights = 1 / numpy.log2(numpy.arange(2, count + 2))
    gained = weights[right[numpy.argsort(-scores, kind="stable")[:count]]].sum()
    return float(gained / weights[: min(count, int(right.sum()))].sum())


def likeness(users: Numbers, items: Numbers) -> Numbers:
    """What a ranker without a model has: the cosine of two digits' pixels [n]."""
    lengths = numpy.linalg.norm(users, axis=1) * numpy.linalg.norm(items, axis=1)
    alike: Numbers = (users * items).sum(axis=1) / lengths
    return alike


def _drawn(random, hidden):
    """A tower's first weights and biases."""
    shapes = ((64, hidden), hidden, (hidden, VECTOR), VECTOR)
    spreads = ((2 / 64) ** 0.5, 0, (1 / hidden) ** 0.5, 0)
    return [
        random.normal(0, spread, shape).astype(numpy.float32) for spread, shape in zip(spreads, shapes, strict=True)
    ]


def _walked(pixels, tower):
    """(pixels, vectors [n, 32] of length 1, hidden layer, lengths before that)."""
    hidden = numpy.maximum(pixels @ tower[0] + tower[1], 0)
    vectors = hidden @ tower[2] + tower[3]
    lengths = numpy.linalg.norm(vectors, axis=1, keepdims=True) + 1e-6
    return pixels, vectors / lengths, hidden, lengths


def _pull(users, items, same):
    """The slope of the loss by each pair's nearness [batch, batch]; a user without an item of its class has none."""
    scores = SHARPNESS * (users @ items.T)
    same = same.astype(scores.dtype)
    scores = numpy.exp(scores - scores.max(axis=1, keepdims=True))
    count = same.sum(axis=1, keepdims=True)
    given = scores / scores.sum(axis=1, keepdims=True) * (count > 0)
    return SHARPNESS * (given - same / numpy.maximum(count, 1)) / len(users)


def _slopes(walk, tower, slope):
    """The slopes of a tower's weights, from that of its vectors."""
    pixels, vectors, hidden, lengths = walk
    slope = (slope - vectors * (vectors * slope).sum(axis=1, keepdims=True)) / lengths
    before = (slope @ tower[2].T) * (hidden > 0)
    return [pixels.T @ before, before.sum(axis=0), hidden.T @ slope, slope.sum(axis=0)]


def _adam(tower, means, slopes, rate, step):
    """One step of Adam (Kingma and Ba, 2015), in place."""
    first, second = DECAYS
    for place, slope in enumerate(slopes):
        mean, square = means[place]
        mean, square = first * mean + (1 - first) * slope, second * square + (1 - second) * slope**2
        means[place] = (mean, square)
        tower[place] -= rate * (mean / (1 - first**step)) / (numpy.sqrt(square / (1 - second**step)) + 1e-8)
