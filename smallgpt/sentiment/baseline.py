"""The baseline: what a classifier without a neural network reaches on the same split."""

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from smallgpt.data.reviews import IntArray, Reviews

NAME = "character 1-4-gram TF-IDF + logistic regression"
FOLDS = 5


def out_of_fold(reviews: Reviews, learnt: IntArray, seed: int) -> npt.NDArray[np.float32]:
    """What the baseline says of each of the reviews `learnt`, (N, C), having learnt from the others
    only: it judges each of five folds after training on the other four."""
    fold = np.random.default_rng((seed, 9)).permutation(len(learnt)) % min(FOLDS, len(learnt))
    result = np.empty((len(learnt), len(reviews.names)), np.float32)
    for number in np.unique(fold):
        inside = fold == number
        result[inside] = probabilities(reviews, learnt[~inside], learnt[inside])
    return result


def probabilities(reviews: Reviews, learnt: IntArray, judged: IntArray) -> npt.NDArray[np.float64]:
    """Of the labels of the reviews `judged`, (N, C), after training on the reviews `learnt`."""
    pipeline = make_pipeline(
        TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True),
        LogisticRegression(C=30.0, max_iter=1000),
    )
    train, test = reviews.part(learnt), reviews.part(judged)
    pipeline.fit(train.texts, train.labels)
    result = np.zeros((len(test), len(reviews.names)))
    result[:, pipeline.classes_] = pipeline.predict_proba(test.texts)
    return result
