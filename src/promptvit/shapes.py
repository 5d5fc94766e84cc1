"""Tensor aliases in the shape letters of the project, checked at run time in the tests.

B batch · N tokens · R rows that are read · P prompts · T key/value prompts · D width · H heads · d head width ·
C classes. A prompt tensor has a leading B only if it differs from image to image.
"""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor

Images = Float[Tensor, "B channels height width"]
Tokens = Float[Tensor, "B N D"]
Features = Float[Tensor, "B D"]
Logits = Float[Tensor, "B C"]
Labels = Int64[Tensor, " B"]
Prompts = Float[Tensor, "P D"] | Float[Tensor, "B P D"]
HeadPrompts = Float[Tensor, "H T d"] | Float[Tensor, "B H T d"]
