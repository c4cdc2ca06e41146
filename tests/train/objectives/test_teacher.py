"""Teachers and queues: exact averages, no gradient, nothing lost on the way to disk."""

from __future__ import annotations

import copy
import io

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from beholder.core.model import VisionModel
from beholder.train.objectives.base import Step
from beholder.train.objectives.teacher import FrozenTeacher, Queue, Teacher
from beholder.train.schedules import linear


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_teacher_is_the_closed_form_average() -> None:
    student = net()
    teacher = Teacher(student, 0.9)
    start = student[0].weight.detach().clone()
    for number in range(5):
        with torch.no_grad():
            student[0].weight.add_(1.0)
        teacher.update(student, Step(number, 5))
    gone = sum(0.1 * 0.9 ** (4 - i) * (i + 1) for i in range(5))
    torch.testing.assert_close(teacher.module[0].weight, start + gone)


def test_momentum_follows_its_schedule() -> None:
    student = net()
    teacher = Teacher(student, linear(0.0, 1.0))
    before = teacher.module[0].weight.clone()
    with torch.no_grad():
        student[0].weight.add_(1.0)
    teacher.update(student, Step(10, 10))
    torch.testing.assert_close(teacher.module[0].weight, before)
    teacher.update(student, Step(0, 10))
    torch.testing.assert_close(teacher.module[0].weight, student[0].weight.detach())


def test_batch_statistics_are_copied() -> None:
    student = net()
    teacher = Teacher(student, 0.999)
    student.train()(torch.rand(8, 3) + 5)
    teacher.update(student, Step(0, 1))
    torch.testing.assert_close(teacher.module[1].running_mean, student[1].running_mean)
    assert teacher.module[1].num_batches_tracked == 1


def test_teacher_gives_and_gets_no_gradient() -> None:
    student = net()
    teacher = Teacher(student, 0.9)
    images = torch.rand(4, 3, requires_grad=True)
    assert not teacher(images).requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())


@pytest.mark.parametrize("mode", [False, True])
def test_teacher_keeps_its_mode(mode: bool) -> None:
    owner = nn.ModuleList([Teacher(net(), 0.9, training=mode)])
    for outer in (True, False, True):
        owner.train(outer)
        assert owner[0].module.training is mode
        assert owner[0].module[1].training is mode


def test_teacher_is_in_float32_and_in_the_state_dict() -> None:
    student = net().to(torch.bfloat16)
    teacher = Teacher(student, 0.9)
    state = teacher.state_dict()
    assert state["average.module.0.weight"].dtype == torch.float32
    other = Teacher(student, 0.9)
    with torch.no_grad():
        other.module[0].weight.zero_()
    other.load_state_dict(state)
    assert torch.equal(other.module[0].weight, teacher.module[0].weight)


def vision(side: int = 32, classes: int = 3) -> VisionModel:
    torch.manual_seed(0)
    names = tuple("abc"[:classes])
    backbone = timm.create_model("test_resnet", num_classes=classes)
    return VisionModel(backbone, "test_resnet", classes=names, input_size=(side, side))


def test_frozen_teacher_answers_as_the_model() -> None:
    model, images = vision(), torch.rand(2, 3, 32, 32)
    found = FrozenTeacher(copy.deepcopy(model))(images)
    torch.testing.assert_close(found.logits, model.logits(images))
    torch.testing.assert_close(found.features, model.features(images))
    final = model.backbone.forward_features(model.normalise(images))
    torch.testing.assert_close(found.tokens, final.flatten(2).transpose(1, 2))
    assert not found.features.requires_grad


def test_frozen_teacher_brings_its_own_size_and_tokens_without_the_class_token() -> None:
    backbone = timm.create_model("test_vit", num_classes=0, img_size=64)
    model = VisionModel(backbone, "test_vit", input_size=(64, 64))
    images = torch.rand(2, 3, 32, 32)
    found = FrozenTeacher(model)(images)
    assert found.logits is None
    assert found.tokens.shape == (2, (64 // 16) ** 2, backbone.num_features)
    large = F.interpolate(images, (64, 64), mode="bicubic", antialias=True).clamp(0, 1)
    torch.testing.assert_close(found.features, model.features(large))


def test_frozen_teacher_is_in_no_state_dict_but_moves_along() -> None:
    owner = nn.ModuleList([FrozenTeacher(vision())])
    assert not owner.state_dict()
    assert not list(owner.parameters())
    owner.train()
    assert not owner[0].model.training
    owner.double()
    assert owner[0](torch.rand(1, 3, 32, 32, dtype=torch.float64)).features.dtype == torch.float64


def test_frozen_teachers_outputs_are_constants_that_autograd_can_save() -> None:
    teacher, weight = FrozenTeacher(vision()), torch.ones(1, requires_grad=True)
    (teacher(torch.rand(2, 3, 32, 32)).features * weight).sum().backward()
    assert weight.grad is not None


def numbers(first: int, count: int) -> torch.Tensor:
    return torch.arange(first, first + count).float().view(1, -1, 1)


def test_queue_reads_only_what_was_pushed() -> None:
    queue = Queue(4, 1)
    assert queue.read().shape == (1, 0, 1)
    queue.push(numbers(0, 3))
    assert queue.read().flatten().tolist() == [0, 1, 2]


def test_queue_forgets_the_oldest_first() -> None:
    queue = Queue(4, 1)
    for first in (0, 3, 6):
        queue.push(numbers(first, 3))
    assert sorted(queue.read().flatten().tolist()) == [5, 6, 7, 8]


def test_queue_keeps_the_end_of_what_does_not_fit() -> None:
    queue = Queue(4, 1)
    queue.push(numbers(0, 11))
    assert sorted(queue.read().flatten().tolist()) == [7, 8, 9, 10]


def test_queue_keeps_its_kinds_apart_and_is_constant() -> None:
    queue = Queue(4, 2, kinds=2)
    new = torch.rand(2, 3, 2, requires_grad=True)
    queue.push(new)
    torch.testing.assert_close(queue.read(), new.detach())
    assert not queue.read().requires_grad


def test_queue_goes_on_where_it_was() -> None:
    queue = Queue(4, 1)
    queue.push(numbers(0, 3))
    buffer = io.BytesIO()
    torch.save(queue.state_dict(), buffer)
    buffer.seek(0)
    other = Queue(4, 1)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    for one in (queue, other):
        one.push(numbers(3, 2))
    assert torch.equal(queue.read(), other.read())
