"""Data sets too large for memory: class folders of files, decoded by worker processes."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classic_cnns import UserError, printable
from classic_cnns.data import folders
from classic_cnns.data.batches import Batches
from classic_cnns.data.fetch import cache_directory
from classic_cnns.data.module import ImageData
from classic_cnns.data.store import Files, StoredImages, prepare
from classic_cnns.data.workers import read_ahead
from classic_cnns.files import expand
from classic_cnns.trainer.devices import core_count

log = logging.getLogger(__name__)


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread while workers occupy all cores; more would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(eq=False, repr=False, kw_only=True)
class DecodedBatches(Batches):
    """Batches of image files; each share is decoded by one of `workers` processes."""

    at_once = 1
    batch_context = staticmethod(one_thread)

    workers: int
    reported: set[str]  # files that cannot be decoded and were logged; it is extended

    def read(self, shares: Sequence[Tensor]) -> Iterator[tuple[Tensor, Any]]:
        device = self.indices.device
        numbers: Any = [share.cpu().numpy() for share in shares]
        if isinstance(self.images, StoredImages):
            parts: Iterator = self.images.in_order(numbers, self.workers)
        else:
            workers = min(self.workers, len(numbers))
            # The ranks of a machine share its memory.
            size = self.images.form.bytes * max(map(len, numbers), default=0) * self.world_size
            pinned = device.type == "cuda"
            parts = iter(read_ahead(self.images, numbers, workers, size=size, pinned=pinned))
        missing: list[str] = []
        for done, share in enumerate(numbers, 1):
            images, rows = next(parts)
            missing += [self.images.paths[number] for number in np.delete(share, rows)]
            if done == len(numbers):  # now, since the caller may stop after the last batch
                next(parts, None)  # ends the workers
                self.report(missing, sum(map(len, numbers)))
            # To Apple's GPUs torch would copy memory that has been freed (pytorch#189690).
            yield images.to(device, non_blocking=device.type == "cuda"), rows.to(device)

    def report(self, names: list[str], count: int) -> None:
        """Log in one line the files of `count` that could not be decoded, each only once."""
        new = [name for name in names if name not in self.reported]
        if not new:
            return
        self.reported.update(new)
        text = f"{len(names)} of {count} files cannot be decoded"
        if len(names) == count >= min(50, len(self.indices)):  # not for a small share of one rank
            raise UserError(f"data.root: {text}, like {names[0]}; replace them")
        more = f" and {len(new) - 20} more" if len(new) > 20 else ""
        shown = printable(", ".join(sorted(new)[:20]))
        log.warning("%s and were left out: %s%s", text, shown, more)


def imagenet_names(classes: list[str]) -> list[str]:
    """English class names if the folders are the 1,000 of ImageNet (n01440764: tench)."""
    if len(classes) != 1000 or not all(re.fullmatch(r"n\d{8}", name) for name in classes):
        return classes
    from torchvision.models import AlexNet_Weights  # its names are in the order of these ids

    return AlexNet_Weights.IMAGENET1K_V1.meta["categories"]


class ImageFolderData(ImageData):
    """Training, validation and test batches from class folders in the layout of `folders`."""

    def __init__(
        self,
        root: str,
        workers: int | None,
        data_dir: str | None = None,
        prepare: bool = False,  # default of configs of earlier versions
        store: str = "raw",
        jpeg_quality: int = 90,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if store not in ("raw", "jpeg") or {type(self.size), type(jpeg_quality)} != {int}:
            raise ValueError("data.store: must be raw or jpeg")  # all three are parts of a path
        self.prepare, self.store = prepare, store
        self.quality = jpeg_quality if store == "jpeg" else 0
        self.stores: dict[str, StoredImages] | None = None
        self.root, self.workers, self.data_dir = root, workers, data_dir
        self.files: folders.Index = {}
        self.run_classes: Sequence[str] = ()  # of the run that is evaluated
        self.reported: set[str] = set()

    def prepare_data(self) -> None:
        if self.files:
            return
        found = folders.classes(self.root, evaluated=bool(self.run_classes))
        names = imagenet_names([printable(name) for name in found])
        known = list(self.run_classes)
        if other := [name for name in names if name not in known]:
            if known and len(names) != len(known):
                raise UserError(
                    f"data.root={self.root}: has the class {other[0]}, and the run was trained "
                    f"with {folders.first_five(known)}; rename or remove that folder"
                )
            known = names  # in a new run, or compared with the run's in their order
        if len(known) != self.num_classes:  # possible in a resumed run
            raise UserError(
                f"data.root={self.root}: has {len(known)} classes and this run was "
                f"started with {self.num_classes}; restore the folders, or start a new run"
            )
        self.preprocessing.classes = known
        base = expand("data.root", self.root).absolute()
        key = f"{base.name}-{sha256(bytes(base)).hexdigest()[:12]}"
        self.cache = cache_directory(self.data_dir) / "folders" / key
        self.files = folders.index(self.root, self.cache / "index.npz")
        if names != known:  # numbers of the run's classes
            numbers = np.array([known.index(name) for name in names], np.int64)
            self.files = {k: (paths, numbers[labels]) for k, (paths, labels) in self.files.items()}
        self.prepare_store(self.prepare, required=False)

    def prepare_store(self, create: bool, required: bool) -> None:
        """Open the store of resized images, or create it; see `store.prepare`."""
        form = self.preprocessing.form
        kind = f"{self.size}-{self.store}{self.quality or ''}{'-grey' * (form.channels == 1)}"
        self.stores = prepare(self.files, self.cache / kind, form, self.quality, create, required)
        for split, stored in (self.stores or {}).items() if required else ():  # else in training
            wrong = np.flatnonzero(stored.records["length"] == 0).tolist()
            paths = [stored.paths[number] for number in wrong]
            loader: Any = self.loader(split, 1)
            loader.report(paths, len(stored.paths))

    def setup(self, stage: str) -> None:
        self.prepare_data()  # Lightning has done so, other callers may not
        self.preprocessing.to(self.device)  # including the mean image of a checkpoint
        if not self.has_statistics:
            # Deviation: mean image and colour axes of 1,000 training images, not of all
            count = len(self.files_of("train")[0])
            some = np.sort(np.random.RandomState(1998).permutation(count)[:1000])
            shares = torch.from_numpy(some).split(1)  # larger parts leave 100 MB in the heap
            parts = (part for part, _ in self.loader("train", 1).read(shares) if len(part))
            with one_thread():
                self.compute_statistics(parts)
            log.info(
                "%s: %s images to train on, %s for validation%s",
                self.dataset, f"{count:,}", f"{len(self.files['val'][0]):,}",
                "" if folders.folder_of(self.root, "test").name == "test"
                else ", which are also the test set, since there is no test/",
            )  # fmt: skip

    def facts(self) -> dict[str, object]:
        """For provenance.json: the number of files, and a checksum of their names."""
        return {
            "dataset": self.dataset,
            "root": str(expand("data.root", self.root).absolute()),
            "files": {split: len(paths) for split, (paths, _) in self.files.items()},
            "names_sha256": folders.hash_names(self.files).hexdigest(),
        }

    def files_of(self, split: str) -> tuple[folders.Paths, np.ndarray]:
        if split not in self.files:
            raise UserError(f"data.root={self.root}: has no {split}/; try another folder")
        return self.files[split]

    def batches(self, split: str, batch_size: int, **options: Any) -> Batches:
        paths, labels = self.files_of(split)
        every = core_count() // (self.trainer.num_devices if self.trainer else 1)
        return DecodedBatches(
            self.stores[split] if self.stores else Files(paths, self.preprocessing.form),
            torch.from_numpy(labels).to(self.device),
            torch.arange(len(paths), device=self.device),
            batch_size,
            workers=max(1, every) if self.workers is None else self.workers,
            reported=self.reported,
            **options,
        )
