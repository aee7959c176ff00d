"""Export of a trained net to a file that runs without this project, verified against torch."""

import json
import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from classic_cnns import UserError
from classic_cnns.classifier import Classifier
from classic_cnns.data.transforms import crop_to
from classic_cnns.files import atomic_write
from classic_cnns.report.log import show_log
from classic_cnns.run.trained import data_of, load_net

TESTED, AT_ONCE = 1000, 20  # pictures in all, and in a batch
NEAR = 1e-4  # largest allowed difference of a probability
NEEDS = {
    ".onnx": ("onnx", "onnxscript", "onnxruntime"),
    ".pt2": (),
    ".safetensors": ("safetensors",),
}
Run = Callable[[Tensor], Tensor]  # pictures (N, C, H, W) uint8 to probabilities (N, classes)


class Exported(nn.Module):
    """Maps pictures (N, C, H, W) uint8 of the data set's size to probabilities (N, classes)."""

    def __init__(self, net: Classifier) -> None:
        super().__init__()
        self.net, self.preprocessing = net.net, net.prepared

    def forward(self, images: Tensor) -> Tensor:
        inputs = self.preprocessing(images)  # (N, C, H, W), or patches (N, V, C, H, W)
        probabilities = self.net(inputs.flatten(0, -4)).softmax(1)
        several = inputs.dim() == 5
        return probabilities.unflatten(0, inputs.shape[:2]).mean(1) if several else probabilities


def check_path(path: Path) -> None:
    if path.suffix not in NEEDS:
        raise UserError(f"--to={path}: must end with one of {', '.join(NEEDS)}")
    missing = [name for name in NEEDS[path.suffix] if find_spec(name) is None]
    if missing:
        raise UserError(f"--to={path}: needs {', '.join(missing)}; try pip install -e '.[export]'")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--to={path}: there is no folder {path.parent}; make it first")


def export(checkpoint: Path, config: DictConfig, path: Path) -> str:
    """Write the file `path`, and return how it compares with torch.

    Raises UserError, and writes nothing, if a package is missing or the results differ.
    """
    check_path(path)
    show_log(quiet=True)
    net = load_net(checkpoint, config)
    if path.suffix == ".safetensors":
        content = weights(net)
        comparison = f"{len(net.net.state_dict())} tensors, the same bits as in {checkpoint}"
    else:
        module = Exported(net).eval().requires_grad_(False)
        module.to(memory_format=torch.contiguous_format)  # after training with channels last
        pictures, source = test_pictures(config, net)
        content, run = (onnx if path.suffix == ".onnx" else pt2)(module, pictures[:2])
        comparison = compare(module, run, pictures, source, path)
    try:
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"--to={path}: {error.strerror}; try another place") from error
    return f"{path}: {comparison}"


def test_pictures(config: DictConfig, net: Classifier) -> tuple[Tensor, str]:
    """Pictures of the test set, or random ones if it is not available."""
    try:
        loader = data_of(config, net).loader("test", TESTED, to_input=lambda images: images)
        # Resident images are padded already, but a user's pictures have the data set's size.
        return crop_to(next(iter(loader))[0], net.prepared.image_size), "test images"
    except UserError as error:
        logging.getLogger(__name__).warning(
            "the test set is not available, using random pictures: %s", error
        )
        side, channels = net.prepared.image_size, net.prepared.channels
        random = torch.Generator().manual_seed(0)
        shape = (TESTED, channels, side, side)
        return torch.randint(256, shape, dtype=torch.uint8, generator=random), "random pictures"


@torch.no_grad()
def compare(module: nn.Module, run: Run, pictures: Tensor, source: str, path: Path) -> str:
    """How close the file's probabilities are to torch's; UserError if they differ too much."""
    parts = [*pictures[:1].split(1), *pictures[1:].split(AT_ONCE)]  # a batch of one, too
    ours, theirs = (torch.cat([answer(part) for part in parts]) for answer in (module, run))
    largest = (ours - theirs).abs().max().item()
    same = (ours.argmax(1) == theirs.argmax(1)).sum().item()
    comparison = f"{same:,} of {len(pictures):,} {source} get torch's answer, "
    comparison += f"probabilities differ by {largest:.1e} at most"
    if not largest <= NEAR or same < len(pictures):
        raise UserError(f"--to={path}: {comparison}, which is too much; nothing was written")
    return comparison


def onnx(module: Exported, pictures: Tensor) -> tuple[bytes, Run]:
    """The content of an ONNX file, and a function that runs it in onnxruntime."""
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings inside the packages
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module, (pictures,), dynamo=True, input_names=["pictures"],
            output_names=["probabilities"], dynamic_shapes=({0: "batch"},), verbose=False,
            optimize=False,  # onnxruntime does this itself, and faster
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    model.metadata_props.add(key="classes", value=json.dumps(module.preprocessing.classes))
    content = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors, but not warnings about its optimizations
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(part: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"pictures": part.numpy()})[0])

    return content, run


def pt2(module: nn.Module, pictures: Tensor) -> tuple[bytes, Run]:
    """The content of a file of torch.export, and the module that it contains."""
    shapes, file = ({0: torch.export.Dim("batch", min=1)},), BytesIO()
    torch.export.save(torch.export.export(module, (pictures,), dynamic_shapes=shapes), file)
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.11 warns about a buffer of its own
        return file.getvalue(), torch.export.load(file).module()


def weights(net: Classifier) -> bytes:
    """The net's state_dict, the mean image, and the preprocessing as metadata, in safetensors."""
    from safetensors.torch import save

    stored = net.prepared.stored()
    tensors = {name: x.contiguous().clone() for name, x in net.net.state_dict().items()}
    mean = stored.pop("mean")
    extra = {} if mean is None else {"preprocessing.mean": mean}
    metadata = {"preprocessing": json.dumps(stored), "net": json.dumps(net.hparams["model"]["net"])}
    return save(tensors | extra, metadata)
