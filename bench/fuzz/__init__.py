"""Fuzzing of everything that reads bytes of strangers: one target a parser, a corpus for each, two engines.

A target takes any bytes. It returns whether the parser took them, and raises what is a finding: an exception that the
parser does not document, or an answer that an independent reader of the same bytes contradicts.
"""
