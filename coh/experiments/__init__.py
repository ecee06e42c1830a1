"""Ways to train, compared at equal numbers of tokens: `python -m coh.experiments ablation`."""

from coh.experiments.command import ExperimentsArgs, main

__all__ = ["ExperimentsArgs", "main"]
