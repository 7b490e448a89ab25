"""What runs before an agent: recordings, the CVAE, and its training with cyclical annealing of beta.

record(RecordConfig(env="VizdoomBasic-v1", out=Path("frames")))
extract(ExtractConfig((Path("videos"),), out=Path("frames")))
train(TrainConfig(frames=Path("frames"), out=Path("runs/doom")))

The public names are listed once, in `__init__.pyi`; each is imported at first use, so that worker processes start
without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
