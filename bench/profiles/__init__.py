"""Load on a whole Fluxora: stages, mixed scenarios, thresholds. `python -m bench load --help`; bench/README.md."""
