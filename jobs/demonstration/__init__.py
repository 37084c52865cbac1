"""OpenMoji's drawings in, the demo's tables and the pictures of its result out."""
