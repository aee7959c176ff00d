"""Damaged checkpoints are reported and never read as if they were intact."""

import random
from pathlib import Path

import pytest
import torch

from classic_cnns import UserError
from classic_cnns.trainer.checkpoint_io import AtomicCheckpointIO, first_intact, read_checkpoint

FIXTURES = Path(__file__).parents[1] / "fixtures"


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


@pytest.fixture
def checkpoint(tmp_path) -> dict:
    """A checkpoint of about 3,000 bytes, saved as last.ckpt and best.ckpt in `tmp_path`."""
    torch.manual_seed(0)
    weights = {"net.a": torch.randn(5, 20), "net.b": torch.arange(40)}
    checkpoint = {"state_dict": weights, "epoch": 3, "lowest": 0.25}
    for name in ("last.ckpt", "best.ckpt"):
        AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / name)
    return checkpoint


def test_every_wrong_bit_is_reported_or_harmless(checkpoint, tmp_path):
    path, reported = tmp_path / "last.ckpt", 0
    whole = path.read_bytes()
    bits = random.Random(0).sample(range(8 * len(whole)), 600)
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert same(read_checkpoint(path), checkpoint), bit
        except UserError as error:
            reported += 1
            assert str(error).startswith(f"{path}: is cut off, damaged or no checkpoint")
    assert reported > 200  # the other bits are padding or unused fields of the format


def test_a_cut_off_checkpoint_is_reported(checkpoint, tmp_path):
    path = tmp_path / "last.ckpt"
    whole = path.read_bytes()
    for length in [0, 1, *random.Random(1).sample(range(len(whole)), 50), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="is cut off, damaged"):
            read_checkpoint(path)


def test_the_first_intact_checkpoint_is_used_and_a_damaged_one_reported(
    checkpoint, tmp_path, caplog
):
    last, best, none = (tmp_path / f"{name}.ckpt" for name in ("last", "best", "none"))
    assert first_intact([none, last, best]) == last and not caplog.messages
    last.write_bytes(last.read_bytes()[:-9])
    assert first_intact([last, best]) == best
    (line,) = caplog.messages
    assert line.startswith(f"{last}: is cut off") and "best.ckpt is used instead" in line
    best.write_bytes(b"")
    with pytest.raises(UserError, match="last.ckpt: is cut off"):
        first_intact([last, best])
    assert first_intact([none]) is None


def test_checkpoints_of_earlier_versions_are_checked_too(tmp_path):
    earlier = FIXTURES / "run_0_1" / "checkpoints" / "best.ckpt"
    assert read_checkpoint(earlier)["state_dict"]
    damaged = bytearray(earlier.read_bytes())
    damaged[len(damaged) // 2] ^= 1  # in a weight
    (tmp_path / "best.ckpt").write_bytes(damaged)
    with pytest.raises(UserError, match="is cut off, damaged"):
        read_checkpoint(tmp_path / "best.ckpt")
