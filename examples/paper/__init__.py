"""The experiments of the paper's section 4, one command each: `python -m examples.paper --help`."""
