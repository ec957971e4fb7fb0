"""Executables and what they need: ELF files, #! lines, library closures, resolvers."""

from typing import TYPE_CHECKING

from shoal import first_use
from shoal.loader.cache import FileIdentity as FileIdentity
from shoal.loader.closure import Closure as Closure
from shoal.loader.closure import Library as Library
from shoal.loader.elf import ElfImage as ElfImage
from shoal.loader.executable import Executable as Executable
from shoal.loader.executable import Kind as Kind
from shoal.loader.executable import closure_check as closure_check
from shoal.loader.executable import inspect as inspect
from shoal.loader.executable import library_closure as library_closure
from shoal.loader.executable import open_executable as open_executable
from shoal.loader.interpreter import Followed as Followed
from shoal.loader.interpreter import follow as follow
from shoal.loader.resolver import DirectoryResolver as DirectoryResolver
from shoal.loader.resolver import Resolved as Resolved
from shoal.loader.resolver import Resolver as Resolver
from shoal.loader.resolver import ask as ask
from shoal.loader.resolver import get_resolver as get_resolver
from shoal.loader.resolver import set_resolver as set_resolver

if TYPE_CHECKING:
    from shoal.loader.oci import OciLayoutResolver as OciLayoutResolver
else:
    # tar, gzip, JSON and hashes would double the time that every other start takes
    __getattr__, __dir__, _ = first_use.names(__name__, {"shoal.loader.oci": ("OciLayoutResolver",)})
