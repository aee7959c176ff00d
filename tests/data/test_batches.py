"""Batches: who sees which image when, and that nothing random depends on anything but its key."""

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
    usual = {"shuffle": True, "augment": [RandomShift(1)], "to_input": torch.Tensor.float}
    options = usual | options
    indices = labels[1::2]  # the odd ones take part
    return Batches(torch.from_numpy(pixels), labels, indices, batch_size, **options)


def labels(some: Batches) -> list[int]:
    return [label for _, batch in some for label in batch.tolist()]


def by_label(*parts: tuple[torch.Tensor, torch.Tensor]) -> dict[int, torch.Tensor]:
    pairs = [pair for images, numbers in parts for pair in zip(numbers, images, strict=True)]
    return {int(number): image for number, image in pairs}


def pixels(some: Batches) -> torch.Tensor:
    return torch.cat([images for images, _ in some])


def test_a_generator_is_a_pure_function_of_its_key_in_any_process():
    # Pinned: a resumed run on another machine has to draw the same numbers.
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
    some = batches(shuffle=False, augment=[])
    assert labels(some) == list(range(1, 206, 2))
    assert torch.equal(pixels(some), some.images[1::2].float())


def test_an_image_keeps_its_label_and_is_prepared_last():
    some = batches(augment=[], to_input=lambda images: images.float() / 2)
    for images, numbers in some:
        assert images.dtype == torch.float32 and numbers.dtype == torch.int64
        assert torch.equal(images * 2, some.images[numbers].float())


@pytest.mark.parametrize("count, batch_size", [(100, 10), (103, 10), (7, 10), (10, 1), (12, 5)])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_all_ranks_together_see_each_image_once_an_epoch(count, batch_size, world_size):
    ranks = [
        batches(count, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for rank in ranks:  # all ranks make as many steps, else they would wait for each other
        assert len(rank) == len(list(rank)) == int(np.ceil(count / batch_size))
    seen = Counter(label for rank in ranks for label in labels(rank))
    assert seen == Counter(range(1, 2 * count, 2))


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_ranks_batches_are_parts_of_the_batch_of_one_process_to_the_pixel(world_size):
    ranks = [batches(rank=rank, world_size=world_size, seed=2) for rank in range(world_size)]
    for batch, *parts in zip(batches(seed=2), *ranks, strict=True):
        whole, shared = by_label(batch), by_label(*parts)
        assert shared.keys() == whole.keys()
        assert all(torch.equal(shared[number], whole[number]) for number in whole)
        sizes = [len(part[1]) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("count, batch_size", [(100, 10), (103, 10), (7, 10), (41, 5)])
@pytest.mark.parametrize("world_size", [2, 3])
def test_unshuffled_batches_go_whole_to_one_rank_each(count, batch_size, world_size):
    options = {"shuffle": False, "augment": []}
    ranks = [
        batches(count, batch_size, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]
    lengths = {len(list(rank)) for rank in ranks} | {len(rank) for rank in ranks}
    assert len(lengths) == 1  # though a share may be empty
    shares = [tuple(numbers.tolist()) for rank in ranks for _, numbers in rank]
    whole = [tuple(n.tolist()) for _, n in batches(count, batch_size, **options)]
    assert sorted(filter(None, shares)) == whole


@pytest.mark.parametrize("batch_size", [3, 10, 300])
@pytest.mark.parametrize("rank, world_size", [(0, 1), (1, 2)])
def test_a_pass_goes_on_where_it_was_saved_on_any_rank(batch_size, rank, world_size):
    whole = list(batches(batch_size=batch_size, rank=rank, world_size=world_size))
    for stop in range(len(whole)):
        before = batches(batch_size=batch_size)  # of another number of ranks
        for _, _ in zip(range(stop), before, strict=False):
            pass
        after = batches(batch_size=batch_size, rank=rank, world_size=world_size)
        after.load_state_dict(before.state_dict())
        for mine, right in zip(after, whole[stop:], strict=True):
            assert all(map(torch.equal, mine, right))
        assert len(list(after)) == len(whole)  # the next pass is a whole one


def test_a_pass_that_was_finished_or_never_begun_is_not_cut_short():
    some = batches()
    assert some.state_dict() == {"passed": 0}
    list(some)
    assert some.state_dict() == {"passed": 0}


def test_a_second_pass_through_the_same_epoch_gives_the_same_bits():
    some = batches()
    for (images, numbers), (again, same) in zip(some, some, strict=True):
        assert torch.equal(images, again) and torch.equal(numbers, same)


def test_the_epoch_is_asked_at_the_start_of_each_pass():
    now = [0]
    some = batches(epoch=lambda: now[0])
    zeroth, distorted = labels(some), pixels(some)
    now[0] = 1
    assert labels(some) != zeroth
    now[0] = 0
    assert labels(some) == zeroth and torch.equal(pixels(some), distorted)


@pytest.mark.parametrize("other", [{"epoch": lambda: 1}, {"seed": 1}])
def test_the_same_image_is_distorted_anew_in_another_epoch_or_with_another_seed(other):
    one, two = pixels(batches(shuffle=False)), pixels(batches(shuffle=False, **other))
    changed = sum(not torch.equal(*pair) for pair in zip(one, two, strict=True))
    assert changed > 0.7 * len(one)  # 8 of 9 are expected


@pytest.mark.parametrize("batch_size", [1, 7, 103, 500])
def test_order_and_noise_do_not_depend_on_the_size_of_batches(batch_size):
    some = batches(batch_size=batch_size)
    assert labels(some) == labels(batches()) and torch.equal(pixels(some), pixels(batches()))


def test_each_transform_gets_its_own_numbers_in_its_own_order():
    class Note:
        def __init__(self, draws):
            self.draws, self.seen = draws, []

        def __call__(self, images, noise):
            self.seen.append(noise.clone())
            return images

    notes = [Note(1), Note(0), Note(3)]
    some = batches(augment=notes)
    assert torch.equal(pixels(some), some.images[labels(batches())].float())
    one, none, three = (torch.cat(note.seen[:11]) for note in notes)  # 11 batches are one pass
    assert one.shape == (103, 1) and none.shape == (103, 0) and three.shape == (103, 3)
    every = torch.cat([one, three], 1)
    assert 0 <= every.min() and every.max() < 1 and len(every.unique()) > 400
