"""What a domain can touch: as it was granted, as the kernel says it is, and where the two differ."""

from shoal.manager.capabilities.difference import Difference
from shoal.manager.capabilities.granted import Granted
from shoal.manager.capabilities.observed import Observed
from shoal.manager.capabilities.view import Capabilities, observe

__all__ = ["Capabilities", "Difference", "Granted", "Observed", "observe"]
