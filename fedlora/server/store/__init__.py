"""The run store: which runs there are, which of their rounds are committed, and who took part."""

from fedlora.server.store.locks import Holder
from fedlora.server.store.run_store import RunStore, Traffic

__all__ = ["Holder", "RunStore", "Traffic"]
