"""Download and cache of data sets; SHA-256 sums of the decoded arrays must match.

If a source fails or delivers other data, the next one is tried. The arrays are cached as .npy
files, which are verified at every start and memory-mapped.
"""

import logging
import os
import shutil
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from textwrap import shorten
from types import SimpleNamespace

import numpy as np

from classic_cnns import UserError, one_line
from classic_cnns.data.sources import BY_HAND, SOURCES, Arrays
from classic_cnns.files import atomic_write, expand, is_disk_error, read_json, write_json
from classic_cnns.trainer.processes import wait_for_lock

log = logging.getLogger(__name__)

CACHE_FORMAT = 1


class Damaged(Exception):
    """The cache does not contain the expected arrays."""


def cache_directory(data_dir: str | None) -> Path:
    """`data_dir`, or $CLASSIC_CNNS_DATA, or the user's cache directory (XDG)."""
    chosen = data_dir or os.environ.get("CLASSIC_CNNS_DATA")
    if chosen:
        return expand("data_dir", chosen)
    return expand("data_dir", os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "classic_cnns"


def load(dataset: str, sums: dict[str, str], data_dir: str | None) -> Arrays:
    """The arrays named in `sums`, memory-mapped; downloads or repairs the cache if necessary.

    Raises UserError if no source delivers the arrays or the cache cannot be written.
    """
    if dataset not in SOURCES:
        raise UserError(f"data.dataset={dataset}: must be one of {', '.join(SOURCES)}")
    root = cache_directory(data_dir)
    folder = root / dataset
    with suppress(Damaged):
        return read_cache(folder, sums)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with wait_for_lock(root / f"{dataset}.lock"):  # others wait here, then use the cache
            try:
                return read_cache(folder, sums)
            except Damaged as damage:
                if folder.exists():
                    log.warning("%s: %s; fetching it again", folder, damage)
            write_cache(folder, fetch(dataset, sums, root))
            return read_cache(folder, sums)
    except OSError as error:
        raise UserError(
            f"data_dir={root}: {error.strerror or error}; try data_dir=<a folder with space that "
            "you may write to>"
        ) from error


def read_cache(folder: Path, sums: dict[str, str]) -> Arrays:
    try:
        found = read_json(folder / "cache.json")["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged("incomplete") from error
    if not isinstance(found, int) or found < CACHE_FORMAT:
        raise Damaged(f"has the older format {found}")
    if found > CACHE_FORMAT:
        raise UserError(
            f"data_dir={folder.parent}: {folder.name} was cached by a newer version (format "
            f"{found}, known here is {CACHE_FORMAT}); update, or try data_dir=<another folder>"
        )
    arrays: Arrays = {}
    for name, expected in sums.items():
        try:
            # Copy-on-write: torch needs writable memory, and the pages stay shared.
            array = np.lib.format.open_memmap(folder / f"{name}.npy", mode="c")
        except Exception as error:  # parsing a damaged header can raise anything
            raise Damaged(f"{name}.npy is missing or cut off") from error
        if checksum(array) != expected:
            raise Damaged(f"{name}.npy has a wrong checksum")
        arrays[name] = array
    return arrays


def write_cache(folder: Path, arrays: Arrays) -> None:
    folder.mkdir(exist_ok=True)
    for rest in folder.glob(".*.*.*"):  # left by a writer that was killed; we hold the lock
        rest.unlink()
    for name, array in arrays.items():
        with atomic_write(folder / f"{name}.npy") as file:
            # Not the file itself: numpy would write to its descriptor and lose the errno.
            np.save(SimpleNamespace(write=file.write), array)
    write_json(folder / "cache.json", {"format": CACHE_FORMAT})


def checksum(array: np.ndarray) -> str:
    """SHA-256 of a uint8 array's bytes in C order; a message for other dtypes."""
    if array.dtype != np.uint8:
        return f"not uint8 but {array.dtype}"
    return sha256(np.ascontiguousarray(array).data).hexdigest()


def fetch(dataset: str, sums: dict[str, str], root: Path) -> Arrays:
    """The arrays from the first source whose checksums match."""
    partial = root / f"{dataset}.partial"
    if partial.exists():
        log.warning("%s: an earlier download was interrupted; starting again", dataset)
        shutil.rmtree(partial)
    folder, files = BY_HAND[dataset]
    failures = []
    for name, source in SOURCES[dataset].items():
        partial.mkdir()
        try:
            arrays = source(root, partial)
            wrong = [key for key in sums if checksum(arrays[key]) != sums[key]]
            if not wrong:
                return arrays
            failures.append(f"{name}: wrong checksum of {', '.join(wrong)}")
            log.warning("%s: skipped %s", dataset, failures[-1])
        except Exception as error:  # any error: the next source may work
            if is_disk_error(error):
                raise
            reason = one_line(error) or type(error).__name__
            failures.append(f"{name}: {shorten(reason, 120, placeholder=' ...')}")
            if len(failures) > 1 or (root / folder).exists():  # the first source reads that folder
                log.info("%s: skipped %s", dataset, failures[-1])
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    raise UserError(
        f"data={dataset}: no source delivered it ({'; '.join(failures)}); "
        f"put {files} into {root}/{folder}"
    )
