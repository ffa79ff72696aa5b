"""The voice: what a speaker encoder makes of an enrollment.

It is a vector for each talker, (batch, E), or frames of the enrollment, `Frames`.
"""

from typing import NamedTuple

import torch


class Frames(NamedTuple):
    """A voice of frames: what the talkers sounded like at each moment."""

    features: torch.Tensor
    """Zero where the mask is, (batch, frames, F)."""
    mask: torch.Tensor
    """1 for true frames and 0 for padding, (batch, frames)."""
