"""Which encoder an agent of a run folder was trained with: known by its weights, and never taken for another."""

import hashlib
from pathlib import Path

from agents.config import AgentConfig
from agents.store import agent_state
from latent_obs.errors import InputError
from latent_obs.frozen import FrozenEncoder


def fingerprint(encoder: FrozenEncoder | None) -> str | None:
    """SHA-256 of an encoder's weights and of the frames that it takes; None for no encoder.

    Example:
        >>> from latent_obs.architecture import Architecture
        >>> one, two = (FrozenEncoder.random(Architecture((16, 16, 3), 8), seed=seed, device="cpu") for seed in (0, 1))
        >>> fingerprint(one) == fingerprint(one), fingerprint(one) == fingerprint(two)
        (True, False)
    """
    if encoder is None:
        return None
    digest = hashlib.sha256(repr(encoder.contract).encode())
    for name, tensor in sorted(encoder._network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_encoder(run: Path, name: str, encoder: FrozenEncoder | None) -> None:
    """Refuse another encoder than the agent was trained with.

    Raises:
        InputError: It is another one.
    """
    trained, given = agent_state(run, name).get("encoder"), fingerprint(encoder)
    if trained is not None and trained != given:
        source = "no encoder" if encoder is None else encoder.path or encoder
        raise InputError(
            f"agent {name!r} of {run} was trained with an encoder whose fingerprint is {trained[:12]}…, and {source} has "
            f"{(given or 'none')[:12]}…: its latents mean something else to the agent. Put the encoder back that was copied "
            f"to {run / 'encoder'} when it was trained, or train again with --encoder"
        )


def encoder_of(run: Path, name: str) -> Path | None:
    """The encoder folder that an agent was trained with; None where it has none.

    It is `encoder/` of the run, except for agents saved before the run's encoder was exchanged by the removed command
    `latent-obs alternate`: their encoder is one of those in `encoders/`.

    Raises:
        InputError: There are encoders, and the agent was trained with none of them.
        EncoderFolderError: The only encoder is damaged.
    """
    present = run / "encoder"
    folders = [f for f in [present, *sorted(run.glob("encoders/*"), reverse=True)] if f.is_dir()]
    if len(folders) < 2 or AgentConfig.load(run).observation != "latent":
        return present if present in folders else None  # one: loading the agent checks it
    wanted = agent_state(run, name).get("encoder")
    for folder in folders:
        if wanted in (None, fingerprint(FrozenEncoder.load(folder, device="cpu"))):
            return folder
    raise InputError(f"agent {name!r} of {run} was trained with none of the encoders {', '.join(map(str, folders))}")
