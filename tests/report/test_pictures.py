"""Pictures of runs: the positions and colours of their parts."""

from itertools import combinations

import pytest
import torch
from matplotlib.cbook import is_math_text
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image
from torch.nn import functional as F

from classic_cnns.report import pictures


def test_the_kernels_of_two_towers_are_side_by_side():
    kernels = torch.zeros(12, 3, 2, 2)
    kernels[:6, 0] = kernels[6:, 2] = 1  # red in the first tower, blue in the second
    image = pictures.kernels(kernels, towers=2)
    assert image.shape == (3, 8 + 8, 2 * (6 * 12 + 4))  # 8 pixels a kernel, 4 around it
    left, right = image.chunk(2, dim=2)
    assert left[:, 8, 8].tolist() == [1, 0, 0] and right[:, 8, 8].tolist() == [0, 0, 1]
    assert left[:, 0, 0].tolist() == [1, 1, 1]


def test_each_kernel_has_its_own_contrast_and_one_channel_is_grey():
    kernels = torch.tensor([-1.0, 0.0, 1.0, 0.5]).view(1, 1, 2, 2).repeat(2, 1, 1, 1)
    kernels[1] *= 100
    image = pictures.kernels(kernels, towers=1)
    for corner in (4, 4 + 12):
        row = image[:, 4, corner : corner + 8 : 4]
        assert row.tolist() == 3 * [[0.0, 0.5]]
        assert torch.allclose(image[:, 8, corner : corner + 8 : 4], torch.tensor([1.0, 0.75]))


def test_a_weight_of_zero_is_middle_grey_also_in_a_kernel_without_negative_ones():
    kernels = torch.tensor([[0.0, 2.0, 1.0, 0.0], [0.0] * 4]).view(2, 1, 2, 2)
    image = pictures.kernels(kernels, towers=1)[0, 4:12:4]
    assert image[:, 4:12:4].tolist() == [[0.5, 1], [0.75, 0.5]]
    assert image[:, 16:24:4].tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_many_kernels_are_no_strip():
    shapes = [pictures.kernels(torch.rand(n, 1, 3, 3), towers=1).shape[1:] for n in (96, 384)]
    assert all(0.5 < height / width < 2 for height, width in shapes)
    two = pictures.kernels(torch.rand(96, 3, 11, 11), towers=2)  # of AlexNet, 6 in a row of each
    assert two.shape == (3, 8 * 48 + 4, 2 * (6 * 48 + 4))


def test_small_images_are_enlarged_for_slides(tmp_path):
    image = torch.tensor([[0, 255]], dtype=torch.uint8).expand(3, 1, 2)
    with Image.open(pictures.save(image, tmp_path / "small.png")) as saved:
        assert saved.size == (800, 400)
        assert [saved.getpixel((x, 399))[0] for x in (0, 399, 400, 799)] == [0, 0, 255, 255]


def test_mistakes_are_in_rows_of_twelve_with_class_and_answer_below():
    images = torch.rand(14, 1, 8, 8)
    made = [(image, 4, 9 if number == 13 else 6) for number, image in enumerate(images)]
    picture = pictures.mistakes(made, [*"0123456789"])
    assert picture.dtype == torch.uint8 and picture.shape == (3, 28 + 2 * 92, 28 + 12 * 92)
    for number, (top, left) in {0: (28, 28), 11: (28, 28 + 11 * 92), 12: (120, 28)}.items():
        shown = picture[0, top : top + 64, left : left + 64] / 255
        span = images[number, 0] - images[number].min()
        expected = F.interpolate((span / span.max())[None, None], (64, 64))[0, 0]
        torch.testing.assert_close(shown, expected, atol=0.005, rtol=0)
    # The texts below the first and the 13th image.
    texts = [picture[:, top : top + 28, 28:92] for top in (92, 184)]
    assert texts[0].min() < 128 and texts[0].equal(texts[1])
    assert not picture[:, 184:, 120:184].equal(texts[0])  # the 14th was classified as a 9
    assert picture[:, 120:, 212:].min() == 255  # empty
    named = pictures.mistakes(made, ["cat"] * 10)
    assert not named[:, 92:120, 28:92].equal(texts[0])


def test_a_single_mistake_has_its_text_too():
    picture = pictures.mistakes([(torch.rand(1, 8, 8), 4, 6)], [*"0123456789"])
    assert picture.shape == (3, 28 + 92, 28 + 12 * 92) and picture[:, 92:, 28:92].min() < 128


def test_mistakes_have_letters_of_any_alphabet_in_the_width_of_an_image():
    made = [(torch.rand(1, 8, 8), 0, 0)]
    names = ["Б", "Ж", "ü", "ő", "α", "ω"]
    below = [pictures.mistakes(made, [name])[:, 92:] for name in names]
    # A font without these letters draws the same box for all of them.
    assert not any(one.equal(two) for one, two in combinations(below, 2))
    for name in ("W" * 80, "a\nb" * 20, "i" * 80, "many words " * 8):
        below = pictures.mistakes(2 * made, [name], [1.0, 1.0])[0, 92:]
        assert below[:, 117:120].min() == 255 and below[:, 28:117].min() < 128


def test_the_longest_name_of_cifar10_is_not_cut():
    made = [(torch.rand(1, 8, 8), 0, 1)]
    for share in (0.25, 1.0):
        one, two = (
            pictures.mistakes(made, ["cat", name], [share]) for name in ("automobile", "automobilc")
        )
        assert not one.equal(two)


def luminance(colour: tuple) -> float:
    """The relative luminance of a colour, 0 to 1, as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_counts_are_readable_on_every_shade_and_short_names_horizontal():
    counts = torch.arange(100).reshape(10, 10) ** 2
    (axes,) = pictures.confusion_figure(counts, [*"0123456789"]).axes
    (image,) = axes.images
    shades = image.cmap(image.norm(counts.double().log1p().numpy()))
    for text in axes.texts:
        column, row = text.get_position()
        pair = sorted([luminance(shades[row, column]), luminance(to_rgb(text.get_color()))])
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 3  # WCAG 2
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {0}


def test_the_true_class_is_darker_than_others_in_print():
    share, images = {"cat": 0.7, "dog": 0.3}, torch.rand(1, 1, 8, 8)
    figure = pictures.answers(images, ["dog"], [share], torch.rand(1, 6, 1, 8, 8))
    other, true = (luminance(bar.get_facecolor()) for bar in figure.axes[1].patches)
    assert (other + 0.05) / (true + 0.05) >= 2


def test_layers_with_many_maps_are_shown_in_part_and_say_so():
    layers = {"conv1": torch.rand(96, 5, 5), "fc": torch.rand(99), "conv2": torch.rand(16, 5, 5)}
    _, *rows = pictures.maps(torch.rand(1, 8, 8), layers, None, {"cat": 1.0}).axes
    assert [axes.get_ylabel() for axes in rows] == ["conv1\n24 of 96", "fc", "conv2"]
    first, units, last = (axes.images[0].get_array().shape for axes in rows)
    assert first == (2 * 7 + 2, 12 * 7 + 2, 3) and last == (7 + 2, 16 * 7 + 2, 3)
    assert units == (1, 99)


def test_curves_differ_without_colour():
    lines = {name: ([0.0, 1.0], [0.1, 0.2]) for name in "abcde"}
    figure = pictures.robustness(dict.fromkeys(("w", "x", "y", "z"), lines))
    assert all(len({line.get_marker() for line in axes.lines}) == 5 for axes in figure.axes)


def test_the_confusion_matrix_has_a_row_for_each_class():
    table = pictures.confusion(torch.tensor([[5, 1], [0, 12]]), ["cat", "dog"]).splitlines()
    assert table == [
        "| class | -> cat | -> dog |",
        "|-------|-------:|-------:|",
        "| cat   |      5 |      1 |",
        "| dog   |      0 |     12 |",
    ]


def figures(names: list[str]) -> dict:
    """Each kind of figure, by name, of a net with these two classes."""
    shares, images = dict(zip(names, (0.75, 0.25), strict=True)), torch.rand(2, 1, 8, 8)
    curve = ([0.0, 1.0], [0.1, 0.2])
    return {
        "confusion": pictures.confusion_figure(torch.tensor([[5, 1], [0, 12]]), names),
        "maps": pictures.maps(images[0], {names[0]: torch.rand(3, 4, 4)}, None, shares),
        "answers": pictures.answers(images, names, [shares] * 2, torch.rand(2, 6, 1, 8, 8)),
        "robustness": pictures.robustness(
            {change: dict.fromkeys(names, curve) for change in ("a", "b", "c", "d")}
        ),
    }


@pytest.mark.parametrize("names", [["cost $_1$", "$"], ["$x^{$", r"a\$b"]])
def test_a_dollar_in_a_name_is_no_formula(names):
    for figure in figures(names).values():
        figure.draw_without_rendering()  # ParseException for a wrong formula
        texts = [drawn.get_text() for drawn in figure.findobj(Text)]
        assert not any(map(is_math_text, texts))
        shown = "\n".join(texts).replace(r"\$", "$")  # matplotlib's escape
        shown = shown.replace("\xa0", " ")
        assert all(name in shown for name in names)


def test_undecodable_names_of_folders_are_drawn_in_one_line():
    for figure in figures(["M\udcfcll", "a\nb"]).values():
        figure.draw_without_rendering()
        shown = "\n".join(drawn.get_text() for drawn in figure.findobj(Text))
        assert r"M\udcfcll" in shown and r"a\nb" in shown


@pytest.mark.parametrize("first", ["golden retriever dog", "W" * 20, "long name " * 8, "x" * 80])
def test_long_names_are_neither_clipped_nor_make_the_charts_small(first):
    names = [f"{first[:-1]}{number}" for number in range(5)]
    counts, shares = torch.eye(5, dtype=torch.int), dict.fromkeys(names, 0.2)
    layers = {name: torch.rand(3, 4, 4) for name in names}
    images, nearest = torch.rand(2, 1, 8, 8), torch.rand(2, 6, 1, 8, 8)
    for figure, chart, least in (
        (pictures.confusion_figure(counts, names), 0, 0.5),
        (pictures.maps(images[0], layers, None, shares), 1, 0.6),
        (pictures.answers(images, names[:2], [shares] * 2, nearest), 1, 0.15),
    ):
        figure.draw_without_rendering()
        for text in (text for text in figure.findobj(Text) if first[:4] in text.get_text()):
            box = text.get_window_extent()
            assert 0 <= box.x0 and box.x1 <= figure.bbox.x1, text
            assert 0 <= box.y0 and box.y1 <= figure.bbox.y1, text
        assert figure.axes[chart].get_position(original=True).width >= least
