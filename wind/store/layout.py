"""Layout: names of files and folders in every store."""

import re
from typing import Final

MANIFEST: Final = "manifest.json"
WEIGHTS: Final = ".safetensors"
MODEL_FILES: Final = re.compile(
    r"^(.*\.(json|jinja|txt|model)|(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors)\Z"
)
# Beside the manifest of a model whose weights a retention policy removed.
DROPPED: Final = "dropped.json"
# Relative to the root: one folder for each training.
CHECKPOINTS: Final = "partial/training-checkpoints"
# In the folder of a finished training whose last checkpoint was kept: the model it produced.
FINISHED: Final = "finished.json"
