"""The rows between blocks: what the drive of `TokenBackbone.forward` makes of them in the end is what it gives."""

import pytest
import torch

from promptvit.backbones.base import TokenBackbone
from promptvit.backbones.walk import walk
from promptvit.methods import METHODS


@pytest.mark.parametrize("method", ["linear", "vpt-shallow", "vpt-deep", "vpt-add"])
def test_the_last_rows_give_the_features(any_backbone, make_tuned, images, method):
    if not isinstance(any_backbone, TokenBackbone):
        pytest.skip("a ConvNet has no rows")
    model = make_tuned(any_backbone, METHODS[method].build())
    backbone, inputs = model.backbone, model.delta(model.backbone, len(images))
    *entering, last = walk(backbone, images, inputs)
    assert [rows.index for rows in (*entering, last)] == list(range(backbone.info.depth + 1))
    assert [rows.image.shape[1] for rows in entering] == list(backbone.info.rows)
    normed, image_rows = backbone.final_norm(torch.cat([last.image, last.prompts], dim=1)), last.image.shape[1]
    for readout in ("own", "image", "prompt", "all"):
        if readout in ("own", "image") or last.prompts.shape[1]:
            rows = normed[:, :image_rows] if readout in ("own", "image") else normed
            ours = backbone.read(rows, image_rows, readout)
            torch.testing.assert_close(ours, backbone(images, inputs, readout), rtol=0, atol=1e-10)
