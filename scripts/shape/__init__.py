"""The study of shape: does matching the whole Gaussian beat matching two moments?

worlds     four small worlds, their data, goals and oracle
arms       what the arms do to latents: norms, discrepancies, laws, weights
training   many models trained in one batch of matrix products
measures   prediction, probes, information and plans of many models at once
tables     tables and pictures from rows

`scripts/shape_study.py` runs it. All tensors of many models lead with the axis M = seeds x arms."""
