"""Which terms the loss has beside the classic ones, and with what weight."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Terms:
    """Weights of the terms; 0 leaves one out.

    `salience` weighs pixels of the reconstruction (`pixel_weights`); the others weigh the losses of heads, in nats or
    squared standard deviations.
    """

    salience: float = 0.0
    inverse_dynamics: float = 0.0
    next_latent: float = 0.0
    reward: float = 0.0

    @property
    def are_any(self) -> bool:
        """Whether a term is on."""
        return any(getattr(self, field.name) for field in fields(self))

    @property
    def need_actions(self) -> bool:
        """Whether a term is trained on actions, rewards and the frames that follow."""
        return bool(self.inverse_dynamics or self.next_latent or self.reward)
