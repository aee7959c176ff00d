"""Files: YAML compared with OmegaConf's own reader, and folders in other locales."""

import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from classic_cnns import UserError
from classic_cnns.files import make_folder, read_yaml

CONF = Path(__file__).parents[1] / "conf"

VALUES = """
1e-3  1E5  1.5e-05  -2e+3  1.e2  .5  12  1_000  0x1f  010  .inf  .nan  1e5x  e5  -  1e  2026-11-29
2026-11-29T10:00:00  12:30:45  true  no  null  ~  '1e-3'  "no"  1.0.0  +.5  a:b  ${seed}
""".split()


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: path.stem)
def test_config_files_are_read_as_by_omegaconf(path):
    assert read_yaml(path) == OmegaConf.to_container(OmegaConf.load(path), resolve=False)


@pytest.mark.parametrize("value", VALUES)
def test_values_are_read_as_by_omegaconf(value, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(f"key: {value}\nlist: [{value}]\ngroup: {{inner: {value} }}\n")
    try:
        expected = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:
        with pytest.raises(type(error)):
            read_yaml(path)
    else:
        assert repr(read_yaml(path)) == repr(expected)  # nan is unequal to itself


@pytest.mark.parametrize("text", ["'a: &x [1]\\nb: *x'", "5"])
def test_a_file_without_keys_is_refused(text, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match="it has no keys"):
        read_yaml(tmp_path / "a.yaml")


def test_a_folder_whose_name_is_not_utf_8_is_refused(tmp_path, monkeypatch):
    """TensorBoard writes to the path in UTF-8, also where the locale has another encoding."""
    make_folder(tmp_path / "läuf", "run_dir")
    monkeypatch.setattr(os, "fsencode", lambda path: str(path).encode("latin-1"))
    make_folder(tmp_path / "run", "run_dir")
    with pytest.raises(UserError, match="^run_dir=.*laufä: .*; try PYTHONUTF8=1 before"):
        make_folder(tmp_path / "laufä", "run_dir")
