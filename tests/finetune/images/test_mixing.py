"""Mixed batches: images, targets and embeddings with one coefficient, and what MonoLoss sees of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from monoloss import MonoLoss, mono_loss
from monoloss.errors import InputError
from monoloss.finetune.images.mixing import BatchMixing, MixedBatch
from monoloss.finetune.images.seeds import seeded_from

N_CLASSES = 3
LABELS = torch.tensor([0, 2, 1, 2])


def images() -> Tensor:
    """Image i is i everywhere."""
    return torch.arange(4.0)[:, None, None, None].expand(4, 3, 16, 16).clone()


def embeddings() -> Tensor:
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(rows, dim=1)


def check_row(mixed: MixedBatch, i: int, rows: Tensor) -> None:
    """Written out for one row: it and the one before."""
    share, before = mixed.coefficient, (i - 1) % 4
    assert 0 < share < 1
    target = torch.zeros(N_CLASSES)
    target[LABELS[i]] += share
    target[LABELS[before]] += 1 - share
    torch.testing.assert_close(mixed.targets[i], target)
    torch.testing.assert_close(mixed.embeddings[i], share * rows[i] + (1 - share) * rows[before])


def test_mixup() -> None:
    mixed = BatchMixing(N_CLASSES, mixup=0.8)(images(), LABELS, embeddings(), 0, 3)
    for i in range(4):
        check_row(mixed, i, embeddings())
        expected = mixed.coefficient * i + (1 - mixed.coefficient) * ((i - 1) % 4)
        torch.testing.assert_close(mixed.images[i], torch.full((3, 16, 16), expected))


def test_cutmix() -> None:
    mixed = BatchMixing(N_CLASSES, cutmix=1.0)(images(), LABELS, embeddings(), 0, 2)
    for i in range(4):
        check_row(mixed, i, embeddings())
        own = (mixed.images[i] == i).float().mean()
        torch.testing.assert_close(own, torch.tensor(mixed.coefficient))
        assert set(mixed.images[i].unique().tolist()) == {float(i), float((i - 1) % 4)}


def test_the_loss_uses_mixed_embeddings() -> None:
    activations = torch.rand(4, 5, generator=torch.Generator().manual_seed(2))
    mixed = BatchMixing(N_CLASSES, mixup=0.8)(images(), LABELS, embeddings(), 0, 3)
    share = mixed.coefficient
    by_hand = torch.stack([share * embeddings()[i] + (1 - share) * embeddings()[i - 1] for i in range(4)])
    loss = MonoLoss()(mixed.embeddings, activations)
    torch.testing.assert_close(loss, mono_loss(by_hand, activations))
    assert abs(loss - mono_loss(embeddings(), activations)) > 1e-3
    kept = BatchMixing(N_CLASSES, mixup=0.8, mix_embeddings=False)(images(), LABELS, embeddings(), 0, 3)
    assert kept.coefficient == share
    torch.testing.assert_close(MonoLoss()(kept.embeddings, activations), mono_loss(embeddings(), activations))


def test_torchvisions_own_call_passes_embeddings_unmixed() -> None:
    """Why there is a class of ours."""
    with seeded_from(0):
        _, _, rows = v2.MixUp(alpha=0.8, num_classes=N_CLASSES)(images(), LABELS, embeddings())
    assert torch.equal(rows, embeddings())


def test_choices_follow_from_what_is_given_alone() -> None:
    mixing, again = (BatchMixing(N_CLASSES, mixup=0.4, cutmix=1.0) for _ in range(2))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = [mixing(images(), LABELS, embeddings(), 0, number) for number in range(6)]
    assert torch.equal(torch.rand(3), expected)  # torch's generator is left as it was
    for number in (4, 1):
        mixed = again(images(), LABELS, embeddings(), 0, number)
        for one, other in zip(mixed, first[number], strict=True):
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    assert len({mixed.coefficient for mixed in first}) == 6
    assert mixing(images(), LABELS, embeddings(), 1, 0).coefficient != first[0].coefficient


def test_either_of_two_by_even_chance() -> None:
    mixing = BatchMixing(N_CLASSES, mixup=1.0, cutmix=1.0)
    whole = [mixing(images(), LABELS, None, number).images[1].unique().tolist() for number in range(200)]
    n_cut = sum(set(values) <= {0.0, 1.0} for values in whole)
    assert 70 < n_cut < 130


def test_inputs_stay_as_they_are() -> None:
    pictures, rows, labels = images(), embeddings(), LABELS.clone()
    for number in range(4):
        BatchMixing(N_CLASSES, mixup=0.4, cutmix=1.0)(pictures, labels, rows, number)
    assert torch.equal(pictures, images())
    assert torch.equal(rows, embeddings())
    assert torch.equal(labels, LABELS)


@pytest.mark.door
def test_nothing_to_mix_with() -> None:
    with pytest.raises(InputError, match="mixup: got 0, as cutmix; expected one of them above 0"):
        BatchMixing(N_CLASSES)
