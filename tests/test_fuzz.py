"""Random overrides, values and files give a result or a one-line error, never another exception."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from classic_cnns import UserError
from classic_cnns.config.compose import Composer
from classic_cnns.config.schema import flatten
from classic_cnns.config.stored import checked_config
from classic_cnns.data.pictures import Form, read_picture
from classic_cnns.trainer.checkpoint_io import read_checkpoint

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
settings = hypothesis.settings(
    max_examples=60, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)  # fmt: skip

COMPOSER = Composer()
DEFAULT = OmegaConf.to_container(COMPOSER.read_files(()), resolve=False)
KEYS = [key for key, _ in flatten(DEFAULT, groups=True)]
KEYS += ["sweep.search.params.optim.lr.high", "callbacks.mine", "trainer.max_steps", "data.root"]
WORDS = """null true [] {} ${seed} ${x} a,b [1,2] {a:1} ' ${model.net} {_target_:3} [{a:[{}]}]
    {_target_:torch.nn.ReLU} ${data.input} 1e400 none crop ten cpu""".split()
VALUES = st.one_of(
    st.text(max_size=12), st.integers().map(str), st.floats().map(str), st.sampled_from(WORDS)
)
SETS = st.tuples(st.sampled_from(["", "+", "++", "~"]), st.sampled_from(KEYS), VALUES)
CHOICES = st.sampled_from(
    [f"{group}={name}" for group in ("model", "data") for name in COMPOSER.groups[group]]
)


def assert_result_or_one_line(task, *given) -> None:
    try:
        task(*given)
    except UserError as error:
        assert "\n" not in str(error) and 10 < len(str(error)) < 3000


@settings
@hypothesis.given(st.lists(CHOICES, max_size=2), st.lists(SETS, min_size=1, max_size=3))
def test_any_values_of_any_keys(choices, sets):
    words = [f"{sign}{key}={value}" for sign, key, value in sets]
    assert_result_or_one_line(COMPOSER.compose, [*choices, *words])


@settings
@hypothesis.given(st.lists(st.text(max_size=20), min_size=1, max_size=3))
def test_any_overrides(words):
    assert_result_or_one_line(COMPOSER.compose, words)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["_target_", "net", "input", "a", "callbacks"]), inner)
    ),
    max_leaves=8,
)


@settings
@hypothesis.given(st.dictionaries(st.sampled_from(list(DEFAULT)), PLAIN))
def test_any_stored_config(values):
    assert_result_or_one_line(checked_config, values, "config.yaml")


def changed(whole: bytes):
    """Some bytes of a file replaced, and sometimes the file cut off."""
    position = st.integers(0, len(whole) - 1)
    return st.tuples(st.lists(st.tuples(position, st.integers(0, 255)), max_size=6), position).map(
        lambda change: edit(bytearray(whole), *change)
    )


def edit(data: bytearray, changes: list[tuple[int, int]], end: int) -> bytes:
    for position, byte in changes:
        data[position] = byte
    return bytes(data[:end] if end % 3 == 0 else data)  # two thirds are not cut


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.RandomState(1).randint(256, size=(9, 7, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def checkpoint() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"net.weight": torch.zeros(2, 3)}, "epoch": 1}, file)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "tiff", "bmp"])
def test_any_bytes_as_a_picture(kind, tmp_path):
    path = tmp_path / "picture"

    @settings
    @hypothesis.given(st.binary(max_size=200) | changed(picture(kind)))
    def fuzz(data):
        path.write_bytes(data)
        for channels in (1, 3):
            form = Form(channels, 28, channels == 1)
            assert_result_or_one_line(read_picture, path, form)

    fuzz()


def test_any_bytes_as_a_checkpoint(tmp_path: Path):
    path = tmp_path / "best.ckpt"

    @settings
    @hypothesis.given(st.binary(max_size=200) | changed(checkpoint()))
    def fuzz(data):
        path.unlink(missing_ok=True)  # the earlier file may still be mapped into memory
        path.write_bytes(data)
        assert_result_or_one_line(read_checkpoint, path)

    fuzz()
