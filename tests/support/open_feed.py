"""A source of requests that waits for the next one, as a caller's own queue would."""

import queue


class Feed:
    """Iterate on one thread, put on any; ends after `put(None)`."""

    def __init__(self, *requests):
        self._next = queue.SimpleQueue()
        for one in requests:
            self.put(one)

    def put(self, one):
        self._next.put(one)

    def __iter__(self):
        return iter(self._next.get, None)
