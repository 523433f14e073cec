"""The network: GPT, classifier, loss, generation."""
