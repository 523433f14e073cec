"""Models on disk: our directories, and the formats of other programs."""
