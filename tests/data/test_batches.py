"""Batches: order, parts for several ranks, and random numbers that depend on a key only."""

from collections import Counter

import numpy as np
import pytest
import torch

from classic_cnns.data.batches import Batches, generator
from classic_cnns.data.transforms import RandomShift

SIZE = 6


def batches(count=103, batch_size=10, **options) -> Batches:
    """`count` of 2 * `count` images with random pixels; the label of an image is its number."""
    pixels = np.random.RandomState(8).randint(1, 256, (2 * count, 1, SIZE, SIZE)).astype(np.uint8)
    labels = torch.arange(2 * count)
    defaults = {"shuffle": True, "augment": [RandomShift(1)], "to_input": torch.Tensor.float}
    options = defaults | options
    indices = labels[1::2]  # only these are in the data set
    return Batches(torch.from_numpy(pixels), labels, indices, batch_size, **options)


def labels(loader: Batches) -> list[int]:
    return [label for _, batch in loader for label in batch.tolist()]


def by_label(*parts: tuple[torch.Tensor, torch.Tensor]) -> dict[int, torch.Tensor]:
    pairs = [pair for images, numbers in parts for pair in zip(numbers, images, strict=True)]
    return {int(number): image for number, image in pairs}


def pixels(loader: Batches) -> torch.Tensor:
    return torch.cat([images for images, _ in loader])


def test_a_generator_is_a_pure_function_of_its_key_in_any_process():
    # Fixed values: a run resumed on another machine must draw the same numbers.
    assert generator(0, 0, 0).initial_seed() == 15793235383387715774
    assert generator(3, 5, 1).initial_seed() == 1033000412234423710
    keys = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2**63 - 1, 0, 0)]
    streams = {tuple(torch.rand(4, generator=generator(*key)).tolist()) for key in keys}
    assert len(streams) == len(keys)


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    torch.manual_seed(1)
    first = batches(seed=3).order(5)
    torch.manual_seed(2)  # neither the global generator nor an earlier epoch matters
    other = batches(seed=3)
    other.order(4)
    assert torch.equal(first, other.order(5))
    assert sorted(first.tolist()) == list(range(1, 206, 2))
    keys = [(seed, epoch) for seed in (3, 4) for epoch in (5, 6)]
    assert len({tuple(batches(seed=seed).order(epoch).tolist()) for seed, epoch in keys}) == 4


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    pixels(batches())
    assert torch.equal(torch.get_rng_state(), before)


def test_without_shuffle_the_images_come_in_the_order_of_their_indices():
    loader = batches(shuffle=False, augment=[])
    assert labels(loader) == list(range(1, 206, 2))
    assert torch.equal(pixels(loader), loader.images[1::2].float())


def test_images_keep_their_labels_and_are_converted_last():
    loader = batches(augment=[], to_input=lambda images: images.float() / 2)
    for images, numbers in loader:
        assert images.dtype == torch.float32 and numbers.dtype == torch.int64
        assert torch.equal(images * 2, loader.images[numbers].float())


@pytest.mark.parametrize("count, batch_size", [(100, 10), (103, 10), (7, 10), (10, 1), (12, 5)])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_all_ranks_together_see_each_image_once_an_epoch(count, batch_size, world_size):
    ranks = [
        batches(count, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for rank in ranks:  # equal numbers of steps: no rank waits for another
        assert len(rank) == len(list(rank)) == int(np.ceil(count / batch_size))
    seen = Counter(label for rank in ranks for label in labels(rank))
    assert seen == Counter(range(1, 2 * count, 2))


@pytest.mark.parametrize("shuffle", [True, False])  # not to overfit some batches
@pytest.mark.parametrize("world_size", [2, 3])
def test_the_parts_of_all_ranks_are_exactly_the_batch_of_one_process(world_size, shuffle):
    options = {"seed": 2, "shuffle": shuffle}
    ranks = [batches(rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    for batch, *parts in zip(batches(**options), *ranks, strict=True):
        whole, shared = by_label(batch), by_label(*parts)
        assert shared.keys() == whole.keys()
        assert all(torch.equal(shared[number], whole[number]) for number in whole)
        sizes = [len(part[1]) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("count, batch_size", [(100, 10), (103, 10), (7, 10), (41, 5)])
@pytest.mark.parametrize("world_size", [2, 3])
def test_each_unshuffled_batch_goes_to_one_rank(count, batch_size, world_size):
    options = {"shuffle": False, "augment": [], "whole": True}
    ranks = [
        batches(count, batch_size, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]
    lengths = {len(list(rank)) for rank in ranks} | {len(rank) for rank in ranks}
    assert len(lengths) == 1  # some ranks may get an empty batch
    shares = [tuple(numbers.tolist()) for rank in ranks for _, numbers in rank]
    whole = [tuple(n.tolist()) for _, n in batches(count, batch_size, **options)]
    assert sorted(filter(None, shares)) == whole


@pytest.mark.parametrize("batch_size", [3, 10, 300])
@pytest.mark.parametrize("rank, world_size", [(0, 1), (1, 2)])
def test_a_saved_pass_continues_with_the_next_batch_on_any_rank(batch_size, rank, world_size):
    whole = list(batches(batch_size=batch_size, rank=rank, world_size=world_size))
    for stop in range(len(whole)):
        before = batches(batch_size=batch_size)  # with another number of ranks
        for _, _ in zip(range(stop), before, strict=False):
            pass
        after = batches(batch_size=batch_size, rank=rank, world_size=world_size)
        after.load_state_dict(before.state_dict())
        for found, expected in zip(after, whole[stop:], strict=True):
            assert all(map(torch.equal, found, expected))
        assert len(list(after)) == len(whole)  # the next pass is complete


def test_before_and_after_a_pass_the_saved_position_is_zero():
    loader = batches()
    assert loader.state_dict() == {"passed": 0}
    list(loader)
    assert loader.state_dict() == {"passed": 0}


def test_a_second_pass_of_the_same_epoch_is_equal():
    loader = batches()
    for (images, numbers), (again, same) in zip(loader, loader, strict=True):
        assert torch.equal(images, again) and torch.equal(numbers, same)


def test_each_pass_reads_the_current_epoch():
    now = [0]
    loader = batches(epoch=lambda: now[0])
    first, distorted = labels(loader), pixels(loader)
    now[0] = 1
    assert labels(loader) != first
    now[0] = 0
    assert labels(loader) == first and torch.equal(pixels(loader), distorted)


@pytest.mark.parametrize("other", [{"epoch": lambda: 1}, {"seed": 1}])
def test_another_epoch_or_seed_distorts_an_image_differently(other):
    one, two = pixels(batches(shuffle=False)), pixels(batches(shuffle=False, **other))
    changed = sum(not torch.equal(*pair) for pair in zip(one, two, strict=True))
    assert changed > 0.7 * len(one)  # 8 of 9 are expected


@pytest.mark.parametrize("batch_size", [1, 7, 103, 500])
def test_order_and_noise_do_not_depend_on_the_size_of_batches(batch_size):
    loader = batches(batch_size=batch_size)
    assert labels(loader) == labels(batches()) and torch.equal(pixels(loader), pixels(batches()))


def test_random_numbers_drawn_in_parts_are_those_of_the_whole_epoch(monkeypatch):
    every = list(batches(batch_size=3))
    monkeypatch.setattr(Batches, "at_once", 6)
    monkeypatch.setattr(Batches, "noise_at_once", 20)
    loader = batches(batch_size=3, seed=5)
    parts = list(loader.noise(2, 4))
    assert [len(part) for part in parts] == [6] * 17 + [1]
    assert torch.equal(torch.cat(parts), torch.rand(103, 4, generator=generator(5, 2, 1)))
    for passed in range(len(every)):  # also in the middle of a block
        rest = batches(batch_size=3)
        rest.load_state_dict({"passed": passed})
        pairs = zip(rest, every[passed:], strict=True)
        assert all(torch.equal(a, b) for one, two in pairs for a, b in zip(one, two, strict=True))


def test_each_transform_gets_its_own_random_numbers():
    class RecordNoise:
        def __init__(self, draws):
            self.draws, self.seen = draws, []

        def __call__(self, images, noise):
            self.seen.append(noise.clone())
            return images

    recorders = [RecordNoise(1), RecordNoise(0), RecordNoise(3)]
    loader = batches(augment=recorders)
    assert torch.equal(pixels(loader), loader.images[labels(batches())].float())
    # 11 batches are one pass.
    one, none, three = (torch.cat(recorder.seen[:11]) for recorder in recorders)
    assert one.shape == (103, 1) and none.shape == (103, 0) and three.shape == (103, 3)
    every = torch.cat([one, three], 1)
    assert 0 <= every.min() and every.max() < 1 and len(every.unique()) > 400


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_sizes_of_unshuffled_steps_are_those_of_all_ranks_together(world_size):
    ranks = [
        [
            len(part)
            for _, part in batches(rank=rank, world_size=world_size, shuffle=False, whole=True)
        ]
        for rank in range(world_size)
    ]
    loader = batches(world_size=world_size, shuffle=False, whole=True)
    sizes = [sum(rank[step : step + 1][0] for rank in ranks if step < len(rank))
             for step in range(len(loader))]  # fmt: skip
    assert [loader.size(step) for step in range(len(loader))] == sizes and sum(sizes) == 103


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_saved_unshuffled_pass_continues_with_the_next_batch(world_size):
    for rank in range(world_size):
        whole = batches(rank=rank, world_size=world_size, shuffle=False, whole=True)
        every = [part.tolist() for _, part in whole]
        resumed = batches(rank=rank, world_size=world_size, shuffle=False, whole=True)
        resumed.load_state_dict({"passed": 2})
        assert [part.tolist() for _, part in resumed] == every[2:]
