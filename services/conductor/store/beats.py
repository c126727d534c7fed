"""Who is alive, for stores that only one process uses."""

import time


class Beats:
    """Replicas and when they last renewed their lease. A name not in it is dead: its process is gone."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}

    def join(self, replica: str) -> None:
        self._at[replica] = time.monotonic()

    def beat(self, replica: str) -> bool:
        """Renews a lease; False when it was given up."""
        if replica not in self._at:
            return False
        self._at[replica] = time.monotonic()
        return True

    def leave(self, replica: str) -> None:
        self._at.pop(replica, None)

    def names(self) -> tuple[str, ...]:
        return tuple(self._at)

    def alive(self, lease: float) -> tuple[str, ...]:
        """Gives up who is older than `lease` seconds; returns the others."""
        oldest = time.monotonic() - lease
        self._at = {replica: at for replica, at in self._at.items() if at >= oldest}
        return tuple(self._at)
