"""Runs the papers' claims, and writes `docs/claims.md` from what came out.

    python docs/claims.py run [NAME ...]       what is left of all claims, or of those named
    python docs/claims.py quick [NAME ...]     the directions that a few thousand images show
    python docs/claims.py report               docs/claims.md and its pictures, from docs/claims/

A claim is a file `conf/experiment/claim_<name>.yaml`. Under `claim` it says what the authors wrote
and where, what we do, the `sides` that are compared as words of the command line, the `seeds`, the
`rates` of which each side gets the one that is best on held-out images with seed 100, and the
`rule` of the verdict. All runs are ordinary sweeps in outputs/claims/<name>/<side>, which go on
where they were stopped; their numbers are kept in docs/claims/<name>.json.

A rule compares the means of two sides, or of one with a number, `by` a margin. It holds where the
95 % interval of the difference, over runs with the same seed, lies on its side, does not hold where
the interval lies on the other, and is undecided in between.
"""

import argparse
import json
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import inf, sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf" / "experiment"
KEPT = ROOT / "docs" / "claims"
PAGE = ROOT / "docs" / "claims.md"
RUNS = Path("outputs") / "claims"
TRAIN = ROOT / "src" / "train.py"
RATE_SEED = 100  # of the search for rates, and of no run that counts
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # Student's, 1 to 9 degrees
HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "does not hold", "undecided", "not run"
HEAD = """\
# The papers' claims

What the papers and the tutorials say, what we did, and what came out. Every claim is an experiment
of `conf/experiment/`, and `python docs/claims.py run <name>` repeats it; `make claims` runs what is
left of all. Numbers are means and standard deviations over seeds. The rule of a verdict stands in
the experiment's file, and stood there before the runs: it *holds* where the 95 % interval of a
difference lies on its side, *does not hold* where it lies on the other one, and is *undecided* in
between. Rates are chosen on held-out training images, never on test images. Long claims that no
time was left for are listed as not run.
"""


def claims() -> dict[str, dict[str, Any]]:
    """What each claim's file says, by name: those of 1998, of 2012, and the tutorials'."""
    files = sorted(CONF.glob("claim_*.yaml"))
    found = {p.stem.removeprefix("claim_"): yaml.safe_load(p.read_text())["claim"] for p in files}
    papers = {"LeCun": 0, "Krizhevsky": 1}
    return dict(sorted(found.items(), key=lambda c: papers.get(c[1]["where"].split()[0], 2)))


def words(name: str, side: list[str]) -> list[str]:
    """The command line of a side; it may name more experiments itself."""
    own = any(word.startswith("experiment=") for word in side)
    return [*([] if own else [f"experiment=claim_{name}"]), *side]


# --- Runs ----------------------------------------------------------------------------------------


def run(names: list[str], more: list[str], together: bool) -> None:
    """Run what is left of these claims and keep their numbers."""
    for name, claim in claims().items():
        if names and name not in names:
            continue
        with ThreadPoolExecutor(len(claim["sides"]) if together else 1) as pool:
            sides = pool.map(partial(run_side, name, claim, more), claim["sides"])
            found = dict(zip(claim["sides"], sides, strict=True))
        result = {
            "provenance": found[next(iter(found))].pop("provenance"),
            "sides": {side: {"words": x["words"], "runs": x["runs"]} for side, x in found.items()},
        }
        KEPT.mkdir(exist_ok=True)
        (KEPT / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(f"\n{claim['title']}: {verdict(claim, result)}", flush=True)


def run_side(name: str, claim: dict[str, Any], more: list[str], side: str) -> dict[str, Any]:
    folder, base = RUNS / name / side, words(name, claim["sides"][side])
    if "rates" in claim:
        rate = best_rate(base, claim["rates"], folder / "rates", more)
        base = [*base, f"optim.lr={rate}"]
    runs = sweep([*base, f"seed=range({claim['seeds']})"], folder / "seeds", more)
    return {
        "words": base,
        "runs": [numbers(path) for path in runs],
        "provenance": provenance(runs[0]),
    }


def sweep(job: list[str], folder: Path, more: list[str]) -> list[Path]:
    """The directories of the jobs of a sweep that has ended, now or earlier."""
    given = ["-m", *job, f"sweep.dir={folder}", *more]
    print(f"\npython src/train.py {shlex.join(given)}", flush=True)
    subprocess.run([sys.executable, TRAIN, *given])
    runs = sorted(folder.glob("[0-9]*"), key=lambda path: int(path.name))
    states = [json.loads((path / "result.json").read_text())["status"] for path in runs]
    if not states or set(states) - {"finished", "diverged"}:
        sys.exit(f"error: {folder}: {', '.join(states) or 'no run'}; the same command goes on")
    return runs


def best_rate(base: list[str], rates: list[float], folder: Path, more: list[str]) -> float:
    """The rate with the lowest error on held-out images; a run that diverges has none."""
    values = ",".join(map(str, rates))
    runs = sweep([*base, f"optim.lr={values}", f"seed={RATE_SEED}"], folder, more)
    results = [json.loads((path / "result.json").read_text()) for path in runs]
    errors = [result.get("metrics", {}).get("error/val", inf) for result in results]
    return rates[errors.index(min(errors))]


def numbers(directory: Path) -> dict[str, Any]:
    """What is kept of a run: its result, and the errors of each epoch."""
    result = json.loads((directory / "result.json").read_text())
    log = directory / "metrics.jsonl"  # not there if the first epoch diverged
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    epochs = {
        metric: [round(line["metrics"][metric], 5) for line in lines if metric in line["metrics"]]
        for metric in ("error/train", "error/val", "loss/train")
    }
    return {
        "status": result["status"],
        "metrics": {k: v for k, v in result.get("metrics", {}).items() if "speed" not in k},
        "seconds": round(result.get("seconds", 0), 1),
        "epochs": epochs,
    }


def provenance(directory: Path) -> dict[str, Any]:
    start = json.loads((directory / "provenance.json").read_text())[-1]
    kept = ("started", "git", "python", "packages", "processor", "threads", "device", "precision")
    return {key: start[key] for key in kept if key in start}


# --- Verdicts ------------------------------------------------------------------------------------


def value(run: dict[str, Any], metric: str) -> float:
    """A metric of a run: of its best epoch, or one of those made here."""
    metrics, epochs = run["metrics"], run["epochs"]
    if metric == "gap":  # between test and training
        return metrics["error/test"] - metrics["error/train"]
    if metric == "error/first_epoch":
        return epochs["error/val"][0]
    if metric.startswith("epochs/"):  # until a metric is below a value, or one more than there are
        name, _, limit = metric.removeprefix("epochs/").rpartition("/")
        below = [number for number, x in enumerate(epochs[name], 1) if x < float(limit)]
        return below[0] if below else len(epochs[name]) + 1
    return metrics.get(metric, 1.0 if metric.startswith("error") else inf)  # if it diverged


def interval(rule: dict[str, Any], result: dict[str, Any]) -> tuple[float, float]:
    """95 % interval of what the rule says is below 0."""
    sides = {side: found["runs"] for side, found in result["sides"].items()}
    left = [value(run, rule["metric"]) for run in sides[rule["smaller"]]]
    other = rule["than"]
    right = (
        [value(run, rule["metric"]) for run in sides[other]]
        if other in sides
        else [float(other)] * len(left)
    )
    margin = rule.get("by", 0)
    differences = [a - b + margin for a, b in zip(left, right, strict=True)]
    n = len(differences)
    width = T95[min(n - 2, len(T95) - 1)] * stdev(differences) / sqrt(n) if n > 1 else inf
    return mean(differences) - width, mean(differences) + width


def judge(rule: dict[str, Any], result: dict[str, Any]) -> str:
    low, high = interval(rule, result)
    return HOLDS if high < 0 else FAILS if low > 0 else UNDECIDED


def verdict(claim: dict[str, Any], result: dict[str, Any] | None) -> str:
    """Of all rules of a claim: the worst one."""
    if result is None:
        return NOT_RUN
    found = [judge(rule, result) for rule in claim["rule"]]
    return next(x for x in (FAILS, UNDECIDED, HOLDS) if x in found)


def quick(names: list[str]) -> None:
    """Each direction that shows on few images, from one run a side; fails where one does not."""
    wrong = []
    for name, claim in claims().items():
        if "quick" not in claim or (names and name not in names):
            continue
        rules = [claim["rule"][number] for number in claim["quick_rules"]]
        needed = {rule[key] for rule in rules for key in ("smaller", "than")}
        result: dict[str, Any] = {"sides": {}}
        for side, own in claim["sides"].items():
            if side in needed:
                job = [*words(name, own), *claim["quick"], "seed=0,1"]
                runs = sweep(job, RUNS / "quick" / name / side, [])
                result["sides"][side] = {"runs": [numbers(path) for path in runs]}
        for rule in rules:
            pairs = [
                [value(run, rule["metric"]) for run in result["sides"][rule[key]]["runs"]]
                for key in ("smaller", "than")
            ]
            if not max(pairs[0]) < min(pairs[1]):
                wrong.append(f"{name}: {rule} with {pairs}")
    if wrong:
        sys.exit("\n".join(wrong))
    print("\nall directions are as the papers say")


# --- The report ----------------------------------------------------------------------------------


def results() -> dict[str, dict[str, Any] | None]:
    paths = {name: KEPT / f"{name}.json" for name in claims()}
    return {n: json.loads(p.read_text()) if p.exists() else None for n, p in paths.items()}


def page() -> str:
    """The text of docs/claims.md."""
    found = results()
    parts = [HEAD, "| claim | where | verdict |", "|---|---|---|"]
    for name, claim in claims().items():
        link = f"[{claim['title']}](#{anchor(claim['title'])})"
        parts.append(f"| {link} | {claim['where']} | {verdict(claim, found[name])} |")
    for name, claim in claims().items():
        parts += ["", *section(name, claim, found[name])]
    return "\n".join(parts) + "\n"


def anchor(title: str) -> str:
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -")
    return kept.replace(" ", "-")


def section(name: str, claim: dict[str, Any], result: dict[str, Any] | None) -> list[str]:
    lines = [
        f"## {claim['title']}", "", f"**{claim['where']}:** {claim['says']}", "",
        f"**What we did:** {claim['did']} `python docs/claims.py run {name}`", "",
    ]  # fmt: skip
    if result is None:
        return [*lines, "**Not run.**"]
    lines += [
        f"**The claim {verdict(claim, result)}.**".replace("claim undecided", "claim is undecided"),
        "",
        "| | test error | training error | n | seconds | chosen |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for side, found in result["sides"].items():
        runs = found["runs"]
        rate = [word for word in found["words"] if word.startswith("optim.lr=")]
        diverged = sum(run["status"] == "diverged" for run in runs)
        cells = [
            side.replace("_", " ") + (f" ({diverged} diverged)" if diverged else ""),
            spread(runs, "error/test"), spread(runs, "error/train"),
            str(len(runs)), f"{mean(run['seconds'] for run in runs):.0f}",
            f"`{rate[-1]}`" if "rates" in claim else "",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {told(rule, result)}" for rule in claim["rule"])]
    made = result["provenance"]
    commit = (made.get("git") or {}).get("commit", "unknown")[:7]
    where = f"{made['processor']}, {made['threads']} thread{'s' * (made['threads'] != 1)} a run"
    lines += ["", f"{where}, torch {made['packages']['torch']}, commit {commit}."]
    return [*lines, "", f"![{claim['title']}](claims/{name}.png)"]


def spread(runs: list[dict[str, Any]], metric: str) -> str:
    found = [100 * value(run, metric) for run in runs]
    return f"{mean(found):.2f} ± {stdev(found):.2f} %" if len(found) > 1 else f"{found[0]:.2f} %"


def told(rule: dict[str, Any], result: dict[str, Any]) -> str:
    """A rule and its interval in words."""
    low, high = interval(rule, result)
    metric = rule["metric"]
    if metric.startswith("epochs/"):
        name, _, limit = metric.removeprefix("epochs/").rpartition("/")
        what, scale, unit = f"epochs until {name} is below {float(limit):g}", 1, "epochs"
    elif metric.startswith("loss"):
        what, scale, unit = metric, 1, ""
    else:
        names = {"gap": "test error less training error", "error/first_epoch": "error after one "
                 "epoch", "error/test": "test error"}  # fmt: skip
        what, scale, unit = names.get(metric, metric), 100, "points"
    other = rule["than"]
    if isinstance(other, float | int):
        other = f"{scale * other:g}{' %' if scale == 100 else ''}"
    margin = f", or higher by less than {-100 * rule['by']:g} points" if rule.get("by") else ""
    first, second = (str(x).replace("_", " ") for x in (rule["smaller"], other))
    return (
        f"{what} of {first} below {second}{margin}: {judge(rule, result)} (the difference "
        f"{'and the margin ' if margin else ''}lies in {scale * low:.2g} to {scale * high:.2g} "
        f"{unit})".replace(" )", ")")
    )


def pictures() -> None:
    """For each claim the curves of its sides, or bars beside the paper's, as PNG and SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "claims"  # the same file from the same numbers
    stored = results()
    for name, claim in claims().items():
        result = stored[name]
        if result is None:
            continue
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        sides = result["sides"]
        if claim.get("picture") == "bars":
            places = range(len(sides))
            ours = [[100 * value(run, "error/test") for run in s["runs"]] for s in sides.values()]
            axes.barh([p + 0.2 for p in places], [100 * claim["paper"][s] for s in sides], 0.38,
                      label="the paper", color="0.75")  # fmt: skip
            axes.barh([p - 0.2 for p in places], list(map(mean, ours)), 0.38, label="ours",
                      xerr=list(map(stdev, ours)))  # fmt: skip
            axes.set_yticks(list(places), list(sides))
            axes.set_xlabel("test error in %")
        else:
            for color, (side, found) in enumerate(sides.items()):
                for split, line in (("val", "-"), ("train", ":")):
                    curves = [run["epochs"][f"error/{split}"] for run in found["runs"]]
                    curves = [curve for curve in curves if curve]  # some may have diverged
                    shortest = min(map(len, curves), default=0)
                    middle = [100 * mean(c[i] for c in curves) for i in range(shortest)]
                    label = side.replace("_", " ") if split == "val" else None
                    axes.plot(range(1, shortest + 1), middle, line, color=f"C{color}", label=label)
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
            axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
            axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
            axes.set_xlabel("epoch")
            axes.set_ylabel("error in %: held-out (lines), training (dots)")
        axes.set_title(claim["title"])
        axes.legend()
        for suffix in ("png", "svg"):
            stamp = {"Date": None} if suffix == "svg" else {"Software": None}
            figure.savefig(KEPT / f"{name}.{suffix}", dpi=110, metadata=stamp)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "quick", "report"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of claims; none: all of them")
    parser.add_argument("--sweep", default="", help="words for each sweep, as in sweep.parallel=1")
    parser.add_argument("--together", action="store_true", help="run all sides at a time")
    given = parser.parse_args()
    unknown = set(given.names) - claims().keys()
    if unknown:
        parser.error(f"{unknown.pop()}: is no claim; there are {', '.join(claims())}")
    if given.what == "run":
        run(given.names, shlex.split(given.sweep), given.together)
    elif given.what == "quick":
        quick(given.names)
    if given.what != "quick":
        pictures()
        PAGE.write_text(page())


if __name__ == "__main__":
    main()
