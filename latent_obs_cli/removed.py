"""Verbs and options that this version no longer has, each with what to use instead. An entry stays for one release."""

from collections.abc import Sequence

from latent_obs.util.errors import InputError

REMOVED_VERBS = {
    "alternate": "run `latent-obs frames record --agent RUN`, `latent-obs train-vae --start-from RUN` and "
    "`latent-obs train-agent` one after the other, as in docs/agents.md",
}

_NO_EFFECT = "it was not measured to help; leave it out"

_AGENT = {
    "standardise": "use --normalize-observation",
    "standardize": "use --normalize-observation",
    "clip-range-schedule": "the clip range is constant; leave it out",
    "gae-lambda": "it is 0.95; leave it out",
    "lstm-size": "it is 128; leave it out",
    "tau": "it is 1 for DQN and QR-DQN and 0.005 for SAC; leave it out",
    "n-quantiles": "it is 50; leave it out",
    "keep-checkpoints": "a run has its best and its last agent; leave it out",
}

#: By verb and option: what to do instead. Options are written with hyphens, without the leading two.
REMOVED_OPTIONS: dict[str, dict[str, str]] = {
    "train-vae": {
        "motion": "weight small moving things with --salience",
        "hard-pixels": "weight small moving things with --salience",
        "edges": "weight small moving things with --salience",
        "scales": "weight small moving things with --salience",
        "ramp": "beta rises linearly; leave it out",
        "block-frames": "frames are drawn one by one; leave it out",
        "checkpoint-steps": "use --checkpoint-minutes",
        "compile": "the loss is compiled on CUDA and nowhere else; leave it out",
        "standardise": "it is spelled --standardize",
    },
    "train-agent": _AGENT,
    "compare": _AGENT,
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
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("_", "-")
            advice = removed.get(name) or removed.get(name.removeprefix("no-"))
            if advice is not None:
                raise InputError(f"--{name} was removed: {advice}")
