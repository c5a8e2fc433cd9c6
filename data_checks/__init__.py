"""Data checks: one Great Expectations suite per dataset.

`validation.validate` runs them.
"""

import os
import warnings
from importlib import import_module

# Great Expectations reads this once, while it is imported.
os.environ["GX_ANALYTICS_ENABLED"] = "false"

with warnings.catch_warnings():
    # Great Expectations imports these two modules, which Python 3.11 deprecated. Each warns on its
    # first import only.
    warnings.filterwarnings(
        "ignore",
        message="module 'sre_(constants|parse)' is deprecated",
        category=DeprecationWarning,
    )
    import_module("sre_constants")
    import_module("sre_parse")
