"""The report: whether the latents of an encoder are any good, measured on held-out recordings.

report(ReportConfig(Path("runs/doom")))

The public names are listed once, in `__init__.pyi`; each is imported at first use, so that worker processes start
without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
