"""Archives: a version and everything it relies on, in one file.

An archive moves a version to another machine. It is an uncompressed tar. Unpacked, it is a store
without tags: the records of the version and of all those it continues; every dataset, model and
source that these name or were made from; and the records beside them (check results, records of
computations, and the environments and patches that these name). The first file is `archive.json`,
which lists every other file with its size and sha256, sorted by name. That list determines the rest
of the archive to the last byte, so the same store gives the same archive, and the reader accepts
nothing else: no link, no second copy, no name that leads outside, nothing after the end.

An import verifies content: every name that is a hash is recomputed before anything becomes visible.
It cannot verify times, host names, check results or the records of computations; those are taken
from the sender. Without our stamp (`wind.store.stamps`) no run relies on them, unless the sender is
trusted by name or has signed them (`wind.audit.signatures`). The cache of a run is not part of an
archive, because nobody could verify that a key led to that content.
"""

from wind.exchange.archives.exporting import export_archive, reachable
from wind.exchange.archives.importing import Imported, import_archive

__all__ = ["Imported", "export_archive", "import_archive", "reachable"]
