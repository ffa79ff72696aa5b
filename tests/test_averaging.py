"""Averages of the weights: over how many steps, of which numbers."""

import numpy as np
import pytest
import torch
from torch.nn import ModuleDict

from speechbrain_peer.training.averaging import WeightAverages


class Stage(torch.nn.Module):
    """A weight, and buffers that are numbers, counters and places."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("places", torch.tensor([3, 7]), persistent=False)

    def set(self, value):
        self.weight.data.fill_(value)
        self.mean.fill_(value)
        self.steps += 1


def averaged(values, steps):
    """The averages after a stage has had these weights."""
    modules = ModuleDict({"stage": Stage()})
    averages = WeightAverages(modules, steps)
    for value in values:
        modules["stage"].set(value)
        averages.update_parameters(modules)
    return averages.module["stage"]


@pytest.mark.parametrize("n_steps", [1, 2, 30, 1000])
@pytest.mark.parametrize("steps", [1, 20, 10_000])
def test_the_age_of_an_average_is_a_tenth_of_the_training_until_it_is_full(
    n_steps, steps
):
    stage = averaged(range(1, n_steps + 1), steps)
    age = n_steps - stage.weight.item()
    assert age <= min(steps - 1, n_steps / 10) + 1e-3
    if n_steps >= 10 * steps or steps > n_steps:
        np.testing.assert_allclose(age, min(steps - 1, n_steps / 10), atol=0.15)


def test_first_weights_do_not_count_as_such():
    assert averaged([5.0], steps=1000).weight.item() == 5.0
    assert averaged([1e6] + 300 * [1.0], steps=1000).weight.item() < 1.001


def test_buffers_are_averaged_where_they_are_numbers():
    stage = averaged([1.0, 2.0, 4.0], steps=1000)
    assert stage.mean.item() == stage.weight.item() not in (1.0, 2.0, 4.0)
    assert stage.steps.item() == 3
    assert stage.places.tolist() == [3, 7]
