"""Tables of image URLs in, a new version of the data set out: the rows that it lacks are planned, fetched and committed."""
