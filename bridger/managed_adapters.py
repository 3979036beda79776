"""Several adapters on one pair of towers: they are loaded, chosen, averaged and let go."""

from __future__ import annotations

from bridger.saving import SavedModel


class ManagedAdapters(SavedModel):
    """Adapters by name, of which one acts, as `BridgedModel` has them."""
