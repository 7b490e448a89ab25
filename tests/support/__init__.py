"""What several tests share: tiny environments, recordings, runs, and a server that speaks Malmo's protocol."""

from pathlib import Path

#: The repository: what subprocesses put on their path to import the packages and these helpers.
ROOT = Path(__file__).parents[2]
CLIPS = ROOT / "tests" / "clips"
RECORDINGS = ROOT / "tests" / "recordings"
