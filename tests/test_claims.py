"""The papers' claims: their sides, verdicts, stored results, reports and figures."""

import json
import sys
from pathlib import Path
from statistics import mean

import pytest
import torch

from classic_cnns.config.compose import Composer, compose
from classic_cnns.run.run import run

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "docs"))
import claim_measures  # noqa: E402
import claim_pictures  # noqa: E402
import claims  # noqa: E402

CLAIMS = claims.claims()
COMPOSER = Composer()


@pytest.mark.parametrize("name", CLAIMS)
def test_each_claim_is_complete(name):
    claim = CLAIMS[name]
    assert claim["says"] and claim["where"] and claim["did"]
    for rule in [*claim["rule"], *claim.get("quick", {}).get("rule", [])]:
        assert rule["smaller"] in claim["sides"]
        assert rule["than"] in claim["sides"] or type(rule["than"]) in (int, float)
    for side in claim["sides"]:  # which may use the runs of another claim
        of, kind = claims.origin(name, side)
        assert kind in CLAIMS[of]["sides"] and runs(of, kind) >= runs(name, side)
    judged = set().union(*map(claims.sides_of, claim["rule"]))
    assert all(runs(name, side) >= 3 for side in judged)
    seconds = [claims.of_side(claim, "seconds", side) for side in claims.own_sides(name)]
    assert all(x > 0 for x in seconds)


def runs(name: str, side: str) -> int:
    return claims.of_side(CLAIMS[name], "seeds", side)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLAIMS)
def test_each_side_of_a_claim_can_be_composed(name):
    claim = CLAIMS[name]
    assert COMPOSER.compose([f"experiment={claims.file_of(name).stem}"])
    trained = [side for side in claim["sides"] if not claims.of_side(claim, "measure", side)]
    configs = [COMPOSER.compose(claims.words(name, side)) for side in trained]
    configs = [{**config, "claim": None} for config in configs]
    for side in trained if "quick" in claim else []:
        COMPOSER.compose(claims.quick_words(name, side))
    assert all(one != other for i, one in enumerate(configs) for other in configs[:i])


@pytest.mark.slow
def test_on_a_gpu_shortened_schedules_are_those_of_the_recipes(monkeypatch):
    shortened = [name for name, claim in CLAIMS.items() if "full" in claim]
    assert {"response_norm", "regularisation", "middle_layer"} <= set(shortened)
    pairs = [(name, side) for name in shortened for side in claims.own_sides(name)]
    before = [claims.words(name, side) for name, side in pairs]
    monkeypatch.setattr(claims, "visible_gpus", lambda: ["0"])
    for (name, side), short in zip(pairs, before, strict=True):
        words = claims.words(name, side)
        assert words[: len(short)] == short  # so that their results count without a GPU, too
        config = COMPOSER.compose(words)
        model = next((w for w in words if w.startswith("model=")), "model=alexnet_small")
        recipe = COMPOSER.compose([model, "data=cifar10"])
        assert config.trainer.max_epochs == recipe.optim.epochs == config.optim.epochs
        assert config.optim.cuts == recipe.optim.cuts


def test_each_claim_has_a_quick_direction_with_a_margin():
    for claim in claims.compared().values():
        assert claim["quick"]["rule"] and all("by" in rule for rule in claim["quick"]["rule"])


def test_each_row_of_the_readme_has_a_side_that_measures_it():
    for name, row in CLAIMS["recipes"]["rows"].items():
        claim, _, side = row.get("from", f"recipes/{name}").partition("/")
        assert side in CLAIMS[claim]["sides"]


def test_stored_results_belong_to_the_current_sides():
    for name, claim in CLAIMS.items():
        for side in claims.stored(name)["sides"]:
            assert claims.is_finished(name, claim, side), f"{name}/{side}"


def result(**sides: list[float]) -> dict:
    return {
        "sides": {
            side: {"runs": [{"metrics": {"error/test": x}, "epochs": {}} for x in errors]}
            for side, errors in sides.items()
        }
    }


@pytest.mark.parametrize(
    ("errors", "than", "verdict"),
    [
        ([0.01, 0.011, 0.012], 0.02, "holds"),
        ([0.02, 0.021, 0.022], 0.01, "does not hold"),
        ([0.01, 0.02, 0.03], 0.03, "undecided"),
        # Runs with the same seed are pairs: each difference is 0.01, independent of the errors.
        ([0.01, 0.05, 0.2], "b", "holds"),
    ],
)
def test_a_verdict_depends_on_the_whole_interval(errors, than, verdict):
    found = result(a=errors, b=[x + 0.01 for x in errors])
    rule = {"metric": "error/test", "smaller": "a", "than": than}
    assert claims.judge(rule, found) == verdict


def test_full_schedules_are_not_compared_with_shortened_ones():
    claim = CLAIMS["response_norm"]
    found = result(without=[0.3] * 3, first_revision=[0.2] * 3, **{"with": [0.1] * 3})["sides"]
    short = {side: {**found[side], "words": []} for side in found}
    full = {side: {**short[side], "words": claim["full"][side]} for side in short}
    assert claims.verdict(claim, {"sides": short}) == claims.HOLDS
    assert claims.verdict(claim, {"sides": full}) == claims.HOLDS
    assert claims.verdict(claim, {"sides": {**short, "with": full["with"]}}) == claims.NOT_RUN


def test_a_side_of_hours_is_finished_with_one_run(monkeypatch):
    claim = {"seeds": {"long": 1, "short": 3}, "sides": {"long": ["a=1"], "short": ["a=2"]}}
    found = {side: {"words": words, "runs": [{}]} for side, words in claim["sides"].items()}
    monkeypatch.setattr(claims, "stored", lambda name: {"sides": found})
    monkeypatch.setattr(claims, "words", lambda name, side: claim["sides"][side])
    assert claims.is_finished("x", claim, "long") and not claims.is_finished("x", claim, "short")


def test_the_confidence_interval_is_students():
    low, high = claims.interval(
        {"metric": "error/test", "smaller": "a", "than": 0}, result(a=[1, 2, 3])
    )
    assert (low, high) == pytest.approx((-0.484, 4.484), abs=2e-3)  # scipy.stats.t.interval


def test_epochs_until_an_error_is_reached_are_counted_from_one():
    run = {"metrics": {}, "epochs": {"error/train": [0.5, 0.3, 0.2, 0.1]}}
    assert claims.value(run, "epochs/error/train/0.25") == 3
    assert claims.value(run, "epochs/error/train/0.05") == 5  # not reached in its 4 epochs


def test_the_reports_are_generated_from_the_results():
    assert claims.PAGE.read_text() == claims.page(), "python docs/claims.py report"
    assert claims.README.read_text() == claims.readme(), "python docs/claims.py report"
    for name in CLAIMS.keys() - {"recipes"}:
        text = claims.file_of(name).read_text()
        assert text == claims.headed(name, CLAIMS[name]), "python docs/claims.py report"


def stored_claim(**sides: list[str]) -> str:
    run = {"status": "finished", "metrics": {}, "seconds": 60, "epochs": {}}
    return json.dumps({"provenance": {"threads": 1}, "sides": {
        side: {"words": words, "runs": [run] * 5} for side, words in sides.items()
    }})  # fmt: skip


def test_the_plan_estimates_the_time_of_the_missing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(claims, "KEPT", tmp_path)
    words = ["experiment=claim_c3", "optim.lr=0.02"]
    (tmp_path / "c3.json").write_text(stored_claim(table=words))
    assert claims.is_finished("c3", CLAIMS["c3"], "table")
    assert ("c3", "full") in claims.wanted([]) and ("c3", "table") not in claims.wanted([])
    assert claims.wanted(["c3"]) == [("c3", "table"), ("c3", "full")]  # named claims are run again
    for number, seconds in enumerate((100, 140)):
        folder = claims.RUNS / "c3" / "full" / "rates" / str(number)
        folder.mkdir(parents=True)
        result_json = {"status": "finished", "seconds": seconds}
        (folder / "result.json").write_text(json.dumps(result_json))
    # Six runs of three rates and five seeds are left, each with the mean of two minutes.
    assert "6 runs    0 h 12 min" in claims.plan([("c3", "full")], ["sweep.parallel=1"])
    # All eight, each with the stored minute.
    assert "8 runs    0 h 04 min" in claims.plan([("c3", "table")], ["sweep.parallel=2"])
    # A claim that only measures has the runs of another claim.
    assert "figure_9" in claims.plan([("rejection", "linear")], [])


def test_more_seeds_keep_the_existing_runs(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(
        claims, "sweep", lambda job, folder, more: started.append((job, folder)) or []
    )
    claims.seeds(["model=a"], 5, tmp_path, [])
    assert started == [(["model=a", "seed=range(5)"], tmp_path / "seeds")]
    started.clear()
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "sweep.yaml").write_text("grid: [model=a, 'seed=range(3)']")
    claims.seeds(["model=a"], 5, tmp_path, [])
    assert started == [
        (["model=a", "seed=range(3)"], tmp_path / "seeds"),
        (["model=a", "seed=range(3,5)"], tmp_path / "seeds_from_3"),
    ]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_side_starts_no_other_one(monkeypatch, error):
    started = []

    def run_side(name: str, more: list[str], side: str) -> dict:
        started.append(side)
        raise error

    monkeypatch.setattr(claims, "run_side", run_side)
    monkeypatch.setattr(claims, "keep", None)  # not called
    with pytest.raises(error):
        claims.run(["c3"], [], together=False)
    assert started == ["table"]


def test_a_new_side_is_stored_in_the_order_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "KEPT", tmp_path)
    (tmp_path / "c3.json").write_text(
        stored_claim(full=["experiment=claim_c3", "model.net.c3=full"])
    )
    claims.keep("c3", "table", {"words": [], "runs": [], "provenance": {"threads": 2}})
    sides = claims.stored("c3")["sides"]
    assert list(sides) == ["table", "full"]
    assert [sides[side]["provenance"]["threads"] for side in sides] == [2, 1]


def test_the_images_with_the_closest_best_scores_are_rejected():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(400, 10, generator=generator)
    labels = scores.argmax(1)
    wrong = torch.rand(400, generator=generator) < 0.1
    labels = torch.where(wrong, (labels + 1) % 10, labels)
    pairs = []
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        first, second = sorted(row, reverse=True)[:2]
        pairs.append((first - second, row.index(first) != label))
    pairs.sort()
    for rest in (0.0, 0.02, 0.2):
        count = 0
        while sum(error for _, error in pairs[count:]) > rest * (400 - count):
            count += 1
        assert claim_measures.rejected(scores, labels, rest) == pytest.approx(count / 400)


def test_three_nearest_images_vote():
    generator = torch.Generator().manual_seed(0)
    known = torch.randint(256, (50, 1, 4, 4), generator=generator, dtype=torch.uint8)
    labels = torch.randint(4, (50,), generator=generator)
    images = torch.randint(256, (150, 1, 4, 4), generator=generator, dtype=torch.uint8)
    want = []
    for image in images.double():
        distances = [(image - other).square().sum().item() for other in known.double()]
        first, second, third = labels[torch.tensor(distances).argsort()[:3]].tolist()
        want.append(second if second == third else first)
    assert claim_measures.nearest_classes(images, known, labels).tolist() == want


def test_pixels_are_inverted_with_the_given_probability():
    images = torch.full((10, 1, 30, 30), 200, dtype=torch.uint8)
    found = claim_measures.inverted(images, 0.1)
    assert set(found.unique().tolist()) == {55, 200}
    assert (found == 55).double().mean().item() == pytest.approx(0.1, abs=0.02)


def test_the_specialisation_of_the_halves_is_that_of_colour():
    grey = torch.tensor([[1.0, 1, 1], [2, 2, 2]])[:, :, None, None]  # (2, 3, 1, 1)
    coloured = torch.tensor([[1.0, -1, 0], [0, 3, -3]])[:, :, None, None]
    red = torch.tensor([[3.0, 0, 0]] * 2)[:, :, None, None]  # (1, 1, 1) is grey, (2, -1, -1) is not
    for halves, want in (([coloured, grey], (0, 1)), ([red, red], (2 / 3, 2 / 3))):
        found = claim_measures.specialisation(torch.cat(halves))
        assert (found["colour/less"], found["colour/more"]) == pytest.approx(want)
        assert found["specialisation"] == pytest.approx(want[1] - want[0])


@pytest.mark.slow
def test_measures_without_changes_equal_the_test_error(
    tiny_mnist, tiny_config_dir, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ["data=tiny", f"data_dir={tiny_mnist.folder}", "run_dir=a", "trainer.max_epochs=1"]
    words += ["model=lenet5_relu", "trainer.accelerator=cpu", "trainer.log_every_n_steps=2"]
    config = compose(*words, config_dirs=[str(tiny_config_dir)])
    error = run(config)["metrics"]["error/test"]
    changes = {"rotation": [0, 180], "scale": [1], "vertical shift": [0], "inverted pixels": [0]}
    found = claim_measures.measure("robustness", Path("a"), [], changes)
    assert found.pop("error/rotation 180") != pytest.approx(error)
    assert all(x == pytest.approx(error) for x in found.values()) and len(found) == 5
    shares = claim_measures.measure("units", Path("a"), [], {})
    assert shares.pop("inactive") == pytest.approx(
        mean(share for name, share in shares.items() if name.startswith("inactive/"))
    )
    assert {name.partition("/")[2] for name in shares} == {"test", "C1", "C3", "C5", "F6"}
    # Its classes are far apart.
    assert claim_measures.measure("neighbours", Path("a"), [], {}) == {"error/test": 0}


RUNS = {
    side: [
        {"metrics": {"error/test": x, "error/train": x / 2}, "epochs": {"error/train": [0.5, x],
         "error/val": [0.6, x]}} for x in (0.1, 0.2, 0.3)
    ]
    for side in ("15000", "30000")
}  # fmt: skip


def test_figures_have_the_form_of_the_papers():
    def axes_of(name: str, **claim) -> list:
        figure = claim_pictures.plt.figure()
        claim_pictures.PICTURES[name](figure, claim, RUNS)
        return figure.axes

    (axes,) = axes_of("figure_1")
    solid, dashed, quarter = axes.lines
    assert (solid.get_linestyle(), dashed.get_linestyle()) == ("-", "--")
    assert solid.get_ydata() == pytest.approx([50, 20]) and set(quarter.get_ydata()) == {25}
    (axes,) = axes_of("figure_6")
    assert axes.lines[0].get_xdata() == pytest.approx([15, 30])
    assert axes.lines[0].get_ydata() == pytest.approx([20, 20])
    (axes,) = axes_of("figure_5")
    assert axes.get_ylim() == (0, 5) and axes.get_yscale() == "linear"
    (axes,) = axes_of("bars", paper={"15000": 0.12, "30000": 0.05})
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([12, 5, 20, 20])
    assert len(axes_of("robustness", changes={x: [0, 1] for x in "abcd"})) == 4
    (axes,) = axes_of("curves")
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["15000", "30000", "validation", "training"]
    assert len({line.get_marker() for line in axes.lines[:4:2]}) == 2  # differ in print too
    axes.figure.draw_without_rendering()
    low, high = axes.get_ylim()  # from 10 to 60 %
    ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    assert len([label for tick, label in ticks if low <= tick <= high and label.get_text()]) >= 3
    (axes,) = axes_of("layers", columns={"error/test": "", "error/train": ""})
    assert [text.get_text() for text in axes.texts] == ["20.0", "10.0"] * 2
    assert axes.get_ylim()[0] == 0
    claim_pictures.plt.close("all")


@pytest.mark.slow
def test_quick_directions_hold_on_few_images(fork, tmp_path):
    # Only margins above 0; `make claims-quick` also checks the others.
    names = [
        name
        for name, claim in CLAIMS.items()
        if any(rule["by"] > 0 for rule in claim.get("quick", {}).get("rule", []))
    ]
    process = fork(claims.__file__, "quick", *names, cwd=tmp_path)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, out[-2000:] + err[-2000:]
