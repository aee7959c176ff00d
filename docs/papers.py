"""Writes `docs/papers.md`: each fact of a paper that a test holds, from the markers of the tests.

    python docs/papers.py

A marker is `@pytest.mark.fact("statement", source="paper, place", code="file:symbol")`. Markers are
read from the source of the tests, so nothing is imported and no test runs.
"""

import ast
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).with_suffix(".md")
CODE = "src/classic_cnns"
PAPERS = {  # by the first words of a source, in the order of the page
    "LeCun 1998": "LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document "
    "Recognition, Proceedings of the IEEE 86(11), 1998",
    "Krizhevsky 2012": "Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep "
    "Convolutional Neural Networks, NIPS 2012",
    "cuda-convnet": "Krizhevsky: cuda-convnet, its layer definitions and wiki, 2011 and 2012",
    "Ioffe 2015": "Ioffe, Szegedy: Batch Normalization, ICML 2015",
    "tutorial": "The tutorials that teach these nets, and their errors",
}
HEAD = """\
# Facts of the papers

Each row has a fact that was checked, where the paper states it, the code that implements it, and
the test that verifies it. `make papers` writes this page from the markers of the tests; change
those.
"""


class Fact(NamedTuple):
    statement: str
    source: str  # a paper and the place in it
    code: str  # file:symbol, the file below src/classic_cnns or conf
    file: str  # of the test
    test: str

    @property
    def paper(self) -> str:
        return next(name for name in PAPERS if self.source.startswith(name))

    @property
    def place(self) -> str:
        """Where the paper has it, and for a tutorial what it is on."""
        return self.source.removeprefix(self.paper).lstrip(",").strip()

    @property
    def code_file(self) -> str:
        name = self.code.partition(":")[0]
        return name if name.startswith("conf/") else f"{CODE}/{name}"

    @property
    def symbol(self) -> str:
        return self.code.partition(":")[2]


def facts() -> list[Fact]:
    """In the order of the test files, and in these from top to bottom."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [fact for path in files for fact in facts_of(path)]


def facts_of(path: Path) -> Iterator[Fact]:
    file = path.relative_to(ROOT).as_posix()
    for test in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(test, ast.FunctionDef):
            continue
        for decorator in test.decorator_list:
            for call in ast.walk(decorator):  # a parameter of the test may have its own marker
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.fact":
                    (statement,) = call.args
                    rest = {key.arg: ast.literal_eval(key.value) for key in call.keywords}
                    yield Fact(ast.literal_eval(statement), **rest, file=file, test=test.name)


def page(found: list[Fact]) -> str:
    parts = [HEAD]
    order = list(PAPERS)
    found = sorted(found, key=lambda fact: order.index(fact.paper))  # keeps the order in a paper
    for paper, own in groupby(found, key=lambda fact: fact.paper):
        parts.append(f"\n## {PAPERS[paper]}\n\n| fact | where | code | test |\n|---|---|---|---|\n")
        for fact in own:
            code = f"[`{fact.code}`](../{fact.code_file})"
            test = f"[`{fact.test}`](../{fact.file})"
            parts.append(f"| {fact.statement} | {fact.place} | {code} | {test} |\n")
    return "".join(parts)


if __name__ == "__main__":
    TABLE.write_text(page(facts()), encoding="utf-8")
