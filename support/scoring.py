"""A network as it scores: batch normalisations that follow a convolution folded into it."""

from torch import nn
from torch.fx.experimental.optimization import fuse


def scorer(network: nn.Module) -> nn.Module:
    """The network in eval mode, for passes that need no gradient while its weights stay.

    In eval mode BN is an affine map by constants, so that the convolution before it can do its
    work: the same logits within float32 rounding, from a copy whose convolutions carry the BN that
    follows. The network itself is given back, in eval mode too, where it is compiled, since a
    compiled one does both at once, and where its forward cannot be traced.
    """
    network.eval()
    if network._compiled_call_impl is not None:
        return network
    try:
        return fuse(network)
    except Exception:  # whatever stops the tracing, the network itself runs
        return network
