"""Which terms the loss has beside the classic ones, and with what weight."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Terms:
    """Weights of the terms; 0 leaves one out.

    The first three weigh pixels of the reconstruction (`pixel_weights.mix`), the next two are errors beside it, in its
    unit, and the last three are the losses of heads, in nats or squared standard deviations.
    """

    salience: float = 0.0
    motion: float = 0.0
    hard_pixels: float = 0.0
    edges: float = 0.0
    scales: float = 0.0
    inverse_dynamics: float = 0.0
    next_latent: float = 0.0
    reward: float = 0.0

    @property
    def are_any(self) -> bool:
        """Whether a term is on."""
        return any(getattr(self, field.name) for field in fields(self))

    @property
    def need_actions(self) -> bool:
        """Whether a term is trained on actions and rewards."""
        return bool(self.inverse_dynamics or self.next_latent or self.reward)

    @property
    def need_next_frames(self) -> bool:
        """Whether a term needs the frame that follows."""
        return bool(self.motion or self.need_actions)
