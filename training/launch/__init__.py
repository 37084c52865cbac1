"""One launch of a run in, its words to the workers and the size of their group out; knows no Ray."""
