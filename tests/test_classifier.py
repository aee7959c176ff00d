"""The metrics of the classifier compared with counting by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from classic_cnns.classifier import COLLECTED, Classifier, SplitMetrics


@pytest.mark.parametrize("classes", [3, 12])
def test_means_equal_counting_image_by_image(classes):
    random, metrics = torch.Generator().manual_seed(1), SplitMetrics(top5=True)
    losses, errors, misses = [], 0, 0
    sizes = [7, 1, 4] * 20  # more steps than are collected
    for size in sizes:
        scores = torch.randn(size, classes, generator=random)
        labels = torch.randint(classes, (size,), generator=random)
        loss = torch.rand((), generator=random)
        metrics.add(loss, scores, labels)
        losses += [loss.item()] * size
        for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
            ranked = sorted(range(classes), key=lambda i: -row[i])
            errors += ranked[0] != label
            misses += label not in ranked[:5]
        assert len(metrics.steps) < COLLECTED
    metrics.count()
    count = sum(sizes)
    found = {name: mean.compute().item() for name, mean in metrics.means.items()}
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-15)
    assert found["error"] == errors / count and found["accuracy"] == (count - errors) / count
    assert found["top5_error"] == misses / count


def test_saved_sums_are_restored_also_after_a_move_to_a_device():
    first, second = SplitMetrics(top5=False), SplitMetrics(top5=False).to("cpu")
    for metrics in (first, second):
        metrics.add(torch.tensor(0.1), torch.eye(3), torch.tensor([0, 1, 1]))
    third = SplitMetrics(top5=False).to("cpu")
    third.load_sums(first.sums())
    for name, mean in third.means.items():
        assert mean.compute().dtype == torch.float64
        assert mean.compute() == second.sums()[name][0] / 3


def test_a_nan_loss_makes_the_mean_nan():
    metrics = SplitMetrics(top5=False)
    metrics.add(torch.tensor(float("nan")), torch.eye(2), torch.tensor([0, 1]))
    metrics.count()
    assert not metrics.means["loss"].compute().isfinite()


def test_patches_whose_scores_share_a_tensor_are_all_averaged():
    """A net recorded as a CUDA graph writes the scores of each patch to the same memory."""

    class Net(nn.Module):
        memory = torch.empty(2, 3)

        def forward(self, images):
            return self.memory.copy_(images.flatten(1)[:, :3])

    patches = torch.randn(2, 4, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    classifier = Classifier(Net(), nn.CrossEntropyLoss(), torch.optim.SGD)
    expected = patches.flatten(2)[:, :, :3].softmax(2).mean(1)
    torch.testing.assert_close(classifier(patches).exp(), expected)


def test_batches_whose_scores_share_a_tensor_are_all_counted():
    buffer, metrics = torch.zeros(2, 3), SplitMetrics(top5=False)  # as with a CUDA graph
    for right in (0, 1):
        buffer.copy_(torch.eye(3)[[right, right]])
        metrics.add(torch.tensor(0.0), buffer, torch.tensor([0, 0]))
    metrics.count()
    assert metrics.means["error"].compute().item() == 0.5


@pytest.mark.parametrize(
    ("classes", "top5", "logged"),
    [
        (None, None, False),
        (10, None, False),
        (11, None, True),
        (10, True, True),
        (11, False, False),
    ],
)
def test_more_than_ten_classes_have_a_top_5_error_unless_it_is_given(classes, top5, logged):
    module = Classifier(
        nn.Linear(1, 1), nn.MSELoss(), lambda _: None, num_classes=classes, top5=top5
    )
    assert ("top5_error/val" in module.metric_names) == logged
