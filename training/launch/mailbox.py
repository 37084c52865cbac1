"""Words that the driver, the controller and rank 0 of one launch leave for each other in a key-value store.

In: two functions that put and get a value of the cluster (training/ray_internals.py has Ray's). The words:

```
stop    driver -> rank 0        save a checkpoint and end
save    controller -> rank 0    save a checkpoint; the word is new for each request
saved   rank 0 -> controller    the `save` word whose checkpoint is committed
ended   a rank -> all ranks     why the run cannot continue
```
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

Put = Callable[[str, str], None]
Get = Callable[[str], str]
"""An unknown key gives an empty string."""


@dataclass(frozen=True)
class Mailbox:
    """The words of one launch; those of other launches have other keys."""

    launch_id: str
    put_value: Put
    get_value: Get

    def put(self, name: str, word: str) -> None:
        self.put_value(f"{self.launch_id}/{name}", word)

    def get(self, name: str) -> str:
        """The last word put under a name, or an empty string."""
        return self.get_value(f"{self.launch_id}/{name}")


def ask_to_stop(mailbox: Mailbox) -> None:
    """Ask the workers to save and end. Uses a thread: a signal's handler must not wait for the network."""
    print("asked to stop: the workers save a checkpoint after this step and end", flush=True)
    threading.Thread(target=mailbox.put, args=("stop", "yes")).start()
