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
