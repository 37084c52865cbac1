"""An environment with few packages: with this folder in PYTHONPATH, every other installed package seems to be absent.

In: BARE_MACHINE_PACKAGES, names of packages as they are imported, separated by commas. All child processes follow.
"""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder

ALLOWED = set(os.environ["BARE_MACHINE_PACKAGES"].split(","))


class FewPackages(PathFinder):
    """Finds no package of site-packages but those that are allowed."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None) -> ModuleSpec | None:
        found = super().find_spec(fullname, path, target)
        places = [] if found is None else [found.origin or "", *(found.submodule_search_locations or ())]
        is_installed = any("site-packages" in place for place in places)
        return None if is_installed and fullname.partition(".")[0] not in ALLOWED else found

    @classmethod
    def find_distributions(cls, *args, **kwargs):
        """Metadata of the allowed packages alone: versions, and entry points such as pytest's plugins."""
        found = super().find_distributions(*args, **kwargs)
        return (one for one in found if one.metadata["Name"].lower().replace("-", "_") in ALLOWED)


sys.meta_path[:] = [FewPackages if finder is PathFinder else finder for finder in sys.meta_path]
