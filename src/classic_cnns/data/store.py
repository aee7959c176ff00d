"""Images that were brought to their size once: a file of them, and one of their lengths.

Each split has `<split>.bin`, the images one after the other in the order of the index, and
`<split>.records`, for each of them its length in bytes (0 if it cannot be decoded), a CRC-32, and
size and time of the file that it came of. Files are only appended to, so that a killed preparation
continues where it stopped. A `raw` image is uint8 (3, size, size), exactly the pixels that are read
without a store; a `jpeg` image takes a tenth of the space and differs slightly.

Formats that others keep (tar shards of WebDataset, chunks of LitData) shuffle within a window: the
order of an epoch here is a permutation of all images that follows from the seed, on any number of
ranks, and asks for nothing more than a place for each image.
"""

import errno
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from classic_cnns import UserError
from classic_cnns.data.folders import Index
from classic_cnns.files import read_json, write_json
from classic_cnns.trainer.devices import core_count

log = logging.getLogger(__name__)

FORMAT = 1
MADE = "store.json"  # what a store was made of
RECORD = np.dtype([("length", "<u4"), ("crc", "<u4"), ("size", "<i8"), ("changed", "<i8")])
BLOCK = 64  # images that are prepared at a time

Decode = Callable[[str, int], np.ndarray]  # of a path and a size: (size, size, 3) uint8


class Packed(Dataset):
    """Blocks of images as they lie in a store: their bytes (uint8) and records (n, 4)."""

    def __init__(self, paths: Sequence[str], size: int, quality: int, decode: Decode) -> None:
        self.paths, self.size, self.quality, self.decode = paths, size, quality, decode

    def __getitem__(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        packed, records = [], []
        for path in map(self.paths.__getitem__, numbers):
            file = stamp(path)  # before it is read
            try:
                packed.append(self.pack(self.decode(path, self.size)))
            except Exception:  # whoever reads the store names the file after each pass
                packed.append(b"")
            records.append((len(packed[-1]), crc32(packed[-1]), *file))
        content = np.frombuffer(bytearray(b"".join(packed)), np.uint8)
        return torch.from_numpy(content), torch.tensor(records)

    def pack(self, pixels: np.ndarray) -> bytes:
        if not self.quality:
            return pixels.transpose(2, 0, 1).tobytes()
        stream = BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=self.quality)
        return stream.getvalue()


class Prepared:
    """A split of a store, read like `Files`.

    An image that is damaged in it, or whose file was changed since, is decoded from that file, told
    after the pass, and lets the next start make the store anew.
    """

    def __init__(self, folder: Path, split: str, paths: Sequence[str], size: int, decode: Decode):
        self.paths, self.size, self.decode, self.folder = paths, size, decode, folder
        self.records = np.fromfile(folder / f"{split}.records", RECORD)
        self.ends = np.cumsum(self.records["length"], dtype=np.int64)
        self.content = folder / f"{split}.bin"
        self.wrong: set[str] = set()

    def __getitem__(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor, list[str]]:
        """The images (n, 3, size, size) uint8, where in `numbers` they are, and what is missing."""
        images = np.empty((len(numbers), 3, self.size, self.size), np.uint8)
        there: list[int] = []
        missing: list[str] = []
        with open(self.content, "rb") as file:
            for row, number in enumerate(numbers):
                if self.read(file.fileno(), number, images[len(there)]):
                    there.append(row)
                else:
                    missing.append(self.paths[number])
        pixels = torch.from_numpy(images[: len(there)])
        return pixels, torch.tensor(there, dtype=torch.int64), missing

    def read(self, descriptor: int, number: int, pixels: np.ndarray) -> bool:
        """Fill `pixels` with an image; false where it could not be decoded."""
        length, crc, *file = self.records[number].tolist()
        path = self.paths[number]
        start, raw = int(self.ends[number]) - length, length == pixels.nbytes
        content: Any = pixels.reshape(-1) if raw else bytearray(length)
        found = os.preadv(descriptor, [content], start)
        if (found, crc32(content), *stamp(path)) == (length, crc, *file):
            if length and not raw:
                pixels[:] = np.asarray(Image.open(BytesIO(content))).transpose(2, 0, 1)
            return length > 0
        self.wrong.add(path)
        try:
            pixels[:] = self.decode(path, self.size).transpose(2, 0, 1)
        except Exception:  # as of `Files`
            return False
        return True

    def in_order(self, shares: Iterable[Sequence[int]], threads: int) -> Iterator[Any]:
        """Each of `shares`, which threads read ahead: they wait for the disk, and copy nothing."""
        with ThreadPoolExecutor(max(1, threads)) as pool:
            waiting: deque = deque()
            for share in shares:
                waiting.append(pool.submit(self.__getitem__, share))
                if len(waiting) > threads + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        if self.wrong:
            log.warning(
                "%s: %d images are damaged or their files were changed since, and were read from "
                "these, like %s; the next start prepares all again",
                self.folder, len(self.wrong), min(self.wrong),
            )  # fmt: skip
            self.wrong.clear()
            with suppress(OSError):
                write_json(self.folder / MADE, {})


def stamp(path: str) -> tuple[int, int]:
    """The size of a file and when it was changed (ns); -1 where it is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def prepare(
    index: Index, folder: Path, size: int, quality: int, decode: Decode, make: bool, must: bool
) -> dict[str, Prepared] | None:
    """The store in `folder`, by split; with `make` it is made or completed.

    JPEGs have that `quality`, of 1 to 100; 0 stands for raw pixels. None stands for no store: where
    the disk has no room for one, which with `must` is a UserError, or may not be written to.
    """
    made = folder / MADE
    if not make and not made.exists():
        return None
    splits = {split: index[split][0] for split in index}
    if np.array_equal(splits["test"].names, splits["val"].names):
        del splits["test"]  # it is val/ too
    names = sha256(b"".join(paths.names.tobytes() for paths, _ in index.values())).hexdigest()
    today = {"format": FORMAT, "size": size, "quality": quality, "names_sha256": names}

    def whole() -> dict[str, Prepared] | None:
        known = read_json(made) or {}
        if known.get("format", 0) > FORMAT:
            raise UserError(
                f"{folder}: was prepared by a newer version (format {known['format']}, known here "
                f"is {FORMAT}); update, or remove it"
            )
        if known != today | {"whole": True}:
            return None
        stores = {n: Prepared(folder, n, paths, size, decode) for n, paths in splits.items()}
        return {"test": stores["val"]} | stores

    found = whole()
    if found or not make:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with waited_for(folder):
            if found := whole():
                return found
            known = read_json(made)
            if known != today:
                if known is not None:
                    log.info("%s: files were added, removed or changed since; again", folder)
                for file in folder.glob("*.*"):
                    file.unlink()
            if not room(splits, folder, size, quality, decode, must):
                return None
            write_json(made, today)
            for split, paths in splits.items():
                fill(folder / split, Packed(paths, size, quality, decode))
            write_json(made, today | {"whole": True})
            return whole()
    except OSError as error:
        if not must and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            log.warning("%s: %s; the folders are read themselves", folder, error.strerror)
            return None
        raise UserError(
            f"{folder}: {error.strerror}; make room and it goes on from there, or try "
            "data.prepare=false"
        ) from error


@contextmanager
def waited_for(folder: Path) -> Iterator[None]:
    """Holds the folder's lock; says so where another process has it."""
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        log.info("%s: is being prepared by another process; waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def room(splits: dict, folder: Path, size: int, quality: int, decode: Decode, must: bool) -> bool:
    """Say how much space either kind takes, and whether there is as much."""
    count = sum(map(len, splits.values()))
    paths = splits["train"]
    some = [range(len(paths))[:: max(1, len(paths) // 50)]]
    content, _ = Packed(paths, size, quality or 90, decode)[some[0]]
    needed = {"jpeg": count * len(content) // len(some[0]), "raw": count * 3 * size**2}
    there = sum(file.stat().st_size for file in folder.glob("*.bin"))
    free = shutil.disk_usage(folder).free + there
    text = (
        f"{count:,} images of {size} x {size}: raw (data.store=raw) {gigabytes(needed['raw'])}, "
        f"JPEGs of quality {quality or 90} (data.store=jpeg) about {gigabytes(needed['jpeg'])}; "
        f"{gigabytes(free)} are free in {folder}"
    )
    if fits := 1.05 * needed["jpeg" if quality else "raw"] + 1e8 < free:
        log.info("preparing %s", text)
    elif must:
        raise UserError(f"data.store={'jpeg' if quality else 'raw'}: no room; {text}")
    else:
        log.info("no room to prepare %s; the folders are read themselves", text)
    return fits


def gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def fill(path: Path, packed: Packed) -> None:
    """Append what is missing of a split, on all cores, with a bar."""
    with open(f"{path}.records", "ab+") as records, open(f"{path}.bin", "ab+") as content:
        records.seek(0)
        written = records.read()
        known = np.frombuffer(written, RECORD, len(written) // RECORD.itemsize)
        ends = np.cumsum(known["length"], dtype=np.int64)
        done = int(np.searchsorted(ends, os.fstat(content.fileno()).st_size, "right"))
        records.truncate(done * RECORD.itemsize)
        content.truncate(int(ends[done - 1]) if done else 0)
        starts = range(done, len(packed.paths), BLOCK)
        blocks = [range(start, min(start + BLOCK, len(packed.paths))) for start in starts]
        loader: DataLoader = DataLoader(
            packed,
            batch_size=None,
            sampler=blocks,
            num_workers=min(core_count(), len(blocks)),
            generator=torch.Generator(),
        )
        bar = tqdm(
            desc=f"preparing {path.name}", total=len(packed.paths), initial=done, unit=" images",
            disable=None, leave=False,
        )  # fmt: skip
        with bar:
            for block, (pixels, lengths) in zip(blocks, loader, strict=True):
                content.write(pixels.numpy())
                content.flush()  # before its records, which count
                rows = [tuple(row) for row in lengths.tolist()]
                records.write(np.array(rows, RECORD).tobytes())
                records.flush()
                bar.update(len(block))
        for file in (content, records):
            os.fsync(file.fileno())
