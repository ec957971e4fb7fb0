"""The name service: records found by name and by what they say, watches, messages, locks, barriers, semaphores. Names only."""

from shoal.manager.names.barrier import Barrier as Barrier
from shoal.manager.names.events import Event as Event
from shoal.manager.names.limits import Limits as Limits
from shoal.manager.names.local import LocalService as LocalService
from shoal.manager.names.lock import Lock as Lock
from shoal.manager.names.pattern import Pattern as Pattern
from shoal.manager.names.query import Constraint as Constraint
from shoal.manager.names.query import Query as Query
from shoal.manager.names.record import Atom as Atom
from shoal.manager.names.record import Record as Record
from shoal.manager.names.registry import Registry as Registry
from shoal.manager.names.semaphore import Semaphore as Semaphore
from shoal.manager.names.service import NameService as NameService
from shoal.manager.names.watch import Watch as Watch
