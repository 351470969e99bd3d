"""Scripts of the DivideMix family take our parts unchanged: their call forms, used as they do."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_config
from torch import nn, optim

import smr
from dataloader_cifar import cifar_dataloader, noisy_labels
from losses import NegEntropy, SemiLoss, linear_rampup, mixup_criterion
from PreResNet import ResNet18

NUM_CLASS, BATCH_SIZE, WARM_UP, LAMBDA_U = 10, 16, 10, 25


def family_loader(folder, log=None, noise_mode="sym", r=0.5):
    """Positional arguments, and a name for the noise that does not exist on a first run."""
    noise_file = f"{folder}/{r:.1f}_{noise_mode}.json"
    return cifar_dataloader(
        "cifar10",
        r=r,
        noise_mode=noise_mode,
        batch_size=BATCH_SIZE,
        num_workers=5,
        root_dir=str(folder),
        log=log,
        noise_file=noise_file,
    )


def scaled_losses(network, eval_loader, count: int) -> np.ndarray:
    """The family's loop over `eval_train`: losses by index, scaled."""
    network.eval()
    losses = torch.zeros(count)
    with torch.no_grad():
        for inputs, targets, index in eval_loader:
            loss = nn.CrossEntropyLoss(reduction="none")(network(inputs), targets)
            for b in range(inputs.size(0)):
                losses[index[b]] = loss[b]
    return ((losses - losses.min()) / (losses.max() - losses.min())).numpy()


def test_family_warm_up_loop_runs_on_our_loader_network_and_losses(cifar10_folder):
    loader = family_loader(cifar10_folder)
    network = ResNet18(num_classes=NUM_CLASS)
    assert sum(p.numel() for p in network.parameters()) == 11_171_274
    network = ResNet18(num_classes=NUM_CLASS, width=4)
    optimizer = optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    conf_penalty = NegEntropy()
    warmup_trainloader = loader.run("warmup")
    num_iter = (len(warmup_trainloader.dataset) // warmup_trainloader.batch_size) + 1
    assert num_iter == 100 // 32 + 1
    network.train()
    for inputs, labels, _ in warmup_trainloader:
        optimizer.zero_grad()
        outputs = network(inputs)
        permutation = torch.randperm(inputs.size(0))
        loss = nn.CrossEntropyLoss()(outputs, labels) + conf_penalty(outputs)
        loss = loss + mixup_criterion(outputs, labels, labels[permutation], 0.7)
        loss.backward()
        optimizer.step()
    assert np.isfinite(loss.item())


def test_family_semi_supervised_loop_runs_on_our_loader_network_and_losses(cifar10_folder):
    log = io.StringIO()
    loader = family_loader(cifar10_folder, log)
    network = ResNet18(num_classes=NUM_CLASS, width=4)
    optimizer = optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    criterion = SemiLoss()
    prob = 1 - scaled_losses(network, loader.run("eval_train"), 100)
    pred = prob > np.median(prob)
    labeled_trainloader, unlabeled_trainloader = loader.run("train", pred, prob)
    assert log.getvalue().startswith(f"Number of labeled samples:{pred.sum()}   AUC:0.")
    assert labeled_trainloader.batch_size == BATCH_SIZE
    assert len(labeled_trainloader.dataset) == pred.sum()
    assert len(unlabeled_trainloader.dataset) == 100 - pred.sum()

    network.train()
    unlabeled_train_iter = iter(unlabeled_trainloader)
    num_iter = (len(labeled_trainloader.dataset) // BATCH_SIZE) + 1
    steps = 0
    for batch_idx, (inputs_x, inputs_x2, labels_x, w_x) in enumerate(labeled_trainloader):
        try:
            inputs_u, inputs_u2 = next(unlabeled_train_iter)
        except StopIteration:
            unlabeled_train_iter = iter(unlabeled_trainloader)
            inputs_u, inputs_u2 = next(unlabeled_train_iter)
        batch_size = inputs_x.size(0)
        one_hot = torch.zeros(batch_size, NUM_CLASS).scatter_(1, labels_x.view(-1, 1), 1)
        assert (one_hot.argmax(dim=1) == labels_x).all()
        w_x = w_x.view(-1, 1).type(torch.FloatTensor)
        with torch.no_grad():
            p_u = F.softmax(network(inputs_u), dim=1)
            p_x = F.softmax(network(inputs_x2), dim=1)
        targets_x = w_x * one_hot + (1 - w_x) * p_x
        outputs_x, outputs_u = network(inputs_x), network(inputs_u2)
        Lx, Lu, lamb = criterion(
            outputs_x, targets_x, outputs_u, p_u, WARM_UP + 8 + batch_idx / num_iter, WARM_UP
        )
        assert lamb == linear_rampup(WARM_UP + 8 + batch_idx / num_iter, WARM_UP)
        assert 0.5 * LAMBDA_U <= lamb <= 0.57 * LAMBDA_U
        optimizer.zero_grad()
        (Lx + lamb * Lu).backward()
        optimizer.step()
        steps += 1
    assert steps == len(labeled_trainloader) == -(-int(pred.sum()) // BATCH_SIZE)


def test_family_test_loop_runs_on_our_loader(cifar10_folder):
    loader = family_loader(cifar10_folder)
    networks = [ResNet18(NUM_CLASS, 4).eval() for _ in range(2)]
    correct = total = 0
    with torch.no_grad():
        for inputs, targets, _ in loader.run("test"):
            outputs = networks[0](inputs) + networks[1](inputs)
            _, predicted = torch.max(outputs, 1)
            total += targets.size(0)
            correct += predicted.eq(targets).cpu().sum().item()
    assert total == 40
    ours, _ = smr.evaluate(networks, loader.run("test"), tiny_config())
    assert 100 * correct / total == pytest.approx(ours["accuracy"])
    assert correct > 0


def test_noise_of_a_first_run_is_generated_and_that_of_the_family_used(cifar10_folder):
    first = family_loader(cifar10_folder, r=0.2)
    generated = noisy_labels(np.arange(100) % 10, "cifar10", "sym", 0.2, 123)
    assert first.noisy_labels.tolist() == generated
    (cifar10_folder / "0.2_sym.json").write_text(str([1] * 100))
    assert family_loader(cifar10_folder, r=0.2).noisy_labels.tolist() == [1] * 100
