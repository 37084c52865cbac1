"""OpenMoji's drawings in; the demo's tables, results and figures out."""
