"""The paper's claims at small scale, on real images: `python -m benchmarks.claims NAME` (`all`, or see `--help`)."""
