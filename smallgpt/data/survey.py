"""What a set of dialogues holds: counts, what was left out and why, a histogram of lengths."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

MOST_REASONS = 20
"""Different reasons told; a reason with a part of the data in it would fill pages."""


class Survey:
    """Counts that grow with every dialogue, in bounded memory."""

    def __init__(self) -> None:
        self.dialogues = self.turns = self.characters = 0
        self.exact = self.near = 0
        """Duplicates left out."""
        self.rejected: Counter[str] = Counter()
        self.lengths: Counter[int] = Counter()
        """Dialogues by their characters, rounded up to a power of two."""

    def add(self, dialogue: list[str]) -> None:
        """Count a dialogue that is kept."""
        characters = sum(map(len, dialogue))
        self.dialogues += 1
        self.turns += len(dialogue)
        self.characters += characters
        self.lengths[1 << max(0, characters - 1).bit_length()] += 1

    def reject(self, reason: str) -> None:
        """Count a record that is none."""
        known = len(self.rejected) < MOST_REASONS or reason in self.rejected
        self.rejected[reason if known else "other reasons"] += 1

    def lines(self) -> list[str]:
        """The report, for people."""
        each = max(1, self.dialogues)
        result = [
            f"dialogues: {self.dialogues:,}",
            f"turns: {self.turns:,} ({self.turns / each:.1f} a dialogue)",
            f"characters: {self.characters:,} ({self.characters / each:.1f} a dialogue)",
            f"duplicates: {self.exact:,} exact, {self.near:,} near",
            f"rejected: {self.rejected.total():,}",
            *(f"  {count:,}: {reason}" for reason, count in self.rejected.most_common()),
            "length (characters up to: dialogues)",
        ]
        longest = max(self.lengths.values(), default=1)
        for most, count in sorted(self.lengths.items()):
            result.append(f"{most:>9,}: {count:>9,} {'#' * round(40 * count / longest)}")
        return result

    def draw(self, path: Path) -> None:
        """The histogram as a picture.

        Raises:
            OSError: it cannot be written.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3.5), layout="constrained")
        axes = figure.subplots()
        found = sorted(self.lengths.items())
        axes.bar([f"{most:,}" for most, _ in found], [count for _, count in found])
        axes.set(xlabel="characters of a dialogue, at most", ylabel="dialogues")
        figure.savefig(path, dpi=90, format="png")
