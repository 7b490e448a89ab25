"""Verbs and options that this version no longer has, each with what to use instead. An entry stays for one release."""

from collections.abc import Sequence

from latent_obs.util.errors import InputError

REMOVED_VERBS = {
    "alternate": "run `latent-obs frames record --agent RUN`, `latent-obs train-vae --start-from RUN` and "
    "`latent-obs train-agent` one after the other, as in docs/agents.md",
}

_NO_EFFECT = "it was not measured to help; leave it out"

#: By verb and option: what to do instead. Options are written with hyphens, without the leading two.
REMOVED_OPTIONS: dict[str, dict[str, str]] = {
    "train-vae": {
        "motion": "weight small moving things with --salience",
        "hard-pixels": "weight small moving things with --salience",
        "edges": "weight small moving things with --salience",
        "scales": "weight small moving things with --salience",
        "ramp": "beta rises linearly; leave it out",
        "block-frames": "frames are drawn one by one; leave it out",
        "checkpoint-steps": "checkpoints are written every five minutes; leave it out",
        "checkpoint-minutes": "checkpoints are written every five minutes; leave it out",
        "objective": "classic is --salience 0; acting is the default",
        "preset": "give --widths and --strides; small was 16 32 64 128 (--bottleneck dense), or 32 64 with 4 2",
        "warm-up-steps": "use a smaller --learning-rate if training diverges",
        "clip-norm": "use a smaller --learning-rate if training diverges",
        "allow-added-files": "train on with more frames by --start-from RUN and another --out",
        "tensorboard": "TensorBoard logs are written if it is installed; leave it out",
        "compile": "the loss is compiled on CUDA and nowhere else; leave it out",
        "standardise": "it is spelled --standardize",
    },
    "train-agent": {"standardise": "it is spelled --standardize"},
    "compare": {"standardise": "it is spelled --standardize"},
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
