"""Benchmarks: scenarios of measured stages, a named baseline in the same run, thresholds that pass or fail it."""
