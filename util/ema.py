"""The exponential moving average of a network's weights: one network that stands for the last iterations of a training."""

import copy

import torch


class Average:
    """average = decay * average + (1 - decay) * weights after every iteration, BatchNorm's statistics included.

    `network` is a copy of the network that holds the average. The decay begins low, so that the random weights of the start are
    forgotten in time (as in tf.train.ExponentialMovingAverage): min(decay, (1 + n) / (10 + n)) where n iterations came before.
    """

    def __init__(self, network, decay):
        self.network, self.decay = copy.deepcopy(network), decay
        pairs = [*zip(self.network.state_dict().values(), network.state_dict().values())]  # they share the networks' memory
        self.floats = tuple(zip(*(pair for pair in pairs if pair[0].is_floating_point())))
        self.counts = tuple(zip(*(pair for pair in pairs if not pair[0].is_floating_point())))  # BatchNorm's batches: copied

    def update(self, n) -> None:
        """n: iterations that were finished before the one that made these weights."""
        average, weights = self.floats
        torch._foreach_lerp_(average, weights, 1 - min(self.decay, (1 + n) / (10 + n)))
        if self.counts:
            torch._foreach_copy_(*self.counts)
