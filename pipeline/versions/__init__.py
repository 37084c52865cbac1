"""A version of a data set in, another out: curated, compacted, rid of samples or grown by foreign tars; also its audit."""
