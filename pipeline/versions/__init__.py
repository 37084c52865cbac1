"""A version of a data set in, another out: choices, takedowns, foreign tars; and a check of what is there."""
