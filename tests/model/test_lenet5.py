"""LeNet-5 compared with the paper: LeCun 1998, sections II.B and II.C, appendix A."""

import math
from hashlib import sha256

import pytest
import torch
import torch.nn.functional as F

from classic_cnns.model.lenet5 import (
    C3_TABLE,
    EuclideanRBF,
    LeNet5,
    MAPLoss,
    MLELoss,
    ScaledTanh,
    Subsampling,
    TableConv2d,
    digit_bitmaps,
    paper_bound,
)
from classic_cnns.report.summary import layers


@pytest.fixture
def net():
    torch.manual_seed(0)
    return LeNet5()


def images(count=4, height=32, width=32):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, height, width, generator=generator) * 1.275 - 0.1


# --- A.1: layers, parameters, connections --------------------------------------------------------


@pytest.mark.fact(
    "LeNet-5 has 60,000 trainable parameters and 340,908 connections, in each layer as in the text",
    source="LeCun 1998, section II.B",
    code="model/lenet5.py:LeNet5",
)
@pytest.mark.fact(
    "The 340,908 connections include the 840 fixed connections of the RBF units",
    source="LeCun 1998, section II.A",
    code="model/lenet5.py:EuclideanRBF",
)
def test_parameters_and_connections_of_each_layer(net):
    rows = {row.name: row for row in layers(net, images(1))}
    assert {name: (row.parameters, row.connections) for name, row in rows.items()} == {
        "C1": (156, 122_304),
        "S2": (12, 5_880),
        "C3": (1_516, 151_600),
        "S4": (32, 2_000),
        "C5": (48_120, 48_120),
        "F6": (10_164, 10_164),
        "output": (0, 840),
    }
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 60_000
    assert sum(row.connections for row in rows.values()) == 340_908


@pytest.mark.fact(
    "The maps are 6@28x28, 6@14x14, 16@10x10, 16@5x5, 120@1x1, then 84 and 10 units",
    source="LeCun 1998, Fig. 2",
    code="model/lenet5.py:LeNet5",
)
def test_the_size_of_each_layer(net):
    outputs = [row.output for row in layers(net, images(1))]
    maps = [(6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120, 1, 1), (84, 1, 1)]
    assert outputs == [*maps, (10, 1, 1)]


@pytest.mark.fact(
    "C5 is a convolution: a larger image gives maps of scores, one for each window",
    source="LeCun 1998, section VII",
    code="model/lenet5.py:LeNet5",
)
def test_a_wider_image_gives_a_score_for_each_window(net):
    wide_images = images(2, 32, 64)
    scores = net(wide_images)
    assert scores.shape == (2, 10, 1, 9)
    for position in (0, 3, 8):  # neighbouring C5 units are 4 pixels apart
        window = wide_images[..., 4 * position : 4 * position + 32]
        torch.testing.assert_close(scores[..., 0, position], net(window), rtol=1e-4, atol=1e-4)


# --- A.2: table I --------------------------------------------------------------------------------


@pytest.mark.fact(
    "C3 has 60 of 96 connections: six maps use 3 maps of S2, nine use 4, one uses all 6",
    source="LeCun 1998, Table I",
    code="model/lenet5.py:C3_TABLE",
)
def test_table_1_has_the_papers_columns_and_rows():
    assert sum(map(len, C3_TABLE)) == 60
    assert [len(row) for row in C3_TABLE] == [3] * 6 + [4] * 9 + [6]
    by_S2_map = [{i for i, row in enumerate(C3_TABLE) if j in row} for j in range(6)]
    assert by_S2_map == [
        {0, 4, 5, 6, 9, 10, 11, 12, 14, 15},
        {0, 1, 5, 6, 7, 10, 11, 12, 13, 15},
        {0, 1, 2, 6, 7, 8, 11, 13, 14, 15},
        {1, 2, 3, 6, 7, 8, 9, 12, 14, 15},
        {2, 3, 4, 7, 8, 9, 10, 12, 13, 15},
        {3, 4, 5, 8, 9, 10, 11, 13, 14, 15},
    ]


def test_C3_equals_a_loop_over_its_connections(net):
    x = torch.randn(2, 6, 14, 14)
    expected = torch.empty(2, 16, 10, 10)
    kernels = iter(net.C3.weight)
    for i, row in enumerate(C3_TABLE):
        expected[:, i] = net.C3.bias[i]
        for j in row:
            expected[:, i] += F.conv2d(x[:, j : j + 1], next(kernels)[None, None])[:, 0]
    torch.testing.assert_close(net.C3(x), expected)


@pytest.mark.fact(
    "A C3 map depends only on the S2 maps in its column of the table",
    source="LeCun 1998, Table I",
    code="model/lenet5.py:TableConv2d",
)
def test_a_C3_map_changes_only_with_the_S2_maps_of_its_column(net):
    x = torch.randn(1, 6, 14, 14)
    before = net.C3(x)
    for j in range(6):
        changed = x.clone()
        changed[:, j] += 1
        changed_maps = (net.C3(changed) != before).flatten(2).any(2)[0]
        assert changed_maps.tolist() == [j in row for row in C3_TABLE]


@pytest.mark.fact(
    "Pairs that are not in the table have no weight, before and after training",
    source="LeCun 1998, Table I",
    code="model/lenet5.py:TableConv2d",
)
def test_unconnected_weights_stay_zero_in_training(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        MAPLoss(0.1)(net(images()), torch.arange(4)).backward()
        optimizer.step()
    dense = net.C3.dense_weight()
    for i, row in enumerate(C3_TABLE):
        for j in range(6):
            assert (dense[i, j] != 0).all() if j in row else (dense[i, j] == 0).all()
    assert net.C3.weight.grad.shape == (60, 5, 5)  # only connections have a gradient


# --- A.3: squashing ------------------------------------------------------------------------------


@pytest.mark.fact(
    "The squashing function is 1.7159 tanh(2a/3): f(1) = 1, f(-1) = -1, its curvature is "
    "greatest at 1 and -1",
    source="LeCun 1998, eq. 6 and Appendix A",
    code="model/lenet5.py:ScaledTanh",
)
def test_the_squashing_function_has_the_papers_values_slopes_and_curvature():
    a = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    f = ScaledTanh()(a)
    (slope,) = torch.autograd.grad(f.sum(), a)
    assert f.tolist() == pytest.approx([-0.9999973, 0, 0.9999973], abs=1e-7)
    assert slope.tolist() == pytest.approx([0.755412, 1.143933, 0.755412], abs=1e-6)

    a = torch.linspace(0, 3, 3001, dtype=torch.float64)
    curvature = torch.gradient(torch.gradient(ScaledTanh()(a), spacing=1e-3)[0], spacing=1e-3)[0]
    assert a[curvature.abs().argmax()].item() == pytest.approx(1, abs=0.02)
    assert ScaledTanh()(torch.tensor(50.0)).item() == pytest.approx(1.7159)
    torch.testing.assert_close(ScaledTanh()(-a), -ScaledTanh()(a))


@pytest.mark.fact(
    "All layers up to F6 are squashed, the output is not",
    source="LeCun 1998, eq. 5 and section II.B",
    code="model/lenet5.py:LeNet5",
)
def test_every_layer_up_to_F6_is_squashed_and_the_output_is_not(net):
    seen = []
    net.squash.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[1:])))
    assert net(images()).min() < -1.7159
    assert seen == [(6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120, 1, 1), (84, 1, 1)]


# --- Subsampling: II.B ---------------------------------------------------------------------------


@pytest.mark.fact(
    "A unit of S2 or S4 is the sum of 2x2 inputs times its map's coefficient, plus its map's bias",
    source="LeCun 1998, section II.B",
    code="model/lenet5.py:Subsampling",
)
@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7)])
def test_subsampling_equals_its_formula(height, width):
    layer = Subsampling(3)
    x = torch.randn(2, 3, height, width)
    out = layer(x)
    assert out.shape == (2, 3, height // 2, width // 2)
    for c in range(3):
        for i in range(height // 2):
            for j in range(width // 2):
                total = x[:, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].sum((1, 2))
                expected = layer.coefficient[c] * total + layer.bias[c]
                torch.testing.assert_close(out[:, c, i, j], expected.flatten())


@pytest.mark.fact(
    "II.B adds four inputs, II.A averages them: the same layer with four times the coefficient",
    source="LeCun 1998, section II.A",
    code="model/lenet5.py:Subsampling",
)
def test_sum_and_average_give_the_same_layer():
    layer, x = Subsampling(3), torch.randn(2, 3, 4, 6)
    averaging = 4 * layer.coefficient * F.avg_pool2d(x, 2) + layer.bias
    torch.testing.assert_close(layer(x), averaging)


# --- A.4: initial weights ------------------------------------------------------------------------


@pytest.mark.fact(
    "Weights start uniform in +-2.4 / F with F inputs of the unit; C3's bound depends on the map",
    source="LeCun 1998, Appendix A",
    code="model/lenet5.py:paper_bound",
)
def test_initial_weights_are_uniform_in_plus_minus_2_4_over_fan_in():
    torch.manual_seed(0)
    nets = [LeNet5() for _ in range(60)]

    def assert_uniform(pick, bound):
        values = torch.cat([pick(net).flatten() for net in nets]).detach()
        assert values.abs().max() <= bound
        assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
        assert values.mean().item() == pytest.approx(0, abs=0.2 * bound)

    assert_uniform(lambda net: net.C1.weight, 2.4 / 25)
    assert_uniform(lambda net: net.C1.bias, 2.4 / 25)
    assert_uniform(lambda net: net.C3.weight[:18], 2.4 / 75)  # six maps with three inputs
    assert_uniform(lambda net: net.C3.weight[18:54], 2.4 / 100)  # nine maps with four inputs
    assert_uniform(lambda net: net.C3.weight[54:], 2.4 / 150)  # the map with all six
    assert_uniform(lambda net: net.C3.bias[15], 2.4 / 150)
    assert_uniform(lambda net: net.C5.weight, 2.4 / 400)
    assert_uniform(lambda net: net.F6.weight, 2.4 / 120)
    assert_uniform(lambda net: net.S2.coefficient, 2.4 / 4)
    assert_uniform(lambda net: net.S4.bias, 2.4 / 4)


# --- A.6: the output layer -----------------------------------------------------------------------


@pytest.mark.fact(
    "The centres of the RBF units are the digits of Fig. 3, 7x12 pixels of +1 and -1",
    source="LeCun 1998, Fig. 3",
    code="model/lenet5.py:digit_bitmaps",
)
def test_bitmaps_are_those_of_figure_3():
    bits = digit_bitmaps()
    assert bits.shape == (10, 12, 7)
    ink = bits > 0
    assert set(bits.unique().tolist()) == {-1.0, 1.0}
    assert ink.sum((1, 2)).tolist() == [35, 27, 33, 32, 41, 35, 39, 25, 43, 39]
    assert sha256(ink.to(torch.uint8).numpy().tobytes()).hexdigest() == (
        "a61b3bbe7e039b175c0b84fb0a0ab523187ba04e7e123a705722277554709f2c"
    )
    seven = ["".join(".#"[pixel] for pixel in row) for row in ink[7].int().tolist()]
    assert seven[:4] == ["#######", ".....##", ".....##", "....##."]


@pytest.mark.fact(
    "The nearest bitmaps are 6 and 8, at a squared distance of 48; the greatest distance is 200",
    source="LeCun 1998, Fig. 3",
    code="model/lenet5.py:BITMAPS",
)
def test_distances_between_bitmaps():
    flat = digit_bitmaps().flatten(1)
    distance = torch.cdist(flat, flat).square().round()
    others = distance[~torch.eye(10, dtype=torch.bool)]
    assert others.min() == 48 == distance[6, 8]
    assert others.unique()[1] == 72 == distance[0, 4] == distance[8, 9]
    assert others.max() == 200 == distance[1, 4] == distance[1, 8] == distance[4, 7]
    assert others.mean().item() == pytest.approx(124.36, abs=0.01)


@pytest.mark.fact(
    "An output is the squared distance of F6 to a fixed bitmap; the smallest decides",
    source="LeCun 1998, eq. 7",
    code="model/lenet5.py:EuclideanRBF",
)
def test_output_units_are_squared_distances_to_fixed_bitmaps():
    rbf = EuclideanRBF()
    assert list(rbf.parameters()) == []
    x = torch.randn(3, 84, 1, 2)
    y = rbf(x)
    for digit, bitmap in enumerate(digit_bitmaps()):
        for position in range(2):
            expected = [((x[b, :, 0, position] - bitmap.flatten()) ** 2).sum() for b in range(3)]
            torch.testing.assert_close(y[:, digit, 0, position], torch.stack(expected))
    assert rbf(digit_bitmaps().flatten(1)[..., None, None]).argmin(1).flatten().tolist() == list(
        range(10)
    )


# --- A.7: losses ---------------------------------------------------------------------------------


@pytest.mark.fact(
    "Eq. 8 is the mean penalty of the correct class, a sum over the 84 units",
    source="LeCun 1998, eq. 8",
    code="model/lenet5.py:MLELoss",
)
def test_eq_8_is_the_mean_penalty_of_the_correct_class():
    scores, labels = -torch.rand(5, 10) * 100, torch.tensor([3, 0, 9, 9, 1])
    expected = sum(-scores[i, label] for i, label in enumerate(labels)) / 5
    torch.testing.assert_close(MLELoss()(scores, labels), expected)


@pytest.mark.fact(
    "Eq. 9 adds log(exp(-j) + sum exp(-y_i)), and is never negative",
    source="LeCun 1998, eq. 9",
    code="model/lenet5.py:MAPLoss",
)
@pytest.mark.parametrize("j", [0.1, 1.0, 10.0])
def test_eq_9_equals_its_formula_and_is_never_negative(j):
    scores, labels = -torch.rand(50, 10).double() * 20, torch.arange(50) % 10
    expected = 0.0
    for y, label in zip(-scores, labels, strict=True):
        total = math.exp(-j) + sum(math.exp(-penalty) for penalty in y)
        expected += (y[label].item() + math.log(total)) / 50
    loss = MAPLoss(j)(scores, labels).item()
    assert loss == pytest.approx(expected)
    assert loss >= 0


@pytest.mark.fact(
    "Without the rubbish class eq. 9 is the cross-entropy of the scores -y",
    source="LeCun 1998, eq. 9",
    code="model/lenet5.py:MAPLoss",
)
def test_eq_9_approaches_cross_entropy_for_large_j():
    scores, labels = -torch.rand(5, 10) * 9, torch.arange(5)
    torch.testing.assert_close(MAPLoss(1e6)(scores, labels), F.cross_entropy(scores, labels))


def test_eq_9_is_finite_for_penalties_whose_exponential_is_zero():
    scores = -torch.full((1, 10), 1e4, requires_grad=True)
    loss = MAPLoss(0.1)(scores, torch.tensor([0]))
    assert loss.item() == pytest.approx(1e4 - 0.1)


@pytest.mark.fact(
    "Equal centres and a constant F6 minimize eq. 8, but not eq. 9",
    source="LeCun 1998, section II.C",
    code="model/lenet5.py:MAPLoss",
)
def test_equal_centres_minimize_eq_8_but_not_eq_9():
    collapsed = torch.zeros(4, 10)  # all penalties are 0: F6 equals ten equal centres
    labels = torch.arange(4)
    assert MLELoss()(collapsed, labels) == 0
    assert MAPLoss(0.1)(collapsed, labels) > 2.3  # at least log(10)


# --- All together --------------------------------------------------------------------------------


def test_overfits_ten_images(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    ten, labels = images(10), torch.arange(10)
    for _ in range(300):
        optimizer.zero_grad()
        loss = MAPLoss(0.1)(net(ten), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5)
        optimizer.step()
    assert net(ten).argmax(1).tolist() == labels.tolist()


def test_a_table_with_all_pairs_is_an_ordinary_convolution():
    full = TableConv2d(3, ((0, 1, 2),) * 4, 3, paper_bound)
    x = torch.randn(1, 3, 6, 6)
    expected = F.conv2d(x, full.weight.view(4, 3, 3, 3), full.bias)
    torch.testing.assert_close(full(x), expected)
