"""What runs beside an agent: the frozen encoder and the wrappers that turn pixels into mean latent vectors.

    env = latent_obs.make("VizdoomHealthGathering-v1", encoder="runs/doom/encoder")

The public names are listed once, in `__init__.pyi`; each is imported at first use, so that worker processes start
without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
