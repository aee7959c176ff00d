"""docs/papers.md: the code of each fact exists, and each place named in the code has a fact.

The facts themselves are tested by the tests with the marker `fact`.
"""

import ast
import re
from pathlib import Path

import pytest
import yaml

from docs import papers

FACTS = papers.facts()
PACKAGES = ("model", "optim", "data")  # whose docstrings and comments name places in papers
AUTHORS = {
    "LeCun": "LeCun 1998",
    "Krizhevsky": "Krizhevsky 2012",
    "K12": "Krizhevsky 2012",
    "L98": "LeCun 1998",
    "Ioffe": "Ioffe 2015",
}
SECTION = r"(?:\d(?:\.\d)?|[IVX]+(?:\.[A-Z])?)"


def list_of(one: str) -> str:
    return rf"({one}(?:(?:, | and ){one})*)"


PLACES = {  # a pattern for a place in a paper, and its name
    rf"\b[Ss]ections? {list_of(SECTION)}\b": "section",
    r"\b([IVX]+\.[A-Z])\b": "section",  # II.B
    rf"\b[Ee]q\. {list_of(r'[0-9]+')}": "eq.",
    r"\b[Aa]ppendix ([A-Z])\b": "Appendix",
    r"\b[Tt]able ([IVX]+)\b": "Table",
    r"\b[Ff]ig(?:\.|ure) ([0-9]+)": "Fig.",
    rf"\bAlg(?:\.|orithms?) {list_of('[0-9]')}": "Algorithm",
}


def places(text: str) -> set[str]:
    """`eq. 18 and 21` gives eq. 18 and eq. 21."""
    return {
        f"{name} {one}"
        for pattern, name in PLACES.items()
        for found in re.findall(pattern, text)
        for one in re.split(", | and ", found)
    }


def places_of_papers(text: str) -> set[tuple[str, str]]:
    """The papers and places that a source file names; `K12, 4.1` names both at once."""
    abbreviated = rf"\b(L98|K12), ({SECTION})"
    found = {(AUTHORS[who], f"section {one}") for who, one in re.findall(abbreviated, text)}
    rest = places(re.sub(abbreviated, "", text))
    owners = {paper for author, paper in AUTHORS.items() if author in text}
    assert not rest or len(owners) == 1, f"of which paper are {rest}?"
    return found | {(paper, one) for paper in owners for one in rest}


def symbols(path: Path) -> set[str]:
    """Names of functions, classes, members and constants, or the keys of a YAML file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        return set(yaml.safe_load(text))
    found = set()
    for node in ast.parse(text).body:
        found |= names_of(node)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}" for inner in node.body for name in names_of(inner)}
    return found


def names_of(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
    nodes = [inner for target in targets for inner in ast.walk(target)]
    return {inner.id for inner in nodes if isinstance(inner, ast.Name)}


def test_the_page_is_generated_from_the_markers():
    assert papers.TABLE.read_text(encoding="utf-8") == papers.page(FACTS), "make papers writes it"


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: f"{fact.test}-{fact.place}")
def test_the_code_of_a_fact_exists(fact):
    path = papers.ROOT / fact.code_file
    assert path.is_file() and fact.symbol in symbols(path)


def test_a_fact_is_one_unique_sentence_about_a_known_paper():
    statements = [fact.statement for fact in FACTS]
    assert len(set(statements)) == len(statements)
    for fact in FACTS:
        assert fact.paper and fact.place and "|" not in fact.statement + fact.source
        assert len(fact.statement) < 140 and not fact.statement.endswith(".")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_place_named_in_the_code_has_a_fact(package):
    tested = {(fact.paper, place) for fact in FACTS for place in places(fact.source)}
    for path in (papers.ROOT / papers.CODE / package).glob("*.py"):
        missing = places_of_papers(path.read_text(encoding="utf-8")) - tested
        assert not missing, f"{path.name}: no test is marked with {missing}"


def test_places_are_parsed():
    text = (
        "Appendix C, eq. 18 and 21; eq. 23, 25, 27. Section II.A, II.B; table I, figure 3, Fig. 2"
    )
    assert places(text) == {
        "Appendix C", "eq. 18", "eq. 21", "eq. 23", "eq. 25", "eq. 27", "section II.A",
        "section II.B", "Table I", "Fig. 3", "Fig. 2",
    }  # fmt: skip
    assert places("sections 3.2, 3.3 and 5") == {"section 3.2", "section 3.3", "section 5"}
    assert places_of_papers("as in K12, 4.1 and L98, III.C") == {
        ("Krizhevsky 2012", "section 4.1"),
        ("LeCun 1998", "section III.C"),
    }
