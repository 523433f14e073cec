"""Classifiers: training, judging, using and explaining them."""
