"""One module a parser."""
