"""Sandboxes: a policy becomes flags, actions and a confinement for spawn. There is no second mechanism."""
