"""Tables of URLs in, shards and a new version of the data set out."""
