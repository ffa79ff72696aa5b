"""The sizes of the networks and signals that are measured."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sizes:
    """TD-SpeakerBeam's, and how much it has to do; by default as it is trained."""

    n_filters: int = 512
    kernel_size: int = 16
    """samples"""
    stride: int = 8
    """samples"""
    channels: int = 128
    hidden_channels: int = 512
    n_blocks: int = 8
    n_repeats: int = 3
    sample_rate: int = 8000
    """Hz"""
    seconds: float = 3.0
    """of a mixture and of an enrollment"""
    n_mixtures: int = 8
    """in a training step"""
    long_seconds: tuple = (10.0, 600.0)
    """of the mixtures to extract from"""
    bsrnn: dict = field(
        default_factory=lambda: {
            "small": {},
            "base": {"channels": 64, "n_blocks": 6},
        }
    )
    """of BSRNN, by name: what its YAML says otherwise"""

    @property
    def samples(self):
        """Of a mixture."""
        return round(self.seconds * self.sample_rate)

    @property
    def frames(self):
        """Of a mixture."""
        return (self.samples - self.kernel_size) // self.stride + 1


FULL = Sizes()
QUICK = Sizes(
    n_filters=16,
    channels=8,
    hidden_channels=12,
    n_blocks=2,
    n_repeats=1,
    seconds=0.5,
    n_mixtures=2,
    long_seconds=(1.0, 2.0),
    bsrnn={"tiny": {"channels": 4, "n_blocks": 1}},
)
