"""The paper's experiments as commands: many runs of `fastres.training`, figures and a table."""
