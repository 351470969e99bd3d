"""PreAct-ResNet-18 as the DivideMix family builds it (method 2).

State-dict names and shapes are the family's, so checkpoints exchange in both directions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PreActBlock(nn.Module):
    """BN, ReLU, 3x3 conv, BN, ReLU, 3x3 conv, plus a shortcut."""

    def __init__(self, in_planes: int, planes: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.shortcut = nn.Sequential()
        # On CPUs torch's strided 1x1 convolution of few channels, in channels_last, writes past the
        # end of its memory: there the pixels are picked first, which gives the same numbers.
        self.picked = stride if in_planes <= 8 else 1
        if stride != 1 or in_planes != planes:
            strided = stride // self.picked
            self.shortcut.append(nn.Conv2d(in_planes, planes, 1, strided, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        # In place where no gradient needs the values before: a third of the memory's traffic.
        activated = F.relu(self.bn1(x), inplace=True)
        residual = self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True))
        # Kept: the shortcut, an identity one too, reads the activated input.
        return residual.add_(self.shortcut(activated[:, :, :: self.picked, :: self.picked]))


class PreActResNet(nn.Module):
    """Stem with its own BN and ReLU, four stages, average pool, linear; no BN before the pool."""

    def __init__(self, blocks: tuple[int, int, int, int], num_classes: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, blocks[0], stride=1)
        self.layer2 = self._stage(width, 2 * width, blocks[1], stride=2)
        self.layer3 = self._stage(2 * width, 4 * width, blocks[2], stride=2)
        self.layer4 = self._stage(4 * width, 8 * width, blocks[3], stride=2)
        self.linear = nn.Linear(8 * width, num_classes)

    @staticmethod
    def _stage(in_planes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
        first = PreActBlock(in_planes, planes, stride)
        return nn.Sequential(first, *(PreActBlock(planes, planes, 1) for _ in range(blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, classes] of float images [batch, 3, height, width], normalized."""
        if self.training and len(images) == 1 and max(images.shape[-2:]) <= 8:
            # The last maps hold one value a channel, of which BN in training needs two.
            return self.forward(torch.cat([images, images]))[:1]
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        # On 32x32 images this is the 4x4 average pool; smaller images pool what they have.
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def ResNet18(num_classes: int = 10, width: int = 64) -> PreActResNet:
    """PreAct-ResNet-18: two blocks a stage; `width` channels at first, 8·width at last."""
    return PreActResNet((2, 2, 2, 2), num_classes, width)
