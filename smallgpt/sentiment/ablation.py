"""Four ways to train the same classifier, several times each, beside the baseline."""

import csv
import dataclasses
import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from smallgpt.checkpoints.run_folder import MANIFEST_FILE
from smallgpt.config import ABLATION, SentimentConfig
from smallgpt.data.reviews import fingerprint, read_and_split
from smallgpt.sentiment import pictures, recipe, report
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError, note

CELLS = {
    "mask": {"use_mask": True, "frozen": False},
    "mask, frozen": {"use_mask": True, "frozen": True},
    "no mask": {"use_mask": False, "frozen": False},
    "no mask, frozen": {"use_mask": False, "frozen": True},
}
_COLUMNS = {  # title: key in report.json, factor, digits
    "accuracy, %": ("accuracy", 100, 2),
    "macro F1": ("macro_f1", 1, 4),
    "ROC-AUC": ("roc_auc", 1, 4),
    "calibration error": ("calibration_error", 1, 4),
    "training, s": ("training_seconds", 1, 0),
}
TABLE_FILE, PICTURE_FILE, SETTINGS_FILE = "ablation.md", "ablation.png", "ablation.json"
_CHANGES_NOTHING = (
    *("sentimental_data_path", "checkpoint_root", "tensorboard_path", "save_freq"),
    *("device", "compile", "ddp", "ddp_timeout", "accumulate", "max_positions"),
)
FloatArray = npt.NDArray[np.float64]


class Cell(NamedTuple):
    """One way: the figures of its runs, as in the table, (runs, columns), and how often it judged
    each review right, (N,)."""

    name: str
    figures: FloatArray
    right: FloatArray


def run(
    config: SentimentConfig, seeds: int, command: str, chosen_cells: list[str] | None = None
) -> Path:
    """Train every cell, or the chosen ones, with the seeds `seed`, `seed` + 1 …; write table and
    plot into `checkpoint_root`, and return the table's path.

    Raises:
        UserError: an unknown cell, one that the config does not allow, or runs in `checkpoint_root`
            that were made with other settings or reviews.
    """
    root = Path(config.checkpoint_root)
    names = chosen_cells or list(CELLS)
    for name in names:
        if name not in CELLS:
            raise UserError(f"there is no cell {name!r}", f"cells: {'; '.join(CELLS)}")
    if config.lm_weight and names != ["mask"]:
        raise UserError(
            "lm_weight: the frozen and unmasked cells cannot have it",
            "set it to 0, or compare --cell mask alone with the baseline",
        )
    _keep_to_settings(root / SETTINGS_FILE, config)
    cells = []
    for name in names:
        folder = root / name.replace(", ", "_").replace(" ", "_")
        folders = [folder / f"seed{n}" for n in range(seeds)]
        for seed, folder in enumerate(folders, config.seed):
            if (folder / report.REPORT_FILE).exists():
                continue
            note(f"--- {name}, seed {seed}")
            changes: dict[str, Any] = {"seed": seed, "checkpoint_root": str(folder), **CELLS[name]}
            recipe.run(
                dataclasses.replace(config, resume_from="auto", keep_last=1, **changes), command
            )
        cells.append(_read(name, folders, "test", "verdict"))
    # It is the same in each run.
    cells.append(_read("baseline", folders[:1], "reference", "baseline"))
    path, text = root / TABLE_FILE, table(cells, seeds)
    path.write_text(text, "utf-8")
    with pictures.picture(root / PICTURE_FILE, width=8) as (axes,):
        for number, cell in enumerate(cells):
            accuracy = cell.figures[:, 0]
            axes.plot(accuracy, [number] * len(accuracy), "o", alpha=0.5)
            axes.plot(accuracy.mean(), number, "k|", markersize=20)
        axes.set_yticks(range(len(cells)), [cell.name for cell in cells])
        axes.invert_yaxis()
        axes.set(xlabel="accuracy on the test, % (bar: mean)")
        axes.grid(axis="x", alpha=0.3)
    print(text, end="")
    note(f"written: {path} and {PICTURE_FILE}")
    return path


def _keep_to_settings(file: Path, config: SentimentConfig) -> None:
    """Refuse to mix runs of other settings or reviews with those that are there."""
    used = (field.name for field in fields(config) if ABLATION in field.metadata["used_by"])
    settings = {key: getattr(config, key) for key in used if key not in _CHANGES_NOTHING}
    settings["reviews"] = fingerprint(*read_and_split(config))
    begun = any(file.parent.glob(f"*/seed*/*/{MANIFEST_FILE}"))
    try:
        if not begun or not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic.file(file) as work:
                work.write_text(json.dumps(settings, ensure_ascii=False, indent=1), "utf-8")
        earlier = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be used: {error}", "choose another checkpoint_root"
        ) from None
    changed = [key for key in settings if earlier.get(key, settings[key]) != settings[key]]
    if changed:
        now = "; ".join(
            "the reviews have changed"
            if key == "reviews"
            else f"{key} was {earlier[key]}, now {settings[key]}"
            for key in changed
        )
        raise UserError(
            f"the runs in {file.parent} were made with other settings: {now}",
            "go on with the same, choose another checkpoint_root, or delete that folder",
        )


def _read(name: str, folders: list[Path], part: str, column: str) -> Cell:
    """What the reports of some runs say: the figures of a part of report.json, and the verdicts in
    a column of test.csv."""
    figures, right = [], []
    for folder in folders:
        file = folder / report.REPORT_FILE
        try:
            test = json.loads(file.read_text("utf-8"))[part]
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{file} is damaged: {error}", f"delete {folder}; it is done again"
            ) from None
        figures.append([test[key] for key, _, _ in _COLUMNS.values()])
        with (folder / report.VERDICTS_FILE).open(encoding="utf-8-sig", newline="") as verdicts:
            rows = list(csv.DictReader(verdicts))
        column = column if column in rows[0] else "reference"  # the baseline's in earlier versions
        right.append([row["label"] == row[column] for row in rows])
    factors = [factor for _, factor, _ in _COLUMNS.values()]
    return Cell(name, np.array(figures, np.float64) * factors, np.mean(right, axis=0))


def table(cells: list[Cell], seeds: int) -> str:
    """Markdown: mean and standard deviation over seeds, then p-values between the cells."""
    digits = [digits for _, _, digits in _COLUMNS.values()]
    figures = {cell.name: list(map(_spread, cell.figures.T, digits)) for cell in cells}
    p_values = {
        cell.name: [
            "" if cell is other else f"{paired_p_value(cell.right, other.right):.4f}"
            for other in cells
        ]
        for cell in cells
    }
    return (
        f"{seeds} {'seed' if seeds == 1 else 'seeds'} each, the same split, "
        f"{len(cells[0].right):,} reviews to test; mean ± standard deviation.\n\n"
        f"{_markdown(_COLUMNS, figures)}\n"
        "p of no difference in accuracy (sign-flip permutation over the reviews, paired):\n\n"
        f"{_markdown(p_values, p_values)}"
    )


def _markdown(titles: Iterable[str], rows: dict[str, list[str]]) -> str:
    titles = ["", *titles]
    lines = [f"|{' | '.join(titles)} |", "|---" * len(titles) + "|"]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines) + "\n"


def _spread(values: FloatArray, digits: int) -> str:
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {values.std(ddof=1):.{digits}f}"


def paired_p_value(first: FloatArray, second: FloatArray) -> float:
    """Whether two classifiers differ in how often each judged the same reviews right (0 to 1; mean
    over seeds), (N,): sign-flip permutation test, two-sided."""
    difference = first - second
    difference = difference[difference != 0]
    if len(difference) < 2:
        return 1.0
    test = stats.permutation_test(
        (difference,),
        lambda values, axis: values.sum(axis).round(9),  # equal but for rounding is equal
        permutation_type="samples",
        vectorized=True,
        batch=500,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)
