"""RayCLIP from Python and as the command `rayclip`; stands on top of all other packages."""
