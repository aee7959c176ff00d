"""Run the experiments for the papers' claims, and write `docs/claims.md` from their results.

    python docs/claims.py plan                 which experiments have no results, and their duration
    python docs/claims.py run [NAME ...]       run these, or all those without results
    python docs/claims.py quick [NAME ...]     check directions on a few thousand images
    python docs/claims.py report               write docs/claims.md with its figures, and the
                                               README's table of results, from docs/claims/

A claim is a file `conf/experiment/claim_<name>.yaml`. Its key `claim` contains what the authors
state and where, what we do, the `sides` that are compared (as overrides), the number of `seeds`,
the learning `rates`, and the `rule` for the verdict. Each side uses the rate with the lowest
validation error for seed 100. On a machine with a GPU, a claim whose schedule is shortened for CPUs
has the overrides `full` too. All these can be mappings, with a value for each side. All runs are
ordinary sweeps in outputs/claims/<name>/<side>, which are continued if they were interrupted.
Results are stored in docs/claims/<name>.json. NAME is a claim, or <name>/<side>.

The nets of a claim with `measure` are measured by docs/claim_measures.py. If the first word of a
side is a side of another claim, its nets are taken, after training them if necessary.

A rule compares the means of two sides, or of a side with a number, with a margin `by`. It holds if
the 95 % interval of the difference, over runs with the same seed, lies on the claimed side, does
not hold if the interval lies on the other side, and is undecided otherwise.

Files `record_<name>.yaml` have the same form: records of the old nets with modern training.
`claim_recipes.yaml` contains the rows of the README's table.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache, partial
from math import inf, sqrt
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import yaml

from classic_cnns.report.results import read_metrics
from classic_cnns.trainer.devices import core_count, visible_gpus

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf" / "experiment"
KEPT = ROOT / "docs" / "claims"
PAGE = ROOT / "docs" / "claims.md"
README = ROOT / "README.md"
RUNS = Path("outputs") / "claims"
TRAIN = ROOT / "src" / "train.py"
RATE_SEED = 100  # of the search for rates, and of no run that counts
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # Student's, 1 to 9 degrees
HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "does not hold", "undecided", "not run"
NAMES = {
    "error/test": "test error",
    "error/train": "training error",
    "error/val": "validation error",
    "loss/train": "training loss",
    "error/first_epoch": "error after one epoch",
    "gap": "test error less training error",
    "rejected": "rejected digits",
    "specialisation": "difference of colour",
    "inactive": "saturated or dead units, mean of all layers",
}
ENDED = {"finished", "diverged"}
HEAD = """\
# The papers' claims

What the papers and the tutorials claim, what we did, and our results. "The tutorials" are five
articles from which this project started; they are not part of this repository.

Each claim is an experiment in `conf/experiment/`; `python docs/claims.py run <name>` repeats it.
`make claims` prints which experiments have no results yet and how long they take, and runs them.
Experiments without results are listed as not run. On a machine with a GPU, those with shortened
schedules run the full ones. Tables show mean ± standard deviation over n seeds, and median seconds,
which also depend on other jobs: those of equal runs differ by up to a factor of two. The training
error is measured during the epoch, on augmented images and with dropout, so it can be above the
test error.

A rule *holds* if the 95 % interval of a difference lies on the claimed side, *does not hold* if it
lies on the other side, and is *undecided* otherwise. A claim gets the worst verdict of its rules,
which are part of the experiment's file. They were written before the runs, but for two nets that
were added to figure 9, and in the experiment of second derivatives the rates and the clipping of
gradient descent and the side with the paper's mu, which were changed or added after first results.
Experiments whose runs take less than about five minutes were extended from three to five seeds
after their first results: C3 and the size of the training set then became *holds*, eq. 8 and batch
normalisation *undecided*, and of robustness the rule of inverted pixels *does not hold*.

A learning rate in the column *chosen* is the best of three for one other seed: by validation error
or, where epochs are counted, by these and then by training error; never by test images. One at the
end of the three may not be the best. The other experiments use the recipe's rate for all sides.
"""
TUTORIALS = """\
## Errors in the tutorials

- LeNet: all maps of C3 that see the same number of maps of S2 share one filter, so C3 has 76 +
  101 + 101 + 151 = 429 parameters, not 1,516 as stated, and the whole net has 59,719. Our
  `TableConv2d` has a separate filter for each map.
- LeNet: digits are resized to 32 x 32 pixels; the paper adds a border of background.
- The AlexNet article: the stated 60,964,224 parameters do not include the 1,000 biases of the last
  layer (60,965,224). The kernels of conv4 and conv5 see the 192 maps of their own tower, not 384.
- AlexNet on CIFAR-10: the last maps of 96 x 96 images are 2 x 2, and the adaptive pooling repeats
  their values to 6 x 6: the 9,216 inputs of fc6 contain 1,024 different values. fc7 has 1,024
  units, not 4,096.
- Batch normalisation: a momentum of 0.9 is the weight of the old value, which is 0.1 in torch. The
  running variance is the biased one, and the mode depends on whether gradients are enabled, not on
  `eval()`.
- The generic net: 64 x 7 x 7 = 3,136 units enter its first linear layer, not 32 x 7 x 7; the net
  has 121,514 parameters.
"""
RECORDS = """\
## Records on a small machine

What the old nets reach with modern training in a limited time on 2 cores. Hyperparameters are
chosen on validation images. Each line is an experiment; `python docs/claims.py run record_<name>`
measures it with five seeds.

| experiment | data | goal | test error | seconds | n | verdict |
|---|---|---|--:|--:|--:|---|"""


@cache
def claims() -> dict[str, dict[str, Any]]:
    """The claims by name: those of 1998, of 2012, of the tutorials, then the records."""
    files = [*sorted(CONF.glob("claim_*.yaml")), *sorted(CONF.glob("record_*.yaml"))]
    found = {p.stem.removeprefix("claim_"): yaml.safe_load(p.read_text())["claim"] for p in files}
    papers = {"LeCun": 0, "Krizhevsky": 1, "records": 3}
    return dict(sorted(found.items(), key=lambda c: papers.get(c[1]["where"].split()[0], 2)))


def of_side(claim: dict[str, Any], key: str, side: str, default: Any = None) -> Any:
    """The value of a key of a claim for a side; a mapping has one for each side."""
    value = claim.get(key, default)
    return value.get(side, default) if isinstance(value, dict) else value


def compared() -> dict[str, dict[str, Any]]:
    """The claims without the README's recipes and the records."""
    return {n: c for n, c in claims().items() if "rows" not in c and not n.startswith("record_")}


def words(name: str, side: str) -> list[str]:
    """The overrides of a side's runs; a side may choose other experiments itself."""
    of, kind = origin(name, side)
    given = claims()[of]["sides"][kind]
    own = any(word.startswith("experiment=") for word in given)
    full = of_side(claims()[of], "full", kind, []) if visible_gpus() else []
    return [*([] if own else [f"experiment={file_of(of).stem}"]), *given, *full]


# --- What is left --------------------------------------------------------------------------------


def stored(name: str) -> dict[str, Any]:
    """The stored results of a claim: by side, its overrides, runs and provenance."""
    path = KEPT / f"{name}.json"
    result = json.loads(path.read_text()) if path.exists() else {"sides": {}}
    made = result.pop("provenance", None)  # results of before had one for all sides
    return {"sides": {side: {"provenance": made} | x for side, x in result["sides"].items()}}


def results() -> dict[str, dict[str, Any]]:
    return {name: stored(name) for name in claims()}


def runs_of_today(name: str, claim: dict[str, Any], side: str) -> int:
    """The number of stored runs of a side with its current overrides."""
    found = stored(name)["sides"].get(side, {"words": [], "runs": []})
    own = claim["sides"][side] if of_side(claim, "measure", side) else words(name, side)
    return len(found["runs"]) if found["words"][: len(own)] == own else 0


def is_finished(name: str, claim: dict[str, Any], side: str) -> bool:
    return runs_of_today(name, claim, side) >= of_side(claim, "seeds", side)


def all_runs(claim: dict[str, Any], side: str) -> int:
    """The number of a side's runs, with those that choose its learning rate."""
    return of_side(claim, "seeds", side) + len(of_side(claim, "rates", side, []))


def wanted(names: list[str]) -> list[tuple[str, str]]:
    """The sides of these claims, or all sides without complete results."""
    return [
        (name, side)
        for name, claim in claims().items()
        for side in claim["sides"]
        if (not names and not is_finished(name, claim, side))
        or {name, f"{name}/{side}"} & set(names)
    ]


def origin(name: str, side: str) -> tuple[str, str]:
    """The claim and side whose runs a side uses: usually its own."""
    first = next(iter(claims()[name]["sides"][side]), "=")
    of, _, kind = first.partition("/")
    return (name, side) if "=" in first else (of, kind)


def own_sides(name: str) -> list[str]:
    """The sides that do not use the runs of other sides."""
    return [side for side in claims()[name]["sides"] if origin(name, side) == (name, side)]


def plan(sides: list[tuple[str, str]], more: list[str]) -> str:
    """Text: finished claims, and those to run with their duration, estimated from earlier runs."""
    found = claims()
    done = [n for n, c in found.items() if all(is_finished(n, c, side) for side in c["sides"])]
    lines = [f"finished: {', '.join(done) or 'nothing'}", "", "left:"]
    trained = dict.fromkeys(origin(*side) for side in sides)
    given = [int(w.removeprefix("sweep.parallel=")) for w in more if "sweep.parallel=" in w]
    together = given[-1] if given else len(visible_gpus()) or core_count()
    total = 0.0
    for name in dict.fromkeys(name for name, _ in trained):
        claim, runs, seconds = found[name], 0, 0.0
        for side in [side for of, side in trained if of == name]:
            ended = [json.loads(p.read_text()) for p in RUNS.glob(f"{name}/{side}/*/*/result.json")]
            ended = [result for result in ended if result["status"] in ENDED]
            left = all_runs(claim, side) - len(ended)
            known = ended or stored(name)["sides"].get(side, {}).get("runs", [])
            each = [x["seconds"] for x in known if x["status"] == "finished"]
            runs += left
            seconds += left * (median(each) if each else of_side(claim, "seconds", side))
        lines.append(f"  {name:24}{runs:4} runs  {duration(seconds / together):>12}")
        total += seconds / together
    for name in dict.fromkeys(name for name, _ in sides if not own_sides(name)):
        lines.append(f"  {name:24}{needed(name, found[name])}")
    lines += [
        "",
        f"in all about {duration(total)} with {together} runs at a time: the seconds are those",
    ]
    return "\n".join(
        [*lines, "of runs that have ended, else what the claim's file states for a core"]
    )


def duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min"


# --- Runs ----------------------------------------------------------------------------------------


def run(names: list[str], more: list[str], together: bool) -> None:
    """Run these claims, or all without results, and store the results."""
    sides = wanted(names)
    print(plan(sides, more), flush=True)
    for name, claim in claims().items():
        own = [side for of, side in sides if of == name]
        with ThreadPoolExecutor(len(own) or 1) as pool:
            # One after the other without the pool, which would start the next side after Ctrl-C.
            each = (pool.map if together else map)(partial(run_side, name, more), own)
            for side, found in zip(own, each, strict=True):
                keep(name, side, found)
        if own:
            print(f"\n{claim['title']}: {verdict(claim, stored(name))}", flush=True)


def keep(name: str, side: str, found: dict[str, Any]) -> None:
    """Store the results of one side of a claim."""
    sides = stored(name)["sides"] | {side: found}
    order = [side for side in claims()[name]["sides"] if side in sides]
    KEPT.mkdir(exist_ok=True)
    text = json.dumps({"sides": {side: sides[side] for side in order}}, indent=1)
    (KEPT / f"{name}.json").write_text(text + "\n")


def run_side(name: str, more: list[str], side: str) -> dict[str, Any]:
    claim = claims()[name]
    base, paths = train_side(*origin(name, side), more)
    if of_side(claim, "measure", side) is None:
        runs = [numbers(path) for path in paths]
    else:
        base = claim["sides"][side]
        runs = [measured(claim, side, path) for path in paths[: of_side(claim, "seeds", side)]]
    return {"words": base, "provenance": provenance(paths[0]), "runs": runs}


def train_side(name: str, side: str, more: list[str]) -> tuple[list[str], list[Path]]:
    """The overrides of a side, with its chosen learning rate, and the directories of its runs."""
    claim = claims()[name]
    folder, base = RUNS / name / side, words(name, side)
    if rates := of_side(claim, "rates", side, []):
        rate = best_rate(base, rates, folder / "rates", more, claim.get("choose", "error/val"))
        base = [*base, f"optim.lr={rate}"]
    return base, seeds(base, of_side(claim, "seeds", side), folder, more)


def seeds(base: list[str], count: int, folder: Path, more: list[str]) -> list[Path]:
    """The directories of the runs; if an earlier start had fewer seeds, only new ones are run."""
    record = folder / "seeds" / "sweep.yaml"
    grid = yaml.safe_load(record.read_text())["grid"] if record.exists() else []
    had = [first for first in range(1, count) if f"seed=range({first})" in grid]
    paths = sweep([*base, f"seed=range({had[0] if had else count})"], folder / "seeds", more)
    if had:
        rest = f"seed=range({had[0]},{count})"
        paths += sweep([*base, rest], folder / f"seeds_from_{had[0]}", more)
    return paths


def measured(claim: dict[str, Any], side: str, directory: Path) -> dict[str, Any]:
    """Like `numbers`, for measurements of a run's checkpoint."""
    from claim_measures import measure  # here, since importing torch takes seconds

    start = time.perf_counter()
    what, (first, *words) = of_side(claim, "measure", side), claim["sides"][side]
    words = [] if "=" in first else words  # of its own runs, whose data are not changed
    images = claim.get("images", sys.maxsize)
    metrics = measure(what, directory, words, claim.get("changes", {}), images)
    seconds = round(time.perf_counter() - start, 1)
    return {"status": "finished", "metrics": metrics, "seconds": seconds, "epochs": {}}


def sweep(job: list[str], folder: Path, more: list[str]) -> list[Path]:
    """The directories of a sweep's jobs, after running it if necessary."""
    given = ["-m", *job, f"sweep.dir={folder}", *more]
    print(f"\npython src/train.py {shlex.join(given)}", flush=True)
    if subprocess.run([sys.executable, TRAIN, *given]).returncode == 2:  # another grid, say
        sys.exit(f"error: {folder}: has not been run; remove it if it is of an earlier experiment")
    runs = sorted(folder.glob("[0-9]*"), key=lambda path: int(path.name))
    states = [json.loads((path / "result.json").read_text())["status"] for path in runs]
    if not states or set(states) - ENDED:
        sys.exit(
            f"error: {folder}: {', '.join(states) or 'no run'}; run the same command to continue"
        )
    return runs


def best_rate(
    base: list[str], rates: list[float], folder: Path, more: list[str], choose: str
) -> float:
    """The rate with the lowest `choose`; of equal ones, that with the lowest training error."""
    values = ",".join(map(str, rates))
    runs = map(numbers, sweep([*base, f"optim.lr={values}", f"seed={RATE_SEED}"], folder, more))
    ranks = [(value(run, choose), value(run, "error/train")) for run in runs]
    return rates[ranks.index(min(ranks))]


def numbers(directory: Path) -> dict[str, Any]:
    """The stored results of a run: its metrics, and the errors of each epoch."""
    result = json.loads((directory / "result.json").read_text())
    lines, _ = read_metrics(directory)  # none if the first epoch diverged
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
    """A metric of a run at its best epoch, or a metric derived here."""
    if metric == "seconds":
        return run["seconds"]
    metrics, epochs = run["metrics"], run["epochs"]
    if metric == "gap":  # between test and training
        return metrics["error/test"] - metrics["error/train"]
    if metric == "error/first_epoch":
        return next(iter(epochs["error/val"]), 1.0)  # 100 % if it diverged
    if metric.startswith("epochs/"):  # until a metric is below a value, or one more than there are
        name, _, limit = metric.removeprefix("epochs/").rpartition("/")
        below = [number for number, x in enumerate(epochs[name], 1) if x < float(limit)]
        return below[0] if below else len(epochs[name]) + 1
    return metrics.get(metric, 1.0 if metric.startswith("error") else inf)  # if it diverged


def values_of(rule: dict[str, Any], result: dict[str, Any]) -> tuple[list[float], list[float]]:
    """The values that a rule compares, for each run: the smaller ones, and the others."""
    sides = {side: found["runs"] for side, found in result["sides"].items()}
    left = [value(run, rule["metric"]) for run in sides[rule["smaller"]]]
    if rule["than"] not in sides:
        return left, [float(rule["than"])] * len(left)
    return left, [value(run, rule["metric"]) for run in sides[rule["than"]]]


def interval(rule: dict[str, Any], result: dict[str, Any]) -> tuple[float, float]:
    """95 % interval of the difference that is negative if the rule holds."""
    left, right = values_of(rule, result)
    differences = [a - b + rule.get("by", 0) for a, b in zip(left, right, strict=True)]
    n = len(differences)
    width = T95[min(n - 2, len(T95) - 1)] * stdev(differences) / sqrt(n) if n > 1 else inf
    return mean(differences) - width, mean(differences) + width


def judge(rule: dict[str, Any], result: dict[str, Any]) -> str:
    low, high = interval(rule, result)
    return HOLDS if high < 0 else FAILS if low > 0 else UNDECIDED


def sides_of(rule: dict[str, Any]) -> set[str]:
    return {rule[key] for key in ("smaller", "than") if isinstance(rule[key], str)}


def verdict(claim: dict[str, Any], result: dict[str, Any]) -> str:
    """The worst verdict of a claim's rules."""
    if not claim["sides"].keys() <= result["sides"].keys():
        return NOT_RUN
    full = {side: set(of_side(claim, "full", side, [])) for side in claim["sides"]}
    if len({full[x] <= set(result["sides"][x]["words"]) for x in full if full[x]}) > 1:
        return NOT_RUN  # sides with the full schedule do not compare with shortened ones
    found = [judge(rule, result) for rule in claim["rule"]]
    return next((x for x in (FAILS, UNDECIDED, HOLDS) if x in found), HOLDS)


# --- In minutes ----------------------------------------------------------------------------------


def quick(names: list[str]) -> None:
    """Check the directions that are visible on few images, with one run for each side."""
    found = {n: c for n, c in claims().items() if "quick" in c and (not names or n in names)}
    sides = {
        (name, side): origin(name, side)
        for name, claim in found.items()
        for side in claim["sides"]
        if side in set().union(*map(sides_of, claim["quick"]["rule"]))
    }
    os.environ["OMP_NUM_THREADS"] = "1"  # small steps gain more from a core each
    trained, runs = list(dict.fromkeys(sides.values())), {}
    with ProcessPoolExecutor(core_count(), get_context("spawn"), be_silent) as pool:
        paths = pool.map(quick_run, *zip(*trained, strict=True))
        for number, (side, path) in enumerate(zip(trained, paths, strict=True), 1):
            runs[side] = path
            print(f"{number} of {len(trained)} trained: {'/'.join(side)}", flush=True)
    wrong = []
    for name, claim in found.items():
        result: dict[str, dict[str, dict[str, Any]]] = {"sides": {}}
        for (of, side), source in sides.items():
            if of == name:
                few = claim | claim["quick"] | {"sides": claim["sides"]}
                is_measured, path = of_side(claim, "measure", side), runs[source]
                one = measured(few, side, path) if is_measured else numbers(path)
                result["sides"][side] = {"runs": [one]}
        for rule in claim["quick"]["rule"]:
            left, right = values_of(rule, result)
            holds = left[0] + rule["by"] < right[0]
            line = f"{name}: {rule} with {left[0]:.4g} and {right[0]:.4g}"
            print(line, flush=True)
            wrong += [] if holds else [line]
    if wrong:
        sys.exit("\n".join(["not as claimed:", *wrong]))
    print("\nall directions are as claimed")


def be_silent() -> None:
    """Leave the terminal to the results: runs at the same time would write into each other."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


def quick_run(name: str, side: str) -> Path:
    """The directory of a side's run, in a process that imports torch once for several of them."""
    from classic_cnns import compose, train

    folder = RUNS / "quick" / name / side
    shutil.rmtree(folder, ignore_errors=True)
    train(compose(*quick_words(name, side), f"run_dir={folder}"))
    return folder


def quick_words(name: str, side: str) -> list[str]:
    claim = claims()[name]
    own = [*claim["quick"].get("words", []), *claim["quick"].get("sides", {}).get(side, [])]
    job = [*words(name, side), *own, "seed=0"]
    return list({word.partition("=")[0]: word for word in job}.values())  # the last of each key


# --- The report ----------------------------------------------------------------------------------


def page() -> str:
    """The text of docs/claims.md."""
    found = results()
    parts = [HEAD, "| claim | where | verdict |", "|---|---|---|"]
    for name, claim in compared().items():
        link = f"[{claim['title']}](#{anchor(claim['title'])})"
        parts.append(f"| {link} | {claim['where']} | {verdict(claim, found[name])} |")
    for name, claim in compared().items():
        parts += ["", *section(name, claim, found[name])]
    parts += [
        "",
        TUTORIALS,
        RECORDS,
        *(record(n, c, found[n]) for n, c in claims().items() if "goal" in c),
    ]
    return "\n".join(parts) + "\n"


def record(name: str, claim: dict[str, Any], result: dict[str, Any]) -> str:
    """A line of the table of records."""
    runs = result["sides"].get("ours", {}).get("runs", [])
    found = (
        [spread(runs, "error/test"), f"{median(r['seconds'] for r in runs):.0f}"]
        if runs
        else ["", ""]
    )
    cells = [f"`{name}`", claim["data"], claim["goal"], *found, str(len(runs) or "")]
    cells.append(verdict(claim, result))
    return f"| {' | '.join(cells)} |"


def anchor(title: str) -> str:
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -")
    return kept.replace(" ", "-")


def section(name: str, claim: dict[str, Any], result: dict[str, Any]) -> list[str]:
    lines = [
        f"## {claim['title']}", "", f"**{claim['where']}:** {claim['says']}", "",
        f"**What we did:** {claim['did']} `python docs/claims.py run {name}`", "",
    ]  # fmt: skip
    if verdict(claim, result) == NOT_RUN:
        return [*lines, f"**Not run:** {needed(name, claim)}."]
    columns = claim.get("columns", ["error/test", "error/train"])
    lines += [
        f"**The claim {verdict(claim, result)}.**".replace("claim undecided", "claim is undecided"),
        "",
        f"| | {' | '.join(described(metric)[0] for metric in columns)} | n | seconds | chosen |",
        f"|---|{'--:|' * len(columns)}--:|--:|---|",
    ]
    for side, found in result["sides"].items():
        runs = found["runs"]
        rate = [word for word in found["words"] if word.startswith("optim.lr=")]
        diverged = sum(run["status"] == "diverged" for run in runs)
        cells = [
            side.replace("_", " ") + (f" ({diverged} diverged)" if diverged else ""),
            *(spread(runs, metric) for metric in columns),
            str(len(runs)), f"{median(run['seconds'] for run in runs):.0f}",
            f"`{rate[-1]}`" if "rates" in claim and rate else "",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {rule_in_words(rule, result)}" for rule in claim["rule"])]
    lines += ["", f"{hardware(result)}."]
    lines += ["", f"**Why it may differ:** {claim['why']}"] if "why" in claim else []
    return [*lines, "", f"![{claim['title']}](claims/{name}.png)"]


def in_words(metric: str) -> str:
    """A metric in words: error/rotation 30, for example, is "error, rotation 30"."""
    return NAMES.get(metric, metric.replace("/", ", "))


def hardware(result: dict[str, Any]) -> str:
    every = [side["provenance"] for side in result["sides"].values()]
    made, states = every[0], [x.get("git") or {} for x in every]
    commits = list(dict.fromkeys(state.get("commit", "unknown")[:7] for state in states))
    changed = any(state.get("diff_sha256") != "clean" for state in states)
    where = f"{made['processor']}, {made['threads']} thread{'s' * (made['threads'] != 1)} per run"
    code = f"commit{'s' * (len(commits) > 1)} {' and '.join(commits)}"
    code += ", with uncommitted changes" * changed
    return f"{where}, torch {made['packages']['torch']}, {code}"


def needed(name: str, claim: dict[str, Any]) -> str:
    """The number and duration of a claim's runs."""
    if not own_sides(name):
        sources = dict.fromkeys(origin(name, side)[0] for side in claim["sides"])
        return f"it measures the nets of {' and '.join(sources)}"
    each = {side: all_runs(claim, side) for side in own_sides(name)}
    seconds = sum(count * of_side(claim, "seconds", side) for side, count in each.items())
    return f"{sum(each.values())} runs, about {duration(seconds)} on one core"


def header(name: str, claim: dict[str, Any]) -> str:
    """The first lines of a claim's file: command, results, hardware and verdict."""
    result = stored(name)
    found = verdict(claim, result)
    lines = [f"{found}: {needed(name, claim)}"]
    if found != NOT_RUN:
        metric = claim.get("shown", "error/test")
        count = min(len(x["runs"]) for x in result["sides"].values())
        lines = [f"{found}; {described(metric)[0]}, mean and deviation of {count} runs:"]
        for side, x in result["sides"].items():
            seconds = median(run["seconds"] for run in x["runs"])
            lines.append(f"  {side} {spread(x['runs'], metric)} in {seconds:.0f} s")
        lines.append(hardware(result))
    first = ["# @package _global_", f"# python docs/claims.py run {name}"]
    return "\n".join([*first, *(f"# {line}" for line in lines)]) + "\n"


def file_of(name: str) -> Path:
    return CONF / f"{name if name.startswith('record_') else f'claim_{name}'}.yaml"


def headed(name: str, claim: dict[str, Any]) -> str:
    """The content of a claim's file with its current header."""
    lines = file_of(name).read_text().splitlines(keepends=True)
    rest = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return header(name, claim) + "".join(lines[rest:])


def spread(runs: list[dict[str, Any]], metric: str) -> str:
    if metric == "error/train" and not any(metric in run["metrics"] for run in runs):
        return ""  # of nearest neighbours
    _, scale, unit = described(metric)
    if metric.startswith("epochs/"):
        ends = [len(run["epochs"]["error/train"]) for run in runs]
        late = sum(value(run, metric) > end for run, end in zip(runs, ends, strict=True))
        if late:
            return f"more than {max(ends)} ({late} of {len(runs)})"
    found = [scale * value(run, metric) for run in runs]
    sign = " %" if unit == "points" else ""
    return f"{mean(found):.2f}{f' ± {stdev(found):.2f}' if len(found) > 1 else ''}{sign}"


def described(metric: str) -> tuple[str, float, str]:
    """A metric in words, the factor by which its values are shown, and the unit of a difference."""
    if metric.startswith("epochs/"):
        name, _, limit = metric.removeprefix("epochs/").rpartition("/")
        return f"epochs until {in_words(name)} is below {float(limit):g}", 1, "epochs"
    return (in_words(metric), 1, "") if "loss" in metric else (in_words(metric), 100, "points")


def short(number: float) -> str:
    """Two digits, or all before the point."""
    return f"{number:.2g}" if abs(number) < 99.5 else f"{number:.0f}"


def rule_in_words(rule: dict[str, Any], result: dict[str, Any]) -> str:
    """A rule, its verdict and its interval as text."""
    low, high = interval(rule, result)
    what, scale, unit = described(rule["metric"])
    names = [str(x).replace("_", " ") for x in (rule["smaller"], rule["than"])]
    first, second = (f"`{name}`" for name in names)
    if isinstance(rule["than"], float | int):
        second = f"{scale * rule['than']:g}{' %' if scale == 100 else ''}"
    margin = f", or higher by less than {-100 * rule['by']:g} points" if rule.get("by") else ""
    difference = f"difference{' with the margin' if margin else ''}"
    ends = f"{short(scale * low)} and {short(scale * high)}"
    return (
        f"{what}: {first} below {second}{margin}: {judge(rule, result)} "
        f"({difference} between {ends} {unit})".replace(" )", ")")
    )


# --- The README's table --------------------------------------------------------------------------

TABLE = """\
| model | data | epochs | paper | ours | seeds | seconds | parameters |
|---|---|--:|--:|--:|--:|--:|--:|"""


def recipes() -> str:
    """The README's table of results: the project's own recipes."""
    found = results()
    lines = [TABLE]
    for side, row in claims()["recipes"]["rows"].items():
        name, _, kind = row.get("from", f"recipes/{side}").partition("/")
        runs = found[name]["sides"].get(kind, {}).get("runs", [])
        if runs:
            core = found[name]["sides"][kind]["provenance"]["threads"] == 1
            seconds = f"{median(run['seconds'] for run in runs):,.0f}{' on one core' * core}"
            ours = [spread(runs, "error/test"), str(len(runs)), seconds]
        else:
            ours = ["not run", "", ""]
        cells = [row["model"], row["data"], row["epochs"], row.get("paper", ""), *ours]
        lines.append(f"| {' | '.join(map(str, cells))} | {row['parameters']:,} |")
    return "\n".join(lines) + "\n"


def readme() -> str:
    """The README with the current table."""
    before, rest = README.read_text().split("<!-- results -->\n")
    after = rest.partition("<!-- end of results -->\n")[2]
    marks = ("<!-- results -->\n", "<!-- end of results -->\n")
    return before + marks[0] + recipes() + marks[1] + after


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["plan", "run", "quick", "report"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of claims; none: all of them")
    parser.add_argument("--sweep", default="", help="words for each sweep, as in sweep.parallel=1")
    parser.add_argument("--together", action="store_true", help="run all sides at a time")
    given = parser.parse_args()
    known = {
        x for name, c in claims().items() for x in (name, *(f"{name}/{s}" for s in c["sides"]))
    }
    if unknown := set(given.names) - known:
        parser.error(f"{unknown.pop()}: is no claim; there are {', '.join(claims())}")
    if given.what == "plan":
        print(plan(wanted(given.names), shlex.split(given.sweep)))
    if given.what == "run":
        run(given.names, shlex.split(given.sweep), given.together)
    if given.what == "quick":
        quick(given.names)
    if given.what in ("run", "report"):
        import claim_pictures  # here, since importing matplotlib takes a second

        for name, claim in compared().items():
            if verdict(claim, result := stored(name)) != NOT_RUN:
                claim_pictures.draw(claim, result, KEPT / name)
        PAGE.write_text(page())
        README.write_text(readme())
        for name, claim in claims().items():
            if name != "recipes":
                file_of(name).write_text(headed(name, claim))


if __name__ == "__main__":
    main()
