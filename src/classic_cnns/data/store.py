"""Stores of resized images: for each split a file of images and a file of records.

`<split>.bin` contains the images one after the other, in the order of the index. `<split>.records`
has for each image its length in bytes (0 if it cannot be decoded), its CRC-32, and the size and
modification time of the source file. Files are only appended to, so an interrupted preparation
continues where it stopped. A `raw` image is (C, size, size) uint8, exactly the pixels decoded
without a store; a `jpeg` image takes a tenth of the space and differs slightly.

Why not WebDataset's tar shards or LitData's chunks: they shuffle within a window. Here the order of
an epoch is a permutation of all images that depends only on the seed, on any number of ranks.
"""

import errno
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from classic_cnns import UserError, printable
from classic_cnns.data.folders import Index, hash_names
from classic_cnns.data.pictures import Form, read_picture
from classic_cnns.data.workers import in_threads, read_ahead
from classic_cnns.files import read_json, write_json
from classic_cnns.report.log import progress_bar
from classic_cnns.trainer.devices import core_count
from classic_cnns.trainer.processes import wait_for_lock

log = logging.getLogger(__name__)

FORMAT = 2  # 1 had images that EXIF data rotates as they are in the file
MANIFEST = "store.json"  # describes the content of a store
RECORD = np.dtype([("length", "<u4"), ("crc", "<u4"), ("size", "<i8"), ("changed", "<i8")])
BLOCK = 64  # images in a block


class EncodedBlocks(Dataset):
    """Blocks of images in the format of a store: the bytes of the images and of their records."""

    def __init__(self, paths: Sequence[str], form: Form, quality: int) -> None:
        self.paths, self.form, self.quality = paths, form, quality

    def __getitem__(self, numbers: Sequence[int]) -> tuple[bytes, bytes]:
        packed, records = [], []
        for path in map(self.paths.__getitem__, numbers):
            file = file_stamp(path)  # before reading, in case it changes
            try:
                packed.append(self.pack(read_picture(path, self.form)[0]))
            except Exception:  # reported after each pass over the store
                packed.append(b"")
            records.append((len(packed[-1]), crc32(packed[-1]), *file))
        return b"".join(packed), np.array(records, RECORD).tobytes()

    def pack(self, pixels: np.ndarray) -> bytes:
        if not self.quality:
            return pixels.tobytes()
        stream = BytesIO()
        image = pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]
        Image.fromarray(image).save(stream, "JPEG", quality=self.quality)
        return stream.getvalue()


class Files(Dataset):
    """Reads the images for a list of indices: (n, C, size, size) uint8, and their rows in the list.

    Files that cannot be decoded are left out of both.
    """

    def __init__(self, paths: Sequence[str], form: Form) -> None:
        self.paths, self.form = paths, form

    def __getitem__(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        channels, side, _ = self.form
        images = np.empty((len(numbers), channels, side, side), np.uint8)
        rows: list[int] = []
        for row, number in enumerate(numbers):
            if self.read(number, images[len(rows)]):
                rows.append(row)
        return torch.from_numpy(images[: len(rows)]), torch.tensor(rows, dtype=torch.int64)

    def read(self, number: int, pixels: np.ndarray) -> bool:
        """Fill `pixels` (C, size, size) with an image; False if it cannot be decoded."""
        try:
            pixels[:], _ = read_picture(self.paths[number], self.form)
        except Exception:  # a damaged file can raise anything; reported after the pass
            return False
        return True


class StoredImages(Files):
    """One split of a store.

    An image that is damaged in the store, or whose source file has changed, is decoded from the
    source file and logged after the pass; the next start then rebuilds the store. So are all images
    while another run rebuilds it.
    """

    def __init__(
        self, folder: Path, split: str, paths: Sequence[str], form: Form, raw: bool
    ) -> None:
        super().__init__(paths, form)
        self.folder, self.raw = folder, raw
        self.records = np.fromfile(folder / f"{split}.records", RECORD)
        self.ends = np.cumsum(self.records["length"], dtype=np.int64)
        self.content = folder / f"{split}.bin"
        self.made = (folder / MANIFEST).stat().st_mtime_ns
        self.wrong: set[str] = set()

    def read(self, number: int, pixels: np.ndarray) -> bool:
        length, crc, *file = self.records[number].tolist()
        path = self.paths[number]
        start = int(self.ends[number]) - length
        raw = self.raw and length == pixels.nbytes  # a small JPEG can be as long
        content: Any = pixels.reshape(-1) if raw else bytearray(length)
        try:
            with open(self.content, "rb", buffering=0) as stream:
                stream.seek(start)
                found = stream.readinto(content)
        except OSError:
            found = -1
        if (found, crc32(content), *file_stamp(path)) == (length, crc, *file):
            if length and not raw:
                image = np.asarray(Image.open(BytesIO(content)))
                pixels[:] = image.transpose(2, 0, 1) if image.ndim == 3 else image
            return length > 0
        self.wrong.add(path)
        return super().read(number, pixels)

    def in_order(self, shares: Iterable[Sequence[int]], threads: int) -> Iterator[Any]:
        """The images of each share, read ahead by threads."""
        yield from in_threads(self.__getitem__, shares, threads)  # which only wait for the disk
        if self.wrong:
            log.warning(
                "%s: %d images are damaged or outdated and were read from their files, for "
                "example %s; the next start prepares them again",
                self.folder, len(self.wrong), printable(min(self.wrong)),
            )  # fmt: skip
            self.wrong.clear()
            manifest = self.folder / MANIFEST
            with suppress(OSError):
                if manifest.stat().st_mtime_ns == self.made:  # else it is another store by now
                    write_json(manifest, {})


def file_stamp(path: str) -> tuple[int, int]:
    """Size and modification time (ns) of a file; -1 if it is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def prepare(
    index: Index, folder: Path, form: Form, quality: int, create: bool, required: bool
) -> dict[str, StoredImages] | None:
    """The store in `folder`, by split; with `create` it is created or completed.

    `quality` is that of JPEGs, 1 to 100; 0 means raw pixels. Returns None if there is no store, if
    the disk has no room for one, or if the folder may not be written to; with `required` these are
    UserErrors.
    """
    manifest = folder / MANIFEST
    splits = {split: index[split][0] for split in index}
    if "val" in splits and np.array_equal(splits["test"].names, splits["val"].names):
        del splits["test"]  # the same folder as val/
    names = hash_names(index)
    names.update(b"\n")  # the stores of earlier versions end with it
    today = {"format": FORMAT, "size": form.side, "quality": quality}
    today |= {"names_sha256": names.hexdigest()}

    def open_stores() -> dict[str, StoredImages] | None:
        known = read_manifest(manifest) or {}
        if known.get("format", 0) > FORMAT:
            raise UserError(
                f"{folder}: was prepared by a newer version (format {known['format']}, known here "
                f"is {FORMAT}); update, or remove it"
            )
        if known != today | {"whole": True}:
            return None
        stores = {n: StoredImages(folder, n, p, form, not quality) for n, p in splits.items()}
        if "val" in stores:
            stores.setdefault("test", stores["val"])
        return stores

    found = open_stores()
    if found or not create:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with wait_for_lock(folder.with_suffix(".lock")):
            if found := open_stores():
                return found
            known = read_manifest(manifest)
            if known != today:
                if known is not None:
                    why = "files were added, removed or changed"
                    if not known:
                        why = f"{MANIFEST} is damaged"
                    elif known["format"] < FORMAT:
                        why = "an earlier version made it"
                    log.info("%s: %s; preparing again", folder, why)
                for file in folder.glob("*.*"):
                    file.unlink()
            if not has_room(splits, folder, form, quality, required):
                return None
            write_json(manifest, today)
            for split, paths in splits.items():
                write_split(folder / split, EncodedBlocks(paths, form, quality))
            write_json(manifest, today | {"whole": True})
            return open_stores()
    except OSError as error:
        if not required and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            log.warning("%s: %s; images are read from their folders", folder, error.strerror)
            return None
        way_out = "data_dir=<another folder>" if required else "data.prepare=false"
        raise UserError(
            f"{folder}: {error.strerror}; make room and start again to continue, or try {way_out}"
        ) from error


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The content of a store's manifest; None if there is none, {} if it is damaged."""
    try:
        known = read_json(path)
        return known if known is None or type(known["format"]) is int else {}
    except (KeyError, TypeError, ValueError):
        return {}


def has_room(splits: dict, folder: Path, form: Form, quality: int, required: bool) -> bool:
    """Log how much space each format takes, and return whether there is enough."""
    count = sum(map(len, splits.values()))
    paths = next(iter(splits.values()))
    some = range(len(paths))[:: max(1, len(paths) // 50)]
    content, _ = EncodedBlocks(paths, form, quality or 90)[some]
    needed = {"jpeg": count * len(content) // len(some), "raw": count * form.bytes}
    written = sum(file.stat().st_size for file in folder.glob("*.bin"))
    free = shutil.disk_usage(folder).free + written
    text = (
        f"{count:,} images of {form.side} x {form.side}: "
        f"raw (data.store=raw) {gigabytes(needed['raw'])}, "
        f"JPEGs of quality {quality or 90} (data.store=jpeg) about {gigabytes(needed['jpeg'])}; "
        f"{gigabytes(free)} are free in {folder}"
    )
    if fits := 1.05 * needed["jpeg" if quality else "raw"] + 1e8 < free:
        log.info("preparing %s", text)
    elif required:
        raise UserError(f"data.store={'jpeg' if quality else 'raw'}: no room; {text}")
    else:
        log.info("no room to prepare %s; images are read from their folders", text)
    return fits


def gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def write_split(path: Path, packed: EncodedBlocks) -> None:
    """Append the missing images of a split, on all cores, with a progress bar."""
    with open(f"{path}.records", "ab+") as records, open(f"{path}.bin", "ab+") as content:
        known = np.fromfile(f"{path}.records", RECORD)  # without an incomplete last one
        ends = np.cumsum(known["length"], dtype=np.int64)
        done = int(np.searchsorted(ends, os.fstat(content.fileno()).st_size, "right"))
        records.truncate(done * RECORD.itemsize)
        content.truncate(int(ends[done - 1]) if done else 0)
        starts = range(done, len(packed.paths), BLOCK)
        blocks = [range(start, min(start + BLOCK, len(packed.paths))) for start in starts]
        loader = read_ahead(packed, blocks, min(core_count(), len(blocks)))
        title = f"preparing {path.name}"
        with progress_bar(" images", len(packed.paths), initial=done, desc=title) as bar:
            for block, (images, their_records) in zip(blocks, loader, strict=True):
                content.write(images)
                content.flush()  # before its records, which mark it as complete
                records.write(their_records)
                records.flush()
                bar.update(len(block))
        for file in (content, records):
            os.fsync(file.fileno())
