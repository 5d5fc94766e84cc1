"""One training run: loop, optimiser, evaluation, run folder."""
