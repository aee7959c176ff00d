"""Tables that are readable as text and valid Markdown."""

from collections.abc import Sequence


def markdown_table(cells: Sequence[Sequence[str]]) -> str:
    """Rows of cells as an aligned Markdown table; the first row is the header."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])
