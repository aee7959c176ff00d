"""Reading photographs in class folders, prepared or not, compared with ImageFolder."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from classic_cnns.config.compose import compose
from classic_cnns.run.build import build_data
from classic_cnns.trainer.devices import core_count, keep_freed_memory
from tests.bench import Row, compare, per_second

COUNT, COPIES, BATCH = 100, 15, 128


def photographs(root: Path) -> None:
    """Three classes of JPEGs of 500 x 375 pixels and 70 kB, with several copies of each file."""
    random = np.random.RandomState(0)
    for split, copies in (("train", COPIES), ("val", 1)):
        for number in range(COUNT):
            colours = Image.fromarray(random.randint(256, size=(12, 16, 3), dtype=np.uint8))
            grain = Image.fromarray(random.randint(256, size=(187, 250, 3), dtype=np.uint8))
            smooth = np.asarray(colours.resize((500, 375), Image.Resampling.BICUBIC)).astype(int)
            pixels = smooth + (np.asarray(grain.resize((500, 375))).astype(int) - 128) // 5
            folder = root / split / f"class_{number % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{number}_0.jpg"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
            for copy in range(1, copies):
                shutil.copy(path, folder / f"{number}_{copy}.jpg")


def seconds(batches) -> float:
    start = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - start


def folders(rounds: int) -> Iterator[Row]:
    keep_freed_memory()
    with TemporaryDirectory() as place:
        photographs(Path(place) / "images")
        steps = [v2.Resize(256), v2.CenterCrop(256), v2.RandomCrop(224), v2.RandomHorizontalFlip()]
        steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        steps += [v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
        pictures = ImageFolder(f"{place}/images/train", v2.Compose(steps))
        workers = core_count()
        loader = DataLoader(pictures, BATCH, shuffle=True, num_workers=workers)

        def ours(*words: str):
            common = ["model=alexnet", "data=image_folder", f"data.root={place}/images"]
            common += [f"data_dir={place}", f"data.batch_size={BATCH}", "data.augment=crop_flip"]
            data = build_data(compose(*common, *words))
            data.setup("fit")
            return data.train_dataloader()

        names = ("", f"ImageFolder and DataLoader, {workers} workers")
        for what, goal, words in [
            ("read from folders", ">= 1", ["data.prepare=false"]),
            ("read from the raw store", ">= 3.5", []),
            ("read from the JPEG store", ">= 2", ["data.store=jpeg"]),
        ]:
            batches = ours(*words)
            found = compare(
                f"photographs of 500 x 375, {what}, cropped, flipped",
                lambda batches=batches: seconds(batches), lambda: seconds(loader),
                goal, names, rounds,
            )  # fmt: skip
            yield per_second(found, COUNT * COPIES, names)
