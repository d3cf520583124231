"""Trains a family of shipped models in stages: tokenizers, then priors and MixARs, then what the best of them gains.

See `benchmarks.train_zoo.__main__`.
"""
