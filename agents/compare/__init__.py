"""Are latents worth it? Training runs of several arms on several tasks with several seeds, and their results.

study = load_study("study.toml")
results = compare(study, "runs/compare")
print(summarize(results)["verdict"]["headline"])

The public names are listed once, in `__init__.pyi`; each is imported at first use, so that `--help` is quick.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
