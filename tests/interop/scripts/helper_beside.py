"""A module beside a script, as scripts have them."""

WORD = "beside"
