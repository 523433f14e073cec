"""The parameters of a model in groups, for optimizers."""

from torch import nn

Named = tuple[str, nn.Parameter]


def parameter_groups(model: nn.Module) -> tuple[list[Named], list[Named], list[Named]]:
    """What learns, by name: embeddings, matrices of the layers, and what does not decay: vectors
    and the tables of n-grams.

    In this order AdamW numbers them in a saved state, where it trains all of them.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [(name, p) for name, p in named if p.dim() >= 2 and ".tables." not in name]
    vectors = [(name, p) for name, p in named if p.dim() < 2 or ".tables." in name]
    in_layers = [(name, p) for name, p in matrices if _in_layers(name)]
    embeddings = [(name, p) for name, p in matrices if not _in_layers(name)]
    return embeddings, in_layers, vectors


def _in_layers(name: str) -> bool:
    return name.removeprefix("transformer.").startswith(("h.", "ngrams.projections."))
