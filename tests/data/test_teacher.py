"""Taught batches hold what was augmented and what the teacher said of exactly that."""

import pytest
import torch
from torch import nn

from pyro_bc.data.teacher import TaughtBatches
from pyro_bc.errors import UsageError


def test_targets_mix_the_label_and_the_teachers_opinion_of_the_picture_itself():
    x = torch.randint(0, 256, (25, 1, 2, 2)) / 255
    y = torch.arange(25) % 3
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    batches = TaughtBatches(x, y, teacher, classes=3, share=0.7, augment=lambda t: t.flip(-1), passes=4, batch_size=8)
    assert len(batches) == 3  # a last example would be alone
    flipped = 0
    for _ in range(12):
        pictures, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        with torch.no_grad():
            opinion = teacher(pictures).softmax(-1)
        labels = (targets - 0.7 * opinion) / 0.3
        assert torch.allclose(labels.max(-1).values, torch.ones(25), atol=1e-4)
        assert torch.allclose(labels.sum(-1), torch.ones(25), atol=1e-4)
        original = x.sort(0).values.allclose(pictures.sort(0).values)
        assert original or x.flip(-1).sort(0).values.allclose(pictures.sort(0).values)
        flipped += not original
    assert 0 < flipped < 12  # the first pass is of the pictures as they are


def test_without_a_teacher_and_augmentation_the_targets_are_the_labels_of_one_pass():
    x, y = torch.rand(10, 1, 2, 2), torch.arange(10) % 2
    batches = TaughtBatches(x, y, None, classes=2, batch_size=5)
    assert len(batches.x) == 1
    targets = torch.cat([target for _, target in batches])
    assert targets.sum(0).tolist() == [5.0, 5.0] and set(targets.flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("wrong", [{"share": 1.5}, {"share": -0.1}, {"passes": 0}])
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        TaughtBatches(torch.rand(4, 1, 2, 2), torch.zeros(4).long(), None, classes=2, **wrong)
