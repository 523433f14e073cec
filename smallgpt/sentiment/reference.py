"""The classical reference: what a classifier without a neural network reaches on the same split."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from smallgpt.data.reviews import IntArray, Reviews

NAME = "character 1-4-gram TF-IDF + logistic regression"
INVERSE_REGULARISATION = 30.0
PARTS = 5
"""Of the reviews learnt from, for `out_of_fold`."""


def out_of_fold(reviews: Reviews, learnt: IntArray, seed: int) -> npt.NDArray[np.float32]:
    """What the reference says of each of the reviews `learnt`, (N, C), having learnt from the
    others only: in each of five parts it judges what it learnt from the other four."""
    part = np.random.default_rng((seed, 9)).permutation(len(learnt)) % min(PARTS, len(learnt))
    probabilities = np.empty((len(learnt), len(reviews.names)), np.float32)
    for number in np.unique(part):
        inside = part == number
        probabilities[inside] = reference(reviews, learnt[~inside], learnt[inside])
    return probabilities


def reference(reviews: Reviews, learnt: IntArray, judged: IntArray) -> npt.NDArray[np.float64]:
    """Probabilities of the reviews `judged`, (N, C), after training on the reviews `learnt`."""
    pipeline = make_pipeline(
        TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True),
        LogisticRegression(C=INVERSE_REGULARISATION, max_iter=1000),
    )
    train, test = reviews.part(learnt), reviews.part(judged)
    pipeline.fit(train.texts, train.labels)
    probabilities = np.zeros((len(test), len(reviews.names)))
    probabilities[:, pipeline.classes_] = pipeline.predict_proba(test.texts)
    return probabilities
