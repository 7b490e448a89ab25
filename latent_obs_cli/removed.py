"""Verbs and options that this version no longer has, each with what to use instead. An entry stays for one release."""

from collections.abc import Sequence

from latent_obs.util.errors import InputError

REMOVED_VERBS = {
    "alternate": "run `latent-obs frames record --agent RUN`, `latent-obs train-vae --start-from RUN` and "
    "`latent-obs train-agent` one after the other, as in docs/agents.md",
}

_STUDY = "in a TOML file, and name that with --study (its format: agents/compare/study.py)"
#: Settings of train-agent that were options of compare, separated by blanks.
_IN_STUDY = """
workers envs env-kwargs pixel-key flatten history precision backend algorithm learning-rate learning-rate-schedule gamma
net-arch batch-size normalize-reward normalize-observation latent-deviation n-steps n-epochs ent-coef buffer-size
learning-starts train-freq gradient-steps target-update-interval exploration-fraction exploration-final-eps
checkpoint-every eval-every eval-episodes deterministic device
"""

_AGENT = {
    **dict.fromkeys(("standardise", "standardize"), "use --normalize-observation"),
    **dict.fromkeys(("clip-range", "clip-range-schedule"), "it is 0.2; leave it out"),
    "exact-resume": "environments are reset at checkpoints, but for MineRL's; --checkpoint-every 0 does not reset them",
    "watch-drift": "drift is logged if the encoder has statistics; leave it out",
    "gae-lambda": "it is 0.95; leave it out",
    "lstm-size": "it is 128; leave it out",
    "tau": "it is 1 for DQN and QR-DQN and 0.005 for SAC; leave it out",
    "n-quantiles": "it is 50; leave it out",
    "keep-checkpoints": "a run has its best and its last agent; leave it out",
}

#: By verb and option: what to do instead. Options are written with hyphens, without the leading two.
REMOVED_OPTIONS: dict[str, dict[str, str]] = {
    "quickstart": dict.fromkeys(
        ("frames", "vae-epochs", "steps"), "it is chosen for the machine and the time that you give with --minutes"
    ),
    "train-vae": {
        **dict.fromkeys(
            ("salience", "motion", "hard-pixels", "edges", "scales"), "all pixels count the same; leave it out"
        ),
        "ramp": "beta rises linearly; leave it out",
        "block-frames": "frames are drawn one by one; leave it out",
        **dict.fromkeys(("checkpoint-steps", "checkpoint-minutes"), "one is written every five minutes; leave it out"),
        "objective": "all pixels count the same, as in classic; leave it out",
        "preset": "give --widths and --strides; small was 16 32 64 128 (--bottleneck dense), or 32 64 with 4 2",
        **dict.fromkeys(("warm-up-steps", "clip-norm"), "use a smaller --learning-rate if training diverges"),
        "first-activation": "the first convolution has no activation; leave it out",
        "optimizer": "Adam is used; leave it out",
        "weight-decay": "use more frames or --augment 1 if the encoder overfits",
        **dict.fromkeys(("inverse-dynamics", "next-latent", "reward"), "no comparison shows a use; leave it out"),
        "ema": "the weights of the best comparable moment are exported; leave it out",
        "free-bits": "use a smaller --beta if the KL falls to 0",
        "allow-added-files": "train on with more frames by --start-from RUN and another --out",
        "tensorboard": "TensorBoard logs are written if it is installed; leave it out",
        "compile": "the loss is compiled on CUDA and nowhere else; leave it out",
        "linear-path": "principal components are part of the latent: --components",
        **dict.fromkeys(("standardise", "standardize"), "pixels are standardized; leave it out"),
    },
    "report": {"autoencoder-steps": "the report compares with PCA; leave it out"},
    "train-agent": _AGENT,
    "compare": {
        **{option: f"set {option.replace('-', '_')} under [settings] {_STUDY}" for option in _IN_STUDY.split()},
        "pca": f"set pca under [tasks.NAME] {_STUDY}",
        "observation": "an agent for each of several observations is trained; name them with --arms",
        "seed": "a run for each of several seeds is made; name them with --seeds",
        **_AGENT,
    },
}


def check_removed_options(verb: str, words: Sequence[str]) -> None:
    """Reject options that were removed.

    Args:
        verb: The verb, such as "train-vae".
        words: What follows it on the command line.

    Raises:
        InputError: One of the words is an option that was removed; the message names what to use instead.

    Example:
        >>> check_removed_options("train-vae", ["--frames", "frames/doom"])
    """
    removed = REMOVED_OPTIONS.get(verb, {})
    for word in words:
        if word == "--":
            return
        name = word.removeprefix("--").partition("=")[0].replace("_", "-")
        advice = removed.get(name) or removed.get(name.removeprefix("no-"))
        if advice is not None and word.startswith("--"):
            raise InputError(f"--{name} was removed: {advice}")
