"""Messages exchanged by the driver, the controller and rank 0 of one launch through a key-value store.

In: two functions that put and get a value of the cluster (training/ray_internals.py has Ray's). The messages:

```
stop    driver -> rank 0        save a checkpoint and end
save    controller -> rank 0    save a checkpoint; each request has a new value
saved   rank 0 -> controller    the value of `save` whose checkpoint is committed
ended   a rank -> all ranks     why the run cannot continue
waits   controller -> driver    workers are being scheduled, until they have started
trains  rank 0 -> driver        it hears requests; emptied by the controller when its group is gone
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
    """The messages of one launch; those of other launches have other keys."""

    launch_id: str
    put_value: Put
    get_value: Get

    def put(self, name: str, message: str) -> None:
        self.put_value(f"{self.launch_id}/{name}", message)

    def get(self, name: str) -> str:
        """The last message put under a name, or an empty string."""
        return self.get_value(f"{self.launch_id}/{name}")


def ask_to_stop(mailbox: Mailbox) -> None:
    """Asks the workers to save and end. Uses a thread: a signal's handler must not wait for the network."""
    print("asked to stop: the workers save a checkpoint after this step and end", flush=True)
    threading.Thread(target=mailbox.put, args=("stop", "yes")).start()
