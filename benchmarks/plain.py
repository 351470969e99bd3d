"""The same steps as a plain reading of the method has them: what `throughput.py` compares with.

Eager, float32, NCHW, one pass for each view, nothing in place. They run on `PreResNet.ResNet18`'s
own parts, so that both sides can be checked to compute the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from losses import sharpen, soft_cross_entropy, uniform_prior_penalty


def forward(network: nn.Module, images: Tensor) -> Tensor:
    """Logits [b, classes] of PreAct-ResNet-18 for images [b, 3, 32, 32]."""
    x = F.relu(network.bn1(network.conv1(images)))
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in stage:
            activated = F.relu(block.bn1(x))
            residual = block.conv2(F.relu(block.bn2(block.conv1(activated))))
            x = residual + block.shortcut(activated[:, :, :: block.picked, :: block.picked])
    return network.linear(F.avg_pool2d(x, 4).flatten(1))


def new_optimizer(network: nn.Module) -> Optimizer:
    """SGD as method 3 has it for CIFAR, with torch's default implementation."""
    return SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)


def take_step(loss: Tensor, optimizer: Optimizer) -> Tensor:
    """One step of SGD; the loss, for which nobody has waited yet."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def warm_up_step(network, optimizer, images, labels, weight, permutation) -> Tensor:
    """Mixup (method 3) on a batch [2B, 3, 32, 32]."""
    network.train()
    logits = forward(network, weight * images + (1 - weight) * images[permutation])
    loss = weight * F.cross_entropy(logits, labels)
    loss = loss + (1 - weight) * F.cross_entropy(logits, labels[permutation])
    return take_step(loss, optimizer)


def semi_supervised_step(
    network, peer, optimizer, labeled, unlabeled, weight, permutation, lambda_u
) -> Tensor:
    """Method 5, of (x1, x2, labels, clean probability) and (u1, u2); lambda_u is the ramped one."""
    network.train()
    peer.eval()
    (x1, x2, labels, w), (u1, u2) = labeled, unlabeled
    with torch.no_grad():
        four = [forward(network, u1), forward(network, u2), forward(peer, u1), forward(peer, u2)]
        guessed = sharpen(sum(torch.softmax(logits, dim=1) for logits in four) / 4, 0.5)
        two = [forward(network, x1), forward(network, x2)]
        p = sum(torch.softmax(logits, dim=1) for logits in two) / 2
        one_hot = F.one_hot(labels, p.shape[1])
        refined = sharpen(w[:, None] * one_hot + (1 - w[:, None]) * p, 0.5)
    images = torch.cat([x1, x2, u1, u2])
    targets = torch.cat([refined, refined, guessed, guessed])
    targets = weight * targets + (1 - weight) * targets[permutation]
    logits = forward(network, weight * images + (1 - weight) * images[permutation])
    rows = 2 * len(x1)
    loss_x = soft_cross_entropy(logits[:rows], targets[:rows])
    loss_u = ((torch.softmax(logits[rows:], dim=1) - targets[rows:]) ** 2).mean()
    penalty = uniform_prior_penalty(torch.softmax(logits, dim=1).mean(dim=0))
    return take_step(loss_x + lambda_u * loss_u + penalty, optimizer)


def scoring_step(network, images, labels) -> Tensor:
    """The losses [b] of a batch in eval mode (method 4)."""
    network.eval()
    with torch.no_grad():
        return F.cross_entropy(forward(network, images), labels, reduction="none")
