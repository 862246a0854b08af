"""Import of a data set of one's own into a folder of JSON lines: `import_dataset`."""

from __future__ import annotations

from cskt.data.importing.sources import NONE, Columns
from cskt.data.importing.writing import ImportOptions, import_dataset
