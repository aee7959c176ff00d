"""Two processes with one tower each compared with one process with the whole net.

`tests/test_several_devices.py` has whole runs.
"""

import json

import pytest

from classic_cnns.trainer.devices import free_port

pytestmark = pytest.mark.slow  # whole runs and processes

# Each process trains the whole net, and one tower of a second net with the same initial weights.
RANK = """
import json
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from classic_cnns.model.alexnet import AlexNet
from classic_cnns.optim.momentum_2012 import Momentum2012
from classic_cnns.trainer.two_towers import gather, split_towers

STEPS, BATCH = 20, 6
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
tower = dist.get_rank()

def make(options):
    torch.manual_seed(3)
    net = AlexNet(
        **{"num_classes": 10, "in_channels": 3, "image_size": 32, "channels": [8, 16, 24, 24, 16],
           "hidden": 32, "conv1_kernel": 5, "conv1_stride": 1, "towers": 2, "activation": "relu",
           "lrn": True, "lrn_divide_by_size": False, "pool": "overlapping", "dropout": 0.5,
           "weight_std": 0.1} | options)
    return net, Momentum2012(net.parameters(), lr=1e-2, momentum=0.9, weight_decay=5e-4)

class Received(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.bytes, self.calls = 0, []
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        name = str(function)
        if "c10d" in name and "wait" not in name and "wrap" not in name:
            self.calls.append(name.split(".")[1])
            sizes = [x.numel() * x.element_size() for x in (args[0], result)]
            self.bytes += abs(sizes[0] - sizes[1])
        return result

def stored(net, optimizer):
    tensors = [x for p in net.parameters() for x in (p.data, p.grad, *optimizer.state[p].values())]
    storages = [x.untyped_storage() for x in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

def compare(dtype, **options):
    torch.set_default_dtype(dtype)
    one, one_optimizer = make(options)
    two, two_optimizer = make(options)
    rows = split_towers(two, mesh)
    inputs = {}
    for name in one.crossings:
        def record(_, x, __, name=name):
            inputs[name] = x[0][0].numel()

        getattr(one, name).register_forward_hook(record)

    def step(net, optimizer, number):
        random = torch.Generator().manual_seed(number)
        images = torch.randn(BATCH, 3, 32, 32, generator=random, dtype=torch.float64).to(dtype)
        labels = torch.randint(two.fc8.out_features, (BATCH,), generator=random)
        torch.manual_seed(number)  # for dropout
        optimizer.zero_grad()
        loss = cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    def error(whole, half):
        return (whole.tensor_split(2)[tower] - half).abs().max().item()

    start = {name: p.detach().clone() for name, p in one.named_parameters()}
    facts = {"losses": 0.0, "gradients": 0.0}
    for number in range(STEPS):
        with Received() as received:
            ours = step(two, two_optimizer, number)
        facts["losses"] = max(facts["losses"], abs(step(one, one_optimizer, number) - ours))
        pairs = list(zip(one.parameters(), two.parameters()))
        facts["gradients"] = max([facts["gradients"], *(error(a.grad, b.grad) for a, b in pairs)])
    facts["weights"] = max(error(a, b) for a, b in pairs)
    facts["moved"] = min((p - start[name]).abs().max().item() for name, p in one.named_parameters())
    facts["memory"] = stored(two, two_optimizer) / stored(one, one_optimizer)
    facts["bytes"], facts["calls"] = received.bytes, received.calls
    facts["inputs"], facts["itemsize"] = inputs, torch.empty(0).element_size()
    facts["rows"] = {name: len(p) for name, p in two.named_parameters() if "weight" in name}
    whole = [gather(b.detach(), mesh, 0, rows[b], Replicate()) for _, b in pairs]
    facts["gathered"] = max((a - b).abs().max().item() for (a, _), b in zip(pairs, whole))
    one.eval(); two.eval()
    with torch.no_grad():
        images = torch.randn(4, 3, 32, 32)
        dist.broadcast(images, 0)
        facts["scores"] = (one(images) - two(images)).abs().max().item()
    return facts

facts = [
    compare(torch.float32),
    compare(torch.float64, num_classes=5, hidden=31),
]
open(f"facts{tower}.json", "w").write(json.dumps(facts))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def results(server, tmp_path_factory) -> list[list[dict]]:
    """What each process has measured in 20 steps, first in single and then in double precision."""
    folder = tmp_path_factory.mktemp("pair")
    (folder / "rank.py").write_text(RANK)
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        server.start(folder / "rank.py", cwd=folder, env=env | {"RANK": str(rank)})
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    return [json.loads((folder / f"facts{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture
def single(results):
    return [facts[0] for facts in results]


def test_losses_gradients_and_weights_equal_those_of_one_process(single):
    for facts in single:
        assert facts["moved"] > 1e-4  # each tensor has changed, so equality is meaningful
        for what in ("losses", "gradients", "weights", "gathered", "scores"):
            assert facts[what] < 1e-6, what


def test_each_process_has_half_of_the_kernels_and_memory(single):
    for facts in single:
        halves = [4, 8, 12, 12, 8, 16, 16, 5]
        assert list(facts["rows"].values()) == halves
        assert facts["memory"] == 0.5


@pytest.mark.fact(
    "The GPUs communicate only in certain layers",
    source="Krizhevsky 2012, section 3.2",
    code="trainer/two_towers.py:TwoTowers",
)
def test_the_towers_exchange_only_the_inputs_of_crossings_and_the_scores(single):
    for facts in single:
        assert facts["inputs"] == {"conv3": 16 * 6 * 6, "fc6": 16 * 2 * 2, "fc7": 32, "fc8": 32}
        numbers = 6 * (2 * sum(facts["inputs"].values()) // 2 + 10 // 2)
        assert facts["bytes"] == facts["itemsize"] * numbers
        # Forward at each crossing and for the scores, backward at each crossing.
        assert facts["calls"] == 5 * ["all_gather_into_tensor"] + 4 * ["reduce_scatter_tensor"]


def test_odd_numbers_of_rows_give_equal_results_in_double_precision(results):
    facts = [facts[1] for facts in results]
    assert [list(each["rows"].values())[-3:] for each in facts] == [[16, 16, 3], [15, 15, 2]]
    for each in facts:
        for what in ("losses", "gradients", "weights", "gathered", "scores"):
            assert each[what] < 1e-12, what
