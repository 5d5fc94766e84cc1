"""Inception-v3 as the Fréchet inception distance uses it ("paper mode"), with weights that the user has.

The network is that of torch-fidelity (extra `analysis`), a port of TensorFlow's of 2015-12-05; features are the 2048 of
its last pooling. Images are resized to 299 x 299 as TensorFlow 1 does and rounded to 8 bits. Nothing is downloaded.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from promptvit.analysis.extractor import Extractor
from promptvit.analysis.feature_stats import FeatureSpace
from promptvit.errors import ConfigError, DataError
from promptvit.files import digest
from promptvit.preprocessing import Preprocessing
from promptvit.shapes import Features

NAME, FEATURES = "inception-v3", "2048"
WEIGHTS = "weights-inception-2015-12-05-6726825d.pth of github.com/toshas/torch-fidelity, release v0.2.0"
PREPROCESSING = Preprocessing(size=(299, 299), interpolation="tf1-bilinear")


def inception(weights: str | Path, device: torch.device | None = None) -> Extractor:
    """Inception-v3 with the weights of a file, fingerprinted by the SHA-256 of that file.

    Raises ConfigError without torch-fidelity, and DataError for a file that is missing or holds something else.
    """
    try:
        content = Path(weights).expanduser().read_bytes()
    except OSError as error:
        raise DataError(
            f"{weights} cannot be read: {error.strerror or error}",
            expected="the weights of Inception-v3",
            where="inception",
            fix=f"Fetch {WEIGHTS}",
        ) from error
    network = _network(content, weights).to(device or "cpu")

    def read(pixels: UInt8[Tensor, "B 3 299 299"]) -> Features:
        return network(pixels.to(device or "cpu"))[0]

    space = FeatureSpace(extractor=NAME, fingerprint=digest(content), preprocessing=PREPROCESSING)
    return Extractor(space=space, preprocessing=PREPROCESSING, read=read)


def _network(content: bytes, weights: str | Path) -> torch.nn.Module:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise ConfigError(
            "inception needs torch-fidelity", where="inception", fix="pip install 'promptvit[analysis]'"
        ) from None
    plain = BytesIO()  # torch-fidelity unpickles what it is given: it is given tensors that we have read without that
    try:
        tensors: Any = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
        torch.save(tensors, plain)
        plain.seek(0)
        return FeatureExtractorInceptionV3(NAME, [FEATURES], feature_extractor_weights_path=plain)
    except Exception as error:  # zip, pickle and names of tensors: all kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{weights} does not hold the weights of Inception-v3: {reason}", where="inception", fix=f"Fetch {WEIGHTS}"
        ) from error
