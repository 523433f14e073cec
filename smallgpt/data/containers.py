"""What holds a file's dialogues: told from its name, its beginning, and what the user says."""

from pathlib import Path

from smallgpt.data.dialogue_records import KINDS, Columns, is_message
from smallgpt.data.json_files import leading_value, whole_value
from smallgpt.data.preference_records import are_known
from smallgpt.data.tables import is_jsonl, is_lines, is_table
from smallgpt.data.text import BLANK, beginning, open_decompressed
from smallgpt.utils.errors import UserError, note

_PARQUET_MAGIC = b"PAR1"


def recognise(path: Path, kind: str | None = None, columns: Columns | None = None) -> str:
    """Find out from its beginning what a file is: text, list, lines or one (JSON), table, parquet.

    A UserError says that its records cannot be of the given kind.
    """
    if kind not in (None, *KINDS):
        raise UserError(f"--format: {kind!r} is unknown", f"formats: {', '.join(KINDS)}")
    if columns and kind not in (None, "table"):
        raise UserError(f"--columns does not go with --format {kind}", "give one of them")
    if kind == "text":
        return "text"
    with open_decompressed(path) as file:
        if file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC:
            return "parquet"
    text = beginning(path)
    container = _container(path, text, kind)
    if container == "text" and columns:
        return "table"
    if container == "text" and kind:
        raise UserError(f"{path} does not look like {kind}", "give another --format, or none")
    if container == "text" and _has_columns(text, 5):
        note(
            f"{path}: read as a text, though its lines look like rows: to read prompts and replies "
            "from columns, put a header above them, such as prompt and response with a tab between"
        )
    return container


def _container(path: Path, text: str, kind: str | None) -> str:
    text = text.lstrip(BLANK)
    line, _, more = text.partition("\n")
    whole_line = isinstance(whole_value(line), (list, dict))
    if text.startswith("["):
        item = leading_value(text[1:])
        if isinstance(item, str) and (whole_line or is_jsonl(path)):
            # Lines of sentences; or one list alone, which may as well be one of articles.
            if whole_line and (more.strip() or is_lines(path)):
                return "lines"
            if kind == "lccc":
                return "one"
            raise UserError(
                f"{path} is one list of texts: is it one dialogue, or are they articles?",
                "one dialogue: convert it with --format lccc; dialogues: make each a list in the "
                "list; articles: write them as a text with a blank line between two",
            )
        if is_message(item):  # one dialogue, without a record around it
            return "lines" if whole_line else "one"
        if isinstance(item, (dict, list)) or is_jsonl(path):
            return "list"
    elif whole_line and text.startswith("{"):
        return "lines"
    elif is_jsonl(path):
        return "lines" if is_lines(path) or not isinstance(leading_value(text), dict) else "one"
    has_header = _has_columns(text, 2) and are_known(line.split("\t"))
    return "table" if is_table(path) or has_header else "text"


def _has_columns(text: str, lines: int) -> bool:
    """Whether there are so many first lines, with tabs, the same number in each."""
    tabs = [line.count("\t") for line in text.split("\n", lines)[:lines]]
    return len(tabs) == lines and tabs[0] > 0 and len(set(tabs)) == 1
