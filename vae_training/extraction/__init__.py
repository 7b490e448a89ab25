"""Frame files from recordings of other kinds: videos, pictures, arrays, MineRL and VPT datasets."""
