"""Whether each latent stands for one thing: five published scores, on scenes whose factors are known.

    score                 question                                                  a guess    best
    MIG                   how far is the best latent ahead of the second, in bits?      0         1
    SAP                   ... and in predicting the factor?                              0     about 1
    DCI, disentanglement  does each latent tell of one factor only?                      0         1
    DCI, completeness     is each factor told by one latent only?                        0         1
    DCI, informativeness  are the factors told at all?                                   0         1
    beta-VAE              which factor is the same in all pairs? (linear classifier)    1/F        1
    FactorVAE             which factor is the same in a batch? (majority vote)          1/F        1

A disentangled encoder is not by itself one that an agent learns well on; informativeness is the one that it cannot do without.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from latent_obs.errors import InputError
from vae_training.report.disentanglement_arrays import (
    FEWEST_SAMPLES,
    Dci,
    dci,
    gaps_of,
    live_latents,
    mig,
    mutual_information,
    sap,
)
from vae_training.report.disentanglement_interventions import (
    Encode,
    Sampler,
    beta_vae_score,
    encode_in_parts,
    factor_vae_score,
)

__all__ = [
    "Dci",
    "DisentanglementScores",
    "Encode",
    "Sampler",
    "beta_vae_score",
    "dci",
    "factor_vae_score",
    "mig",
    "mutual_information",
    "sap",
    "score",
]


@dataclass(frozen=True)
class DisentanglementScores:
    """All scores of an encoder; see the functions for what each one is.

    Attributes:
        mig: Mutual information gap, 0 to 1.
        sap: Separated attribute predictability, 0 to about 1.
        dci_disentanglement: 0 to 1.
        dci_completeness: 0 to 1.
        dci_informativeness: 0 to 1.
        beta_vae: Accuracy, from about `chance` to 1.
        factor_vae: Accuracy, from about `chance` to 1.
        chance: What a guess gives in the last two: 1 / number of factors.
        mig_per_factor: The gap of each factor by its name.
        informativeness_per_factor: How well all latents together tell each factor, by its name.
        importances: Share of each latent in telling a factor, by the factor's name; a list over the latents.
        latents: Number of latents.
        live_latents: Number of those that change at all.
        samples: Scenes that MIG and SAP are measured on.
        seed: Of the scenes.
    """

    mig: float
    sap: float
    dci_disentanglement: float
    dci_completeness: float
    dci_informativeness: float
    beta_vae: float
    factor_vae: float
    chance: float
    mig_per_factor: dict[str, float]
    informativeness_per_factor: dict[str, float]
    importances: dict[str, list[float]]
    latents: int
    live_latents: int
    samples: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def score(
    encode: Encode,
    scenes: Sampler,
    *,
    samples: int = 10_000,
    seed: int = 0,
    dci_samples: int = 3_000,
    votes: int = 600,
    batch: int = 64,
) -> DisentanglementScores:
    """Measure all scores of an encoder.

    Args:
        encode: From frames (n, ...) to latents (n, D), such as a `FrozenEncoder`.
        scenes: What makes the frames, such as `FactorScenes`.
        samples: Scenes for MIG and SAP.
        seed: Of all randomness: the same seed gives the same scores.
        dci_samples: How many of them are for DCI as well, whose trees take the most time.
        votes: Of the beta-VAE and the FactorVAE score.
        batch: Pairs (beta-VAE) or scenes (FactorVAE) of each vote; with the defaults some 115,000 scenes in all.

    Returns:
        The scores.

    Raises:
        InputError: Too few samples, votes or factors; the encoder gives no finite latents of shape (n, D).
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> from vae_training.report.factor_scenes import FactorScenes
        >>> scenes = FactorScenes(16, positions=4, sizes=1, shapes=1, hues=1, orientations=1)
        >>> def shares(frames):  # of light in the columns and rows: they tell the position
        ...     light = frames.sum(axis=3, dtype=float)
        ...     return np.hstack([light.mean(axis=1), light.mean(axis=2)])
        >>> scores = score(shares, scenes, samples=200, votes=60, batch=8)
        >>> round(scores.dci_informativeness, 1), scores.chance
        (1.0, 0.5)
    """
    for name, number in (("samples", samples), ("dci_samples", dci_samples)):
        if isinstance(number, bool) or not isinstance(number, int) or number < FEWEST_SAMPLES:
            raise InputError(f"{name} must be a whole number of {FEWEST_SAMPLES} or more, got {number!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError(f"seed must be a whole number from 0 to {2**32 - 1}, got {seed!r}")
    names, ordered = [f.name for f in scenes.factors], [f.ordered for f in scenes.factors]
    values = scenes.sample_values(samples, np.random.default_rng(seed))
    latents = encode_in_parts(encode, scenes, values)
    trees = dci(latents[:dci_samples], values[:dci_samples], ordered=ordered, seed=seed)
    gaps = gaps_of(latents, values)
    importances, informed = np.array(trees.importances), trees.informativeness_per_factor
    varying = [i for i, factor in enumerate(scenes.factors) if factor.values > 1]
    return DisentanglementScores(
        mig=float(np.mean(list(gaps.values()))),
        sap=sap(latents, values, ordered=ordered),
        dci_disentanglement=trees.disentanglement,
        dci_completeness=trees.completeness,
        dci_informativeness=trees.informativeness,
        beta_vae=beta_vae_score(encode, scenes, votes=votes, batch=batch, seed=seed),
        factor_vae=factor_vae_score(encode, scenes, votes=votes, batch=batch, seed=seed),
        chance=1 / len(varying),
        mig_per_factor={names[j]: gap for j, gap in gaps.items()},
        informativeness_per_factor={name: value for name, value in zip(names, informed, strict=True) if value is not None},
        importances={names[j]: importances[:, j].tolist() for j in varying},
        latents=latents.shape[1],
        live_latents=int(live_latents(latents).sum()),
        samples=samples,
        seed=seed,
    )
