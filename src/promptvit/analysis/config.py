"""What can be asked of an analysis, as plain names. Imports no torch."""

from __future__ import annotations

from typing import Literal

Variant = Literal["attention", "tokens", "clustering"]
"""How prompts and patches are compared for their NMI; see `promptvit.analysis.nmi`."""
Embedding = Literal["tsne", "umap", "poincare"]
"""How features become points in the plane; see `promptvit.analysis.embedding`."""
Attribution = Literal["grad-cam", "rollout", "integrated-gradients"]
"""How a map of an image is made; see `promptvit.analysis.attribution`."""
PRESERVATION, ATTRIBUTION = "preservation.json", "attribution.json"
"""Where the folder of a run keeps what was found."""
