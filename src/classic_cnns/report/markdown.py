"""Tables that are readable as text and valid Markdown."""

from collections.abc import Sequence


def markdown_table(cells: Sequence[Sequence[str]]) -> str:
    """Rows of cells as an aligned Markdown table, numbers right; the first row is the header."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in cells]
    columns, rule = [], []
    for column in zip(*cells, strict=True):
        width, number = max(map(len, column)), set("".join(column[1:])) <= set("0123456789.,%±+-e ")
        columns.append([cell.rjust(width) if number else cell.ljust(width) for cell in column])
        rule.append("-" * (width + 1) + (":" if number else "-"))
    lines = [f"| {' | '.join(row)} |" for row in zip(*columns, strict=True)]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])
