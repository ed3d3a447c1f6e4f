"""The wire: what every event and call looks like, how it is framed, and which topic carries it.

Imports nothing else of ours. Start with `events.py`; `topics.py` says where each event goes.
"""
