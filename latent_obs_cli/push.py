"""`latent-obs push`: an encoder or a trained agent to Hugging Face, with a card of what is known of it."""

from pathlib import Path

from tyro.conf import Positional

from latent_obs.util.errors import InputError


def push(
    run: Positional[Path],
    repository: Positional[str],
    license: str | None = None,
    public: bool = False,
    dry_run: bool = False,
) -> None:
    """Push an encoder or a trained agent to Hugging Face, with a model card.

    The card is made of what other commands have written: frames, pixel contract, the numbers of the report, and returns
    of comparisons and agents in the folders beside the run. An encoder goes with its report, without any pickle. An
    agent goes with its encoder and its video. Log in first: hf auth login.

    Args:
        run: The run folder of train-vae, fit or train-agent, or an encoder folder.
        repository: The repository, user/name; user/name@branch for another branch than the main one.
        license: What others may do with it, such as mit or cc-by-4.0. What is pushed shows frames: their license must
            allow it.
        public: Everyone sees the repository. By default only you do.
        dry_run: Push nothing; show the card and the list of files.
    """
    from latent_obs.util.hub import push as push_files
    from latent_obs.util.hub import push_target

    if not run.is_dir():
        raise InputError(f"run: there is no folder {run}; name the folder of an encoder or of an agent")
    address = push_target(repository, license)
    assert license is not None
    if (run / "best.zip").exists() or (run / "last.zip").exists():
        from agents.hub import agent_push

        what = agent_push(run, address.repo_id, license)
        use = f"latent-obs evaluate --run {address.repo_id}@COMMIT --trust"
    else:
        from latent_obs.encoder.card import encoder_push

        what = encoder_push(run, address.repo_id, license)
        use = f'FrozenEncoder.load("{address.repo_id}", revision="COMMIT")'
    if dry_run:
        print(what.card("COMMIT"), "-" * 60, what, "Nothing was pushed (--dry-run).", sep="\n")
        return
    print(what)
    kind = "public" if public else "private"
    pushed = push_files(what, private=not public, revision=address.revision, commit_message="Push by latent-obs")
    print(f"\nPushed to a {kind} repository: {pushed.url}\nnext: {use.replace('COMMIT', pushed.commit)}")
