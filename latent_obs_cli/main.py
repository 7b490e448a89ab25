"""`latent-obs`: one command, a verb per stage; a thin shell over the public functions of the three packages."""

import contextlib
import importlib
import importlib.util
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from latent_obs.util.errors import GameFaultError, GameLostError, InputError, LatentObsError, one_line
from latent_obs_cli.removed import REMOVED_VERBS, check_removed_options

# Verb: (module and function that runs it, one line of help). Imported only when it is called, so that --help is quick.
VERBS = {
    "quickstart": ("quickstart:quickstart", "The whole path in minutes: frames, CVAE, encoder, PPO, and a page"),
    "fit": ("fit:fit", "An encoder for your environment: frames, CVAE, and a report of how good it is"),
    "frames record": ("verbs:frames_record", "Record frames of an environment to .npy files"),
    "frames extract": ("verbs:frames_extract", "Convert videos, demonstrations and pictures to .npy files"),
    "frames stats": ("verbs:frames_stats", "Check a folder of frames: contents, warnings, contact sheets"),
    "train-vae": ("verbs:train_vae", "Train the CVAE on a folder of frames; writes an encoder folder"),
    "report": ("verbs:report", "Check whether an encoder's latents keep what an agent needs: page, JSON, verdict"),
    "encoder": ("encoder:encoder", "Make an encoder of a pretrained network of timm, to compare with your own"),
    "train-agent": ("agent_verbs:train_agent", "Train an agent on an environment's latents (or on a baseline)"),
    "actions fit": ("verbs:actions_fit", "Fit centroids to demonstrated actions, for obfuscated MineRL tasks"),
    "evaluate": ("agent_verbs:evaluate", "Play a trained agent: returns and success with intervals, a video"),
    "watch": ("agent_verbs:watch", "Watch a trained agent play, live in a window"),
    "push": ("push:push", "Push an encoder or a trained agent to Hugging Face, with a model card"),
    "compare": ("compare:run_compare", "Compare latents with pixels and baselines: curves, intervals, a verdict"),
    "doctor": ("doctor:run_doctor", "Check the installation: what is missing, and the command that installs it"),
}
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory")  # torch raises plain RuntimeErrors
_WITH_OWN_PARSER = ("train-agent", "doctor")  # which get their words; arguments of the others are parsed by tyro

_USAGE = """\
usage: latent-obs VERB [OPTIONS]

Learn a compact description of the pixels first, then let the agent learn on that.

{verbs}

An encoder for your own environment, in one command:
  latent-obs fit           --env my_module:MyEnv-v0 --out runs/mine

The stages by hand, in order:
  latent-obs frames record --env VizdoomBasic-v1 --frame-skip 4 --out frames/doom
  latent-obs train-vae     --frames frames/doom --out runs/doom
  latent-obs report        runs/doom
  latent-obs train-agent   --env VizdoomBasic-v1 --frame-skip 4 --latent-only --encoder runs/doom --out runs/a
  latent-obs evaluate      --run runs/a

Was it worth it? Pixels, latents and baselines over several seeds, with intervals:
  latent-obs compare       --env VizdoomBasic-v1 --frame-skip 4 --latent-only --encoder runs/doom --out runs/b

latent-obs VERB --help shows the options of a verb."""


def usage() -> str:
    """The overview that `latent-obs --help` prints."""
    width = max(map(len, VERBS))
    return _USAGE.format(verbs="\n".join(f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after `latent-obs`; the process's own by default.

    Returns:
        The exit status: 0, 2 for a mistake of the user, 130 after Ctrl-C, 141 where the reader of the output ended.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # lines appear at once in a file or a pipe, too
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"latent-obs {version('latent-obs')}")
        return 0
    length = 2 if " ".join(words[:2]) in VERBS else 1
    verb = " ".join(words[:length])
    try:
        _run(verb, words[length:])
    except LatentObsError as error:
        cause = error.__cause__  # of a worker, it has the text of another traceback
        known = isinstance(cause, GameFaultError) or GameFaultError.__name__ in str(cause)
        if isinstance(error, GameLostError) and cause is not None and not known:
            traceback.print_exception(cause)  # shows where the environment's own code failed
        print(f"latent-obs {verb}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has ended, as head does
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        what = error if error.filename is None else f"{error.filename}: {error.strerror}"
        print(f"latent-obs {verb}: {what}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        print(f"latent-obs {verb}: memory is too short: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nlatent-obs {verb}: interrupted", file=sys.stderr)
        return 130
    return 0


def _run(verb: str, words: list[str]) -> None:
    for name in (verb, *words, str(Path.cwd())):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{name!r} is not text in UTF-8, which the files of a run are written in; rename the file or folder"
            ) from None
    if verb in REMOVED_VERBS:
        raise InputError(f"this verb was removed; {REMOVED_VERBS[verb]}")
    if verb not in VERBS:
        near = [name for name in VERBS if name.startswith(verb)] or VERBS
        raise InputError(f"there is no such verb. Use one of: {', '.join(near)}")
    check_own_packages()
    check_removed_options(verb, words)
    module, _, name = VERBS[verb][0].partition(":")
    function = getattr(importlib.import_module(f"latent_obs_cli.{module}"), name)
    if verb in _WITH_OWN_PARSER:
        function(words)
    else:
        from latent_obs_cli.parsing import parse_and_call

        parse_and_call(function, f"latent-obs {verb}", words)


def check_own_packages() -> None:
    """Check that no package of another project, named like one of this, comes first on the path or is in its place.

    Raises:
        InputError: One does or is; the message names both places.
    """
    home = Path(__file__).resolve().parents[1]
    for name, word in (("vae_training", "CVAE"), ("agents", "latents")):  # a word of its docstring
        spec, own = importlib.util.find_spec(name), home / name / "__init__.py"
        found = None if spec is None or spec.origin is None else Path(spec.origin)
        if found is not None and found.resolve() != own:
            raise InputError(
                f"{name}: Python finds {found} before {own}. Rename the first, or take its folder off the path "
                "(PYTHONPATH, or the working directory with python -m; the command latent-obs looks there last). "
                "If it is an installed package (openai-agents), install latent-obs into an environment without it"
            )
        if found is not None and word not in found.read_text(encoding="utf-8"):  # pip writes over it
            raise InputError(
                f"{name}: {found} is of another package, such as openai-agents, that was installed over that of "
                f"{home / 'latent_obs'}. Install latent-obs again, in an environment without the other"
            )


def entry() -> None:
    """The console script; modules in the current folder can be imported, as with `python -m`, after all others."""
    with contextlib.suppress(OSError):  # the folder was removed
        sys.path.append(str(Path.cwd()))
    sys.exit(main())


if __name__ == "__main__":
    entry()
